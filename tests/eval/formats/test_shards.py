from pathlib import Path

from data.schema import RawSample, Sample
from data.shape_samples import write_scenes
from data.shapes import SceneConfig
from data.shards import read_folder
from eval.benchmark import find_benchmark
from eval.formats.shards import sample_questions
from eval.items import Item


def chat(*texts: str, turns: list[dict] | None = None, pictures_at: tuple[int, ...] = (0,)):
    """A sample of user and assistant texts by turns, pictures before the given messages' words."""
    messages = [
        {
            "role": "assistant" if index % 2 else "user",
            "content": [{"type": "image"}] * (index in pictures_at)
            + [{"type": "text", "text": text}],
        }
        for index, text in enumerate(texts)
    ]
    sample = Sample.parse({"messages": messages, "turns": turns or []})
    return RawSample("k", sample, [f"picture {i}".encode() for i in range(len(pictures_at))])


def contents(item: Item) -> list[bytes]:
    return [picture.read() for picture in item.images]


def test_each_turn_is_a_question_with_its_own_answers() -> None:
    turns = [{"type": "count", "answers": ["2", "two"]}, {"type": "colour"}]
    asked = list(sample_questions(chat("how many?", "2", "what colour?", "red", turns=turns)))
    assert [(i.id, i.question, i.type, i.answers) for i in asked] == [
        ("k#0", "how many?", "count", ("2", "two")),
        ("k#1", "what colour?", "colour", ("red",)),
    ]
    assert contents(asked[0]) == contents(asked[1]) == [b"picture 0"]
    assert asked[0].images == asked[1].images


def test_a_question_has_the_pictures_shown_so_far() -> None:
    raw = chat("first?", "a", "second?", "b", "third?", "c", pictures_at=(2, 4))
    pictures = [contents(item) for item in sample_questions(raw)]
    assert pictures == [[], [b"picture 0"], [b"picture 0", b"picture 1"]]


def test_captions_are_left_out_and_untyped_turns_kept() -> None:
    turns = [{"type": "caption"}, {}]
    (asked,) = sample_questions(chat("Describe.", "a dog", "dog?", "yes", turns=turns))
    assert (asked.id, asked.type, asked.answers) == ("k#1", "other", ("yes",))


def test_a_chat_without_labels_is_asked_for_its_own_words() -> None:
    (asked,) = sample_questions(chat("dog?", "yes"))
    assert (asked.type, asked.answers) == ("other", ("yes",))


def test_packed_scenes_give_every_question_once(tmp_path: Path) -> None:
    config = SceneConfig(tile_size_px=24)
    write_scenes(tmp_path / "shards", 6, 0, config, "both", samples_per_shard=4)
    asked = list(find_benchmark("shards").items(tmp_path / "shards"))
    num_turns = sum(raw.sample.num_turns for raw in read_folder(tmp_path / "shards"))
    assert len(asked) == num_turns - 6
    assert len({item.id for item in asked}) == len(asked)
    assert all(len(item.images) == 1 for item in asked)
