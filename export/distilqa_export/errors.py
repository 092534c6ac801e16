"""Errors of the exporter."""

from __future__ import annotations

from distilqa.errors import DistilqaError


class CheckpointError(DistilqaError):
    """The checkpoint is not one that can be exported; the message says what was found and what is needed."""


class ExportError(DistilqaError):
    """The model could not be converted, or the converted model is not the same; nothing was written."""


_MOST_LISTED = 3


def listed(names: list[str]) -> str:
    """A few of them: a config may ask for hundreds."""
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return ", ".join(names[:_MOST_LISTED]) + more
