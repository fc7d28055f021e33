"""The application: its routes behind its guard."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.types import ASGIApp

import vlm
from vlm.server.ask import ask_routes
from vlm.server.chat import chat_routes
from vlm.server.errors import add_error_handlers
from vlm.server.guard import Guard
from vlm.server.service import Service
from vlm.server.status import status_routes

DESCRIPTION = """\
Questions about images, in the form of OpenAI's chat completions, and two short forms for curl.
"""


def create_app(service: Service) -> ASGIApp:
    """Return the ASGI application that serves a model; its start starts the engine's thread."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    app = FastAPI(
        title="vlm",
        version=vlm.__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url="/docs",
        redoc_url=None,
    )
    for router in (chat_routes(service), ask_routes(service), status_routes(service)):
        app.include_router(router)
    add_error_handlers(app)
    return Guard(app, service)
