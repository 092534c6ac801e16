"""A line on a terminal that shows how far a long task is, and how long it will still take."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self, TextIO

# So that the line fits 80 columns: a longer one would wrap, and leave its pieces behind.
_WIDTH = 20

_LEAST_BETWEEN_S = 0.1


class ProgressBar:
    """Shows how many of ``total``, 1 or more, are done. On what is no terminal it writes a line at each tenth instead.

    At the end of the with block the line is ended, also where the task was not.
    """

    def __init__(self, name: str, total: int, out: TextIO) -> None:
        self._name, self._total, self._out = name, total, out
        self._began = self._shown_at = time.monotonic()
        self._tenths = 0
        self._in_line = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._in_line:
            self._write("\n")

    def __call__(self, done: int) -> None:
        """Show that so many are done."""
        now = time.monotonic()
        tenths = 10 * done // self._total
        if self._out.isatty():
            if now - self._shown_at > _LEAST_BETWEEN_S or done == self._total:
                self._shown_at = now
                filled = _WIDTH * done // self._total
                self._in_line = done < self._total
                end = "" if self._in_line else "\n"
                self._write(f"\r{self._name} [{'#' * filled:.<{_WIDTH}}] {self._state(done, now)}\x1b[K{end}")
        elif tenths > self._tenths:
            self._tenths = tenths
            self._write(f"{self._name}: {self._state(done, now)}\n")

    def _state(self, done: int, now: float) -> str:
        elapsed = max(now - self._began, 1e-9)
        minutes, seconds = divmod(round(elapsed / max(done, 1) * (self._total - done)), 60)
        return f"{done:,} of {self._total:,}, {done / elapsed:.1f}/s, {minutes}:{seconds:02} left"

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
