"""The command line: ``distilqa export | inspect | eval | serve | ask``.

Each command imports what it needs when it runs, so that each works with its own extra alone, and starts fast.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from distilqa.cli import ask, eval, export, inspect, serve
from distilqa.cli.commands import drop_output
from distilqa.errors import DistilqaError
from distilqa.wording import nearest, printable


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
        print(f"distilqa: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of our output has left
        drop_output()
        return 1
    except OSError as error:
        print(f"distilqa: {error}", file=sys.stderr)
        drop_output()
        return 1
    except KeyboardInterrupt:
        return 130


def _run(argv: Sequence[str] | None) -> int:
    arguments, unknown = _parser().parse_known_args(argv)
    if unknown and not getattr(arguments, "any_flags", False):
        known = [flag for action in arguments.parser._actions for flag in action.option_strings]
        nearby = {one: nearest(one.partition("=")[0], known) for one in unknown}
        meant = [f"{one} (is {flag} meant?)" if flag else one for one, flag in nearby.items()]
        arguments.parser.error(f"unrecognized arguments: {' '.join(meant)}")
    status: int = arguments.run(arguments)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="distilqa", description="Extractive question answering from verified ONNX bundles."
    )
    parser.add_argument("--version", action="version", version=version("distilqa"))
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for command in (export, inspect, eval, serve, ask):
        command.add(commands)
    return parser
