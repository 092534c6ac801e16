"""What the command line does without a model or a server: it reads, shows, and refuses."""

from __future__ import annotations

import io
import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from distilqa.answer import Answer
from distilqa.cli import _own_name, _read_passage, _show, main
from distilqa.errors import InvalidRequest
from distilqa.settings import ENV_PREFIX, ServerSettings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # which a command sets too


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(passage: str, start: int, end: int, out: io.StringIO | None = None, score: float = 0.183) -> str:
    """What is printed of an answer in the second of two passages."""
    out = io.StringIO() if out is None else out
    _show(Answer(passage[start:end], start, end, score, 1), ["another passage", passage], out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("passage", "start", "end", "expected"),
    [
        ("The quick brown fox jumps.", 16, 19, "fox (0.18)\n    The quick brown [fox] jumps.\n"),
        ("fox", 0, 3, "fox (0.18)\n    [fox]\n"),
        ("a\r\n \t b\nfox\u3000c", 8, 11, "fox (0.18)\n    a b [fox] c\n"),
        ("l" * 60 + "fox" + "r" * 60, 60, 63, f"fox (0.18)\n    {'l' * 60}[fox]{'r' * 60}\n"),
        ("Xl" + "l" * 59 + "fox" + "r" * 60 + "X", 61, 64, f"fox (0.18)\n    …{'l' * 60}[fox]{'r' * 60}…\n"),
    ],
    ids=["plain", "whole passage", "white space", "just fits", "cut"],
)
def test_answer_in_its_passage(passage: str, start: int, end: int, expected: str) -> None:
    assert shown(passage, start, end) == expected


@pytest.mark.parametrize(
    ("score", "text"), [(0.0, "0"), (0.00097, "0.001"), (0.01, "0.01"), (0.994, "0.99"), (0.999, "1.00"), (1.0, "1.00")]
)
def test_score_has_two_digits(score: float, text: str) -> None:
    assert f"fox ({text})\n" in shown("fox", 0, 3, score=score)


def test_terminals_get_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert shown("a fox b", 2, 5, Terminal()) == "fox (0.18)\n    a \x1b[1;32mfox\x1b[0m b\n"


@pytest.mark.parametrize("value", ["", "1"])
def test_no_color(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NO_COLOR", value)
    assert shown("a fox b", 2, 5, Terminal()) == "fox (0.18)\n    a [fox] b\n"


def test_no_answer() -> None:
    out = io.StringIO()
    _show(Answer("", 0, 0, 0.5, None), ["a fox"], out)
    assert out.getvalue() == "(no answer) (0.50)\n"


CONTENT = "\ufeffLine one\r\nline two\n\rCafe\u0301 😀\0"


def test_passage_of_a_file_is_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "passage.txt").write_bytes(CONTENT.encode())
    assert _read_passage(str(tmp_path / "passage.txt")) == CONTENT


def feed(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_passage_of_stdin_is_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    feed(monkeypatch, CONTENT.encode())
    assert _read_passage("-") == CONTENT


def test_passage_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "passage.txt"
    path.write_bytes(b"caf\xe9")
    feed(monkeypatch, b"caf\xe9")
    for name in (str(path), "-"):
        with pytest.raises(InvalidRequest) as caught:
            _read_passage(name)
        assert str(caught.value) == f"--passage: {name}: is not UTF-8 at byte 3"


@pytest.mark.parametrize(
    ("name", "why"), [("missing.txt", "No such file or directory"), (".", "Is a directory")], ids=["missing", "folder"]
)
def test_passage_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, why: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidRequest) as caught:
        _read_passage(name)
    assert str(caught.value) == f"--passage: {name}: {why}"


@pytest.mark.parametrize(
    ("called", "typed"),
    [
        ("{cwd}/.venv/bin/distilqa", ".venv/bin/distilqa"),
        ("/elsewhere/bin/distilqa", "distilqa"),
        ("bin/distilqa", "bin/distilqa"),
    ],
)
def test_own_name_can_be_typed_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, called: str, typed: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [called.format(cwd=tmp_path)])
    assert _own_name() == typed


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "COMMAND"),
        (["dance"], "dance"),
        (["ask"], "QUESTION"),
        (["ask", "Who?", "--bundle", "b"], "--passage"),
        (["ask", "Who?", "--passage", "p"], "--bundle --target"),
        (["ask", "Who?", "--passage", "p", "--bundle", "b", "--target", "h:1"], "--target"),
        (["ask", "Who?", "--passage", "p", "--bundle", "b", "--top-k", "many"], "--top-k"),
        (["ask", "Who?", "--passage", "p", "--bundle", "b", "--max-answer-tokens", "1.5"], "--max-answer-tokens"),
        (["ask", "Who?", "--passage", "p", "--bundle", "b", "--doc-stride", "x"], "--doc-stride"),
        (["ask", "Who?", "--passage", "p", "--target", "h:1", "--timeout", "x"], "--timeout"),
        (["export", "checkpoint"], "--output"),
        (["export", "checkpoint", "-o", "b", "--variant", "cpu-int4"], "cpu-int4"),
        (["inspect"], "BUNDLE"),
        (["serve", "b", "--novelty"], "--novelty"),
    ],
)
def test_arguments_that_argparse_refuses(argv: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ask", "Who?", "--passage", "missing", "--bundle", "b"], "--passage: missing: No such file or directory"),
        (["ask", "Who?", "--passage", "p", "--bundle", "b"], "b is not a bundle: "),
        (
            ["ask", "Who?", "--passage", "p", "--target", "localhost:0", "--variant", "cpu-fp32"],
            "--variant: goes with --bundle; a server has chosen its own",
        ),
        (["inspect", "b"], "b is not a bundle: "),
        (["serve"], "bundle: "),
        (["serve", "b", "--port", "-1"], "port: "),
        (["serve", "b"], "b is not a bundle: "),
    ],
)
def test_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").write_text("A fox.")
    assert main(argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"distilqa: {message}")
    assert err.count("\n") == 1


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("distilqa.cli.Bundle.open", interrupt)
    assert main(["inspect", "b"]) == 130


@pytest.mark.parametrize("command", [[], ["export"], ["inspect"], ["ask"], ["serve"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert " ".join(["usage: distilqa", *command]) in out
    if command == ["serve"]:
        assert "DISTILQA_BUNDLE" in out
        for name in set(ServerSettings.model_fields) - {"bundle"}:
            assert f"--{name.replace('_', '-')} VALUE" in out
        assert "(default 50051)" in out
        assert "(default None)" not in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{version('distilqa')}\n"
