"""BERT's segments, which DistilBERT has not: which tokens are the question's, and which the passage's."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from distilqa.text.arrays import Int64


def segments(ids: npt.NDArray[np.integer], begins: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Whether each token, (tokens,), is after the question's [SEP], in windows that stand one after another.

    ``begins`` is where each begins and the last one ends, (windows + 1,). The last token of a window is [SEP] too, so
    that its first occurrence ends the question.
    """
    lengths = np.diff(begins)
    separators = ids == np.repeat(ids[begins[1:] - 1], lengths)
    before = np.cumsum(separators) - separators  # in all windows up to here
    found: npt.NDArray[np.bool_] = before > np.repeat(before[begins[:-1]], lengths)
    return found


def token_types(input_ids: Int64) -> Int64:
    """Segments as a model of BERT's takes them, 0 and 1, of windows of one length, (windows, length)."""
    windows, length = input_ids.shape
    found = segments(input_ids.ravel(), np.arange(windows + 1) * length)
    return found.reshape(input_ids.shape).astype(np.int64)
