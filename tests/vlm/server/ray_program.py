"""Run as a program by test_ray.py: a Ray cluster of its own with the application, until SIGTERM.

python ray_program.py MODEL CONFIG PORT
"""

import signal
import sys
from pathlib import Path

import ray
from ray import serve

from vlm.server.ray import RayConfig, application

NUM_REPLICAS = 2


def main(model: str, config: str, port: str) -> None:
    ray.init(num_cpus=NUM_REPLICAS, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    settings = RayConfig(
        model=Path(model), config=Path(config), dtype="float32", gpus=0, replicas=NUM_REPLICAS
    )
    serve.run(application(settings))
    print("ready", flush=True)
    signal.sigwait([signal.SIGTERM])
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    main(*sys.argv[1:])
