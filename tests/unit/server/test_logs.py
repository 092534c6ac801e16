"""The log's two forms, and that nobody waits for who reads it."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Literal

import pytest

from distilqa.server import logs
from distilqa.server.logs import logging_to

logger = logging.getLogger("distilqa.test")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for end in (read, write):
        with suppress(OSError):
            os.close(end)


def logged(pipe: tuple[int, int], **options: Any) -> str:
    """What an entry with awkward fields, and one with an exception, become."""
    read, write = pipe
    with logging_to(write, **options):
        logger.info("Answer", extra={"fields": {"request_id": "a b\n", "windows": 3, "caller": "é"}})
        try:
            raise ValueError("broken")
        except ValueError as error:
            logger.error("failed %d times", 2, exc_info=error)
        logger.debug("a detail")
    os.close(write)
    with os.fdopen(os.dup(read), encoding="utf-8") as file:
        return file.read()


def test_json(pipe: tuple[int, int]) -> None:
    first, second = (json.loads(line) for line in logged(pipe, form="json", level="info").splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {"level": "info", "message": "Answer", "request_id": "a b\n", "windows": 3, "caller": "é"}
    assert (second["level"], second["message"]) == ("error", "failed 2 times")
    assert second["exception"].endswith("ValueError: broken")


def test_console(pipe: tuple[int, int]) -> None:
    lines = logged(pipe, form="console", level="info").splitlines()
    assert re.fullmatch(r'\S+Z INFO Answer request_id="a b\\n" windows=3 caller=é', lines[0])
    assert re.fullmatch(r"\S+Z ERROR failed 2 times", lines[1])
    assert (lines[2], lines[-1]) == ("    Traceback (most recent call last):", "    ValueError: broken")


FORGED = "x\n2026-11-28T00:00:00.000Z INFO Answer outcome=OK\x1b[2J\u202e"


@pytest.mark.parametrize("form", ["json", "console"])
def test_nothing_that_a_caller_chose_forges_an_entry(pipe: tuple[int, int], form: Literal["json", "console"]) -> None:
    read, write = pipe
    with logging_to(write, form=form, level="info"):
        logger.info("%s", FORGED, extra={"fields": {"id": FORGED, "quoted": 'a="b"'}})
        try:
            raise ValueError(FORGED)
        except ValueError as error:
            logger.error("failed", exc_info=error)
    os.close(write)
    with os.fdopen(os.dup(read), encoding="utf-8") as file:
        lines = file.read().splitlines()
    assert [line for line in lines if line.startswith("2026-11-28T00")] == []
    assert not any(set(line) & {"\x1b", "\u202e"} for line in lines)
    if form == "json":
        assert [json.loads(line)["level"] for line in lines] == ["info", "error"]
    else:
        assert [not line.startswith("    ") for line in lines] == [True, True, *[False] * (len(lines) - 2)]
        assert r'quoted="a=\"b\""' in lines[0]


def test_the_words_of_others_are_quoted(pipe: tuple[int, int]) -> None:
    """gRPC and asyncio may quote a caller, who could write what looks like fields."""
    read, write = pipe
    with logging_to(write, form="console", level="info"):
        logging.getLogger("grpc").warning("no method %s", "/Answer outcome=OK")
    os.close(write)
    assert os.read(read, 1000).endswith(b'WARNING "no method /Answer outcome=OK"\n')


def test_who_logs_wrongly_goes_on(pipe: tuple[int, int], capsys: pytest.CaptureFixture[str]) -> None:
    read, write = pipe
    with logging_to(write, form="console", level="info"):
        (writer,) = (one for one in logging.getLogger().handlers if isinstance(one, logs.Writer))
        writer.handle(logging.LogRecord("other", logging.WARNING, "", 0, "%d of %d", (1,), None))
        logger.info("and on")
    os.close(write)
    assert os.read(read, 1000).endswith(b"INFO and on\n")
    assert "not enough arguments" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["json", "console"])
def test_what_is_long_is_cut(pipe: tuple[int, int], form: Literal["json", "console"]) -> None:
    read, write = pipe
    with logging_to(write, form=form, level="info"):
        logger.info("m" * 100_000, extra={"fields": {"id": "i" * 100_000, "seconds": 8e-05}})
    os.close(write)
    with os.fdopen(os.dup(read), encoding="utf-8") as file:
        line = file.read()
    assert len(line) < 1300
    assert line.count("... (100000 characters)") == 2
    assert {"json": '"seconds": 8e-05', "console": "seconds=0.00008"}[form] in line


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_process_of_several_is_named(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, form: Literal["json", "console"]
) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "name", "front-end 3")
    line = logged(pipe, form=form, level="info").splitlines()[0]
    named = {"json": '"message": "Answer", "process": "front-end 3"', "console": 'Answer process="front-end 3" request'}
    assert named[form] in line


@pytest.mark.parametrize(("level", "entries"), [("debug", 3), ("info", 2), ("warning", 1), ("error", 1)])
def test_level(pipe: tuple[int, int], level: str, entries: int) -> None:
    assert len(logged(pipe, form="json", level=level).splitlines()) == entries


def test_a_pipe_that_nobody_reads_holds_nobody_up(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it is read again, the log says how many entries are missing: in several places, where room came and went."""
    monkeypatch.setattr(logs, "_QUEUE_CHARACTERS", 100_000)
    monkeypatch.setattr(logs, "_LONGEST", 10_000)
    monkeypatch.setattr(logs, "_LAST_S", 20.0)
    read, write = pipe
    with ThreadPoolExecutor(1) as pool:
        with logging_to(write, form="json", level="info"):
            for _ in range(100):
                logger.info("x" * 10_000)
            reading = pool.submit(_read_all, read)
            (writer,) = (one for one in logging.getLogger().handlers if isinstance(one, logs.Writer))
            while writer._lines.qsize():
                time.sleep(0.001)
            logger.info("last")
        os.close(write)
        entries = [json.loads(line) for line in reading.result(timeout=20).splitlines()]
    assert entries[-1]["message"] == "last"
    gaps = [entry for entry in entries if entry["message"] == "the log was not read and has gaps"]
    assert {gap["level"] for gap in gaps} == {"warning"}
    assert sum(gap["dropped"] for gap in gaps) + len(entries) - len(gaps) - 1 == 100


