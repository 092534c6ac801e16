"""The command line: ``distilqa export | inspect | eval | serve | ask``.

Each command imports what it needs when it runs, so that each works with its own extra alone, and starts fast.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, get_args, get_origin

from distilqa.answer import Answer
from distilqa.bundle import GPU_VARIANTS, VARIANTS, Bundle
from distilqa.errors import (
    BundleError,
    DeadlineExceeded,
    DistilqaError,
    InvalidRequest,
    MissingDependency,
    VariantUnusable,
)
from distilqa.processor import read_processor

if TYPE_CHECKING:
    from distilqa.evaluation import Evaluation, Question
    from distilqa.reader import Reader

    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]

_TOKEN_VARIABLE = "DISTILQA_TOKEN"

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
    "token": _TOKEN_VARIABLE,
}

# The groups in which `serve --help` shows the settings, by the first of each.
_SETTING_GROUPS = {
    "bundle": "the model",
    "host": "who may call, and where",
    "threads": "how much it takes",
    "drain_s": "stopping and logging",
}

# How many characters of the passage are shown on either side of an answer, and of a long answer at either end.
_CONTEXT = 60


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status: 0, or 1 with one line on stderr."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before we began
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="replace")  # a character that it cannot encode is no reason to fail
    try:
        try:
            return _run(argv)
        finally:
            print(end="", flush=True)  # or Python would, as it ends, and complain if the reader has left
    except DistilqaError as error:
        print(f"distilqa: {_printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has left
        _drop_output()
        return 1
    except OSError as error:
        print(f"distilqa: {error}", file=sys.stderr)
        _drop_output()
        return 1
    except KeyboardInterrupt:
        return 130


def _printable(text: str) -> str:
    """What others say, without what would steer the terminal."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _drop_output() -> None:
    """Let go of what stdout does not take, or Python would try again as it ends, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(argv: Sequence[str] | None) -> int:
    arguments, unknown = _parser().parse_known_args(argv)
    if unknown and not getattr(arguments, "any_flags", False):
        arguments.parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    status: int = arguments.run(arguments)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distilqa", description="Extractive question answering from verified ONNX bundles."
    )
    parser.add_argument("--version", action="version", version=version("distilqa"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _add_export(commands)

    inspect = _add_command(commands, "inspect", _inspect, "verify a bundle and show what is in it")
    inspect.add_argument("bundle", type=Path, metavar="BUNDLE")
    inspect.add_argument("--json", action="store_true", help="print the manifest")

    evaluation = _add_command(commands, "eval", _eval, "measure exact match and F1 on a SQuAD v1.1 file")
    evaluation.add_argument("bundle", type=Path, metavar="BUNDLE")
    evaluation.add_argument("file", type=Path, metavar="FILE", help="questions with answers, dev-v1.1.json say")
    evaluation.add_argument("--variant", help="of the bundle, also unverified (default: all that can be used here)")
    evaluation.add_argument(
        "--predictions", type=Path, metavar="FILE", help="write the answers too, for the official script"
    )
    evaluation.add_argument("--json", action="store_true", help="print JSON")

    _add_settings(_add_command(commands, "serve", _serve, "serve a bundle over gRPC"))
    _add_ask(commands)
    return parser


def _add_command(
    commands: _Commands, name: str, run: Callable[[argparse.Namespace], int], does: str, **options: Any
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=does, description=f"{does[0].upper()}{does[1:]}.", allow_abbrev=False, **options
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def _add_export(commands: _Commands) -> None:
    export = _add_command(commands, "export", _export, "make a bundle of a PyTorch checkpoint")
    export.add_argument("checkpoint", metavar="CHECKPOINT", help="a local folder, or a hub id")
    export.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="directory to write")
    export.add_argument(
        "--variant",
        action="append",
        choices=(*VARIANTS, *GPU_VARIANTS),
        help=f"which to make; may be repeated (default: {' and '.join(VARIANTS)}; {', '.join(GPU_VARIANTS)} is for an"
        " NVIDIA GPU)",
    )
    export.add_argument(
        "--calibration", type=Path, metavar="FILE",
        help="JSON lines with question and context to choose the int8 scales on (default: a packaged sample of SQuAD)",
    )  # fmt: skip
    export.add_argument(
        "--eval", type=Path, metavar="FILE",
        help="SQuAD v1.1 file to judge int8 and fp16 on (default: 3,000 packaged questions of SQuAD's development set)",
    )  # fmt: skip
    export.add_argument(
        "--max-f1-drop", type=float, metavar="POINTS",
        help="F1 that int8 or fp16 may lose against fp32; matmuls of int8 stay fp32 where it must be (default 0.5)",
    )  # fmt: skip
    export.add_argument("--revision", help="branch, tag or commit on the hub")
    export.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")


def _add_ask(commands: _Commands) -> None:
    ask = _add_command(
        commands,
        "ask",
        _ask,
        "ask a question",
        # Ours, because argparse shows QUESTION last, where --passage would take it for a file.
        usage="%(prog)s QUESTION --passage FILE [FILE ...] (--bundle BUNDLE | --target HOST:PORT) [options]",
        epilog=f"A server's token is read from the environment variable {_TOKEN_VARIABLE}: a flag would show in the"
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
    ask.add_argument("--timeout", type=float, metavar="SECONDS", help="for --target (default 30)")
    ask.add_argument("--json", action="store_true", help="print JSON")


def _export(arguments: argparse.Namespace) -> int:
    # PyTorch's libraries talk on stderr; what they say is not about this command.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        from distilqa_export.export import MAX_F1_DROP, export
    except ImportError as error:
        raise MissingDependency(
            f"the exporter is not installed: pip install 'distilqa[export,cpu]' (or gpu for cpu; {error})"
        ) from error
    began = time.monotonic()
    with _exit_on_sigterm():
        manifest = export(
            arguments.checkpoint,
            arguments.output,
            variants=arguments.variant or VARIANTS,
            calibration=arguments.calibration,
            evaluation=arguments.eval,
            max_f1_drop=MAX_F1_DROP if arguments.max_f1_drop is None else arguments.max_f1_drop,
            revision=arguments.revision,
            overwrite=arguments.overwrite,
            progress=lambda step: print(f"[{time.monotonic() - began:5.1f} s] {step}", file=sys.stderr, flush=True),
        )
    for name, variant in manifest.variants.items():
        measured = ", ".join(f"{measure} {text}" for measure, text in variant.shown().items())
        unverified = "" if variant.verified else "unverified, "
        print(f"{name}: {unverified}{manifest.files[variant.file].bytes / 1e6:.1f} MB, {measured}")
    print(f"wrote {arguments.output}")
    if left := [name for name, variant in manifest.variants.items() if not variant.verified]:
        print(f"{', '.join(left)}: export it where there is a GPU, or serve it with --unverified allow")
    return 0


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """SIGTERM leaves the block as an exception, so that what is half done is cleared away."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    print(f"  made on       {manifest.processor}")
    print(f"  this machine  {read_processor()}")
    usable = _usable(bundle)
    for name, variant in manifest.variants.items():
        print(f"variant {name} ({variant.precision}{'' if variant.verified else ', unverified'})")
        operators = ", ".join(f"{count} {op}" for op, count in variant.operators.items())
        shown = variant.shown() | {
            "quantisation": variant.quantization,
            "self-test: logits may differ by": f"{variant.tolerance:.3g}",
            "operators": operators,
        }
        shown |= {f"in fp32: {name}": f"logit error {error:.2g}" for name, error in variant.fp32_matmuls.items()}
        for measure, text in (usable.get(name, {}) | shown).items():
            print(f"  {measure:42}{text}")
    for use, questions in manifest.data.items():
        print(f"{use} on {questions}")
    print("files (digests verified)")
    for name, file in manifest.files.items():
        print(f"  {name:16}{file.bytes:>12,}  {file.sha256}")
    return 0


