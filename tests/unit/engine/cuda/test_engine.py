"""The engine for a GPU, on a CPU: with the packed model's twin, and with all that a GPU needs missing."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from distilqa.bundle import Bundle
from distilqa.engine.cpu import CpuEngine
from distilqa.engine.cuda import engine as cuda
from distilqa.engine.cuda.engine import CudaEngine, DeviceLost, Way
from distilqa.engine.cuda.lane import Lane
from distilqa.engine.open import open_engine
from distilqa.engine.session import open_session
from distilqa.errors import BundleError, InferenceFailed, MissingDependency, VariantUnusable
from distilqa.reader import Reader
from distilqa_export.graph.checkpoint import load_checkpoint
from distilqa_export.graph.fuse import fuse
from distilqa_export.graph.pack import pack
from distilqa_export.graph.trace import trace

LENGTHS = [5, 300, 61, 384, 17]


@pytest.fixture(scope="module")
def twin(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twin")
    loaded = load_checkpoint(str(checkpoint))
    model = fuse(trace(loaded, folder), loaded.architecture)
    ir.save(pack(model, loaded.architecture, twin=True), folder / "twin.onnx")
    return folder / "twin.onnx"


@pytest.fixture
def in_place(cpu_as_gpu: Any, twin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU takes the GPU's place, and every graph pays."""
    monkeypatch.setattr(cuda, "open_cuda_session", lambda model, graphs: open_session(twin, threads=1))
    monkeypatch.setattr(cuda, "_median_s", lambda ways, windows: [2.0, 1.0])


@pytest.fixture(scope="module")
def kept() -> Iterator[list[CudaEngine]]:
    """Opening one takes seconds."""
    engines: list[CudaEngine] = []
    yield engines
    engines.clear()


@pytest.fixture
def engine(gpu_bundle: Path, in_place: None, kept: list[CudaEngine]) -> CudaEngine:
    """One that takes the CPU for a GPU. Tests must not change it."""
    if not kept:
        kept.append(opened(gpu_bundle))
    return kept[0]


def opened(gpu_bundle: Path) -> CudaEngine:
    found = open_engine(Bundle.open(gpu_bundle), "cuda-fp16", unverified=True)
    assert isinstance(found, CudaEngine)
    return found


def failing(lane: Lane, *_: Any, **__: Any) -> Any:
    raise RuntimeError("CUDA error 700: an illegal memory access was encountered")


def windows(lengths: Sequence[int] = LENGTHS) -> list[np.ndarray]:
    chance = np.random.default_rng(0)
    return [np.r_[101, chance.integers(1000, 30000, length - 2), 102] for length in lengths]


def test_windows_of_any_lengths_share_a_run(engine: CudaEngine, gpu_bundle: Path) -> None:
    """And have the logits that they have alone, and nearly fp32's."""
    fp32 = CpuEngine(Bundle.open(gpu_bundle), "cpu-fp32", threads=1)
    for window, found in zip(windows(), engine.run(windows()), strict=True):
        (alone,) = engine.run([window])
        (exact,) = fp32.run([window])
        assert [len(side) for side in found] == [len(window)] * 2
        np.testing.assert_allclose(found, alone, atol=0.02)
        np.testing.assert_allclose(found, exact, atol=0.2)


def test_its_runs_are_as_large_as_pays(engine: CudaEngine) -> None:
    assert set(engine.costs_s) == {384, 6 * 170}
    assert engine.budget in engine.costs_s
    assert engine.lanes == 2
    assert engine.token_s == engine.costs_s[engine.budget] / engine.budget
    assert engine.device == f"a GPU, runs of up to {engine.budget:,} tokens, up to 256 in CUDA graphs"


def test_it_may_be_used_by_more_than_its_lanes(engine: CudaEngine) -> None:
    """And what it gave stays what it was, though the next runs are made in the same memory."""
    runs = [windows([5, 300]), windows([61, 200]), windows([17]), windows([384, 90])] * 3
    alone = [engine.run(run) for run in runs[:4]]
    with ThreadPoolExecutor(6) as pool:
        for found, expected in zip(pool.map(engine.run, runs), alone * 3, strict=True):
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("lengths", [[5], [40, 60], [100, 60, 20], [30, 30, 30, 30]])
def test_a_run_in_a_graph_is_like_any(lengths: list[int], engine: CudaEngine) -> None:
    """The padding around it is not seen."""
    run = windows(lengths)
    way = engine._way(run)
    assert way != engine._run_in_lane
    for found, plain in zip(way(run), engine._run_in_lane(run), strict=True):
        np.testing.assert_allclose(found, plain, atol=0.02)


