r"""Logits to answers.

For each passage token the model gives a start logit and an end logit in every window that shows the token. A
*place* is some whole words of a passage that have no more than ``max_answer_tokens`` together; a word that alone has
more is taken apart, into its tokens. A span, from a token i to a token j of one window, is at a place if it widens to
those words. The place's score is the probability that an answer starts and ends there:

.. math::
    p = \max_w \sum_{i, j} \frac{e^{s_i}}{Z_s} \cdot \frac{e^{e_j}}{Z_e}
    \qquad
    Z_s = e^{s_\varnothing} + \sum_t e^{\max_w s_{t,w}}
    \qquad
    Z_e = e^{e_\varnothing} + \sum_t e^{\max_w e_{t,w}}

The sums run over every passage token t of the request once, over all its passages, with the largest of its logits
where several windows w show it. s_∅ and e_∅ are the logits of [CLS], "not here", of the window where their sum is
least, because the passages hold no answer only if no window does. The inner sum runs over all spans at the place: each
is a way to give those words. Where several windows show the place, the one that finds it likeliest counts.

Where everything fits one window this is the reference pipeline's score (transformers 4.57): a softmax over the passage
tokens and [CLS], and the sum of the spans that widen to the same words. (The reference sums only those among its best
10 + 2 top_k spans, so that its score depends on top_k; ours does not, and is larger by what it left out.) Over several
windows it stays one probability distribution, so scores are in [0, 1], add up to at most 1, and compare across windows
and passages; a place in an overlap is counted once and not penalised.
The reference instead normalises each window alone, so a window without the answer gives its best guess a score near 1,
and it adds the scores of equal texts from different places, which can exceed 1 and loses the other places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from distilqa.errors import InferenceFailed
from distilqa.text.answer import Answer
from distilqa.text.arrays import Float32, Int64, Logits
from distilqa.text.windows import MAX_ANSWER_CHARACTERS, Passage, Tokenized, Window, runs

_START, _END = 0, 1


def decode(
    tokenized: Tokenized,
    logits: Sequence[Logits],
    *,
    top_k: int = 1,
    max_answer_tokens: int = 15,
    allow_no_answer: bool = False,
    align_to_words: bool = True,
) -> list[Answer]:
    """Return the ``top_k`` best places, best first; fewer only if there are not so many.

    ``logits`` has one pair (start, end) for each of ``tokenized.windows``, each (length,) float32. Equal scores are
    ranked by passage, start and end. With ``allow_no_answer`` "no answer" takes part with the score
    p(∅, ∅) and is returned as an Answer of passage None. Without ``align_to_words`` every word is taken apart.
    Raises InferenceFailed for logits that are no numbers.
    """
    null, log_normalizer = _null(tokenized, logits)
    shown = {window.passage for window in tokenized.windows}
    parts = {one: _parts(tokenized.passages[one], max_answer_tokens, align_to_words) for one in shown}
    answers = _best_places(tokenized, logits, parts, top_k, max_answer_tokens, log_normalizer)
    if allow_no_answer:
        answers.append(Answer("", 0, 0, float(np.exp(null - log_normalizer)), None))
        answers.sort(key=lambda answer: -answer.score)
    return answers[:top_k]


def no_answer_score(tokenized: Tokenized, logits: Sequence[Logits]) -> float:
    """p(∅, ∅), whatever its rank. Raises as `decode` does."""
    null, log_normalizer = _null(tokenized, logits)
    return float(np.exp(null - log_normalizer))


def _null(tokenized: Tokenized, logits: Sequence[Logits]) -> tuple[float, float]:
    """s_∅ + e_∅, and log Z_s + log Z_e. Raises InferenceFailed for logits that are no numbers."""
    if not all(np.isfinite(side).all() for pair in logits for side in pair):
        raise InferenceFailed("the model gave logits that are no numbers")
    null = np.array(min(((s[0], e[0]) for s, e in logits), key=sum), dtype=np.float64)
    normalizers = [_log_normalizer(tokenized, [pair[side] for pair in logits], null[side]) for side in (_START, _END)]
    return float(null.sum()), sum(normalizers)


def _log_normalizer(tokenized: Tokenized, logits: Sequence[Float32], null: float) -> float:
    """log Z: each passage token once, with its largest logit, and [CLS] once."""
    best = [np.full(len(passage.ids), -np.inf) for passage in tokenized.passages]
    for window, values in zip(tokenized.windows, logits, strict=True):
        part = best[window.passage][window.first_token : window.first_token + window.passage_tokens]
        np.maximum(part, values[window.passage_at : -1], out=part)
    return float(np.logaddexp.reduce([null, *(np.logaddexp.reduce(part) for part in best)]))


@dataclass(frozen=True, slots=True)
class _Parts:
    """What of a passage of n tokens answers are made of: words, or their tokens.

    ``of`` is (n,), the number of the part that a token is of. ``firsts`` and ``lasts`` are the parts' tokens,
    ``starts`` and ``ends`` their characters, each (parts,).
    """

    of: Int64
    firsts: Int64
    lasts: Int64
    starts: Int64
    ends: Int64


def _parts(passage: Passage, max_answer_tokens: int, align_to_words: bool) -> _Parts:
    begins = np.diff(passage.words, prepend=-1) != 0
    if align_to_words:
        begins |= np.bincount(passage.words)[passage.words] > max_answer_tokens
    else:
        begins[:] = True
    firsts, lasts = runs(begins)
    return _Parts(np.cumsum(begins) - 1, firsts, lasts, passage.starts[firsts], passage.ends[lasts])


def _best_places(
    tokenized: Tokenized,
    logits: Sequence[Logits],
    parts: Mapping[int, _Parts],
    top_k: int,
    max_answer_tokens: int,
    log_normalizer: float,
) -> list[Answer]:
    best: dict[_Place, float] = {}
    for window, pair in zip(tokenized.windows, logits, strict=True):
        for place, score in _places(parts[window.passage], window, pair, top_k, max_answer_tokens):
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
    parts: _Parts, window: Window, logits: Logits, top_k: int, max_answer_tokens: int
) -> Iterator[tuple[_Place, float]]:
    """The best places of one window, ``top_k`` or more or all, with the logarithm of the sum over their spans."""
    start, end = (values[window.passage_at : -1].astype(np.float64) for values in logits)
    width = min(max_answer_tokens, len(start))
    # Row i, column d: from token i to token i + d, and the part that this is in.
    scores = start[:, None] + sliding_window_view(np.append(end, np.full(width - 1, -np.inf)), width)
    part = parts.of[window.first_token :][: len(start)]
    last = sliding_window_view(np.append(part, np.repeat(part[-1], width - 1)), width)
    too_many = parts.lasts[last] - parts.firsts[part][:, None] >= max_answer_tokens
    too_long = parts.ends[last] - parts.starts[part][:, None] > MAX_ANSWER_CHARACTERS
    scores[too_many | too_long] = -np.inf
    greatest = scores.max()
    if greatest == -np.inf:
        return
    place = ((part - part[0])[:, None] * width + last - part[:, None]).ravel()
    sums = np.bincount(place, np.exp(scores - greatest).ravel())
    there = np.bincount(place[np.isfinite(scores).ravel()], minlength=len(sums)) > 0
    sums[~there] = -1
    # All that tie with the last of them, so that which one wins does not depend on their order.
    take = min(top_k, int(there.sum()))
    chosen = np.flatnonzero(there & (sums >= np.partition(sums, -take)[-take]))
    with np.errstate(divide="ignore"):  # far behind the best
        logarithms = np.log(sums[chosen]) + greatest
    firsts = part[0] + chosen // width
    starts, ends = parts.starts[firsts], parts.ends[firsts + chosen % width]
    for at, to, score in zip(starts.tolist(), ends.tolist(), logarithms.tolist(), strict=True):
        yield (window.passage, at, to), score
