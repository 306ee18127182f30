"""What an answer says: does it hold the reference, and does it refuse.

Text is normalised as in the evaluation script of SQuAD (Rajpurkar et al., "SQuAD: 100,000+
Questions for Machine Comprehension of Text", EMNLP 2016): lower case, no punctuation, no English
articles, single spaces; compatibility forms of Unicode are brought together first.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable

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

    An empty answer is none: a model that thinks for all its tokens says nothing, and has not
    refused.
    """
    text = unicodedata.normalize("NFKC", answer).casefold().replace("\u2019", "'")
    text = " ".join(text.split())
    return _REFUSAL.search(text) is not None
