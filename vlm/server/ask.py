"""`/v1/ask` and `/v1/caption`: a question or none, pictures as they lie in their files."""

from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile

from vlm.api import CAPTION_PROMPT
from vlm.server.answers import Growth, Wish, joined
from vlm.server.chat import ERRORS, PATIENCE_S
from vlm.server.connection import facts_of, unless_gone
from vlm.server.schema import ShortAnswer, Usage
from vlm.server.service import Service, sampling_of
from vlm.server.worker import Lease

MaxTokens = Annotated[int | None, Form(ge=1, description="The longest answer.")]
Temperature = Annotated[float, Form(ge=0, le=2, allow_inf_nan=False)]
TopP = Annotated[float, Form(gt=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int | None, Form(ge=-(2**63), lt=2**63)]


def ask_routes(service: Service) -> APIRouter:
    """The routes, for a model."""
    router = APIRouter()

    @router.post("/v1/ask", responses=ERRORS)
    async def ask(
        request: Request,
        lease: Annotated[Lease, Depends(service.lease)],
        question: Annotated[str, Form(examples=["How many dogs are there?"])],
        image: Annotated[list[UploadFile] | None, File(description="Picture files.")] = None,
        max_tokens: MaxTokens = None,
        temperature: Temperature = 0.0,
        top_p: TopP = 1.0,
        seed: Seed = None,
    ) -> ShortAnswer:
        """Answer a question about pictures, or about none."""
        wish = max_tokens, temperature, top_p, seed
        work = _answer(service, lease, request, image or [], question, wish)
        return await unless_gone(request, work)

    @router.post("/v1/caption", responses=ERRORS)
    async def caption(
        request: Request,
        lease: Annotated[Lease, Depends(service.lease)],
        image: Annotated[UploadFile, File(description="A picture file.")],
        max_tokens: MaxTokens = None,
        temperature: Temperature = 0.0,
        top_p: TopP = 1.0,
        seed: Seed = None,
    ) -> ShortAnswer:
        """Describe a picture."""
        wish = max_tokens, temperature, top_p, seed
        work = _answer(service, lease, request, [image], CAPTION_PROMPT, wish)
        return await unless_gone(request, work)

    return router


async def _answer(
    service: Service,
    lease: Lease,
    request: Request,
    images: list[UploadFile],
    question: str,
    settings: tuple[int | None, float, float, int | None],
) -> ShortAnswer:
    service.take(lease, 1)
    max_tokens, temperature, top_p, seed = settings
    contents = [await image.read() for image in images]
    prompt = await service.prompts.read_question(contents, question)
    wish = Wish(
        max_new_tokens=service.answer_tokens(prompt, max_tokens, "max_tokens"),
        sampling=sampling_of(seed, temperature=temperature, top_p=top_p),
    )
    answers = service.answer(lease, prompt, wish, facts_of(request))
    growths: list[Growth] = [
        growth async for growth in answers.growth(PATIENCE_S) if growth is not None
    ]
    text, _, finish_reason = joined(growths)
    return ShortAnswer(
        text=text,
        finish_reason=finish_reason,
        model=service.name,
        usage=Usage.of(prompt.num_tokens, answers.num_tokens),
    )
