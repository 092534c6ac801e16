"""``python -m benchmarks.gpu``: what this software makes of an NVIDIA GPU, beside others and beside what the GPU can.

Makes the models it needs, then writes a folder of results, a part at a time: all samples in JSON, a report in Markdown,
and plots. A part that fails says why, and the others go on. Without a GPU it says what is missing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import GPU_PARTS, suite

_NEEDED = (
    "distilqa", "grpc", "matplotlib", "onnx", "onnx_ir", "onnxruntime", "optimum", "pydantic", "torch", "transformers",
)  # fmt: skip
_INSTALL = "pip install --editable '.[gpu,server,export]' matplotlib"


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and return the exit status: 0, 1 where something failed, 130 after Ctrl-C. Finished parts are kept."""
    arguments = _parse(argv)
    return suite.ended(_NEEDED, _INSTALL, lambda: _measure(arguments))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n\n")[2])
    suite.add_arguments(parser, GPU_PARTS, quick="fewer shapes, processes and questions, shorter loads")
    parser.add_argument("--results", type=Path, metavar="FOLDER",
                        help="where to write (default benchmarks/results/<gpu>-<date>)")  # fmt: skip
    return parser.parse_args(argv)


def _measure(arguments: argparse.Namespace) -> int:
    from benchmarks.gpu.environment import gpu
    from benchmarks.gpu.setting import GpuSetting
    from benchmarks.reporting import results
    from distilqa.engine.cuda.runtime import load_runtime

    load_runtime()  # or it says what is missing
    setting = GpuSetting(
        quick=arguments.quick,
        tiny=arguments.tiny,
        distilbert=arguments.distilbert,
        bert=arguments.bert,
        squad=arguments.squad,
    )
    setting.check()
    begun = results.new(setting)
    begun["environment"] |= gpu()
    folder = results.open_folder(arguments.results, begun)
    return int(suite.measure(setting, arguments.only or GPU_PARTS, folder, go_on=True) > 0)


if __name__ == "__main__":
    suite.leave_nothing()
    sys.exit(main())