def _read_all(descriptor: int) -> bytes:
    return b"".join(iter(lambda: os.read(descriptor, 100_000), b""))


def test_a_pipe_that_does_not_block_loses_nothing(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As stderr is once a program on the same terminal has made it so."""
    monkeypatch.setattr(logs, "_LONGEST", 20_000)
    monkeypatch.setattr(logs, "_LAST_S", 20.0)
    read, write = pipe
    os.set_blocking(write, False)
    with ThreadPoolExecutor(1) as pool:
        with logging_to(write, form="json", level="info"):
            for number in range(100):
                logger.info("%d %s", number, "x" * 10_000)
            (writer,) = (one for one in logging.getLogger().handlers if isinstance(one, logs.Writer))
            while writer._lines.qsize() > 95:  # until it is full
                time.sleep(0.001)
            reading = pool.submit(_read_all, read)
        os.close(write)
        entries = [json.loads(line) for line in reading.result(timeout=20).splitlines()]
    assert [int(entry["message"].split()[0]) for entry in entries] == list(range(100))


def test_an_end_that_nobody_reads_does_not_wait_for_it(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_LAST_S", 0.01)
    monkeypatch.setattr(logs, "_LONGEST", 10_000)
    with logging_to(pipe[1], form="json", level="info"):
        for _ in range(100):
            logger.info("x" * 10_000)
        (writer,) = (one for one in logging.getLogger().handlers if isinstance(one, logs.Writer))
    assert writer._thread.is_alive()
    os.close(pipe[0])
    writer._thread.join(20)
    assert not writer._thread.is_alive()


def test_after_a_closed_stderr_the_writer_goes_on(pipe: tuple[int, int]) -> None:
    os.close(pipe[1])
    with logging_to(pipe[1], form="console", level="info"):
        (writer,) = (one for one in logging.getLogger().handlers if isinstance(one, logs.Writer))
        for _ in range(2):
            logger.info("to nobody")
            while writer._lines.qsize():
                time.sleep(0.001)
        assert writer._thread.is_alive()
