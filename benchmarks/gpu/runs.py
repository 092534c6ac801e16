"""How fast one run of the model is on a GPU, by length and by windows in it.

The systems open the same checkpoint: our cuda-fp16, with and without CUDA graphs; the plain export in ONNX Runtime,
in fp32 and in fp16; PyTorch in fp16, eager and compiled. Windows of a run are of one length, so that nothing is masked:
PyTorch has no mask, the plain export asks for one. bert-base, ours and in PyTorch, shows what the model itself saves.
A run is timed from token ids in the host's memory to logits there.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from benchmarks import models
from benchmarks.gpu.setting import TURN_TOKENS, GpuSetting
from benchmarks.racing.child import SystemFailed
from benchmarks.racing.race import Raced, race, ratio, seconds
from benchmarks.racing.worker import Shape, System
from benchmarks.reporting.tables import Target, plural, table
from benchmarks.setting import BERT
from distilqa.bundle import Bundle

OURS, OURS_BERT = "cuda-fp16", f"cuda-fp16, {BERT}"
WITHOUT_GRAPHS = "cuda-fp16, no graphs"
PLAIN, PLAIN_FP16 = "ONNX Runtime fp32", "ONNX Runtime fp16"
PYTORCH, COMPILED, PYTORCH_BERT = "PyTorch fp16", "PyTorch fp16, compiled", f"PyTorch fp16, {BERT}"
PEAK, PRODUCTS = "one large product", "the model's products"

# The kind of each, and what makes its model.
_SYSTEMS: dict[str, tuple[str, Callable[[GpuSetting], Path]]] = {
    OURS: ("packed", lambda setting: setting.bundle),
    WITHOUT_GRAPHS: ("packed_without_graphs", lambda setting: setting.bundle),
    PLAIN: ("onnxruntime_cuda", lambda setting: models.plain_onnx(setting.distilbert_checkpoint)),
    PLAIN_FP16: ("onnxruntime_cuda", lambda setting: models.onnxruntime_fp16(setting.distilbert_checkpoint)),
    PYTORCH: ("pytorch_cuda", lambda setting: setting.distilbert_checkpoint),
    COMPILED: ("pytorch_cuda_compiled", lambda setting: setting.distilbert_checkpoint),
    OURS_BERT: ("packed", lambda setting: models.gpu_bundle(setting.bert_checkpoint)),
    PYTORCH_BERT: ("pytorch_cuda", lambda setting: setting.bert_checkpoint),
    PEAK: ("matmul_peak", lambda setting: setting.distilbert_checkpoint),
    PRODUCTS: ("matmul_model", lambda setting: setting.distilbert_checkpoint),
}

CONTENDERS = (OURS, WITHOUT_GRAPHS, PLAIN, PLAIN_FP16, PYTORCH, COMPILED, OURS_BERT, PYTORCH_BERT)

# By how much time there is.
LENGTHS: dict[str, tuple[int, ...]] = {
    "full": (16, 32, 64, 128, 256, 384, 512), "quick": (16, 128, 384), "tiny": (8, 16)
}  # fmt: skip
BATCHES: dict[str, tuple[int, ...]] = {"full": (1, 4, 16, 64, 128), "quick": (1, 8, 64), "tiny": (1, 2)}

# A run on a GPU has no room for more tokens.
_MOST_TOKENS = 32768


class Runs(TypedDict):
    raced: Raced


def prepare(setting: GpuSetting) -> None:
    """Make the models, but for those that cannot be made: `race_all` says so."""
    contenders(setting, CONTENDERS)


def contenders(setting: GpuSetting, names: Sequence[str]) -> tuple[dict[str, System], dict[str, str]]:
    """The systems of those names, and why some have no model."""
    found, left_out = {}, {}
    for name in names:
        kind, make = _SYSTEMS[name]
        if setting.tiny and kind == "pytorch_cuda_compiled":
            continue  # half a minute
        try:
            found[name] = System(kind, make(setting))
        except Exception as error:  # what makes models raises anything
            left_out[name] = f"no model could be made: {error!r:.300}"
    return found, left_out


def race_all(name: str, setting: GpuSetting, names: Sequence[str], shapes: Sequence[Shape]) -> Raced:
    """Race what can be opened. Raises SystemFailed if ours, the first, is not in it to the end."""
    systems, without_model = contenders(setting, names)
    raced = race(
        name,
        systems,
        shapes,
        threads=1,
        rounds=setting.rounds,
        may_fail=True,
        turn_tokens=TURN_TOKENS,
        together=True,
    )
    raced["left_out"] |= without_model
    if names[0] in raced["left_out"]:
        raise SystemFailed(f"{names[0]}: {raced['left_out'][names[0]]}")
    return raced


def measure(setting: GpuSetting) -> Runs:
    longest = Bundle.open(setting.bundle).manifest.window_tokens
    shapes = [
        Shape(windows, length)
        for windows in BATCHES[setting.extent]
        for length in LENGTHS[setting.extent]
        if length <= longest and windows * length <= _MOST_TOKENS
    ]
    return Runs(raced=race_all("by length and windows in a run", setting, CONTENDERS, shapes))


def targets(found: Runs) -> list[Target]:
    """None: what is asked is asked of SQuAD's lengths and of a busy GPU (see Throughput)."""
    return []


def report(found: Runs) -> str:
    """Markdown: times, and how many times as long as ours, by length, for each number of windows."""
    raced = found["raced"]
    blocks = []
    for windows, shapes in by_windows(raced).items():
        names = dict.fromkeys(name for samples in shapes.values() for name in samples)
        rows = [[name, *(_cell(name, samples) for samples in shapes.values())] for name in names]
        blocks.append(table([f"ms of {plural(windows, 'window')} of", *(f"{length}" for length in shapes)], rows))
    told = f"In brackets: how many times as long as {OURS}, at the median of the rounds."
    return "\n\n".join([told, *blocks, *left_out(raced)])


def _cell(name: str, samples: Mapping[str, Sequence[Sequence[float]]]) -> str:
    if name not in samples:
        return "-"
    taken = f"{statistics.median(seconds(samples[name])) * 1e3:.2f}"
    return taken if name == OURS else f"{taken} ({ratio(samples[OURS], samples[name])['median']:.2f})"


def left_out(raced: Raced) -> list[str]:
    """Markdown that says what could not be raced, and why."""
    lines = [f"- Left out: {name} ({why})." for name, why in raced["left_out"].items()]
    return ["\n".join(lines)] if lines else []


def by_windows(raced: Raced) -> dict[int, dict[int, dict[str, list[list[float]]]]]:
    """The samples by windows in a run, then by their length, then by system."""
    found: dict[int, dict[int, dict[str, list[list[float]]]]] = {}
    for text, samples in raced["samples_s"].items():
        shape = Shape.parse(text)
        found.setdefault(shape.windows, {})[shape.tokens] = samples
    return found