def _usable(bundle: Bundle) -> dict[str, dict[str, str]]:
    """Of each variant, whether it can be used here; of none where there is no runtime."""
    from distilqa.cuda_runtime import load_runtime
    from distilqa.engine import Engine, import_onnxruntime

    try:
        import_onnxruntime()
    except MissingDependency:
        return {}
    found = {}
    for name in bundle.manifest.variants:
        told = "yes"
        try:
            if name in GPU_VARIANTS:
                load_runtime()
            else:
                Engine(bundle, name)
        except (MissingDependency, BundleError) as error:
            told = f"no: {str(error).removeprefix(f'{bundle.path}: ')}"
        found[name] = {"can be used on this machine": told}
    return found


def _eval(arguments: argparse.Namespace) -> int:
    from distilqa.engine import usable_variants
    from distilqa.evaluation import read_questions
    from distilqa.reader import Reader

    bundle = Bundle.open(arguments.bundle)
    usable = usable_variants()
    first, _ = bundle.variant(arguments.variant, (*usable, *GPU_VARIANTS))
    variants = [name for name in bundle.manifest.variants if name in usable and arguments.variant is None] or [first]
    for name in bundle.manifest.variants.keys() - {*usable, first} if arguments.variant is None else ():
        print(f"{name}: left out, since this ONNX Runtime is for CPUs alone", file=sys.stderr)
    if arguments.predictions and len(variants) > 1:
        raise InvalidRequest("--predictions", f"is one file; choose a --variant of {', '.join(variants)}")
    questions = read_questions(arguments.file)
    if arguments.predictions:
        _check_writable("--predictions", arguments.predictions)
    # All before the first is measured: what cannot be used here is better found now than after minutes.
    readers: dict[str, Reader] = {}
    left_out: list[str] = []
    for variant in variants:
        try:
            readers[variant] = Reader(arguments.bundle, variant, threads=1, unverified=True)
        except VariantUnusable as error:
            left_out.append(str(error))
    if not readers:
        raise VariantUnusable(left_out[0])
    for problem in left_out:
        print(f"left out: {problem}", file=sys.stderr)
    results = {}
    for variant, reader in readers.items():
        found = _measure(reader, questions)
        rate = len(questions) / found.seconds
        results[variant] = {
            "exact_match": found.exact_match,
            "f1": found.f1,
            "questions": len(questions),
            "answers_per_second": rate,
        }
        if not arguments.json:
            print(f"{variant}: exact match {found.exact_match:.2f}, F1 {found.f1:.2f},", end=" ")
            print(f"{len(questions):,} questions, {rate:.1f} answers/s", flush=True)
        if arguments.predictions:
            _write_whole(arguments.predictions, json.dumps(found.predictions))
    if arguments.json:
        print(json.dumps(results))
    return 0


