"""The command line: ``distilqa export | inspect | serve | ask``.

Each command imports what it needs when it runs, so that each works with its own extra alone, and starts fast.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

from distilqa.answer import Answer
from distilqa.bundle import VARIANTS, Bundle
from distilqa.errors import DistilqaError, InvalidRequest, MissingDependency

# How many characters of the passage are shown on either side of an answer.
_CONTEXT = 60


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0, or 1 with one line on stderr."""
    parser = _parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown and not getattr(arguments, "any_flags", False):
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        status: int = arguments.run(arguments)
        return status
    except DistilqaError as error:
        print(f"distilqa: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"distilqa: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distilqa", description="Extractive question answering from verified ONNX bundles."
    )
    parser.add_argument("--version", action="version", version=version("distilqa"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    export = commands.add_parser("export", help="make a bundle of a PyTorch checkpoint")
    export.add_argument("checkpoint", metavar="CHECKPOINT", help="a local folder, or a hub id")
    export.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="directory to write")
    export.add_argument(
        "--variant", action="append", choices=VARIANTS, help="which to make; may be repeated (default: all)"
    )
    export.add_argument(
        "--calibration", type=Path, metavar="FILE",
        help="JSON lines with question and context to choose the int8 scales on (default: a packaged sample of SQuAD)",
    )  # fmt: skip
    export.add_argument("--revision", help="branch, tag or commit on the hub")
    export.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")
    export.set_defaults(run=_export)

    inspect = commands.add_parser("inspect", help="verify a bundle and show what is in it")
    inspect.add_argument("bundle", type=Path, metavar="BUNDLE")
    inspect.add_argument("--json", action="store_true", help="print the manifest")
    inspect.set_defaults(run=_inspect)

    serve = commands.add_parser("serve", help="serve a bundle over gRPC")
    _add_settings(serve)
    serve.set_defaults(run=_serve)

    ask = commands.add_parser("ask", help="ask a question")
    ask.add_argument("question", metavar="QUESTION")
    ask.add_argument(
        "--passage",
        action="append",
        required=True,
        metavar="FILE",
        help="text to answer from, - is stdin; may be repeated",
    )
    where = ask.add_mutually_exclusive_group(required=True)
    where.add_argument("--bundle", type=Path, help="answer here, with this bundle")
    where.add_argument("--target", metavar="HOST:PORT", help="ask this server")
    ask.add_argument("--variant", help="which variant of the bundle (default: the fastest)")
    ask.add_argument("--top-k", type=int, default=1, help="how many answers (default 1)")
    ask.add_argument("--max-answer-tokens", type=int, default=15, help="longest answer, in tokens (default 15)")
    ask.add_argument("--doc-stride", type=int, help="overlap of the windows over a long passage (default 128)")
    ask.add_argument("--allow-no-answer", action="store_true", help='let "no answer" compete')
    ask.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="for --target (default 30)")
    ask.add_argument("--json", action="store_true", help="print JSON")
    ask.set_defaults(run=_ask)
    return parser


