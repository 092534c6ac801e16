"""What the command line does without a model or a server: it reads, shows, and refuses."""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.conftest import CHECKPOINT

from distilqa.cli.ask import _read_passage, _show
from distilqa.cli.eval import _check_writable, _in_words, _measured, _write_whole
from distilqa.cli.main import main
from distilqa.cli.serve import _own_name
from distilqa.errors import DistilqaError, InvalidRequest
from distilqa.evaluation.dataset import Question
from distilqa.evaluation.no_answer import Verdict
from distilqa.server.settings import ENV_PREFIX, ServerSettings, flag, load_settings
from distilqa.text.answer import Answer


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # which a command sets too
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")  # likewise
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")  # likewise


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(passage: str, start: int, end: int, out: io.StringIO | None = None, score: float = 0.183) -> str:
    """What is printed of an answer in the only passage."""
    out = io.StringIO() if out is None else out
    _show(Answer(passage[start:end], start, end, score, 0), [passage], ["file.txt"], out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("passage", "start", "end", "expected"),
    [
        ("The quick brown fox jumps.", 16, 19, "fox (0.18)\n    The quick brown [fox] jumps.\n"),
        ("fox", 0, 3, "fox (0.18)\n    [fox]\n"),
        ("a\r\n \t b\nfox\u3000c", 8, 11, "fox (0.18)\n    a b [fox] c\n"),
        ("l" * 60 + "fox" + "r" * 60, 60, 63, f"fox (0.18)\n    {'l' * 60}[fox]{'r' * 60}\n"),
        ("a fox\r\n and\ta dog b", 2, 17, "fox and a dog (0.18)\n    a [fox and a dog] b\n"),
        ("f" * 120, 0, 120, f"{'f' * 120} (0.18)\n    [{'f' * 120}]\n"),
        (f"{'f' * 60}XX{'x' * 60}", 0, 122, f"{'f' * 60}…{'x' * 60} (0.18)\n    [{'f' * 60}…{'x' * 60}]\n"),
        ("Xl" + "l" * 59 + "fox" + "r" * 60 + "X", 61, 64, f"fox (0.18)\n    …{'l' * 60}[fox]{'r' * 60}…\n"),
    ],
    ids=["plain", "whole", "space", "just fits", "space inside", "answer just fits", "answer cut", "cut"],
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
    _show(Answer("", 0, 0, 0.5, None), ["a fox", "a dog"], ["fox.txt", "dog.txt"], out)
    assert out.getvalue() == "(no answer) (0.50)\n"


def test_answer_in_one_of_several_files() -> None:
    out = io.StringIO()
    _show(Answer("dog", 2, 5, 0.5, 1), ["a fox", "a dog"], ["fox.txt", "dog.txt"], out)
    assert out.getvalue() == "dog (0.50)\n    dog.txt: a [dog]\n"


@pytest.mark.parametrize("several", [("--passage", "{}", "--passage", "{}"), ("--passage", "{}", "{}")])
def test_file_of_each_answer_in_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], several: tuple[str, ...]
) -> None:
    """Also of one whose name is not UTF-8."""
    monkeypatch.chdir(tmp_path)
    names = iter(("fox", os.fsdecode(b"caf\xe9")))
    flags = [flag.format(next(names)) if "{}" in flag else flag for flag in several]
    for name in (b"fox", b"caf\xe9"):
        Path(os.fsdecode(name)).write_text("a fox")
    answers = [Answer("fox", 2, 5, 0.5, 1), Answer("fox", 2, 5, 0.25, 0), Answer("", 0, 0, 0.1, None)]
    monkeypatch.setattr("distilqa.cli.ask._answers", lambda *_: answers)
    assert main(["ask", "Who?", *flags, "--bundle", "b", "--json"]) == 0
    out = capsys.readouterr().out
    assert out.encode()
    listed = json.loads(out)["answers"]
    assert [(answer["passage"], answer["file"]) for answer in listed] == [(1, "caf\ufffd"), (0, "fox"), (None, None)]


