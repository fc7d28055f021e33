"""Routes that say how the server is and what it serves."""

from fastapi import APIRouter
from starlette.responses import Response

from vlm.server.chat import ERRORS
from vlm.server.errors import ApiError
from vlm.server.schema import Health, ModelCard, ModelList
from vlm.server.service import Service


def status_routes(service: Service) -> APIRouter:
    """The routes, for a model."""
    router = APIRouter(responses={status: ERRORS[status] for status in (401, 503)})
    card = ModelCard(id=service.name, created=service.created, max_model_len=service.max_context)

    @router.get("/health")
    async def health() -> Health:
        """Whether the process answers; needs no key."""
        return Health(status="ok")

    @router.get("/ready")
    async def ready() -> Health:
        """Whether requests are taken; 503 while the server shuts down."""
        if not service.is_ready:
            raise ApiError(503, "not ready: shutting down, or nothing is generated any more")
        return Health(status="ready")

    @router.get(
        "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}}
    )
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    @router.get("/v1/models")
    async def models() -> ModelList:
        """The model that is served."""
        return ModelList(data=[card])

    @router.get("/v1/models/{model:path}", responses={404: ERRORS[404]})
    async def model(model: str) -> ModelCard:
        """One model."""
        if model != service.name:
            raise ApiError(404, f"there is no model {model!r}", "model", "model_not_found")
        return card

    return router
