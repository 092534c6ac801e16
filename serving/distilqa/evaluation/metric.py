"""SQuAD's official metric: exact match and F1.

It is that of Rajpurkar et al., 2016: answers are compared as lower-case words without ASCII punctuation and articles.
An answer's F1 is that of its bag of words. Of several references the one that fits best counts (see `evaluate`).
"""

from __future__ import annotations

import re
import string
from collections import Counter

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(prediction: str, reference: str) -> float:
    """1 if the two are the same after `normalize`, otherwise 0."""
    return float(normalize(prediction) == normalize(reference))


def f1(prediction: str, reference: str) -> float:
    """The harmonic mean of precision and recall of the words after `normalize`; 0 where they share none."""
    predicted, wanted = normalize(prediction).split(), normalize(reference).split()
    shared = (Counter(predicted) & Counter(wanted)).total()
    return 2 * shared / (len(predicted) + len(wanted)) if shared else 0.0


def normalize(text: str) -> str:
    """Lower-case words without ASCII punctuation and English articles, one space between them."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())
