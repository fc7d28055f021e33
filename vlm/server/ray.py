"""Replicas of a served model as a Ray Serve application, each an engine on a GPU of its own.

`serve run vlm.server.ray:application model=FOLDER replicas=2`; docs/serving.md tells more. Every
replica runs the application of `vlm serve`, so that routes, limits and errors are the same. Ray's
proxy takes the connections and chooses the replica.
"""

from pathlib import Path
from typing import Self

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from vlm.config import load_config
from vlm.errors import UserError
from vlm.server.config import ServerConfig

# Beyond the answers that a replica writes and lets wait, so that it is the replica that says 429
# when it is full, with the time to wait, and that it can be asked how it is.
MORE_REQUESTS = 100


class RayConfig(BaseModel):
    """Arguments of the application.

    model: a model folder, at the same path on every machine.
    config: a YAML file of `vlm serve --config`; its limits are those of one replica.
    dtype: as `vlm serve` has it.
    gpus, cpus: what a replica takes of a machine; Ray shows it no other GPU. Without a GPU it runs
        on the CPU.
    replicas: so many, or at least so many.
    max_replicas: as many as this are started while there is work for them; None: no more than
        `replicas`.
    target_requests: of a replica at the same time, for choosing how many there should be; None is
        as many as it has slots.
    upscale_delay_s, downscale_delay_s: how long there must be too few or too many.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path
    config: Path | None = None
    dtype: str = "auto"
    gpus: NonNegativeFloat = 1.0
    cpus: PositiveFloat = 1.0
    replicas: PositiveInt = 1
    max_replicas: PositiveInt | None = None
    target_requests: PositiveFloat | None = None
    upscale_delay_s: NonNegativeFloat = 30.0
    downscale_delay_s: NonNegativeFloat = 600.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, needed: at least the {self.replicas} of "
                "replicas"
            )
        return self


@serve.ingress()
class Replica:
    """A model of its own behind the application of `vlm serve`."""

    def __init__(self, model: Path, config: ServerConfig, device: str, dtype: str) -> None:
        # Here, not where the application is made: that needs no torch.
        from vlm.api import load
        from vlm.server.facts import log_to_stderr
        from vlm.server.load import service_of

        log_to_stderr()
        self.service = service_of(load(model, device, dtype), config)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Ray's name for what makes the application."""
        from vlm.server.app import create_app

        return create_app(self.service)

    def check_health(self) -> None:
        """Raise if nothing is generated any more; Ray then starts another replica."""
        if not self.service.worker.is_alive:
            raise RuntimeError("the engine's thread has ended")


def application(config: RayConfig) -> Application:
    """Return the application for `serve run`, `serve deploy` and `ray.serve.run`.

    Raises:
        UserError: the settings are no settings of a server, or say where to listen, which is up to
            Ray's `http_options`.
    """
    server = load_config(ServerConfig, config.config)
    placed = sorted({"host", "port"} & server.model_fields_set)
    if placed:
        raise UserError(
            f"{config.config} sets {' and '.join(placed)}: Ray's proxy listens where its "
            "http_options say; leave them out"
        )
    scaling = (
        {"num_replicas": config.replicas}
        if config.max_replicas is None
        else {
            "autoscaling_config": {
                "min_replicas": config.replicas,
                "max_replicas": config.max_replicas,
                "target_ongoing_requests": config.target_requests or server.slots,
                "upscale_delay_s": config.upscale_delay_s,
                "downscale_delay_s": config.downscale_delay_s,
            }
        }
    )
    deployed = serve.deployment(
        name="vlm",
        ray_actor_options={"num_gpus": config.gpus, "num_cpus": config.cpus},
        max_ongoing_requests=server.max_open + MORE_REQUESTS,
        graceful_shutdown_timeout_s=server.drain_s,
        **scaling,
    )(Replica)
    device = "cuda" if config.gpus else "cpu"
    return deployed.bind(config.model.absolute(), server, device, config.dtype)
