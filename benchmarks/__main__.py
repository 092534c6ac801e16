"""``python -m benchmarks``: what is true of DistilBERT against bert-base, and what this software adds, on this machine.

Writes a folder of results, a part at a time: all samples in JSON, a report in Markdown, and plots.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import PARTS, suite

_NEEDED = (
    "distilqa", "grpc", "matplotlib", "nncf", "onnx", "onnx_ir", "onnxruntime", "openvino", "optimum", "pydantic",
    "torch", "transformers",
)  # fmt: skip
_INSTALL = "pip install --editable '.[cpu,server,export,bench]'"


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return the exit status: 0, 1 where something failed, 130 after Ctrl-C. Finished parts are kept."""
    arguments = _parse(argv)
    return suite.ended(_NEEDED, _INSTALL, lambda: _run(arguments))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n\n")[2])
    suite.add_arguments(parser, PARTS, quick="one thread, fewer shapes and questions, shorter loads")
    parser.add_argument("--price-per-second", type=price, metavar="MONEY", help="of this machine, in any currency")
    parser.add_argument("--results", type=Path, metavar="FOLDER",
                        help="where to write (default benchmarks/results/<cpu-model>-<date>)")  # fmt: skip
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="measure nothing: write a folder's report again")
    parser.add_argument("--json", action="store_true", help="print all that is stored, instead of the main table")
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


def _run(arguments: argparse.Namespace) -> int:
    from benchmarks.reporting import results
    from benchmarks.setting import Setting

    if arguments.report:
        suite.write(arguments.report, as_json=arguments.json)
        return 0
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
    return suite.measure(setting, arguments.only or PARTS, folder, as_json=arguments.json)


if __name__ == "__main__":
    suite.leave_nothing()
    sys.exit(main())
