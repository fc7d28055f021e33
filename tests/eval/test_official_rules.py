import pytest

from eval import official_rules
from eval.items import Item
from eval.rules import read_answer


def item(*choices: str) -> Item:
    return Item("a", "?", choices=choices or ("red", "dark blue", "green", "yellow"))


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("No, there is none.", "no"),
        ("There is no dog", "no"),
        ("It is not there", "no"),
        ("Yes. No.", "yes"),  # the first sentence only
        ("NO", "yes"),  # neither No nor no
        ("no!", "yes"),  # a word with its mark is another word
        ("Nothing", "yes"),
        ("", "yes"),
    ],
)
def test_pope_takes_all_without_a_no_for_yes(text: str, read: str) -> None:
    assert official_rules.pope(text) == read


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Yes, it is", "yes"),
        ("NO.", "no"),
        (" no", "no"),
        ("I know", "other"),
        ("not", "no"),
        ("It is yes", "other"),
        ("", "other"),
    ],
)
def test_mme_reads_four_characters(text: str, read: str) -> None:
    assert official_rules.mme(text) == read


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        (" B ", 1),
        ("B\n", 1),
        (" B\n", None),  # a line end becomes a period
        ("B. because", 1),
        ("B.", None),  # neither a letter alone nor one before a period and a space
        ("B\nbecause", 1),
        ("So A or B. The answer is C.", 2),
        ("The answer is A or The answer is B.", 1),  # with a period wins
        ("The answer is E.", None),  # beyond the choices
        ("(B)", None),
        ("dark blue", None),
    ],
)
def test_scienceqa_reads_letters_in_three_places(text: str, choice: int | None) -> None:
    assert official_rules.scienceqa(item(), text) == choice


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("B", 1),
        ("(B) dark blue", 1),
        ("B or C", None),
        ("The answer is B.", 1),
        ("B is what I would say here, all in all", None),  # too far from the end
        ("A dark blue", 0),  # the article counts as the letter
        ("it is dark blue", 1),
        ("Z", None),
        ("red and green", None),
        ("it is dark blue " * 9, None),  # too long for words to count
        ("Cannot determine the answer, B", None),
    ],
)
def test_mmbench_reads_one_letter_or_one_text(text: str, choice: int | None) -> None:
    assert official_rules.mmbench(item(), text) == choice


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("(A) or (B)", 1),  # the last in brackets
        ("(B) and C", 1),  # brackets win over words
        ("A, no: B!", 1),
        ("B.\n", None),  # the line end keeps the period, and the letter is no word by itself
        ("dark blue", None),  # five words or fewer
        ("I would say that it is dark blue here", 1),
        ("it could be red or else green, who knows", 2),
    ],
)
def test_mmmu_reads_what_is_named_last(text: str, choice: int | None) -> None:
    assert official_rules.mmmu(item(), text) == choice


def test_rules_for_choices_leave_open_questions_as_they_are() -> None:
    answer = read_answer("mmmu", Item("a", "?", answers=("3",)), " 3\n")
    assert (answer.value, answer.choice) == ("3", None)


def test_official_rules_are_found_by_name() -> None:
    assert read_answer("pope", Item("a", "?"), "no").value == "no"
    assert read_answer("mme", Item("a", "?"), "Perhaps").value == "other"
    assert read_answer("scienceqa", item(), "C").value == "green"
    assert read_answer("mmbench", item(), "C").choice == 2
    assert read_answer("mmmu", item(), "(C)").choice == 2
