"""Questions about rendered scenes, each with exactly one right answer.

Answers are drawn so that the words of a question tell nothing: yes and no are equally likely for
every question, directions and colours are drawn evenly, counts are evened out.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple

from data.shapes import DEFAULT_SCENES, SIZES, QuestionType, Scene, SceneConfig, Shape

# A scene holds few shapes of one attribute: high counts, where there are any, are asked for more.
COUNT_WEIGHTS = (1.0, 1.1, 2.0, 4.5, 12.0)
# A pair has a direction where the distance along one axis is this many times the other's.
CLEARLY = 1.6
# Drawing distinct questions gives up after this many attempts for each one wanted.
ATTEMPTS = 8

Pair = tuple[str, str]


class Question(NamedTuple):
    """A question, its only right answer, and its type."""

    text: str
    answer: str
    type: QuestionType


def questions(
    scene: Scene, rng: random.Random, config: SceneConfig = DEFAULT_SCENES
) -> list[Question]:
    """Draw different questions about a scene, in random order.

    A type gets fewer than `config.questions_per_type` where the scene has fewer to ask: a single
    shape has no relation.
    """
    drawn = []
    for kind, wanted in config.questions_per_type.items():
        found: dict[str, str] = {}
        pairs = DRAWERS[kind](scene, rng, config)
        for _ in range(ATTEMPTS * wanted):
            if len(found) == wanted:
                break
            pair = next(pairs, None)
            if pair is None:
                break
            found.setdefault(*pair)
        drawn += [Question(text, answer, kind) for text, answer in found.items()]
    rng.shuffle(drawn)
    return drawn


def _existence(scene: Scene, rng: random.Random, config: SceneConfig) -> Iterator[Pair]:
    """Whether something is there; what is not there shares a colour or a kind with what is.

    A form is used where both answers are possible. The answer is drawn before the question and
    kept: few things are in a scene and many are not, so that drawing both anew for each new
    question would favour "no".
    """
    there = {f"{shape.colour} {shape.kind}" for shape in scene.shapes}
    colours = {shape.colour for shape in scene.shapes}
    kinds = {shape.kind for shape in scene.shapes}
    missing = [
        (colour, kind)
        for colour in config.colours
        for kind in config.kinds
        if f"{colour} {kind}" not in there
    ]
    near = [f"{c} {k}" for c, k in missing if c in colours or k in kinds]
    nearest = [f"{c} {k}" for c, k in missing if c in colours and k in kinds]
    forms = {
        "yes": (
            sorted(there),
            sorted(there),
            sorted(f"{colour} thing" for colour in colours),
            sorted(kinds),
        ),
        "no": (
            near,
            nearest or near,
            [f"{colour} thing" for colour in config.colours if colour not in colours],
            [kind for kind in config.kinds if kind not in kinds],
        ),
    }
    possible = [i for i in range(4) if forms["yes"][i] and forms["no"][i]]
    asked: set[str] = set()
    while True:
        answer = rng.choice(("yes", "no"))
        left = [[w for w in forms[answer][i] if w not in asked] for i in possible]
        if not any(left):
            return
        words = rng.choice(rng.choice([form for form in left if form]))
        asked.add(words)
        yield f"is there a {words}?", answer


def _colour(scene: Scene, rng: random.Random, config: SceneConfig) -> Iterator[Pair]:
    """The colour of the only shape of a kind, of a size, of both, or at a place."""
    while True:
        shape = rng.choice(scene.shapes)
        names = [f"{scene.place(shape)} thing"]
        if _unique(scene, shape, "kind"):
            names += [shape.kind, shape.kind]
        elif _unique(scene, shape, "size", "kind"):
            names.append(f"{shape.size} {shape.kind}")
        if _unique(scene, shape, "size"):
            names.append(f"{shape.size} thing")
        yield f"what colour is the {rng.choice(names)}?", shape.colour


def _shape(scene: Scene, rng: random.Random, config: SceneConfig) -> Iterator[Pair]:
    """The kind of the only shape of a colour, of a size, of both, or at a place."""
    while True:
        shape = rng.choice(scene.shapes)
        names = [f"at the {scene.place(shape)}"]
        if _unique(scene, shape, "colour"):
            names += [f"the {shape.colour} thing"] * 2
        elif _unique(scene, shape, "size", "colour"):
            names.append(f"the {shape.size} {shape.colour} thing")
        if _unique(scene, shape, "size"):
            names.append(f"the {shape.size} thing")
        yield f"what shape is {rng.choice(names)}?", shape.kind


def _count(scene: Scene, rng: random.Random, config: SceneConfig) -> Iterator[Pair]:
    """The number of shapes of a colour, a kind or a size, or of all."""
    forms: tuple[dict[str, int], ...] = (
        {f"{colour} shapes": n for colour, n in _tally(scene, "colour", config.colours).items()},
        {f"{kind}s": n for kind, n in _tally(scene, "kind", config.kinds).items()},
        {f"{size} shapes": n for size, n in _tally(scene, "size", SIZES).items()},
        {"shapes": len(scene.shapes)},
    )
    while True:
        (form,) = rng.choices(forms, (4, 3, 2, 1))
        counts = sorted(set(form.values()))
        (count,) = rng.choices(counts, [COUNT_WEIGHTS[n] for n in counts])
        what = rng.choice([name for name, n in form.items() if n == count])
        yield f"how many {what} are there?", str(count)


def _place(scene: Scene, rng: random.Random, config: SceneConfig) -> Iterator[Pair]:
    """The quarter of the picture that a shape lies in."""
    named = [shape for shape in scene.shapes if _unique(scene, shape, "colour", "kind")]
    while named:
        shape = rng.choice(named)
        yield f"where is the {shape.colour} {shape.kind}?", scene.place(shape)


def _relation(scene: Scene, rng: random.Random, config: SceneConfig) -> Iterator[Pair]:
    """Where one shape is from another, for pairs that clearly lie along one axis."""
    named = [shape for shape in scene.shapes if _unique(scene, shape, "colour", "kind")]
    by_axis: dict[str, list[tuple[Shape, Shape, str]]] = {"x": [], "y": []}
    for shape in named:
        for other in named:
            dx, dy = shape.x_px - other.x_px, shape.y_px - other.y_px
            if abs(dx) > CLEARLY * abs(dy):
                by_axis["x"].append((shape, other, "left" if dx < 0 else "right"))
            elif abs(dy) > CLEARLY * abs(dx):
                by_axis["y"].append((shape, other, "above" if dy < 0 else "below"))
    axes = [pairs for pairs in by_axis.values() if pairs]
    while axes:
        shape, other, answer = rng.choice(rng.choice(axes))
        yield (
            f"where is the {shape.colour} {shape.kind} from the {other.colour} {other.kind}?",
            answer,
        )


def _comparison(scene: Scene, rng: random.Random, config: SceneConfig) -> Iterator[Pair]:
    """Which of two colours or kinds there is more of, or which of two shapes is larger.

    Only unequal ones are compared, and either may be named first.
    """
    colours = _unequal_pairs(_tally(scene, "colour", config.colours))
    kinds = _unequal_pairs(_tally(scene, "kind", config.kinds))
    frequencies = [
        *(("are there more {} than {} things?", pairs) for pairs in colours if pairs),
        *(("are there more {}s than {}s?", pairs) for pairs in kinds if pairs),
    ]
    by_kind, by_colour = _larger(scene, "kind"), _larger(scene, "colour")
    sizes = [
        *(("which is larger, the {} or the {}?", pairs) for pairs in [by_kind] if pairs),
        *(("which is larger, the {} or the {} thing?", pairs) for pairs in [by_colour] if pairs),
    ]
    while frequencies or sizes:
        about_sizes = bool(sizes) and (not frequencies or rng.random() < 0.5)
        form, pairs = rng.choice(sizes if about_sizes else frequencies)
        more, less = rng.choice(pairs)
        turned = rng.random() < 0.5
        text = form.format(less, more) if turned else form.format(more, less)
        yield text, more if about_sizes else ("no" if turned else "yes")


def _unique(scene: Scene, shape: Shape, *attributes: str) -> bool:
    """Whether no other shape of the scene has these attributes."""
    look = attrgetter(*attributes)
    return sum(look(other) == look(shape) for other in scene.shapes) == 1


def _tally(scene: Scene, attribute: str, values: Iterable[str]) -> dict[str, int]:
    counts = Counter(map(attrgetter(attribute), scene.shapes))
    return {value: counts[value] for value in values}


def _unequal_pairs(tally: dict[str, int]) -> tuple[list[Pair], list[Pair]]:
    """Pairs (more, fewer): those that both occur, and those of which one is missing."""
    both = [(a, b) for a, n in tally.items() for b, m in tally.items() if n > m > 0]
    one = [(a, b) for a, n in tally.items() for b, m in tally.items() if n > m == 0]
    return both, one


def _larger(scene: Scene, attribute: str) -> list[Pair]:
    """Pairs (larger, smaller) of kinds or colours that one shape each has."""
    lone = [shape for shape in scene.shapes if _unique(scene, shape, attribute)]
    name = attrgetter(attribute)
    return [
        (name(a), name(b)) for a in lone for b in lone if (a.size, b.size) == ("large", "small")
    ]


Drawer = Callable[[Scene, random.Random, SceneConfig], Iterator[Pair]]
DRAWERS: dict[QuestionType, Drawer] = {
    "existence": _existence,
    "colour": _colour,
    "shape": _shape,
    "count": _count,
    "place": _place,
    "relation": _relation,
    "comparison": _comparison,
}
