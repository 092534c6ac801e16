"""``distilqa ask``: ask a question, of a bundle here or of a server."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from distilqa.cli.commands import TOKEN_VARIABLE, Commands, add_command
from distilqa.errors import DeadlineExceeded, InvalidRequest
from distilqa.text.answer import Answer
from distilqa.wording import printable

# What `ask` calls the arguments that an InvalidRequest names.
_TYPED = {
    "question": "QUESTION",
    "passages": "--passage",
    "top_k": "--top-k",
    "max_answer_tokens": "--max-answer-tokens",
    "doc_stride": "--doc-stride",
    "target": "--target",
    "root_certificates": "--root-certificates",
    "timeout_s": "--timeout",
    "token": TOKEN_VARIABLE,
}

# How many characters of the passage are shown on either side of an answer, and of a long answer at either end.
_CONTEXT = 60


def add(commands: Commands) -> None:
    ask = add_command(
        commands,
        "ask",
        _run,
        "ask a question",
        # Ours, because argparse shows QUESTION last, where --passage would take it for a file.
        usage="%(prog)s QUESTION --passage FILE [FILE ...] (--bundle BUNDLE | --target HOST:PORT) [options]",
        epilog=f"A server's token is read from the environment variable {TOKEN_VARIABLE}: a flag would show in the"
        " list of processes.",
    )
    ask.add_argument("question", metavar="QUESTION (before --passage)")
    ask.add_argument(
        "--passage",
        action="extend",
        nargs="+",
        required=True,
        metavar="FILE",
        help="texts to answer from, - is stdin; may be repeated",
    )
    where = ask.add_mutually_exclusive_group(required=True)
    where.add_argument("--bundle", type=Path, help="answer here, with this bundle")
    where.add_argument("--target", metavar="HOST:PORT", help="ask this server")
    ask.add_argument("--tls", action="store_true", help="encrypt, for --target")
    ask.add_argument(
        "--root-certificates", type=Path, metavar="FILE",
        help="encrypt, and trust the certificates in this PEM file (default: the authorities that gRPC knows)",
    )  # fmt: skip
    ask.add_argument("--variant", help="which variant of the bundle (default: the fastest that can be used here)")
    ask.add_argument("--top-k", type=int, default=1, help="how many answers (default 1)")
    ask.add_argument("--max-answer-tokens", type=int, default=15, help="longest answer, in tokens (default 15)")
    ask.add_argument("--doc-stride", type=int, help="overlap of the windows over a long passage (default 128)")
    ask.add_argument("--allow-no-answer", action="store_true", help='let "no answer" compete')
    ask.add_argument("--no-align-to-words", action="store_false", dest="align_to_words",
                     help="let answers begin and end within words")  # fmt: skip
    ask.add_argument("--timeout", type=float, metavar="SECONDS", help="for --target (default 30)")
    ask.add_argument("--json", action="store_true", help="print JSON")


def _run(arguments: argparse.Namespace) -> int:
    if arguments.passage.count("-") > 1:
        raise InvalidRequest("--passage", "- may be given once; stdin can be read once")
    passages = [_read_passage(name) for name in arguments.passage]
    files = [os.fsencode(name).decode(errors="replace") for name in arguments.passage]  # so that they can be printed
    try:
        answers = _answers(arguments, passages)
    except InvalidRequest as error:
        typed = _TYPED | {f"passages[{number}]": f"--passage: {file}" for number, file in enumerate(files)}
        raise InvalidRequest(typed.get(error.field, error.field), error.problem) from error
    if arguments.json:
        listed = [
            asdict(answer) | {"file": None if answer.passage is None else files[answer.passage]} for answer in answers
        ]
        print(_json({"question": arguments.question, "answers": listed}, sys.stdout))
    else:
        for answer in answers:
            _show(answer, passages, files, sys.stdout)
    return 0


def _answers(arguments: argparse.Namespace, passages: list[str]) -> list[Answer]:
    options = {
        "top_k": arguments.top_k,
        "max_answer_tokens": arguments.max_answer_tokens,
        "doc_stride": arguments.doc_stride,
        "allow_no_answer": arguments.allow_no_answer,
        "align_to_words": arguments.align_to_words,
    }
    if arguments.bundle:
        if arguments.tls or arguments.root_certificates or arguments.timeout is not None:
            raise InvalidRequest("--tls, --root-certificates, --timeout", "go with --target; a bundle is read here")
        from distilqa.reader import Reader

        return Reader(arguments.bundle, arguments.variant).answer(arguments.question, passages, **options)
    if arguments.variant:
        raise InvalidRequest("--variant", "goes with --bundle; a server has chosen its own")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # or gRPC would talk on stderr of what our error says
    from distilqa.client.client import DEFAULT_TIMEOUT_S, Client

    with Client(
        arguments.target,
        token=os.environ.get(TOKEN_VARIABLE) or None,
        tls=arguments.tls,
        root_certificates=arguments.root_certificates,
        timeout_s=DEFAULT_TIMEOUT_S if arguments.timeout is None else arguments.timeout,
    ) as client:
        try:
            return client.answer(arguments.question, passages, **options)
        except DeadlineExceeded as error:
            raise DeadlineExceeded(str(error).replace("timeout_s of the client", "--timeout")) from error


def _json(value: object, out: TextIO) -> str:
    """JSON with characters as they are, or escaped if ``out`` cannot encode them: what is read must be exact."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(out.encoding)
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def _read_passage(name: str) -> str:
    """The text of a file, or of stdin for "-", with its line ends as they are."""
    if name == "-" and sys.stdin is None:
        raise InvalidRequest("--passage", "-: stdin is closed")
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return content.decode()
    except OSError as error:
        raise InvalidRequest("--passage", f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest("--passage", f"{name}: is not UTF-8 at byte {error.start}") from error


def _show(answer: Answer, passages: list[str], files: list[str], out: TextIO) -> None:
    """An answer with its score, and highlighted where it stands in its passage; of several, with the file's name."""
    if answer.passage is None:
        print(f"(no answer) ({_score(answer)})", file=out)
        return
    on, off = ("\x1b[1;32m", "\x1b[0m") if out.isatty() and "NO_COLOR" not in os.environ else ("[", "]")
    passage = passages[answer.passage]
    before, after = passage[: answer.start], passage[answer.end :]
    left = before if len(before) <= _CONTEXT else "…" + before[-_CONTEXT:]
    right = after if len(after) <= _CONTEXT else after[:_CONTEXT] + "…"
    text = " ".join(answer.text.split())
    if len(text) > 2 * _CONTEXT:
        text = f"{text[:_CONTEXT]}…{text[-_CONTEXT:]}"
    # As one line, in which nothing steers the terminal but we.
    left, text, right = (printable(re.sub(r"\s+", " ", part)) for part in (left, text, right))
    file = f"{printable(files[answer.passage])}: " if len(files) > 1 else ""
    print(f"{text} ({_score(answer)})\n    {file}{left.lstrip()}{on}{text}{off}{right.rstrip()}", file=out)


def _score(answer: Answer) -> str:
    """Two decimals, or one digit where those would say nothing: over much text scores are small."""
    return f"{answer.score:.2f}" if answer.score >= 0.01 else f"{answer.score:.1g}"
