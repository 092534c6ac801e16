"""The server's log: entries with fields, as lines for people or as JSON for programs.

    2026-11-25T09:30:00.123Z INFO Answer request_id=7c1e outcome=OK seconds=0.0312 windows=1
    {"time": "2026-11-25T09:30:00.123Z", "level": "info", "message": "Answer", "request_id": "7c1e", ...}

Fields come as ``extra={"fields": {...}}``. A thread of its own writes, so that a terminal or a pipe that takes nothing
holds no answer up: of what does not fit the queue meanwhile only the number is kept, and told later. What callers chose
is in an entry as one line of printable characters, and cut where it is long: no entry can be forged, nor fill the log.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Literal

from distilqa.wording import printable

# What waits to be written, and one value or message of an entry.
_QUEUE_CHARACTERS = 4 << 20
_LONGEST = 500

# How our loggers are called.
_OWN = "distilqa"

# How long the end waits for the last entries to be written.
_LAST_S = 1.0


@contextmanager
def logging_to(descriptor: int, *, form: Literal["console", "json"], level: str) -> Iterator[None]:
    """Log to a file descriptor while the block runs, entries of a level and above."""
    handler = Writer(descriptor)
    handler.setFormatter(JsonFormatter() if form == "json" else ConsoleFormatter())
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level.upper())
    try:
        yield
    finally:
        root.setLevel(before)
        root.removeHandler(handler)
        handler.close()


class Writer(logging.Handler):
    """Writes entries to a file descriptor, in a thread of its own."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._room, self._dropped = _QUEUE_CHARACTERS, 0
        self._thread = threading.Thread(target=self._write_all, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Called with the handler's lock held."""
        try:
            line = self.format(record) + "\n"
        except Exception:  # of who logs wrongly, who goes on all the same
            self.handleError(record)
            return
        if len(line) > self._room:
            self._dropped += 1
            return
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            entry = {"msg": "the log was not read and has gaps", "levelname": "WARNING", "fields": {"dropped": dropped}}
            self._put(self.format(logging.makeLogRecord(entry)) + "\n")
        self._put(line)

    def _put(self, line: str) -> None:
        self._room -= len(line)
        self._lines.put(line)

    def close(self) -> None:
        """Wait a moment for what is left to be written."""
        self._lines.put(None)
        self._thread.join(_LAST_S)
        super().close()

    def _write_all(self) -> None:
        while (line := self._lines.get()) is not None:
            self.acquire()
            self._room += len(line)
            self.release()
            content = line.encode(errors="backslashreplace")
            try:
                while content:
                    select.select((), (self._descriptor,), ())  # it may be one that does not wait
                    with suppress(BlockingIOError):  # another process has filled it
                        content = content[os.write(self._descriptor, content) :]
            except OSError:  # it was closed
                pass


class ConsoleFormatter(logging.Formatter):
    """A line: time, level, message, and the fields as ``name=value``; a traceback after it."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={_shown(value)}" for name, value in _fields(record).items())
        message = printable(_cut(record.getMessage()))
        if not record.name.startswith(_OWN):  # others quote callers, who could add fields
            message = json.dumps(message, ensure_ascii=False)
        line = f"{_time(record)} {record.levelname} {message}{fields}"
        if not record.exc_info:
            return line
        lines = self.formatException(record.exc_info).splitlines()
        return "\n".join([line, *(f"    {printable(_cut(one))}" for one in lines)])


class JsonFormatter(logging.Formatter):
    """An object on a line, with the fields beside time, level and message."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "message": _cut(record.getMessage()),
        }
        entry |= {name: _cut(value) if isinstance(value, str) else value for name, value in _fields(record).items()}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """Those that came with it, after the name of a process that has one (see multiprocessing)."""
    fields: dict[str, object] = getattr(record, "fields", {})
    named = record.processName not in (None, "MainProcess") and "process" not in fields
    return {"process": record.processName} | fields if named else fields


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    text = _cut(str(value))
    return text if text and text.isprintable() and not set(text) & {" ", '"', "="} else json.dumps(text)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"
