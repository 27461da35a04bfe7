"""Several given answers to a question: VQA's normal form, soft accuracy, and soft targets.

VQA (arXiv 1505.00468) has ten answers to each question, and an answer is right to the degree to
which people gave it. The rules are those of the official evaluation (GT-Vision-Lab/VQA), with all
their peculiarities, since published numbers depend on them.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

MOST = 10  # distinct answers to a question that are trained on

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {name: str(number) for number, name in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = ("a", "an", "the")
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_WITH_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # removed: the official code passes a flag of this value as the count
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
    haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've
    might've mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
    shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
    someone's something'd something'd've something'll that's there'd there'd've there're there's
    they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're
    why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
    you've
"""


def _without_an_apostrophe(word: str) -> list[str]:
    """The spellings of `word` that lack exactly one of its apostrophes."""
    return [word[:i] + word[i + 1 :] for i, c in enumerate(word) if c == "'"]


_SPELLINGS = {
    wrong: word for word in _CONTRACTIONS.split() for wrong in _without_an_apostrophe(word)
} | {"somebody'd": "somebodyd"}


def normalized(text: str) -> str:
    """The form in which answers are compared.

    A mark of punctuation is removed if it is next to a space, or if digits with a comma between
    them are anywhere in the text, and is else replaced by a space. Periods are removed unless a
    digit follows. Words are lower-cased; numbers up to ten become digits, articles are removed, and
    apostrophes are added to contractions.
    """
    out, with_comma = text, _DIGITS_WITH_COMMA.search(text)
    for mark in _MARKS:
        removed = with_comma or f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if removed else " ")
    words = _PERIOD.sub("", out, count=_MOST_PERIODS).lower().split()
    words = [_DIGITS.get(word, word) for word in words]
    return " ".join(_SPELLINGS.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracy(answer: str, given: Sequence[str]) -> float:
    """The degree in [0, 1] to which `answer` is right.

    The mean over the people, leaving each out in turn, of min(others who gave the answer / 3, 1).
    Answers are compared in their normal form, unless all people gave the same one.

    Args:
        answer: the answer to judge.
        given: the answers of one or more people.
    """
    answer, given = _stripped(answer), [_stripped(text) for text in given]
    if len(set(given)) > 1:
        answer, given = normalized(answer), [normalized(text) for text in given]
    right, people = given.count(answer), len(given)
    degrees = right * min(max(right - 1, 0) / 3, 1) + (people - right) * min(right / 3, 1)
    return degrees / people


def _stripped(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def answers_of(record: Mapping[str, Any], class_names: Sequence[str] | None) -> tuple[str, ...]:
    """People's answers to the question of a record, or else the name of its label; or none."""
    if given := tuple(text for text in record.get("answers", ()) if text.strip()):
        return given
    label = record.get("label", -1)
    return (class_names[label],) if class_names and 0 <= label < len(class_names) else ()


def after(question: str, answer: str) -> str:
    """The text of a question that is followed by its answer."""
    return f"{question} {answer}"


class Targets:
    """The fields `answer_ids` and `answer_scores` of a batch, by the classes of a data set."""

    def __init__(self, class_names: Sequence[str]):
        self._names = class_names
        self._classes: dict[str, list[int]] = {}  # by normal form
        for number, name in enumerate(class_names):
            self._classes.setdefault(normalized(name), []).append(number)

    def __call__(self, given: Sequence[str]) -> Mapping[str, Any]:
        """The classes among the given answers, -1 where there are no more, and their degrees.

        Answers that are not a class are left out. If there are more than `MOST` classes, those with
        the highest degrees are kept.
        """
        forms = dict.fromkeys(map(normalized, given))
        classes = [number for form in forms for number in self._classes.get(form, ())]
        degrees = {number: soft_accuracy(self._names[number], given) for number in classes}
        kept = sorted(degrees, key=degrees.get, reverse=True)[:MOST]
        ids: Int[np.ndarray, " MOST"] = np.full(MOST, -1, np.int32)
        scores: Float[np.ndarray, " MOST"] = np.zeros(MOST, np.float32)
        ids[: len(kept)], scores[: len(kept)] = kept, [degrees[number] for number in kept]
        return {"answer_ids": ids, "answer_scores": scores}
