"""What the suites for a CPU and for a GPU have in common: how they are called, and how part after part is kept."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.setting import Setting


def add_arguments(parser: argparse.ArgumentParser, parts: Sequence[str], *, quick: str) -> None:
    """What to measure, and with what."""
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--only", action="append", choices=parts, metavar="PART",
                        help=f"measure this part only ({', '.join(parts)}); may be repeated")  # fmt: skip
    parser.add_argument("--distilbert", metavar="CHECKPOINT",
                        help="folder or hub id, instead of the shipped checkpoint at the target's shape")  # fmt: skip
    parser.add_argument("--bert", metavar="CHECKPOINT", help="folder or hub id, instead of seeded random weights")
    parser.add_argument("--squad", type=Path, metavar="FILE", help="SQuAD v1.1 file, instead of the packaged questions")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # for tests


def ended(needed: Sequence[str], install: str, work: Callable[[], int]) -> int:
    """Do the work, and return the exit status: its own, 1 where something failed, 130 after Ctrl-C.

    What it imports and a smaller installation lacks is said at once, rather than after half an hour.
    """
    missing = [name for name in needed if not find_spec(name)]
    if missing:
        print(f"error: {', '.join(missing)} not installed: {install}", file=sys.stderr)
        return 1
    from distilqa.errors import DistilqaError

    try:
        return work()
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DistilqaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def measure(setting: Setting, parts: Sequence[str], folder: Path, *, as_json: bool = False, go_on: bool = False) -> int:
    """Measure the parts into a folder of results and write its report; return how many failed.

    Raises what the first one that fails does, unless the others are to ``go_on``.
    """
    from benchmarks.reporting import results
    from benchmarks.reporting.report import MODULES

    failed = 0
    try:
        for name in parts:
            print(f"{name}:", file=sys.stderr, flush=True)
            try:
                results.add(folder, name, results.measure(MODULES[name], setting))
            except Exception as error:
                if not go_on:
                    raise
                failed += 1
                traceback.print_exc()
                print(f"error: {name} failed: {error}", file=sys.stderr, flush=True)
    finally:
        if results.load(folder)["parts"]:
            with _undisturbed():
                write(folder, as_json=as_json)
    return failed


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without Ctrl-C, of which there may be more than one."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def write(folder: Path, *, as_json: bool) -> None:
    """Write the report and the plots of what is stored, and print one or the other."""
    from benchmarks.reporting import plots, results
    from benchmarks.reporting.report import check, report, summary

    measured = results.load(folder)
    check(measured)
    if not measured["parts"]:
        raise FileNotFoundError(f"{folder} has no results")
    written = report(measured)  # before anything is, so that plots and text are of one kind
    plots.draw(measured, folder)
    results.replace(folder / "report.md", written)
    if as_json:
        print((folder / results.STORED).read_text(encoding="utf-8"))
    else:
        print("\n\n".join(filter(None, [summary(measured), f"{folder / 'report.md'}"])))


def leave_nothing() -> None:
    """A signal that ends this process lets it end what it has started."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, frame: sys.exit(128 + number))
