"""Answering questions in this process: no server, no torch, no transformers."""

from __future__ import annotations

import os
from collections.abc import Sequence

from distilqa.bundle import Bundle
from distilqa.engine.cores import MAX_THREADS
from distilqa.engine.open import open_engine
from distilqa.text import spans
from distilqa.text.answer import Answer
from distilqa.text.request import check_flag, check_integer, check_options, list_passages
from distilqa.text.windows import Windower


class Reader:
    """Answers questions from passages with one variant of a bundle.

    ``bundle`` is the bundle's directory; ``variant`` one of its variants, by default the fastest that can be used here:
    a warning in the log of `distilqa.engine` says where that is not the fastest there is. ``threads`` is how many cores
    a question uses, by default all that this process may use. ``unverified`` allows a variant for a GPU that was made
    without one. One Reader can be used from several threads.
    Raises BundleError, VariantUnusable for a variant that was named or where there is no other, and MissingDependency
    as `distilqa.engine.cpu.CpuEngine` does, InvalidRequest for impossible threads.

    >>> reader = Reader("bundle")
    >>> reader
    Reader(model='distilbert-base-uncased-distilled-squad', version='1', variant='cpu-int8')
    >>> reader.answer("What does the fox jump over?", "The quick brown fox jumps over the lazy dog.")
    [Answer(text='the lazy dog', start=31, end=43, score=0.59..., passage=0)]
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        variant: str | None = None,
        *,
        threads: int | None = None,
        unverified: bool = False,
    ) -> None:
        if threads is not None:
            check_integer("threads", threads, 1, MAX_THREADS)
        self.bundle = Bundle.open(bundle)
        self.engine = open_engine(self.bundle, variant, unverified=unverified, threads=threads)
        self.windower = open_windower(self.bundle)

    @property
    def model(self) -> str:
        """The name of the model, as its bundle and a server of it have it."""
        return self.bundle.manifest.name

    @property
    def version(self) -> str:
        """The version of the model."""
        return self.bundle.manifest.version

    @property
    def variant(self) -> str:
        """The variant that answers."""
        return self.engine.variant

    def __repr__(self) -> str:
        return f"Reader(model={self.model!r}, version={self.version!r}, variant={self.variant!r})"

    def answer(
        self,
        question: str,
        passages: str | Sequence[str],
        *,
        top_k: int = 1,
        max_answer_tokens: int = 15,
        doc_stride: int | None = None,
        allow_no_answer: bool = False,
        align_to_words: bool = True,
    ) -> list[Answer]:
        """Return the ``top_k`` best answers over all passages, best first.

        Passages may have any length; those that exceed one window of the model are read in windows that overlap by
        ``doc_stride`` tokens (default 128). A passage without words is passed over where another has some.
        An answer has at most ``max_answer_tokens`` tokens (SQuAD's evaluation uses 30) and 4,096 characters. It is
        whole words, but that a word which alone has more tokens is taken apart; without ``align_to_words`` every word
        may be. There may be fewer answers than ``top_k`` if the passages have not so many places. ``allow_no_answer``
        lets "no answer" compete. The score is explained in `distilqa.text.spans`.
        Raises InvalidRequest, which names the argument, for what cannot be answered; InferenceFailed where the model
        gives logits that are no numbers.
        """
        check_options(top_k, max_answer_tokens, doc_stride)
        check_flag("allow_no_answer", allow_no_answer)
        check_flag("align_to_words", align_to_words)
        tokenized = self.windower.tokenize(question, list_passages(passages), doc_stride=doc_stride)
        logits = [self.engine.run([window.input_ids])[0] for window in tokenized.windows]
        return spans.decode(
            tokenized,
            logits,
            top_k=top_k,
            max_answer_tokens=max_answer_tokens,
            allow_no_answer=allow_no_answer,
            align_to_words=align_to_words,
        )


def open_windower(bundle: Bundle) -> Windower:
    """The windower of a bundle's tokenizer and window length. Raises BundleError."""
    return Windower(bundle.read_tokenizer(), max_tokens=bundle.manifest.window_tokens)
