"""Which images a text token sees, against worked cases and transformers' rule."""

import random

import pytest
import torch
from torch import Tensor
from transformers.models.mllama.processing_mllama import get_cross_attention_token_mask

from vlm.decoder.masks import ImageVisibility, image_token_mask, visible_images

IMAGE = 7


def ids_of(row: str) -> Tensor:
    """`i` is an image token, `.` is text; `|` separates documents and is no token."""
    return torch.tensor([[IMAGE if letter == "i" else 1 for letter in row if letter != "|"]])


def positions_of(row: str) -> Tensor:
    return torch.tensor([[place for part in row.split("|") for place in range(len(part))]])


def visible(row: str, visibility: ImageVisibility) -> list[str]:
    """For every token the numbers of the images that it sees."""
    ids, positions = ids_of(row), positions_of(row)
    mask = visible_images(ids, positions, IMAGE, max(row.count("i"), 1), visibility)[0]
    return ["".join(str(n) for n in seen.nonzero().flatten().tolist()) for seen in mask]


@pytest.mark.parametrize(
    ("row", "latest", "all_previous"),
    [
        ("...", ["", "", ""], ["", "", ""]),
        (".i.", ["", "0", "0"], ["", "0", "0"]),
        ("i.i.", ["0", "0", "1", "1"], ["0", "0", "01", "01"]),
        (".ii.", ["", "0", "01", "01"], ["", "0", "01", "01"]),
        ("ii.i.", ["0", "01", "01", "2", "2"], ["0", "01", "01", "012", "012"]),
        ("i.ii", ["0", "0", "1", "12"], ["0", "0", "01", "012"]),
        ("iii", ["0", "01", "012"], ["0", "01", "012"]),
    ],
)
def test_a_token_sees_the_images_that_the_rule_names(
    row: str, latest: list[str], all_previous: list[str]
) -> None:
    assert visible(row, "latest") == latest
    assert visible(row, "all_previous") == all_previous


@pytest.mark.parametrize("visibility", ["latest", "all_previous"])
def test_a_document_sees_its_own_images_as_if_it_stood_alone(
    visibility: ImageVisibility,
) -> None:
    rng = random.Random(0)
    for _ in range(200):
        documents = [
            "".join(rng.choice("ii.") for _ in range(rng.randint(1, 6)))
            for _ in range(rng.randint(1, 4))
        ]
        expected, images = [], 0
        for document in documents:
            # Alone the images are counted from 0, in the row from those before the document.
            for seen in visible(document, visibility):
                expected.append("".join(str(images + int(number)) for number in seen))
            images += document.count("i")
        if images < 10:  # a number is one letter here
            assert visible("|".join(documents), visibility) == expected, documents


def test_latest_is_transformers_rule() -> None:
    rng = random.Random(0)
    for _ in range(200):
        row = "".join(rng.choice("i..") for _ in range(rng.randint(1, 14)))
        num_images = row.count("i")
        expected = torch.zeros(len(row), max(num_images, 1), dtype=torch.bool)
        spans = get_cross_attention_token_mask(ids_of(row)[0].tolist(), IMAGE)
        for image, (start, end) in enumerate(spans):
            expected[start : len(row) if end == -1 else end, image] = True
        ids, positions = ids_of(row), positions_of(row)
        mask = visible_images(ids, positions, IMAGE, max(num_images, 1), "latest")
        assert torch.equal(mask[0], expected), row


@pytest.mark.parametrize("visibility", ["latest", "all_previous"])
def test_rows_with_other_numbers_of_images_do_not_mix(visibility: ImageVisibility) -> None:
    rows = ["i.i.", "....", ".iii"]
    ids, positions = (torch.cat([of(row) for row in rows]) for of in (ids_of, positions_of))
    together = visible_images(ids, positions, IMAGE, 3, visibility)
    for row, mask in zip(rows, together, strict=True):
        alone = visible_images(ids_of(row), positions_of(row), IMAGE, 3, visibility)
        assert torch.equal(mask, alone[0])
    assert not together[1].any() and not together[0, :, 2].any()


def test_image_visibility_spreads_over_tokens_and_never_reaches_padding() -> None:
    visible = torch.tensor([[[True, False], [False, True]], [[True, True], [True, True]]])
    token_image_index = torch.tensor([[0, 0, 1], [0, -1, -1]])
    mask = image_token_mask(visible, token_image_index)
    assert mask.tolist() == [
        [[True, True, False], [False, False, True]],
        [[True, False, False], [True, False, False]],
    ]