@pytest.mark.parametrize(
    ("flags", "printed"),
    [
        ([], "caf\xe9 ? (0.50)\n    caf\xe9: a [caf\xe9 ?]\n"),
        (["--json"], '{"question": "Who?", "answers": [{"text": "caf\\u00e9 \\ud83e\\udd8a", '),
    ],
)
def test_a_terminal_that_cannot_show_every_character(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: list[str], printed: str
) -> None:
    """People see what can be shown, programs read what there is."""
    monkeypatch.chdir(tmp_path)
    for name in ("café", "other"):
        Path(name).write_text("a café 🦊", encoding="utf-8")
    monkeypatch.setattr("distilqa.cli.ask._answers", lambda *_: [Answer("café 🦊", 2, 8, 0.5, 0)])
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="latin-1"))
    assert main(["ask", "Who?", "--passage", "café", "other", "--bundle", "b", *flags]) == 0
    assert out.getvalue().decode("latin-1").startswith(printed)


def test_errors_do_not_steer_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> int:
        raise DistilqaError("a\x1b[2J\u202e é 日")

    monkeypatch.setattr("distilqa.cli.main._run", fail)
    assert main([]) == 1
    assert capsys.readouterr().err == "distilqa: a\\x1b[2J\\u202e é 日\n"


ANSWERED = Verdict(Question("1", "Who?", "A red fox.", ("fox",)), Answer("red fox", 2, 9, 0.5, 0), 0.125)
UNANSWERABLE = Verdict(Question("2", "Who?", "A red fox.", ()), Answer("fox", 6, 9, 0.25, 0), 0.5)
HAS, HAS_NOT = "with an answer: exact match 0.00, F1 66.67", "without: both 100.00"


@pytest.mark.parametrize(
    ("verdicts", "shown"),
    [
        (
            [ANSWERED, UNANSWERABLE],
            f"exact match 50.00, F1 83.33; {HAS}; {HAS_NOT};"
            " best exact match 50.00 at threshold 0; best F1 83.33 at threshold 0.125",
        ),
        (
            [ANSWERED],
            f"exact match 0.00, F1 66.67; {HAS};"
            " best exact match 0.00 at threshold 0; best F1 66.67 at threshold 0.125",
        ),
        (
            [UNANSWERABLE],
            f"exact match 100.00, F1 100.00; {HAS_NOT};"
            " best exact match 100.00 at threshold 0; best F1 100.00 at threshold 0",
        ),
    ],
    ids=["both", "with an answer", "without"],
)
def test_measures_in_words(verdicts: list[Verdict], shown: str) -> None:
    """Those of a kind of question that the file does not have are left out."""
    assert _in_words(_measured(verdicts, allow_no_answer=True)) == shown


def test_a_low_threshold_is_shown_as_it_is() -> None:
    low = Verdict(ANSWERED.question, ANSWERED.answer, 7.09e-9)
    assert _in_words(_measured([low], allow_no_answer=True)).endswith("best F1 66.67 at threshold 7.09e-09")


