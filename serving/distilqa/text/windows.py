"""Text to token windows. The only module that knows the tokenizer.

A window is what one run of the model sees of one passage: ``[CLS] question [SEP] part of the passage [SEP]``,
at its exact length, without padding. A passage longer than one window is cut into windows that overlap by
``doc_stride`` tokens, as the reference pipeline does.

The question and each passage are tokenised once, each by itself and without special tokens, and windows are cut
here from the token ids. So nothing depends on the tokenizer's own truncation, which can panic (tokenizers 0.22), and
words are known over the whole passage, not only as far as one window shows them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from unicodedata import category

import numpy as np
from tokenizers import Encoding, Tokenizer

from distilqa.errors import BundleError, InferenceFailed, InvalidRequest
from distilqa.text.arrays import Bool, Int64
from distilqa.text.request import check_text

DEFAULT_DOC_STRIDE = 128
MAX_QUESTION_TOKENS = 128
MAX_QUESTION_CHARACTERS = 4096

_SPECIAL_TOKENS = 3

# Of an answer. A word of more characters, which the tokenizer takes for a single unknown one, is none.
MAX_ANSWER_CHARACTERS = 4096

# U+0300: no character before it combines with another.
_FIRST_MARK = 0x300

# Egyptian hieroglyphs, which no vocabulary has.
_UNKNOWN_WORD = "\U00013000\U00013080"


@dataclass(frozen=True, slots=True)
class Passage:
    """A tokenised passage of n tokens, none where it has no words; the arrays are (n,) int64.

    Token t stands from character ``starts[t]`` to ``ends[t]`` (Unicode code points), marks that combine with it
    included, and is a piece of the word number ``words[t]``, counted from 0.
    """

    text: str
    ids: Int64
    starts: Int64
    ends: Int64
    words: Int64

    @property
    def is_blank(self) -> bool:
        """Whether nothing in it can be an answer: it has no words, or only such as nobody would read."""
        firsts, lasts = runs(np.diff(self.words, prepend=-1) != 0)
        return not len(firsts) or bool((self.ends[lasts] - self.starts[firsts]).min() > MAX_ANSWER_CHARACTERS)


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
    """A question over its passages: what `Windower.tokenize` gives and `distilqa.text.spans.decode` needs back.

    There is no window of a blank passage.
    """

    passages: tuple[Passage, ...]
    windows: tuple[Window, ...]

    @property
    def blank_passages(self) -> list[int]:
        """The numbers of those that were passed over."""
        shown = {window.passage for window in self.windows}
        return [number for number in range(len(self.passages)) if number not in shown]


class Windower:
    """Cuts questions and passages into windows of at most ``max_tokens`` tokens.

    ``tokenizer_json`` is the content of a ``tokenizer.json``. What it puts before and after texts are [CLS] and [SEP],
    whatever they are called; in a text they are characters like any others. Other tokens that a checkpoint was given,
    "[PAR]" say, are tokens in a text too. Raises BundleError if it cannot be read, or has no [CLS] and [SEP], or no
    token for unknown words. Safe to use from several threads at once.
    """

    def __init__(self, tokenizer_json: str, *, max_tokens: int) -> None:
        try:
            with no_panic():
                self._cls, self._sep = _roles(tokenizer_json)
                content = json.loads(tokenizer_json)
                for token in content.get("added_tokens") or ():
                    token["special"] = token["id"] in (self._cls, self._sep)
                tokenizer = Tokenizer.from_str(json.dumps(content))
                tokenizer.no_padding()
                tokenizer.no_truncation()
                tokenizer.encode_special_tokens = True  # as what they are: characters
                tokenizer.encode(_UNKNOWN_WORD)
        except BundleError:
            raise
        except Exception as error:  # tokenizers raises bare Exception, also where no token is for unknown words
            raise BundleError(f"tokenizer.json: {error}") from error
        self._tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.max_question_tokens = min(MAX_QUESTION_TOKENS, max_tokens - _SPECIAL_TOKENS - 1)

    def tokenize(
        self, question: str, passages: Sequence[str], *, doc_stride: int | None = None, max_windows: int | None = None
    ) -> Tokenized:
        """Tokenise a question and its passages and cut them into windows, in passage order.

        ``doc_stride`` is the overlap of consecutive windows of a passage, in tokens; by default 128, or half of
        what a window can hold of the passage where that is less, which is also the most it can be. A passage without
        words is passed over where another has some.
        Raises InvalidRequest for an empty question or list of passages, passages without words, a question of more than
        ``max_question_tokens`` (128, or what leaves room for the passage) or 4,096 characters, text that is not valid
        Unicode (lone surrogates), a stride out of range, and more than ``max_windows`` windows; InferenceFailed
        where the tokenizer's library fails.
        """
        question_ids = self._question_ids(question)
        if not passages:
            raise InvalidRequest("passages", "at least one is needed")
        room = self.max_tokens - _SPECIAL_TOKENS - len(question_ids)
        stride = self._stride(doc_stride, room)
        tokenized, total = [], 0
        for number, text in enumerate(passages):
            check_text(f"passages[{number}]", text)
            encoding = self._encode(text)
            total += count_windows(len(encoding), room, stride) if len(encoding) else 0
            if max_windows is not None and total > max_windows:  # before more is made of them
                raise InvalidRequest("passages", f"they make {total} windows or more, the limit is {max_windows}")
            tokenized.append(_passage(text, encoding))
        blank = [passage.is_blank for passage in tokenized]
        if all(blank):
            wordless = not any(len(passage.ids) for passage in tokenized)
            problem = "no words" if wordless else f"no word of {MAX_ANSWER_CHARACTERS:,} characters or fewer"
            one = len(blank) == 1
            raise InvalidRequest("passages[0]" if one else "passages", f"{'has' if one else 'have'} {problem}")
        head = np.array([self._cls, *question_ids, self._sep], dtype=np.int64)
        tail = np.array([self._sep], dtype=np.int64)
        windows = tuple(
            Window(np.concatenate((head, passage.ids[start:end], tail)), number, len(head), start)
            for number, passage in enumerate(tokenized)
            if not blank[number]
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

    def _encode(self, text: str) -> Encoding:
        # A batch of one, because that alone lets other threads run meanwhile: the server's event loop, say.
        with no_panic():
            (encoding,) = self._tokenizer.encode_batch([text], add_special_tokens=False)
        return encoding


@contextmanager
def no_panic() -> Iterator[None]:
    """What `tokenizers` may panic with is no Exception, so that nobody would catch it: make it InferenceFailed."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise InferenceFailed("the tokenizer failed") from error


