"""``python -m benchmarks``: what is true of DistilBERT against bert-base, and what this software adds, on this machine.

Writes a folder of results, a part at a time: all samples in JSON, a report in Markdown, and plots.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from benchmarks import PARTS

# What the suite imports and a smaller installation lacks: said at once, rather than after half an hour.
_NEEDED = (
    "distilqa", "grpc", "matplotlib", "nncf", "onnx", "onnx_ir", "onnxruntime", "openvino", "optimum", "pydantic",
    "torch", "transformers",
)  # fmt: skip
_INSTALL = "pip install --editable '.[cpu,server,export,bench]'"


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return the exit status: 0, 1 where something failed, 130 after Ctrl-C. Finished parts are kept."""
    arguments = _parse(argv)
    missing = [name for name in _NEEDED if not find_spec(name)]
    if missing:
        print(f"error: {', '.join(missing)} not installed: {_INSTALL}", file=sys.stderr)
        return 1
    from distilqa.errors import DistilqaError

    try:
        if arguments.report:
            _write(arguments.report, as_json=arguments.json)
        else:
            _measure(arguments)
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (DistilqaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n\n")[2])
    parser.add_argument("--quick", action="store_true", help="one thread, fewer shapes and questions, shorter loads")
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART",
                        help=f"measure this part only ({', '.join(PARTS)}); may be repeated")  # fmt: skip
    parser.add_argument("--distilbert", metavar="CHECKPOINT",
                        help="folder or hub id, instead of the shipped checkpoint at the target's shape")  # fmt: skip
    parser.add_argument("--bert", metavar="CHECKPOINT", help="folder or hub id, instead of seeded random weights")
    parser.add_argument("--squad", type=Path, metavar="FILE", help="SQuAD v1.1 file, instead of the packaged questions")
    parser.add_argument("--price-per-second", type=price, metavar="MONEY", help="of this machine, in any currency")
    parser.add_argument("--results", type=Path, metavar="FOLDER",
                        help="where to write (default benchmarks/results/<cpu-model>-<date>)")  # fmt: skip
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="measure nothing: write a folder's report again")
    parser.add_argument("--json", action="store_true", help="print all that is stored, instead of the main table")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # for tests
    arguments = parser.parse_args(argv)
    given = {name for name, value in vars(arguments).items() if value is not None and value is not False}
    others = given - {"report", "json", "tiny"}
    if arguments.report and others:
        parser.error(f"--report measures nothing, so that --{min(others).replace('_', '-')} has no use")
    return arguments


def price(text: str) -> float:
    found = float(text)
    if not 0 <= found < math.inf:
        raise ValueError(text)
    return found


def _measure(arguments: argparse.Namespace) -> None:
    from benchmarks import results
    from benchmarks.report import MODULES
    from benchmarks.setting import Setting

    setting = Setting(
        quick=arguments.quick,
        tiny=arguments.tiny,
        distilbert=arguments.distilbert,
        bert=arguments.bert,
        squad=arguments.squad,
        price_per_s=arguments.price_per_second,
    )
    setting.check()
    folder = results.open_folder(arguments.results, results.new(setting))
    try:
        for name in arguments.only or PARTS:
            print(f"{name}:", file=sys.stderr, flush=True)
            results.add(folder, name, results.measure(MODULES[name], setting))
    finally:
        if results.load(folder)["parts"]:
            with _undisturbed():
                _write(folder, as_json=arguments.json)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without Ctrl-C, of which there may be more than one."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _write(folder: Path, *, as_json: bool) -> None:
    """Write the report and the plots of what is stored, and print one or the other."""
    from benchmarks import plots, results
    from benchmarks.report import check, report, summary

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


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda number, frame: sys.exit(128 + number))  # so that nothing that was started is left
    sys.exit(main())
