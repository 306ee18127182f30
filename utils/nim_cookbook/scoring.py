"""Small scoring of answers: does an answer hold the reference, and does it refuse.

Text is normalised as in the evaluation script of SQuAD (Rajpurkar et al., "SQuAD: 100,000+
Questions for Machine Comprehension of Text", EMNLP 2016): lower case, no punctuation, no English
articles, single spaces; compatibility forms of Unicode are brought together first.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nim_cookbook.data import Question
from nim_cookbook.errors import DataError

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
# Quotation marks, apostrophe, dashes and ellipsis as word processors set them.
_TYPESET = "\u2018\u2019\u201c\u201d\u2013\u2014\u2026"
_PUNCTUATION = str.maketrans("", "", string.punctuation + _TYPESET)

_REFUSAL = re.compile(
    r"\b(?:do(?:es)? ?n[o']?t|did ?n[o']?t|can ?n?[o']?t|could ?n[o']?t|unable to|not able to)"
    r"(?: \w+){0,3}? (?:know|answer|say|tell|mention|contain|provide|state|specify|include|find|"
    r"have|determine|give|hold)\b"
    r"|\b(?:is|are|was|were|been|be)(?: not|n't)(?: \w+){0,2}? (?:mentioned|stated|provided|given|"
    r"specified|contained|included|known|found|clear|available|possible)\b"
    r"|\bno (?:\w+ )?(?:information|mention|answer|document|data)\b"
    r"|\bnot (?:enough|sufficient)\b|\binsufficient\b|\bunknown\b|\bunanswerable\b"
    r"|\bi'?m not sure\b"
)


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """One answer and its verdict.

    Attributes:
        question: The question, with its references.
        answer: What was answered.
        right: Whether the answer holds one of the references, and no other question's.
        refuses: Whether the answer says that it does not know.
    """

    question: Question
    answer: str
    right: bool
    refuses: bool

    @property
    def correct(self) -> bool:
        """The answer is right; or, where there is no reference, it refuses."""
        return self.right if self.question.answerable else self.refuses


@dataclass(frozen=True, slots=True)
class AnswerScores:
    """The verdicts on all answers; every share is from 0 to 1, or None without questions."""

    rows: tuple[ScoredAnswer, ...]

    @property
    def right(self) -> float | None:
        """Share of the answerable questions whose answer is right."""
        return _share(row.right for row in self.rows if row.question.answerable)

    @property
    def refused(self) -> float | None:
        """Share of the unanswerable questions that were refused, as they should be."""
        return _share(row.refuses for row in self.rows if not row.question.answerable)

    @property
    def refused_wrongly(self) -> float | None:
        """Share of the answerable questions that were refused without a right answer."""
        return _share(row.refuses and not row.right for row in self.rows if row.question.answerable)


def normalise(text: str) -> str:
    """Return the text in SQuAD's normal form: lower case, bare words, single spaces."""
    text = unicodedata.normalize("NFKC", text).casefold().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def contains(answer: str, references: str | Iterable[str]) -> bool:
    """Tell whether an answer holds one of the references, as whole words in a row.

    Args:
        answer: What was answered.
        references: One reference or several; those that are empty once normalised are never held.
    """
    given = f" {normalise(answer)} "
    wanted = [references] if isinstance(references, str) else references
    return any(f" {form} " in given for form in map(normalise, wanted) if form)


def refuses(answer: str) -> bool:
    """Tell whether an answer says that it does not know; English only, by its wording.

    An empty answer counts as a refusal: it claims nothing.
    """
    text = unicodedata.normalize("NFKC", answer).casefold().replace("\u2019", "'")
    text = " ".join(text.split())
    return not text or _REFUSAL.search(text) is not None


def score_answers(questions: Sequence[Question], answers: Sequence[str]) -> AnswerScores:
    """Score one answer to each question.

    A right answer holds a reference, and none of the other questions' but what its own question
    names: "Giorgio and Mark live in Rome" is wrong where only Giorgio does.

    Raises:
        DataError: There are not as many answers as questions.
    """
    if len(questions) != len(answers):
        raise DataError(
            f"There are {len(questions)} questions and {len(answers)} answers: give one answer to "
            "each question, in the same order."
        )
    known = {reference for question in questions for reference in question.answers}
    return AnswerScores(
        tuple(
            ScoredAnswer(question, answer, _right(question, answer, known), refuses(answer))
            for question, answer in zip(questions, answers, strict=True)
        )
    )


def _right(question: Question, answer: str, known: set[str]) -> bool:
    asked = normalise(question.question)
    others = [
        other for other in known.difference(question.answers) if normalise(other) not in asked
    ]
    return contains(answer, question.answers) and not contains(answer, others)


def _share(verdicts: Iterable[bool]) -> float | None:
    counted = list(verdicts)
    return sum(counted) / len(counted) if counted else None
