"""Serving the page until a signal."""

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import gradio as gr
from starlette.middleware import Middleware

from vlm.api import Model
from vlm.demo.config import DemoConfig
from vlm.demo.gate import Gate
from vlm.demo.page import HEAD, make_page, make_theme
from vlm.errors import UserError

POLL_S = 0.5


def serve(model: Model, config: DemoConfig) -> None:
    """Serve the page until SIGTERM or Ctrl-C. What was uploaded goes with it.

    Raises:
        UserError: the address cannot be listened on.
    """
    ended = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with running(model, config) as address:
        print(f"{model.folder.resolve().name} is at {address} until Ctrl-C", flush=True)
        while not ended.wait(POLL_S):  # woken now and then, since waiting holds back signals
            pass


@contextmanager
def running(model: Model, config: DemoConfig) -> Iterator[str]:
    """Serve the page in threads; gives its address.

    Raises:
        UserError: the address cannot be listened on.
    """
    port = _free_port(config.host, config.port)
    with tempfile.TemporaryDirectory(prefix="vlm-demo-") as folder:
        uploads = Path(folder, "uploads")
        uploads.mkdir()
        # Gradio reads these when a page is made and when files come.
        os.environ["GRADIO_TEMP_DIR"] = str(uploads)
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        page = make_page(model, config, Path(folder))
        try:
            _, address, _ = page.launch(
                server_name=config.host,
                server_port=port,
                prevent_thread_lock=True,
                quiet=True,
                inbrowser=False,
                share=False,
                show_error=False,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                max_file_size=config.max_image_bytes,
                allowed_paths=[],
                theme=make_theme(),
                head=HEAD,
                app_kwargs={"middleware": [Middleware(Gate, uploads=uploads)]},
            )
        except OSError as error:
            raise _cannot_listen(config.host, port, error) from error
        try:
            yield address
        finally:
            page.close(verbose=False)
            gr.close_all(verbose=False)


def _free_port(host: str, port: int) -> int:
    """The port if it is free; for 0 any that is.

    Raises:
        UserError: it is taken, or there is no such host.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server((host, port), family=family) as listener:
            chosen: int = listener.getsockname()[1]
            return chosen
    except OSError as error:
        raise _cannot_listen(host, port, error) from error


def _cannot_listen(host: str, port: int, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    return UserError(f"cannot listen on {host}:{port}: {reason}; choose another --port")