@pytest.mark.parametrize("linked", [False, True])
def test_a_file_is_written_whole_or_not_at_all(linked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, name = tmp_path / "real", tmp_path / ("link" if linked else "real")
    target.write_text("old")
    target.chmod(0o640)
    if linked:
        name.symlink_to(target)
    _write_whole(name, "new")
    assert (target.read_text(), target.stat().st_mode & 0o777) == ("new", 0o640)
    assert name.is_symlink() == linked

    def half(self: Path, text: str) -> None:
        self.write_bytes(text.encode()[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(OSError, match="No space"):
        _write_whole(name, "newer")
    assert target.read_text() == "new"
    assert {path.name for path in tmp_path.iterdir()} == {"real", name.name}


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
        ("/elsewhere/distilqa/__main__.py", "python -m distilqa"),
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
        (["ask", "--passage", "p", "Who?", "--bundle", "b"], "QUESTION (before --passage)"),
        (["ask", "Who?", "--passage", "p", "--bundle", "b", "--target", "h:1"], "--target"),
        (["ask", "Who?", "--passage", "p", "--bundle", "b", "--top-k", "many"], "--top-k"),
        (["ask", "Who?", "--passage", "p", "--bundle", "b", "--max-answer-tokens", "1.5"], "--max-answer-tokens"),
        (["ask", "Who?", "--passage", "p", "--bundle", "b", "--doc-stride", "x"], "--doc-stride"),
        (["ask", "Who?", "--passage", "p", "--target", "h:1", "--timeout", "x"], "--timeout"),
        (["export", "checkpoint"], "--output"),
        (["export", "checkpoint", "-o", "b", "--variant", "cpu-int4"], "cpu-int4"),
        (["inspect"], "BUNDLE"),
        (["eval"], "BUNDLE"),
        (["eval", "b"], "FILE"),
        (["serve", "b", "--novelty"], "--novelty"),
    ],
)
def test_arguments_that_argparse_refuses(argv: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert named in err.splitlines()[-1]
    command = f" {argv[0]}" if argv and argv[0] != "dance" else ""
    assert err.splitlines()[-1].startswith(f"distilqa{command}: error: "), "the usage shown is that of the command"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ask", "Who?", "--passage", "missing", "--bundle", "b"], "--passage: missing: No such file or directory"),
        (["ask", "Who?", "--passage", "p", "--bundle", "b"], "b is not a bundle: "),
        (
            ["ask", "Who?", "--passage", "p", "--target", "localhost:0", "--variant", "cpu-fp32"],
            "--variant: goes with --bundle; a server has chosen its own",
        ),
        (
            ["ask", "Who?", "--passage", "p", "--bundle", "b", "--tls"],
            "--tls, --root-certificates, --timeout: go with --target; a bundle is read here",
        ),
        (
            ["ask", "Who?", "--passage", "p", "--bundle", "b", "--timeout", "30"],
            "--tls, --root-certificates, --timeout: go with --target; a bundle is read here",
        ),
        (
            ["ask", "Who?", "--passage", "p", "--bundle", "b", "--root-certificates", "p"],
            "--tls, --root-certificates, --timeout: go with --target; a bundle is read here",
        ),
        (
            ["ask", "Who?", "--passage", "p", "--target", "localhost:0", "--root-certificates", "missing"],
            "--root-certificates: missing: No such file or directory",
        ),
        (["ask", "", "--passage", "p", "--target", "localhost:0", "--top-k", "0"], "--top-k: is 0, must be 1 to 100"),
        (
            ["ask", "Who?", "--passage", "p", "--target", "localhost:0", "--max-answer-tokens", "0"],
            "--max-answer-tokens: is 0, must be ",
        ),
        (
            ["ask", "Who?", "--passage", "p", "--target", "localhost:0", "--doc-stride", "-1"],
            "--doc-stride: is -1, must be 0 or ",
        ),
        (["ask", "Who?", "--passage", "p", "--target", "localhost:0", "--timeout", "0"], "--timeout: is 0.0, must "),
        (["ask", "\udce9", "--passage", "p", "--target", "localhost:0"], "QUESTION: is not valid Unicode at "),
        (["ask", "Who?", "--passage", "p", "--target", "\udce9"], "--target: is not valid Unicode at "),
        (["ask", "Who?", "--passage", "p", "--target", "localhost"], "--target: is 'localhost', must be \"host:port\""),
        (["inspect", "b"], "b is not a bundle: "),
        (["eval", "b", "p"], "b is not a bundle: "),
        (["serve"], "BUNDLE: is missing; pass it, set DISTILQA_BUNDLE, or "),
        (["serve", "--print-settings"], "BUNDLE: is missing; "),
        (["serve", "b", "--config", "p"], "--config: p: is not TOML: "),
        (["serve", "b", "--config", "nowhere"], "--config: nowhere: No such file or directory"),
        (["serve", "b", "--log-level", "loud"], "--log-level: Input should be 'debug', "),
        (
            ["serve", "b", "--max-windows", "600"],
            "max_queued_windows (512, default) is less than --max-windows (600), ",
        ),
        (["serve", "b", "--tls-key", "p"], "--tls-key: goes with --tls-certificate, which is not given"),
        (["serve", "b", "--credentials", "p"], "--credentials: p: "),
        (["serve", "b", "--tls-certificate", "p", "--tls-key", "p"], "--tls-certificate: p: holds no certificate"),
        (["serve", "b", "--port", "-1"], "--port: Input should be greater than or equal to 0 (got '-1')"),
        (["serve", "b"], "b is not a bundle: "),
    ],
)
def test_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    argv: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p").write_text("A fox.")
    assert main(argv) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"distilqa: {message}")
    assert err.count("\n") == 1


def test_a_token_that_no_header_can_carry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DISTILQA_TOKEN", "two words")
    (tmp_path / "p").write_text("A fox.")
    assert main(["ask", "Who?", "--passage", str(tmp_path / "p"), "--target", "localhost:0"]) == 1
    assert (
        capsys.readouterr().err
        == "distilqa: DISTILQA_TOKEN: must be 1 to 4096 printable ASCII characters without spaces\n"
    )