def test_a_larger_run_is_in_no_graph(engine: CudaEngine) -> None:
    assert engine._way(windows([200, 56])) == engine._run_in_lane
    assert engine._way(windows([10] * 9)) == engine._run_in_lane


def test_no_graphs_where_none_are_wanted(gpu_bundle: Path, in_place: None) -> None:
    engine = CudaEngine(Bundle.open(gpu_bundle), "cuda-fp16", objective_s=1.0, graphs=False)
    assert engine._way(windows([5])) == engine._run_in_lane
    assert engine.device == f"a GPU, runs of up to {engine.budget:,} tokens"


def test_graphs_that_do_not_pay_are_left_out(
    gpu_bundle: Path, in_place: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def pays_for_long(ways: Sequence[Way], windows: Any) -> list[float]:
        return [2.0, 1.0] if sum(map(len, windows)) > 128 else [1.0, 1.0]

    monkeypatch.setattr(cuda, "_median_s", pays_for_long)
    with caplog.at_level(logging.INFO, "distilqa.engine.cuda.engine"):
        engine = opened(gpu_bundle)
    assert [bucket.tokens for bucket in engine._buckets] == [256]
    assert [(record.message, getattr(record, "fields", None)) for record in caplog.records] == [
        ("CUDA graph left out", {"tokens": 128, "plain_ms": 1000.0, "graph_ms": 1000.0}),
        ("CUDA graph", {"tokens": 256, "plain_ms": 2000.0, "graph_ms": 1000.0}),
    ]


def test_a_graph_that_is_wrong_is_not_used(
    gpu_bundle: Path, in_place: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one would be that gave what it gave when it was captured."""
    captured: dict[Any, Any] = {}
    run = Lane.run

    def replayed(lane: Lane, windows: Any, longest: Any = None, options: Any = None) -> Any:
        found = run(lane, windows, longest=longest, options=options)
        return captured.setdefault(len(windows), found) if options else found

    monkeypatch.setattr(Lane, "run", replayed)
    engine = opened(gpu_bundle)
    assert engine._way(windows([5])) == engine._run_in_lane
    for tokens, record in zip((128, 256), caplog.records, strict=True):
        assert record.message.startswith(f"no CUDA graph for runs of {tokens} tokens: its logits differ by ")


def test_a_graph_that_cannot_be_captured_is_not_used(
    gpu_bundle: Path, in_place: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Lane.run

    def captures_none(lane: Lane, windows: Any, longest: Any = None, options: Any = None) -> Any:
        return failing(lane) if options else run(lane, windows)

    monkeypatch.setattr(Lane, "run", captures_none)
    engine = opened(gpu_bundle)
    assert engine._way(windows([5])) == engine._run_in_lane
    assert ["error 700" in record.message for record in caplog.records] == [True, True]


def test_without_a_session_for_graphs_there_are_none(
    gpu_bundle: Path, in_place: None, twin: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(model: Path, graphs: bool) -> Any:
        if graphs:
            raise BundleError("ONNX Runtime cannot open it on the GPU")
        return open_session(twin, threads=1)

    monkeypatch.setattr(cuda, "open_cuda_session", refuse)
    engine = opened(gpu_bundle)
    assert engine._way(windows([5])) == engine._run_in_lane
    [record] = caplog.records
    assert record.message == "there are no CUDA graphs: ONNX Runtime cannot open it on the GPU"


def test_sizes_that_memory_has_no_room_for_are_left_out(
    gpu_bundle: Path, in_place: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Lane.run

    def too_small(lane: Lane, windows: Any, **options: Any) -> Any:
        if sum(map(len, windows)) > 384:
            raise RuntimeError("out of memory")
        return run(lane, windows, **options)

    monkeypatch.setattr(Lane, "run", too_small)
    monkeypatch.setattr(CudaEngine, "_differences", lambda self, test: super(CudaEngine, self)._differences(test))
    monkeypatch.setattr(CudaEngine, "_make_graphs", lambda self: None)
    assert opened(gpu_bundle).budget == 384


def test_a_gpu_without_room_for_any_run_is_refused(
    gpu_bundle: Path, in_place: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lane, "__init__", failing)
    with pytest.raises(BundleError, match=r"the GPU has no room for its runs .*error 700"):
        opened(gpu_bundle)


@pytest.mark.parametrize("lengths", [LENGTHS, [5]])
def test_a_gpu_that_fails_on_everything_is_lost(
    lengths: list[int], gpu_bundle: Path, in_place: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no request is blamed for it: the lane dies, and with it the server."""
    engine = opened(gpu_bundle)
    monkeypatch.setattr(Lane, "run", failing)
    with pytest.raises(DeviceLost, match=r"fails on everything .*error 700"):
        engine.run(windows(lengths))


@pytest.mark.parametrize("lengths", [[384, 384, 384], [1] * 1025, [385]])
def test_what_there_is_no_room_for_fails(lengths: list[int], engine: CudaEngine) -> None:
    with pytest.raises(InferenceFailed, match=r"have no room: it is for 1024 in 1024 of up to 384"):
        engine.run([np.ones(length, np.int64) for length in lengths])
    assert engine.run(windows())


@pytest.mark.parametrize("windows", [[], [np.array([], np.int64)], [np.array([1]), np.array([], np.int64)]])
def test_an_empty_window_fails(windows: list[np.ndarray], engine: CudaEngine) -> None:
    with pytest.raises(InferenceFailed, match="no tokens"):
        engine.run(windows)


def test_its_memory_is_given_back(memory: Any, in_place: None, gpu_bundle: Path) -> None:
    engine = opened(gpu_bundle)
    assert len(memory.kept) == 3 * 3  # of two lanes and the graphs: in, out, and a stream
    del engine
    gc.collect()
    assert not memory.kept


def test_it_is_the_first_choice_where_a_gpu_may_be(gpu_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(BundleError, match="cuda-fp16 is unverified"):
        Reader(gpu_bundle)
    with pytest.raises(MissingDependency, match="no NVIDIA driver"):
        Reader(gpu_bundle, unverified=True)
    assert Reader(gpu_bundle, "cpu-fp32").engine.variant == "cpu-fp32"


def test_no_other_takes_its_place_where_the_gpu_computes_it_wrongly(
    gpu_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: Any, **__: Any) -> None:
        raise VariantUnusable("logits differ")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr("distilqa.engine.cuda.engine.CudaEngine", wrong)
    with pytest.raises(VariantUnusable, match="logits differ"):
        Reader(gpu_bundle, unverified=True)


def test_where_none_can_be_it_is_none(gpu_bundle: Path) -> None:
    assert Reader(gpu_bundle).engine.variant == "cpu-fp32"


def test_a_bundle_for_a_gpu_alone_says_what_is_missing(gpu_bundle: Path) -> None:
    """Rather than that it has nothing for a CPU."""
    bundle = Bundle.open(gpu_bundle)
    manifest = replace(bundle.manifest, variants={"cuda-fp16": bundle.manifest.variants["cuda-fp16"]})
    alone = Bundle(bundle.path, manifest)
    with pytest.raises(BundleError, match="cuda-fp16 is unverified"):
        open_engine(alone)
    with pytest.raises(MissingDependency, match=r"has no CUDAExecutionProvider: .*\.\[gpu\]"):
        open_engine(alone, unverified=True)


def test_an_unverified_variant_is_refused(gpu_bundle: Path) -> None:
    assert not Bundle.open(gpu_bundle).manifest.variants["cuda-fp16"].verified
    with pytest.raises(BundleError, match="cuda-fp16 is unverified: no GPU ran it when it was made"):
        Reader(gpu_bundle, "cuda-fp16")


def test_a_cpu_never_takes_its_place(gpu_bundle: Path) -> None:
    with pytest.raises(MissingDependency, match=r"has no CUDAExecutionProvider: .*\.\[gpu\]"):
        Reader(gpu_bundle, "cuda-fp16", unverified=True)
