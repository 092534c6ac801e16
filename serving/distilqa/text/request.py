"""What a caller may ask: checks that the reader, the server and the clients share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

from distilqa.errors import InvalidRequest

MAX_TOP_K = 100

# What a message can carry.
_MOST = 2**32 - 1

# One at a time these would give bytes, keys, or passages in no order of their own.
_NO_PASSAGES = (bytes, bytearray, Mapping, Set)


def list_passages(passages: object) -> list[str]:
    """The passages as a list, of one if it is a string. Raises InvalidRequest for what has no passages in it.

    What each of them is, `check_text` checks.
    """
    if isinstance(passages, str):
        return [passages]
    if not isinstance(passages, Iterable) or isinstance(passages, _NO_PASSAGES):
        raise InvalidRequest("passages", f"is a {type(passages).__name__}, must be a string or a sequence of strings")
    return list(passages)


def check_text(field: str, text: object) -> None:
    """Raise InvalidRequest for what is not a string, or not valid Unicode (lone surrogates)."""
    if not isinstance(text, str):
        raise InvalidRequest(field, f"is a {type(text).__name__}, must be a string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(field, f"is not valid Unicode at character {error.start}") from error


def check_options(top_k: int, max_answer_tokens: int, doc_stride: int | None = None) -> None:
    """Raise InvalidRequest for what is not an integer, and for numbers that no passage makes possible."""
    check_integer("top_k", top_k, 1, MAX_TOP_K)
    check_integer("max_answer_tokens", max_answer_tokens, 1)
    if doc_stride is not None:
        check_integer("doc_stride", doc_stride, 0)


def check_flag(field: str, value: object) -> None:
    """Raise InvalidRequest for what is neither True nor False: "no" would be taken for yes."""
    if not isinstance(value, bool):
        raise InvalidRequest(field, f"is {value!r:.40}, must be True or False")


def check_integer(field: str, value: object, least: int, most: int = _MOST) -> None:
    """Raise InvalidRequest for what is not an integer from ``least`` to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequest(field, f"is a {type(value).__name__}, must be an integer")
    if not least <= value <= most:
        # What a message can carry is no advice: the field's own limit may be far lower.
        allowed = f"{least} or more" if value < least and most == _MOST else f"{least} to {most}"
        raise InvalidRequest(field, f"is {value}, must be {allowed}")