def _export(arguments: argparse.Namespace) -> int:
    # PyTorch's libraries talk on stderr; what they say is not about this command.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from distilqa_export.export import export
    except ImportError as error:
        raise MissingDependency(
            f"the exporter is not installed: pip install 'distilqa[export,cpu]' ({error})"
        ) from error
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half done is cleared away
    began = time.monotonic()
    manifest = export(
        arguments.checkpoint,
        arguments.output,
        variants=arguments.variant or VARIANTS,
        calibration=arguments.calibration,
        revision=arguments.revision,
        overwrite=arguments.overwrite,
        progress=lambda step: print(f"[{time.monotonic() - began:5.1f} s] {step}", file=sys.stderr, flush=True),
    )
    for name, variant in manifest.variants.items():
        measured = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in variant.measured.items())
        print(f"{name}: {manifest.files[variant.file].bytes / 1e6:.1f} MB, {measured}")
    print(f"wrote {arguments.output}")
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    bundle = Bundle.open(arguments.bundle)
    manifest = bundle.manifest
    for name in manifest.files:
        bundle.verified(name)
    if arguments.json:
        print(manifest.to_json(), end="")
        return 0
    source, shape = manifest.source, manifest.architecture
    print(f"{manifest.name} version {manifest.version}, made {manifest.created}")
    print(f"  checkpoint    {source.checkpoint}, revision {source.revision or 'unknown (a local folder)'}")
    print(f"  weights       SHA-256 {source.weights_sha256}")
    print(f"  architecture  {shape.type}: {shape.layers} layers of {shape.hidden}, {shape.heads} heads,", end=" ")
    print(f"feed-forward {shape.feed_forward}, {shape.parameters:,} parameters")
    print(f"  window        {manifest.window_tokens} tokens")
    print(f"  made with     {', '.join(f'{tool} {number}' for tool, number in manifest.tools.items())}")
    for name, variant in manifest.variants.items():
        print(f"variant {name} ({variant.precision})")
        for key, value in variant.measured.items():
            print(f"  {key.replace('_', ' '):34}{value:.4g}")
        print(f"  {'self-test tolerance':34}{variant.tolerance:.4g}")
        print(f"  {'operators':34}{', '.join(f'{count} {op}' for op, count in variant.operators.items())}")
    print("files (digests verified)")
    for name, file in manifest.files.items():
        print(f"  {name:16}{file.bytes:>12,}  {file.sha256}")
    return 0


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for each server setting. Their values are checked where the settings are made."""
    try:
        from distilqa.settings import ENV_PREFIX, ServerSettings
    except ImportError:  # without the server extra there is nothing to set; `serve` itself says what is missing
        parser.add_argument("bundle", nargs="?")
        parser.set_defaults(any_flags=True)
        return
    for name, field in ServerSettings.model_fields.items():
        default = "" if field.default is None or field.is_required() else f" (default {field.default})"
        if field.is_required():
            parser.add_argument(
                name, nargs="?", metavar=name.upper(), help=f"{field.description} ({ENV_PREFIX}{name.upper()})"
            )
        else:
            flag = f"--{name.replace('_', '-')}"
            parser.add_argument(flag, metavar="VALUE", help=f"{field.description}{default}")


def _serve(arguments: argparse.Namespace) -> int:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from distilqa.app import Server, serve
        from distilqa.settings import load_settings
    except ImportError as error:
        raise MissingDependency(f"the server is not installed: pip install 'distilqa[server,cpu]' ({error})") from error
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def announce(server: Server) -> None:
        print(f"Serving {server.description} on {server.address}. Ask it from another terminal:\n")
        print(f"    echo 'The quick brown fox jumps over the lazy dog.' | {_own_name()} ask"
              f" 'What does the fox jump over?' --passage - --target {server.address}\n", flush=True)  # fmt: skip

    settings = load_settings({name: value for name, value in vars(arguments).items() if name != "run"})
    asyncio.run(serve(settings, announce))
    return 0


def _own_name() -> str:
    """This program, as the user can type it again."""
    own = Path(sys.argv[0])
    try:
        return str(own.relative_to(Path.cwd())) if own.is_absolute() else str(own)
    except ValueError:
        return own.name


def _ask(arguments: argparse.Namespace) -> int:
    passages = [_read_passage(name) for name in arguments.passage]
    answers = _answers(arguments, passages)
    if arguments.json:
        listed = [asdict(answer) for answer in answers]
        print(json.dumps({"question": arguments.question, "answers": listed}, ensure_ascii=False))
    else:
        for answer in answers:
            _show(answer, passages, sys.stdout)
    return 0


def _answers(arguments: argparse.Namespace, passages: list[str]) -> list[Answer]:
    options = {
        "top_k": arguments.top_k,
        "max_answer_tokens": arguments.max_answer_tokens,
        "doc_stride": arguments.doc_stride,
        "allow_no_answer": arguments.allow_no_answer,
    }
    if arguments.bundle:
        from distilqa.reader import Reader

        return Reader(arguments.bundle, arguments.variant).answer(arguments.question, passages, **options)
    if arguments.variant:
        raise InvalidRequest("--variant", "goes with --bundle; a server has chosen its own")
    from distilqa.client import Client

    with Client(arguments.target, timeout_s=arguments.timeout) as client:
        return client.answer(arguments.question, passages, **options)


def _read_passage(name: str) -> str:
    """The text of a file, or of stdin for "-", with its line ends as they are."""
    try:
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return content.decode()
    except OSError as error:
        raise InvalidRequest("--passage", f"{name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest("--passage", f"{name}: is not UTF-8 at byte {error.start}") from error


def _show(answer: Answer, passages: list[str], out: TextIO) -> None:
    """An answer with its score, and highlighted where it stands in its passage."""
    if answer.passage is None:
        print(f"(no answer) ({_score(answer)})", file=out)
        return
    on, off = ("\x1b[1;32m", "\x1b[0m") if out.isatty() and "NO_COLOR" not in os.environ else ("[", "]")
    passage = passages[answer.passage]
    before, after = passage[: answer.start], passage[answer.end :]
    left = before if len(before) <= _CONTEXT else "…" + before[-_CONTEXT:]
    right = after if len(after) <= _CONTEXT else after[:_CONTEXT] + "…"
    line = " ".join(f"{left}{on}{answer.text}{off}{right}".split())
    print(f"{answer.text} ({_score(answer)})\n    {line}", file=out)


def _score(answer: Answer) -> str:
    """Two decimals, or one digit where those would say nothing: over much text scores are small."""
    return f"{answer.score:.2f}" if answer.score >= 0.01 else f"{answer.score:.1g}"


if __name__ == "__main__":
    sys.exit(main())
