"""Text to token windows. The only module that knows the tokenizer.

A window is what one run of the model sees of one passage: ``[CLS] question [SEP] part of the passage [SEP]``,
at its exact length, without padding. A passage longer than one window is cut into windows that overlap by
``doc_stride`` tokens, as the reference pipeline does.

The question and each passage are tokenised once, each by itself and without special tokens, and windows are cut
here from the token ids. So nothing depends on the tokenizer's own truncation, which can panic (tokenizers 0.22), and
words are known over the whole passage, not only as far as one window shows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding, Tokenizer

from distilqa.errors import BundleError, InvalidRequest
from distilqa.text.arrays import Int64
from distilqa.text.request import check_text

DEFAULT_DOC_STRIDE = 128
MAX_QUESTION_TOKENS = 128
MAX_QUESTION_CHARACTERS = 4096

_SPECIAL_TOKENS = 3

# Egyptian hieroglyphs, which no vocabulary has.
_UNKNOWN_WORD = "\U00013000\U00013080"


@dataclass(frozen=True, slots=True)
class Passage:
    """A tokenised passage of n tokens; the arrays are (n,) int64, character places are Unicode code points.

    ``word_starts[t]`` and ``word_ends[t]`` are where the whole word that token t is a piece of starts and ends.
    """

    text: str
    ids: Int64
    word_starts: Int64
    word_ends: Int64


@dataclass(frozen=True, slots=True)
class Window:
    """One input of the model.

    ``input_ids`` is (length,) int64. Tokens ``passage_at`` to ``length - 1`` (exclusive, the last is [SEP]) of the
    window are tokens ``first_token`` onwards of passage number ``passage``.
    """

    input_ids: Int64
    passage: int
    passage_at: int
    first_token: int

    @property
    def length(self) -> int:
        return len(self.input_ids)

    @property
    def passage_tokens(self) -> int:
        return self.length - 1 - self.passage_at


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A question over its passages: what `Windower.tokenize` gives and `distilqa.text.spans.decode` needs back."""

    passages: tuple[Passage, ...]
    windows: tuple[Window, ...]


class Windower:
    """Cuts questions and passages into windows of at most ``max_tokens`` tokens.

    ``tokenizer_json`` is the content of a ``tokenizer.json``. Raises BundleError if it cannot be read, or has no
    [CLS] and [SEP], or no token for unknown words. Safe to use from several threads at once.
    """

    def __init__(self, tokenizer_json: str, *, max_tokens: int) -> None:
        try:
            tokenizer = Tokenizer.from_str(tokenizer_json)
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"tokenizer.json: {error}") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # "[SEP]" in a text is five characters, not a separator
        try:
            tokenizer.encode(_UNKNOWN_WORD)
        except Exception as error:  # it has no token for what it does not know
            raise BundleError(f"tokenizer.json: {error}") from error
        special = {name: tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]")}
        for name, token in special.items():
            if token is None:
                raise BundleError(f"tokenizer.json: the vocabulary has no {name}")
        self._tokenizer = tokenizer
        self._cls, self._sep = special["[CLS]"], special["[SEP]"]
        self.max_tokens = max_tokens
        self.max_question_tokens = min(MAX_QUESTION_TOKENS, max_tokens - _SPECIAL_TOKENS - 1)

    def tokenize(
        self, question: str, passages: Sequence[str], *, doc_stride: int | None = None, max_windows: int | None = None
    ) -> Tokenized:
        """Tokenise a question and its passages and cut them into windows, in passage order.

        ``doc_stride`` is the overlap of consecutive windows of a passage, in tokens; by default 128, or half of
        what a window can hold of the passage where that is less, which is also the most it can be.
        Raises InvalidRequest for an empty question, passage or list of passages, a question of more than
        ``max_question_tokens`` (128, or what leaves room for the passage) or 4,096 characters, text that is not valid
        Unicode (lone surrogates), a stride out of range, and more than ``max_windows`` windows.
        """
        question_ids = self._question_ids(question)
        if not passages:
            raise InvalidRequest("passages", "at least one is needed")
        room = self.max_tokens - _SPECIAL_TOKENS - len(question_ids)
        stride = self._stride(doc_stride, room)
        tokenized, total = [], 0
        for number, text in enumerate(passages):
            field = f"passages[{number}]"
            check_text(field, text)
            encoding = self._encode(text)
            total += count_windows(len(encoding), room, stride)
            if max_windows is not None and total > max_windows:  # before more is made of them
                raise InvalidRequest("passages", f"they make {total} windows or more, the limit is {max_windows}")
            tokenized.append(self._passage(text, encoding, field))
        head = np.array([self._cls, *question_ids, self._sep], dtype=np.int64)
        tail = np.array([self._sep], dtype=np.int64)
        windows = tuple(
            Window(np.concatenate((head, passage.ids[start:end], tail)), number, len(head), start)
            for number, passage in enumerate(tokenized)
            for start, end in cut(len(passage.ids), room, stride)
        )
        return Tokenized(tuple(tokenized), windows)

    def _question_ids(self, question: str) -> list[int]:
        check_text("question", question)
        if len(question) > MAX_QUESTION_CHARACTERS:
            raise InvalidRequest("question", f"has {len(question)} characters, the limit is {MAX_QUESTION_CHARACTERS}")
        ids: list[int] = self._encode(question).ids
        if not ids:
            raise InvalidRequest("question", "is empty")
        if len(ids) > self.max_question_tokens:
            raise InvalidRequest("question", f"has {len(ids)} tokens, the limit is {self.max_question_tokens}")
        return ids

    def _stride(self, doc_stride: int | None, room: int) -> int:
        if doc_stride is None:
            return min(DEFAULT_DOC_STRIDE, room // 2)
        if not 0 <= doc_stride <= room // 2:
            raise InvalidRequest("doc_stride", f"is {doc_stride}, must be 0 to {room // 2} for this question")
        return doc_stride

    def _passage(self, text: str, encoding: Encoding, field: str) -> Passage:
        if not encoding.ids:
            raise InvalidRequest(field, "has no words")
        places = np.array(encoding.offsets, dtype=np.int64)
        # Words are numbered in order, each a run of tokens: a token's word starts where the run's first token does.
        words = np.array(encoding.word_ids, dtype=np.int64)
        firsts = np.flatnonzero(np.diff(words, prepend=-1))
        lasts = np.append(firsts[1:], len(words)) - 1
        run = np.repeat(np.arange(len(firsts)), lasts - firsts + 1)
        ids = np.array(encoding.ids, dtype=np.int64)
        return Passage(text, ids, places[firsts, 0][run], places[lasts, 1][run])

    def _encode(self, text: str) -> Encoding:
        # A batch of one, because that alone lets other threads run meanwhile: the server's event loop, say.
        (encoding,) = self._tokenizer.encode_batch([text], add_special_tokens=False)
        return encoding


def cut(tokens: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield the (start, end) of each window of a passage of ``tokens`` tokens, ``room`` at a time.

    Consecutive windows share ``stride`` tokens; the first that reaches the end is the last.
    """
    for start in range(0, tokens, room - stride):
        end = min(start + room, tokens)
        yield start, end
        if end == tokens:
            return


def count_windows(tokens: int, room: int, stride: int) -> int:
    """How many windows `cut` yields."""
    return 1 + max(0, -(-(tokens - room) // (room - stride)))
