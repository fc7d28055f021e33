import random
from collections import Counter, defaultdict

import pytest

from data.shape_questions import Question, questions
from data.shapes import QUESTION_TYPES, Scene, SceneConfig, make_scene

NUM_SCENES = 2000
COLOUR_WORDS = ("red", "green", "blue", "yellow", "purple", "black")
KIND_WORDS = ("circle", "square", "triangle")


@pytest.fixture(scope="module")
def asked() -> list[tuple[Scene, list[Question]]]:
    made = []
    for index in range(NUM_SCENES):
        rng = random.Random(f"questions/{index}")
        scene = make_scene(rng)
        made.append((scene, questions(scene, rng)))
    return made


def blind_share(asked, kind: str | None) -> float:
    """How often the commonest answer to a question's exact words is right.

    Counted in one half of the scenes, tried on the other: on the counting half itself, rare
    questions would always be answered right.
    """
    by_text, by_type = defaultdict(Counter), defaultdict(Counter)
    for _, drawn in asked[: NUM_SCENES // 2]:
        for question in drawn:
            by_text[question.text][question.answer] += 1
            by_type[question.type][question.answer] += 1
    right = [
        (by_text.get(q.text) or by_type[q.type]).most_common(1)[0][0] == q.answer
        for _, drawn in asked[NUM_SCENES // 2 :]
        for q in drawn
        if kind in (None, q.type)
    ]
    return sum(right) / len(right)


# Half for yes and no, a quarter for four directions, a third for three shapes, a sixth for six
# colours; a few points more for chance. Counts cannot be fully even: every scene has something
# that occurs once, and few have four of a kind.
@pytest.mark.parametrize(
    ("kind", "most"),
    [
        ("existence", 0.54),
        ("colour", 0.22),
        ("shape", 0.38),
        ("count", 0.37),
        ("place", 0.31),
        ("relation", 0.31),
        ("comparison", 0.54),
        (None, 0.40),
    ],
)
def test_the_words_of_a_question_do_not_tell_its_answer(asked, kind, most) -> None:
    assert blind_share(asked, kind) < most


def test_every_type_is_asked_and_none_more_often_than_wished(asked) -> None:
    for _, drawn in asked:
        assert max(Counter(question.type for question in drawn).values()) <= 2
        assert len({question.text for question in drawn}) == len(drawn)
    counts = Counter(question.type for _, drawn in asked for question in drawn)
    assert set(counts) == set(QUESTION_TYPES)
    # A place needs a shape with a name of its own; a relation two, beside or above one another.
    rarer = ("place", "relation")
    assert all(n == 2 * NUM_SCENES for kind, n in counts.items() if kind not in rarer)
    assert counts["place"] > NUM_SCENES
    assert counts["relation"] > 0.6 * NUM_SCENES


def test_questions_are_short_and_of_few_words(asked) -> None:
    texts = {question.text for _, drawn in asked for question in drawn}
    assert max(len(text.split()) for text in texts) <= 9
    assert len({word for text in texts for word in text.strip("?").split()}) <= 45


def test_counts_go_from_none_to_four(asked) -> None:
    answers = {q.answer for _, drawn in asked for q in drawn if q.type == "count"}
    assert answers == {"0", "1", "2", "3", "4"}


def test_answers_are_right(asked) -> None:
    """Answers found again from the words alone, by other means than they were made with."""
    checked = Counter()
    for scene, drawn in asked:
        for question in drawn:
            assert answers(scene, question.text) == {question.answer}, (question, scene)
            checked[question.type] += 1
    assert set(checked) == set(QUESTION_TYPES)


def test_questions_per_type_decides_what_is_asked() -> None:
    config = SceneConfig(questions_per_type={"count": 3})
    rng = random.Random(0)
    drawn = questions(make_scene(rng, config), rng, config)
    assert [question.type for question in drawn] == ["count"] * 3


def test_wishing_for_more_questions_than_there_are_ends() -> None:
    config = SceneConfig(
        num_shapes_weights=(1, 0, 0, 0), questions_per_type=dict.fromkeys(QUESTION_TYPES, 500)
    )
    rng = random.Random(0)
    drawn = questions(make_scene(rng, config), rng, config)
    assert "relation" not in {question.type for question in drawn}


def test_two_colours_and_two_kinds_are_enough_of_a_world() -> None:
    config = SceneConfig(colours=("red", "blue"), kinds=("circle", "square"))
    for seed in range(200):
        rng = random.Random(seed)
        scene = make_scene(rng, config)
        for question in questions(scene, rng, config):
            assert answers(scene, question.text) == {question.answer}


def answers(scene: Scene, text: str) -> set[str]:
    """Every answer that the scene allows to a question."""
    words = text.strip("?").replace(",", "").split()
    if text.startswith("is there a "):
        return {"yes" if matching(scene, words[3:]) else "no"}
    if text.startswith("what colour is the "):
        return {shape.colour for shape in matching(scene, words[4:])}
    if text.startswith("what shape is "):
        return {shape.kind for shape in matching(scene, words[3:])}
    if text.startswith("how many "):
        return {str(len(matching(scene, words[2:-2])))}
    if text.startswith("where is the ") and len(words) == 5:
        return {scene.place(shape) for shape in matching(scene, words[3:5])}
    if text.startswith("where is the "):
        (a,), (b,) = matching(scene, words[3:5]), matching(scene, words[7:9])
        dx, dy = a.x_px - b.x_px, a.y_px - b.y_px
        if abs(dx) > abs(dy):
            return {"right" if dx > 0 else "left"}
        return {"below" if dy > 0 else "above"}
    if text.startswith("are there more "):
        first, second = words[3], words[5]
        difference = len(matching(scene, [first])) - len(matching(scene, [second]))
        return {"yes" if difference > 0 else "no"} if difference else set()
    assert text.startswith("which is larger, the ")
    found = [shape for word in (words[4], words[7]) for shape in matching(scene, [word])]
    (first, second) = found
    assert first.size != second.size
    larger = first if first.size == "large" else second
    return {words[4] if words[4] in (larger.kind, larger.colour) else words[7]}


def matching(scene: Scene, words: list[str]) -> list:
    """The shapes that fit every describing word; other words say nothing."""
    words = [word.removesuffix("s") for word in words]
    place = " ".join(word for word in words if word in ("top", "bottom", "left", "right"))
    return [
        shape
        for shape in scene.shapes
        if place in ("", scene.place(shape))
        and all(shape.colour == word for word in words if word in COLOUR_WORDS)
        and all(shape.kind == word for word in words if word in KIND_WORDS)
        and all(shape.size == word for word in words if word in ("small", "large"))
    ]
