"""Rendered scenes as samples and as packed shards."""

import io
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from data.pack import Manifest, pack
from data.schema import ImagePart, Message, RawSample, Sample, TextPart, Turn
from data.shape_questions import questions
from data.shapes import (
    DEFAULT_SCENES,
    Scene,
    SceneConfig,
    caption,
    colours_caption,
    kinds_caption,
    make_scene,
    render,
)

Content = Literal["questions", "captions", "both"]
CAPTION_REQUEST = "Describe the image."
# What else is asked of a picture in `captions`. Few scenes of a batch share all of a full caption,
# and places are not needed to tell them apart; many share their colours or their kinds.
PARTIAL_CAPTIONS = {
    "Describe the colours.": colours_caption,
    "Describe the shapes.": kinds_caption,
}


def write_scenes(
    out: Path,
    num_scenes: int,
    seed: int,
    config: SceneConfig = DEFAULT_SCENES,
    content: Content = "questions",
    samples_per_shard: int = 1000,
) -> Manifest:
    """Render scenes and pack them; equal arguments write equal bytes.

    Raises:
        UserError: `out` is not empty.
    """
    samples = scene_samples(num_scenes, seed, config, content)
    return pack(samples, out, samples_per_shard=samples_per_shard, total=num_scenes)


def scene_samples(
    num_scenes: int, seed: int, config: SceneConfig, content: Content
) -> Iterator[RawSample]:
    """Yield scenes as samples; the n-th depends on the seed and n only."""
    for index in range(num_scenes):
        rng = random.Random(f"{seed}/{index}")
        scene = make_scene(rng, config)
        yield scene_sample(scene, rng, f"scene-{seed}-{index:06d}", config, content)


def scene_sample(
    scene: Scene,
    rng: random.Random,
    key: str,
    config: SceneConfig = DEFAULT_SCENES,
    content: Content = "questions",
) -> RawSample:
    """One scene as a chat about its picture.

    `questions` gives a turn for each question, `captions` the description and partial ones, `both`
    the description and then the questions.
    """
    pairs: list[tuple[str, str, str]] = []
    if content != "questions":
        pairs.append((CAPTION_REQUEST, caption(scene), "caption"))
    if content == "captions":
        pairs += [(text, write(scene), "caption") for text, write in PARTIAL_CAPTIONS.items()]
    else:
        asked = questions(scene, rng, config)
        pairs += [(question.text, question.answer, question.type) for question in asked]
    messages: list[Message] = []
    for text, answer, _ in pairs:
        front = () if messages else (ImagePart(),)
        messages.append(Message(role="user", content=(*front, TextPart(text=text))))
        messages.append(Message(role="assistant", content=(TextPart(text=answer),)))
    turns = tuple(Turn(type=kind, answers=(answer,)) for _, answer, kind in pairs)
    sample = Sample(messages=tuple(messages), turns=turns, source="shapes")
    return RawSample(key=key, sample=sample, images=[png_bytes(scene)])


def png_bytes(scene: Scene) -> bytes:
    """A scene's picture as a PNG file."""
    buffer = io.BytesIO()
    render(scene).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
