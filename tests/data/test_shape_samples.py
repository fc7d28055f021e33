import random
from collections import Counter

import pytest

from data.shape_samples import scene_sample, write_scenes
from data.shapes import SceneConfig, caption, make_scene, render
from data.shards import read_folder
from vlm.images import read_image


def test_a_sample_pairs_every_question_with_its_type_and_answer() -> None:
    scene = make_scene(random.Random(1))
    raw = scene_sample(scene, random.Random(2), "one")
    messages = raw.sample.messages
    assert raw.sample.num_images == 1
    assert messages[0].content[0].type == "image"
    answers = [message.text for message in messages if message.role == "assistant"]
    assert [turn.answers for turn in raw.sample.turns] == [(answer,) for answer in answers]
    assert "count" in {turn.type for turn in raw.sample.turns}


def test_the_picture_of_a_sample_is_the_rendered_scene() -> None:
    scene = make_scene(random.Random(1))
    (content,) = scene_sample(scene, random.Random(2), "one").images
    assert read_image(content).tobytes() == render(scene).tobytes()


@pytest.mark.parametrize(("content", "captions"), [("captions", 3), ("questions", 0), ("both", 1)])
def test_content_decides_whether_the_scene_is_described(content, captions) -> None:
    scene = make_scene(random.Random(1))
    sample = scene_sample(scene, random.Random(2), "one", content=content).sample
    counts = Counter(turn.type for turn in sample.turns)
    assert counts["caption"] == captions
    assert (counts["count"] > 0) == (content != "captions")
    if captions:
        assert sample.messages[1].text == caption(scene)


def test_equal_seeds_pack_equal_bytes_and_other_seeds_others(tmp_path) -> None:
    config = SceneConfig(tile_size_px=24)
    first, again, other = (
        write_scenes(tmp_path / name, 5, seed, config, "both", samples_per_shard=3)
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first.sha256 == again.sha256 != other.sha256
    assert [entry.num_samples for entry in first.shards] == [3, 2]
    assert first.num_images == 5
    pictures = [[raw.images for raw in read_folder(tmp_path / name)] for name in ("first", "other")]
    assert all(one != another for one, another in zip(*pictures, strict=True))
    assert len({raw.key for raw in read_folder(tmp_path / "first")}) == 5
