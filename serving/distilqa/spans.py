r"""Logits to answers.

For each passage token the model gives a start logit and an end logit in every window that shows the token. A
*place* is a start token and an end token of one window, no more than ``max_answer_tokens`` apart, widened to whole
words. Its score is the probability that an answer starts there times the probability that one ends there:

.. math::
    p(i, j) = \frac{e^{s_i}}{Z_s} \cdot \frac{e^{e_j}}{Z_e}
    \qquad
    Z_s = e^{s_\varnothing} + \sum_t e^{\max_w s_{t,w}}
    \qquad
    Z_e = e^{e_\varnothing} + \sum_t e^{\max_w e_{t,w}}

The sums run over every passage token t of the request once, over all its passages, with the largest of its logits
where several windows w show it. s_∅ and e_∅ are the logits of [CLS], "not here", of the window where their sum is
least, because the passages hold no answer only if no window does. Where several token spans widen to the same
words, or several windows show the same place, the place scores the largest.

Where everything fits one window this is the reference pipeline's score (transformers 4.57, top_k 1): a softmax over
the passage tokens and [CLS]. Over several windows it stays one probability distribution, so scores are in [0, 1], add
up to at most 1, and compare across windows and passages; a place in an overlap is counted once and not penalised.
The reference instead normalises each window alone, so a window without the answer gives its best guess a score near 1,
and it adds the scores of equal texts from different places, which can exceed 1 and loses the other places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from distilqa.answer import Answer
from distilqa.windows import Passage, Tokenized, Window

Float32 = npt.NDArray[np.float32]

# One window's (start_logits, end_logits), each (length,).
Logits = tuple[Float32, Float32]

_START, _END = 0, 1


def decode(
    tokenized: Tokenized,
    logits: Sequence[Logits],
    *,
    top_k: int = 1,
    max_answer_tokens: int = 15,
    allow_no_answer: bool = False,
) -> list[Answer]:
    """Return the ``top_k`` best places, best first; fewer only if there are not so many.

    ``logits`` has one pair (start, end) for each of ``tokenized.windows``, each (length,) float32. Equal scores are
    ranked by passage, start and end. With ``allow_no_answer`` "no answer" takes part with the score
    p(∅, ∅) and is returned as an Answer of passage None.
    """
    null = np.array(min(((s[0], e[0]) for s, e in logits), key=sum), dtype=np.float64)
    normalizers = [_log_normalizer(tokenized, [pair[side] for pair in logits], null[side]) for side in (_START, _END)]
    answers = _best_places(tokenized, logits, top_k, max_answer_tokens, sum(normalizers))
    if allow_no_answer:
        answers.append(Answer("", 0, 0, float(np.exp(null.sum() - sum(normalizers))), None))
        answers.sort(key=lambda answer: -answer.score)
    return answers[:top_k]


def _log_normalizer(tokenized: Tokenized, logits: Sequence[Float32], null: float) -> float:
    """log Z: each passage token once, with its largest logit, and [CLS] once."""
    best = [np.full(len(passage.ids), -np.inf) for passage in tokenized.passages]
    for window, values in zip(tokenized.windows, logits, strict=True):
        part = best[window.passage][window.first_token : window.first_token + window.passage_tokens]
        np.maximum(part, values[window.passage_at : -1], out=part)
    return float(np.logaddexp.reduce([null, *(np.logaddexp.reduce(part) for part in best)]))


def _best_places(
    tokenized: Tokenized, logits: Sequence[Logits], top_k: int, max_answer_tokens: int, log_normalizer: float
) -> list[Answer]:
    best: dict[_Place, float] = {}
    for window, pair in zip(tokenized.windows, logits, strict=True):
        for place, score in _places(tokenized.passages[window.passage], window, pair, top_k, max_answer_tokens):
            best[place] = max(best.get(place, -np.inf), score)
    ranked = sorted(best.items(), key=lambda item: (-item[1], item[0]))[:top_k]
    return [
        Answer(text, start, end, min(1.0, float(np.exp(score - log_normalizer))), passage)
        for (passage, start, end), score in ranked
        for text in [tokenized.passages[passage].text[start:end]]
    ]


# Passage, start, end.
_Place = tuple[int, int, int]


def _places(
    passage: Passage, window: Window, logits: Logits, top_k: int, max_answer_tokens: int
) -> Iterator[tuple[_Place, float]]:
    """The best places of one window with the sums of their logits: ``top_k`` different ones or more, or all."""
    start, end = (values[window.passage_at : -1].astype(np.float64) for values in logits)
    width = min(max_answer_tokens, len(start))
    beyond = np.full(width - 1, -np.inf)
    # Row i, column d: from token i to token i + d.
    scores = (start[:, None] + sliding_window_view(np.append(end, beyond), width)).ravel()
    spans = len(scores) - width * (width - 1) // 2
    # Several spans can be one place, so more than top_k may be needed: look at the best few, then at more of them.
    take, found = 0, 0
    while found < top_k and take < spans:
        take = min(max(top_k, 4 * take), spans)
        # All that tie with the last of them, so that which one wins does not depend on their order.
        chosen = np.flatnonzero(scores >= np.partition(scores, -take)[-take])
        firsts = chosen // width + window.first_token
        starts, ends = passage.word_starts[firsts], passage.word_ends[firsts + chosen % width]
        places, which = np.unique(np.stack((starts, ends)), axis=1, return_inverse=True)
        found = places.shape[1]
    best = np.full(found, -np.inf)
    np.maximum.at(best, which, scores[chosen])
    for first, last, score in zip(*places.tolist(), best.tolist(), strict=True):
        yield (window.passage, first, last), score
