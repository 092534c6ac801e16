"""The suite for a GPU, on a CPU: with stand-ins for what needs one, and with the numbers of a machine that has one."""

from __future__ import annotations

import json
import math
import threading
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from benchmarks import GPU_PARTS, models, suite
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import answers, environment, runs, systems, throughput, traffic
from benchmarks.gpu.runs import COMPILED, OURS, OURS_BERT, PEAK, PLAIN, PRODUCTS, PYTORCH, WITHOUT_GRAPHS
from benchmarks.gpu.setting import GpuSetting
from benchmarks.gpu.systems import padded
from benchmarks.gpu.throughput import Throughput
from benchmarks.gpu.traffic import EIGHT, ONE, Closed, Open, Traffic, Tried, packed, unpacked, within
from benchmarks.load.generator import Load
from benchmarks.load.processes import ServerFailed
from benchmarks.parts.serving import search
from benchmarks.racing import race
from benchmarks.racing.worker import KINDS, Mix, Shape, System, timed
from benchmarks.reporting import plots, results
from benchmarks.reporting.report import report
from tests.conftest import CHECKPOINT
from tests.unit.benchmarks.reporting.test_report import part, raced
from tests.unit.export.conftest import random_model, save_with_tokenizer

from distilqa.bundle import Architecture
from distilqa.engine.cuda import engine as cuda
from distilqa.engine.session import open_session
from distilqa_export.graph.checkpoint import load_checkpoint
from distilqa_export.graph.fuse import fuse
from distilqa_export.graph.pack import pack
from distilqa_export.graph.trace import trace

TARGET = Architecture("distilbert", 6, 768, 12, 3072, 30522, 512, 66_364_418)


# Transformers opens one model at a time in a process; the others are where real systems have their own.
_OPENING = threading.Lock()


class InProcess:
    """In place of a worker: the system is opened and run here."""

    def __init__(self, system: System, threads: int) -> None:
        with _OPENING:
            self._run = KINDS[system.kind](system.path, threads)

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, shape: Shape, seed: int, runs: int) -> list[float]:
        told = {"lengths": shape.lengths(seed), "at_once": shape.at_once, "each": shape.each}
        return timed(self._run, {**told, "seed": seed, "runs": runs})

    def resident_mb(self) -> float:
        return 1.0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two tiny checkpoints, of which bundles have been made: once something stands in for a GPU, that takes one."""
    found = {}
    for kind in ("distilbert", "bert"):
        folder = tmp_path_factory.mktemp(kind)
        save_with_tokenizer(random_model(kind), folder, CHECKPOINT)
        found[kind] = str(folder)
    _ = GpuSetting(tiny=True, distilbert=found["distilbert"], bert=found["bert"]).bundles
    return found


@pytest.fixture(scope="module")
def twins(tiny: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The twins of both packed models, by type."""
    found: dict[str, Path] = {}
    for kind, checkpoint in tiny.items():
        folder, loaded = tmp_path_factory.mktemp("twin"), load_checkpoint(checkpoint)
        model = fuse(trace(loaded, folder), loaded.architecture)
        ir.save(pack(model, loaded.architecture, twin=True), found.setdefault(kind, folder / "twin.onnx"))
    return found


@pytest.fixture
def setting(tiny: dict[str, str]) -> GpuSetting:
    return GpuSetting(tiny=True, distilbert=tiny["distilbert"], bert=tiny["bert"])