def _measure(reader: Reader, questions: Sequence[Question]) -> Evaluation:
    """Answer with a lane a core, each run on its own core: nobody waits for a single answer here."""
    from distilqa.engine import usable_cores
    from distilqa.evaluation import MAX_ANSWER_TOKENS, evaluate
    from distilqa.progress import ProgressBar

    def answer(question: Question) -> Answer:
        return reader.answer(question.question, question.context, max_answer_tokens=MAX_ANSWER_TOKENS)[0]

    with ProgressBar(reader.engine.variant, len(questions), sys.stderr) as progress:
        return evaluate(questions, answer, lanes=usable_cores(), progress=progress)


def _check_writable(flag: str, path: Path) -> None:
    """Raise InvalidRequest for a file that cannot be written: better now than when all is done."""
    if path.exists() and not path.is_file() and not path.is_dir():
        return  # a pipe, which would wait for its reader
    try:
        path.open("a").close()  # what an earlier run has left stays until there is something new
    except OSError as error:
        raise InvalidRequest(flag, f"{path}: {error.strerror}") from error


def _write_whole(path: Path, text: str) -> None:
    """Write a file in one step: where that fails, what was there before is still there."""
    if not path.is_file():  # a pipe
        path.write_text(text)
        return
    path = path.resolve()
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as scratch:
        whole = Path(scratch) / path.name
        whole.write_text(text)
        whole.chmod(path.stat().st_mode & 0o777)
        whole.replace(path)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for each server setting. Their values are checked where the settings are made."""
    try:
        from distilqa.settings import ENV_PREFIX, ServerSettings, flag
    except ImportError as error:
        parser.add_argument("bundle", nargs="?", metavar="BUNDLE")
        parser.set_defaults(any_flags=True)  # of which `serve` itself says what is missing
        parser.epilog = f"The settings are not shown: {_no_server(error)}"
        return
    parser.epilog = (
        f"Each setting is a flag, an environment variable ({ENV_PREFIX}MAX_REQUESTS=64), or a key of the TOML file"
        " (max_requests = 64); of several the first counts. Relative paths, also those in the file, start at the"
        " current directory."
    )
    parser.add_argument("--config", metavar="FILE", help=f"TOML file of settings ({ENV_PREFIX}CONFIG)")
    parser.add_argument(
        "--print-settings", action="store_true", help="print all settings and their sources, as such a file, and exit"
    )
    group: argparse._ActionsContainer = parser
    for name, field in ServerSettings.model_fields.items():
        if name in _SETTING_GROUPS:
            group = parser.add_argument_group(_SETTING_GROUPS[name])
        default = "" if field.default is None or field.is_required() else f"default {field.default}, "
        described = f"{field.description} ({default}{ENV_PREFIX}{name.upper()})"
        if field.is_required():
            group.add_argument(name, nargs="?", metavar=flag(name), help=described)
        else:
            choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
            metavar = f"{{{','.join(choices)}}}" if choices else "VALUE"
            group.add_argument(flag(name), metavar=metavar, help=described)


def _no_server(error: ImportError) -> str:
    return f"the server is not installed: pip install 'distilqa[server,cpu]' ({error})"


def _serve(arguments: argparse.Namespace) -> int:
    # The pools of threads that libraries bring would only take the cores from the model's.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # or gRPC would talk on stderr of what our errors say
    try:
        from distilqa.app import AnyServer, serve
        from distilqa.logs import logging_to
        from distilqa.settings import load_settings
    except ImportError as error:
        raise MissingDependency(_no_server(error)) from error
    given = {name: value for name, value in vars(arguments).items() if name not in ("run", "parser", "print_settings")}
    settings = load_settings(given)
    if arguments.print_settings:
        print(settings.to_toml(), end="")
        return 0

    def announce(server: AnyServer) -> None:
        token = f"{_TOKEN_VARIABLE}=... " if settings.credentials else ""
        tls = " --tls" if settings.tls_certificate else ""
        print(f"Serving {server.description} on {server.address}. Ask it from another terminal:\n")
        print(f"    echo 'The quick brown fox jumps over the lazy dog.' | {token}{_own_name()} ask"
              f" 'What does the fox jump over?' --passage - --target {server.address}{tls}\n", flush=True)  # fmt: skip
        if tls:
            print("For a certificate that no public authority has signed, --root-certificates FILE takes the place of"
                  " --tls.\n", flush=True)  # fmt: skip

    with logging_to(sys.stderr.fileno(), form=settings.log_format, level=settings.log_level):
        asyncio.run(serve(settings, announce))
    return 0


def _own_name() -> str:
    """This program, as the user can type it again."""
    own = Path(sys.argv[0])
    if own.name == "__main__.py":
        return "python -m distilqa"
    try:
        return str(own.relative_to(Path.cwd())) if own.is_absolute() else str(own)
    except (ValueError, OSError):  # it is elsewhere, or the current directory is gone
        return own.name


def _ask(arguments: argparse.Namespace) -> int:
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
    }
    if arguments.bundle:
        if arguments.tls or arguments.root_certificates or arguments.timeout is not None:
            raise InvalidRequest("--tls, --root-certificates, --timeout", "go with --target; a bundle is read here")
        from distilqa.reader import Reader

        return Reader(arguments.bundle, arguments.variant).answer(arguments.question, passages, **options)
    if arguments.variant:
        raise InvalidRequest("--variant", "goes with --bundle; a server has chosen its own")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # or gRPC would talk on stderr of what our error says
    from distilqa.client import DEFAULT_TIMEOUT_S, Client

    with Client(
        arguments.target,
        token=os.environ.get(_TOKEN_VARIABLE) or None,
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
    line = " ".join(f"{left}{on}{text}{off}{right}".split())
    file = f"{files[answer.passage]}: " if len(files) > 1 else ""
    print(f"{text} ({_score(answer)})\n    {file}{line}", file=out)


def _score(answer: Answer) -> str:
    """Two decimals, or one digit where those would say nothing: over much text scores are small."""
    return f"{answer.score:.2f}" if answer.score >= 0.01 else f"{answer.score:.1g}"


if __name__ == "__main__":
    sys.exit(main())