def _roles(tokenizer_json: str) -> tuple[int, int]:
    """The ids of [CLS] and [SEP], by what is put around two texts, or by their names. Raises BundleError."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()  # which training leaves there
    tokenizer.no_truncation()
    pair = tokenizer.encode("a", "a")
    around = [id for id, special in zip(pair.ids, pair.special_tokens_mask, strict=True) if special]
    if len(around) == 3 and around[1] == around[2] == pair.ids[-1] and around[0] == pair.ids[0]:
        return around[0], around[1]
    ids = [tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]")]
    for name, id in zip(("[CLS]", "[SEP]"), ids, strict=True):
        if id is None:
            raise BundleError(f"tokenizer.json: the vocabulary has no {name}, and nothing says what it is called")
    return ids[0], ids[1]


def _passage(text: str, encoding: Encoding) -> Passage:
    places = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    # They are numbered in order, but not every number needs be there.
    words = np.cumsum(np.diff(np.array(encoding.word_ids, dtype=np.int64), prepend=-1) != 0) - 1
    ids = np.array(encoding.ids, dtype=np.int64)
    return Passage(text, ids, places[:, 0], _with_marks(text, places[:, 1]), words)


def _with_marks(text: str, ends: Int64) -> Int64:
    """Where each token ends, after the marks that combine with it, which the tokenizer leaves out: the text may be
    decomposed, and in Thai or Hebrew they are how vowels are written."""
    if text.isascii():
        return ends
    points = np.frombuffer(text.encode("utf-32-le") + b"\0\0\0\0", np.uint32)
    found, ends = np.flatnonzero(points[ends] >= _FIRST_MARK), ends.copy()
    for token in found.tolist():
        while ends[token] < len(text) and category(text[ends[token]]) == "Mn":
            ends[token] += 1
    return ends


def runs(begins: Bool) -> tuple[Int64, Int64]:
    """The first and the last token of each run of tokens, of which ``begins``, (n,), says where they begin."""
    firsts = np.flatnonzero(begins)
    return firsts, np.append(firsts[1:], len(begins)) - 1


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