@pytest.fixture
def stand_ins(cpu_as_gpu: object, monkeypatch: pytest.MonkeyPatch, twins: dict[str, Path]) -> None:
    """As if the CPU were a GPU: twins for the packed models, PyTorch and ONNX Runtime where they are."""
    import torch

    def open_twin(model: Path, *, graphs: bool) -> Any:
        kind = json.loads((model.parent / "manifest.json").read_text())["architecture"]["type"]
        return open_session(twins[kind], threads=1)

    monkeypatch.setattr(cuda, "open_cuda_session", open_twin)
    monkeypatch.setattr(systems, "DEVICE", "cpu")
    monkeypatch.setattr(systems, "PEAK", 16)
    monkeypatch.setattr(systems, "CUDA_PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(systems, "load_runtime", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(race, "Worker", InProcess)
    for module in (answers, throughput):
        monkeypatch.setattr(module, "in_child", lambda work, *arguments: work(*arguments))


def test_without_a_gpu_it_says_what_is_missing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command.main(["--results", str(tmp_path / "results")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: this ONNX Runtime has no CUDAExecutionProvider: ")
    assert not (tmp_path / "results").exists()


def test_a_part_that_fails_says_why_and_the_others_go_on(
    stand_ins: None,
    tiny: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command as a user runs it, but for the stand-ins."""

    def fail(setting: GpuSetting) -> Any:
        raise RuntimeError("CUDA error 700")

    monkeypatch.setattr("distilqa.engine.cuda.runtime.load_runtime", lambda: None)
    monkeypatch.setattr(environment, "gpu", lambda: {"gpu": {"name": "a GPU"}, "cuda": {"torch": "13.0"}})
    monkeypatch.setattr(answers, "measure", fail)
    monkeypatch.setattr(traffic, "_VARIANT", "cpu-fp32")
    flags = [f"--{name}={folder}" for name, folder in tiny.items()]
    assert command.main(["--tiny", *flags, "--results", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "error: answers failed: CUDA error 700" in said
    stored = results.load(tmp_path)
    assert list(stored["parts"]) == ["runs", "throughput", "traffic"], said
    text = (tmp_path / "report.md").read_text()
    assert text == report(stored)
    assert text.startswith("# distilqa on a GPU, ")
    for name in ("runs", "throughput", "traffic"):
        assert f"## {name.capitalize()}\n" in text
        assert (tmp_path / f"{name}.svg").exists()
        assert (tmp_path / f"{name}.png").exists()
    found = stored["parts"]["runs"]["found"]["raced"]
    assert not found["left_out"]
    assert list(found["samples_s"]) == ["1x8", "1x16", "2x8", "2x16"]
    assert set(found["samples_s"]["1x8"]) == set(runs.CONTENDERS) - {COMPILED}
    loads = stored["parts"]["traffic"]["found"]
    assert not loads["failed"]
    assert [(one["processes"], one["questions"]) for one in loads["closed"]] == [(1, 8), (1, 1), (2, 8), (2, 1)]
    assert [one["questions"] for one in loads["open"]] == [EIGHT, ONE]
    for stored_load in (one["load"] for one in loads["closed"]):
        assert stored_load["ends"] == {"OK": stored_load["calls"]}


def test_company_of_a_packed_model_is_counted(stand_ins: None, setting: GpuSetting) -> None:
    found = answers.measure(setting)
    assert found["asked"] == len(setting.questions)
    assert found["scores"].keys() == {"cpu-fp32", "cuda-fp16"}
    assert len(found["swayed"]) == answers.MIXES
    assert "cuda-fp16" in answers.report(found)
    assert answers.targets(found)[0].met is None, "four questions are too few"


def test_a_system_that_cannot_be_made_is_left_out(
    stand_ins: None, setting: GpuSetting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(checkpoint: Path) -> Path:
        raise ValueError("no such operator")

    monkeypatch.setattr(models, "plain_onnx", fail)
    found = runs.race_all("test", setting, (OURS, PLAIN), [Shape(1, 8)])
    assert list(found["samples_s"]["1x8"]) == [OURS]
    assert found["left_out"] == {PLAIN: "no model could be made: ValueError('no such operator')"}
    assert runs.left_out(found) == [f"- Left out: {PLAIN} (no model could be made: ValueError('no such operator'))."]


def test_padding_is_masked() -> None:
    ids, mask = padded([np.array([5, 6, 7]), np.array([8])])
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_fp16_gives_the_answers_of_fp32(stand_ins: None, setting: GpuSetting) -> None:
    """The model that ONNX Runtime converts, padded, is still the model."""
    windows = [np.arange(100, 100 + length) for length in (16, 7)]
    found = []
    for name in (runs.PLAIN, runs.PLAIN_FP16):
        (system,) = runs.contenders(setting, [name])[0].values()
        found.append(np.array(KINDS[system.kind](system.path, 1)(windows)))
    np.testing.assert_allclose(found[0], found[1], atol=0.05)


def test_a_mix_draws_other_lengths_each_round() -> None:
    mix = Mix(4, 20, pool=(10, 20, 30))
    assert Shape.parse(f"{mix}") == Shape(4, 20)
    assert mix.lengths(1) == mix.lengths(1)
    assert {length for seed in range(20) for length in mix.lengths(seed)} == {10, 20, 30}
    assert len({tuple(mix.lengths(seed)) for seed in range(20)}) > 1


def test_every_window_is_once_in_a_mix() -> None:
    lengths = [(5, 80), (300,), (61, 17, 9), (384,)] * 10
    tokenized: Any = [Namespace(windows=[Namespace(length=length) for length in windows]) for windows in lengths]
    first, again, other = (answers.mix(tokenized, 2048, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(place for run in first for place in run) == sorted(
        place for run in answers.alone(tokenized) for place in run
    )
    assert all(sum(lengths[number][own] for number, own in run) <= 2048 for run in first)
    assert len({len(run) for run in first}) > 1


def test_operations_are_those_of_the_architecture() -> None:
    """Of the target's shape: 42.5 million weights, and attention over as many tokens as a window has."""
    weights = 6 * (4 * 768**2 + 2 * 768 * 3072)
    assert round(weights / 1e6, 1) == 42.5
    assert models.operations(TARGET, 1, attention=False) == 2 * weights
    assert models.operations(TARGET, 170) == 170 * (2 * weights + 6 * 4 * 170 * 768)


def synthetic_throughput(ours_s: float = 0.0768, peak_s: float = 0.0352) -> Throughput:
    """Of a GPU on which 16 runs of 96 windows take ``ours_s``, and as many large products ``peak_s``."""
    judged, fewer = "96x170, 2 at once, 8 each", "24x170, 2 at once, 8 each"
    saturated = raced(
        {
            fewer: {OURS: ours_s / 3, WITHOUT_GRAPHS: ours_s / 2.5, OURS_BERT: ours_s / 1.6},
            judged: {OURS: ours_s, WITHOUT_GRAPHS: 1.02 * ours_s, OURS_BERT: 1.95 * ours_s, PEAK: peak_s,
                     PRODUCTS: 0.6 * ours_s},
        }
    )  # fmt: skip
    mixed = {OURS: 0.0017, WITHOUT_GRAPHS: 0.0019, COMPILED: 0.003, PYTORCH: 0.0045, OURS_BERT: 0.0032}
    operations = {name: models.operations(TARGET, 170, attention=name == OURS) for name in (OURS, PRODUCTS)}
    return Throughput(
        budget=16384,
        judged=judged,
        operations=operations | {PEAK: 2 * 8192**3},
        mixed=raced({"32x165 on average": mixed}),
        saturated=saturated,
    )


def test_the_share_of_the_peak_is_of_operations_a_second() -> None:
    found = synthetic_throughput()
    per_s = throughput.operations_per_s(found)
    assert per_s[PEAK] == pytest.approx(2 * 8192**3 * 16 / 0.0352)
    assert per_s[OURS] == pytest.approx(96 * 16 * models.operations(TARGET, 170) / 0.0768)
    for name in (PEAK, PRODUCTS):
        assert throughput.share(found, name)["median"] == pytest.approx(per_s[OURS] / per_s[name])


def test_throughput_is_judged() -> None:
    asked = {one.measure: (one.found, one.met) for one in throughput.targets(synthetic_throughput())}
    assert asked == {
        f"{OURS} against {COMPILED}, 32x165 on average": ("1.76 (1.76 to 1.76)", True),
        f"{OURS} against {OURS_BERT}, 32x165 on average": ("1.88 (1.88 to 1.88)", False),
        "windows of 170 tokens a second at saturation": ("20,000", True),
        "share of the measured fp16 peak at saturation": ("59.9% (59.9% to 59.9%)", True),
    }
    slow = synthetic_throughput(ours_s=0.2)
    assert [one.met for one in throughput.targets(slow)[2:]] == [False, False]
    assert "| 96 (the server's) | 7,680 |" in throughput.report(slow)


def test_what_was_left_out_of_a_race_is_not_judged() -> None:
    found = synthetic_throughput()
    del (
        found["saturated"]["samples_s"][found["judged"]][PEAK],
        found["mixed"]["samples_s"]["32x165 on average"][COMPILED],
    )
    found["saturated"]["left_out"] = {PEAK: "matmul_peak ended: no PyTorch"}
    assert len(throughput.targets(found)) == 2
    assert f"- Left out: {PEAK} (matmul_peak ended: no PyTorch)." in throughput.report(found)


def synthetic_load(rate: float, seconds: float = 2.0, capacity: float = 2000, refused: int = 0) -> Load:
    """Of so many calls a second, whose latency grows as the rate nears the capacity."""
    count = round(rate * seconds)
    typical = 0.004 / max(0.05, 1 - rate / capacity)
    latencies = [typical * (0.5 + 3 * number / count) for number in range(count - refused)]
    ends = Counter({"OK": count - refused})
    return Load(seconds, 2.5, count, count, count - refused, ends, latencies, server_cpu_s=20.0, generator_cpu_s=4.0)


def synthetic_traffic() -> Traffic:
    closed = []
    for processes in (1, 2, 4, 8, 12):
        for questions, rate in ((EIGHT, 1700.0), (ONE, 900.0)):
            for level in (64, 256, 1024):
                calls = rate * min(processes, 8) * level / 1024 / questions
                load = packed(synthetic_load(calls, capacity=15_000 / questions))
                closed.append(Closed(processes=processes, questions=questions, in_flight=level, load=load))
    opened = []
    for questions, peak in ((EIGHT, 1600.0), (ONE, 7000.0)):
        loads, highest = traffic_search(peak)
        trials = [Tried(rate=rate, load=packed(load)) for rate, load in loads.items()]
        opened.append(Open(processes=8, questions=questions, trials=trials, highest=highest))
    return Traffic(generators=4, steps=16, closed=closed, open=opened, failed=["closed loop of 12: it ended"])


def traffic_search(peak: float) -> tuple[dict[float, Load], dict[str, float | None]]:
    def load(rate: float, seed: int) -> Load:
        return synthetic_load(rate, capacity=1.1 * peak)

    return search(load, peak, 16, traffic.BOUNDS_S)


def test_the_highest_rate_within_each_bound_is_found() -> None:
    loads, highest = traffic_search(1600.0)
    for bound in traffic.BOUNDS_S:
        within_bound = [rate for rate, load in loads.items() if load.quantile_s(0.99) <= bound]
        assert highest[f"{bound:g}"] == max(within_bound, default=None)
    assert list(loads) == sorted(loads)


def test_servers_that_do_not_start_are_told(setting: GpuSetting, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Any:
        raise ServerFailed("the server did not start: no such flag")

    monkeypatch.setattr(traffic, "server", fail)
    with pytest.raises(ServerFailed, match="closed loop of --processes 1: the server did not start: no such flag"):
        traffic.measure(setting)


def test_latencies_are_stored_as_counts() -> None:
    load = synthetic_load(500, refused=3)
    stored = json.loads(json.dumps(packed(load)))
    again = unpacked(stored)
    assert len(stored["latencies_s"]) < len(load.latencies_s)
    assert np.abs(np.sort(again.latencies_s) - np.sort(load.latencies_s)).max() <= 0.51e-4
    assert (again.failed, again.answers_per_s) == (3, load.answers_per_s)
    assert again.quantile_s(1.0, failed=True) == math.inf


def test_traffic_is_judged_by_calls_of_eight_at_random_times() -> None:
    found = synthetic_traffic()
    (target,) = traffic.targets(found)
    highest = next(one["highest"]["0.05"] for one in found["open"] if one["questions"] == EIGHT)
    assert highest
    assert target.found == f"{8 * highest:,.0f}"
    assert target.met is (8 * highest >= 12_000)
    for one in found["open"]:
        one["highest"]["0.05"] = None
    assert traffic.targets(found)[0].met is False
    found["open"].clear()
    assert not traffic.targets(found)
    assert "- Not measured to the end: closed loop of 12: it ended." in traffic.report(found)


def test_closed_loops_count_where_their_p99_is_within_the_bound() -> None:
    found = [one for one in synthetic_traffic()["closed"] if one["questions"] == EIGHT]
    rates = [within(found, bound) for bound in (0.001, 0.025, 10.0)]
    assert rates[0] is None
    assert rates[1] is not None
    assert rates[2] == max(8 * unpacked(one["load"]).answers_per_s for one in found)
    assert rates[1] < rates[2]


def synthetic_runs() -> runs.Runs:
    pace = {OURS: 1.0, WITHOUT_GRAPHS: 1.05, PLAIN: 9.0, runs.PLAIN_FP16: 2.5, PYTORCH: 2.0, COMPILED: 1.5,
            OURS_BERT: 1.95, runs.PYTORCH_BERT: 3.9}  # fmt: skip
    start_s = {OURS: 2e-4, WITHOUT_GRAPHS: 6e-4, OURS_BERT: 3e-4}
    return runs.Runs(
        raced=raced(
            {
                f"{windows}x{length}": {
                    name: start_s.get(name, 2e-3) + windows * length * 2.4e-7 * one for name, one in pace.items()
                }
                for windows in (1, 4, 16, 64, 128)
                for length in (16, 64, 128, 256, 512)
            }
        )
    )


def test_a_report_and_plots_are_made_of_what_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {name: answers.Scores(exact_match=75.0, f1=84.0, answers=[]) for name in ("cpu-fp32", "cuda-fp16")}
    lost = {"points": 0.02, "low": -0.05, "high": 0.1}
    judged = answers.Answers(questions="some", asked=3000, scores=scores, lost=lost, moved=4, swayed=[1, 2, 0])
    found = {"runs": synthetic_runs(), "throughput": synthetic_throughput(), "answers": judged,
             "traffic": synthetic_traffic()}  # fmt: skip
    setting = {"quick": True, "tiny": False, "distilbert": None, "bert": None, "rounds": 5, "load_s": 1.5}
    shape = {"layers": 6, "hidden": 768, "positions": 512}
    results.store(
        tmp_path,
        results.Results(
            environment={"cpu": "a processor", "gpu": {"name": "NVIDIA H200"}, "cuda": {"torch": "13.0"}},
            setting=setting | {"distilbert_shape": shape},
            parts={name: part(found[name]) for name in GPU_PARTS},
        ),
    )
    suite.write(tmp_path, as_json=False)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# distilqa on NVIDIA H200, 2026-01-31\n")
    assert "bert-base is of random weights; 5 rounds, loads of 1.5 s, fewer shapes (`--quick`)." in text
    assert "| gpu | name NVIDIA H200 |" in text
    assert "| answers of cuda-fp16 that company changes | 0.03% | at most 0.1% | yes |" in text
    assert "| ms of 128 windows of | 16 | 64 | 128 | 256 | 512 |" in text
    assert capsys.readouterr().out.startswith("| measure | found | asked | met |")
    drawn = {f"{plot.name}.{kind}" for plot in plots.PLOTS if plot.part in GPU_PARTS for kind in ("png", "svg")}
    assert {path.name for path in tmp_path.iterdir()} == drawn | {"report.md", "results.json"}


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("NVIDIA H200, 580.1, 143771 MiB, 700 W, 1980 MHz, 3201 MHz, Enabled, Default, Disabled", "NVIDIA H200"),
        ("", "an unknown GPU"),
    ],
)
def test_the_gpu_is_named(said: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_said", lambda *command: said if command[0] == "nvidia-smi" else "")
    told = environment.gpu()
    assert told["gpu"]["name"] == found
    assert told["cuda"].keys() == {"onnxruntime", "torch"}
    assert ("power.limit" in told["gpu"]) == bool(said)
