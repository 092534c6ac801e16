"""The models that are measured, made once and kept under ``build/benchmarks``.

Speed depends on a model's shape and not on its values, so the target's cost is measured on the shipped checkpoint
widened to the target's exact shape (66,364,418 parameters), which needs no download and gives real answers.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "models" / "distilbert-384-squad"
CACHE = ROOT / "build" / "benchmarks"


def wide_checkpoint() -> Path:
    """The shipped checkpoint at the target's shape, as a folder."""

    def make(target: Path) -> None:
        from distilqa_export.checkpoint import load_checkpoint, save_checkpoint
        from distilqa_export.widen import widen

        checkpoint = load_checkpoint(str(CHECKPOINT))
        save_checkpoint(checkpoint.with_model(widen(checkpoint.model)), target)

    return _made("distilbert-768-squad", make)


def wide_bundle() -> Path:
    """The bundle of `wide_checkpoint`, as `distilqa export` makes it with few questions."""

    def make(target: Path) -> None:
        from distilqa_export.export import export
        from distilqa_export.samples import write_calibration, write_evaluation

        # Its accuracy is measured on the small one, and its speed depends on no value: a few passages will do here.
        asked, seen = target.with_name("asked.json"), target.with_name("seen.jsonl")
        write_evaluation(asked, passages=20)
        write_calibration(seen, passages=40)
        export(str(wide_checkpoint()), target, evaluation=asked, calibration=seen, max_f1_drop=100)

    return _made("bundle", make)


def plain_onnx() -> Path:
    """`wide_checkpoint` as optimum exports it by default: fp32, with an attention mask."""

    def make(target: Path) -> None:
        from optimum.exporters.onnx import main_export

        main_export(str(wide_checkpoint()), output=target, task="question-answering", do_validation=False)

    return _made("plain", make) / "model.onnx"


def stock_int8() -> Path:
    """`plain_onnx` after the stock recipe: ONNX Runtime's dynamic quantisation, int8 weights with a scale a column."""

    def make(target: Path) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        target.mkdir()
        quantize_dynamic(plain_onnx(), target / "model.onnx", per_channel=True, weight_type=QuantType.QInt8)

    return _made("stock-int8", make) / "model.onnx"


def _made(name: str, make: Callable[[Path], None]) -> Path:
    """What ``make`` writes, made again whenever this code or the exporter's is another."""
    target = CACHE / f"{name}-{_code_digest()}"
    if not target.exists():
        print(f"making {target.relative_to(ROOT)}", file=sys.stderr, flush=True)
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob(f"{name}-*"):
            shutil.rmtree(old)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            make(Path(scratch) / name)
            (Path(scratch) / name).rename(target)
    return target


def _code_digest() -> str:
    sources = [Path(__file__), *sorted((ROOT / "export").rglob("*.py")), *sorted((ROOT / "serving").rglob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