@pytest.mark.parametrize(
    ("field", "named"), [("passages", "--passage"), ("passages[1]", "--passage: q"), ("novelty", "novelty")]
)
def test_what_a_server_refuses_is_named_as_it_was_typed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, named: str
) -> None:
    def refuse(*_: object) -> list[Answer]:
        raise InvalidRequest(field, "is: odd")

    monkeypatch.chdir(tmp_path)
    for name in ("p", "q"):
        Path(name).write_text("A fox.")
    monkeypatch.setattr("distilqa.cli.ask._answers", refuse)
    assert main(["ask", "Who?", "--passage", "p", "q", "--target", "localhost:0"]) == 1
    assert capsys.readouterr().err == f"distilqa: {named}: is: odd\n"


def test_export_is_stopped_and_leaves_the_signal_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("distilqa_export.export.export", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(SystemExit) as caught:
        main(["export", str(CHECKPOINT), "-o", "bundle"])
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_cannot_be_exported_is_refused_before_pytorch_is_there(tmp_path: Path) -> None:
    """Its import takes seconds."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "other").write_text("")
    code = "import sys; from distilqa.cli.main import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    nowhere = str(tmp_path / "nowhere")
    for checkpoint, target, *options in (
        (tmp_path / "nothing", "b"), (tmp_path, "b"), (CHECKPOINT, tmp_path), (CHECKPOINT, "b", "--eval", nowhere),
        (CHECKPOINT, "b", "--calibration", nowhere),
    ):  # fmt: skip
        command = [sys.executable, "-c", code, "export", str(checkpoint), "-o", str(target), *options]
        assert subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout == "1 False\n"


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("distilqa.bundle.Bundle.open", interrupt)
    assert main(["inspect", "b"]) == 130


@pytest.mark.parametrize("command", [[], ["export"], ["inspect"], ["eval"], ["ask"], ["serve"]])
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert " ".join(["usage: distilqa", *command]) in out
    if command == ["ask"]:
        assert "DISTILQA_TOKEN" in out
    if command == ["serve"]:
        shown = {
            "credentials": "FILE",
            "drain_s": "SECONDS",
            "host": "HOST",
            "log_format": "{console,json}",
            "max_requests": "N",
            "objective_ms": "NUMBER",
            "unverified": "{refuse,allow}",
            "variant": "VALUE",
        }
        for name, value in shown.items():
            assert f"  {flag(name)} {value}" in out
        for name in set(ServerSettings.model_fields) - {"bundle"}:
            assert f"  {flag(name)} " in out
        for name in ("config", *ServerSettings.model_fields):
            assert f"DISTILQA_{name.upper()})" in out
        assert "(default 50051, DISTILQA_PORT)" in " ".join(out.split())
        assert "default None" not in out


def test_help_without_the_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "distilqa.server.settings", None)
    with pytest.raises(SystemExit) as caught:
        main(["serve", "--help"])
    assert caught.value.code == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "The settings are not shown: the server is not installed: pip install '.[server,cpu]' in" in out
    assert "--port" not in out


def test_settings_are_printed_and_taken_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is no such bundle, and nothing is served."""
    monkeypatch.chdir(tmp_path)
    Path("server.toml").write_text("max_requests = 64")
    monkeypatch.setenv("DISTILQA_DRAIN_S", "5")
    arguments = ["serve", "nowhere", "--config", "server.toml", "--log-format", "json", "--print-settings"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for line in (
        'bundle = "nowhere"  # BUNDLE',
        "max_requests = 64  # server.toml: max_requests",
        "drain_s = 5.0  # DISTILQA_DRAIN_S",
        'log_format = "json"  # --log-format',
        "port = 50051  # default",
        "# threads =  # default",
    ):
        assert line in out.splitlines()
    monkeypatch.delenv("DISTILQA_DRAIN_S")
    Path("again.toml").write_text(out)
    again = load_settings({"config": "again.toml"})
    assert (again.max_requests, again.drain_s, again.log_format, again.port) == (64, 5.0, "json", 50051)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{version('distilqa')}\n"


def test_a_pipe_for_predictions_is_not_opened_to_try_it(tmp_path: Path) -> None:
    """That would wait for its reader."""
    os.mkfifo(tmp_path / "pipe")
    _check_writable("--predictions", tmp_path / "pipe")


def test_closed_stdin_has_no_passage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InvalidRequest, match="stdin is closed"):
        _read_passage("-")
