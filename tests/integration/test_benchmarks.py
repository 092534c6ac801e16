"""The benchmark suite as a user runs it, on tiny models: every part, what it stores, and the report of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks import PARTS
from benchmarks.reporting.plots import PLOTS
from benchmarks.reporting.report import main_table, report
from benchmarks.reporting.results import RESULTS, load
from tests.conftest import CHECKPOINT, ROOT
from tests.unit.export.conftest import random_model, save_with_tokenizer

from distilqa.engine.cores import usable_cores

SUITE = [sys.executable, "-m", "benchmarks", "--tiny"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags for two tiny checkpoints."""
    flags = []
    for kind in ("distilbert", "bert"):
        folder = tmp_path_factory.mktemp(kind)
        save_with_tokenizer(random_model(kind), folder, CHECKPOINT)
        flags += [f"--{kind}", str(folder)]
    return flags


@pytest.fixture(scope="module")
def measured(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of all parts' results, and what was printed."""
    folder = tmp_path_factory.mktemp("results")
    command = [*SUITE, *tiny, "--results", str(folder), "--price-per-second", "0.01"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope="module")
def found(measured: tuple[Path, str]) -> dict[str, Any]:
    """What each part has found."""
    return {name: part["found"] for name, part in load(measured[0])["parts"].items()}


def test_every_part_is_measured_and_reported(measured: tuple[Path, str]) -> None:
    folder, printed = measured
    results = load(folder)
    assert list(results["parts"]) == list(PARTS)
    assert printed.endswith(f"{folder / 'report.md'}\n")
    text = (folder / "report.md").read_text()
    assert text == report(results)
    assert all(f"## {name.capitalize()}\n" in text for name in PARTS)
    for plot in (plot for plot in PLOTS if plot.part in PARTS):
        assert f"]({plot.name}.svg)" in text
        assert (folder / f"{plot.name}.svg").read_bytes().startswith(b"<?xml")
        assert (folder / f"{plot.name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_of_stored_results_is_the_same(measured: tuple[Path, str], tmp_path: Path) -> None:
    folder, printed = measured
    (tmp_path / "results.json").write_bytes((folder / "results.json").read_bytes())
    command = [*SUITE, "--report", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.stdout == printed.replace(str(folder), str(tmp_path))
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {path.name for path in folder.iterdir()}
    for name in written - {plot.name + ".png" for plot in PLOTS}:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_claims_compare_both_models_in_both_runtimes(found: dict[str, Any]) -> None:
    claims = found["claims"]
    assert {name: model["stand_in"] for name, model in claims["models"].items()} == {
        "DistilBERT": False,
        "bert-base": False,
    }
    for raced in [*claims["races"], claims["throughput"]]:
        for samples in raced["samples_s"].values():
            assert set(samples) == {
                f"{system}, {model}"
                for system in ("PyTorch fp32", "cpu-int8", "cpu-fp32")
                for model in ("DistilBERT", "bert-base")
            }
    assert [raced["threads"] for raced in claims["races"]] == sorted({1, usable_cores()})


def test_kernels_race_all_rivals(found: dict[str, Any]) -> None:
    kernels = found["kernels"]
    for raced in kernels["lengths"]:
        assert list(raced["samples_s"]) == ["1x8", "1x16"]
        assert len(raced["samples_s"]["1x8"]) == 8
    assert all(len(raced["samples_s"]["1x128"]) == 6 for raced in kernels["products"])


def test_kernels_show_where_time_goes(found: dict[str, Any]) -> None:
    profiles = found["kernels"]["profiles"]
    assert list(profiles) == ["1x8", "1x16"]
    for by_system in profiles.values():
        assert list(by_system) == ["cpu-int8", "optimum int8", "OpenVINO int8"]
        assert all(sum(shares.values()) == pytest.approx(1) for shares in by_system.values())
        assert all(shares["products by weights"] > 0 for shares in by_system.values())
        assert by_system["cpu-int8"]["Gelu"] > 0


def test_every_served_call_is_accounted_for(found: dict[str, Any]) -> None:
    serving = found["serving"]
    for load_found in (serving["single_stream"], serving["peak"], *(trial["load"] for trial in serving["trials"])):
        assert load_found["ends"] == {"OK": load_found["calls"]}
    assert sum(serving["over"]["ends"].values()) == serving["over"]["calls"]
    assert sum(serving["server_ended"].values()) == serving["peak"]["calls"] + serving["over"]["calls"]
    assert serving["highest"].keys() == {"0.1", "0.25", "0.5"}


def test_quality_judges_all_and_finds_no_sway_of_ours(found: dict[str, Any]) -> None:
    quality = found["quality"]
    stock = ["optimum int8", "ONNX Runtime int8", "OpenVINO int8", "OpenVINO int8, rest fp32"]
    assert list(quality["judged"]) == ["cpu-fp32", "cpu-int8", *stock]
    assert all(len(one["answers"]) == quality["asked"] for one in quality["judged"].values())
    assert quality["judged"]["cpu-int8"]["swayed"] == 0
    assert quality["bert"].keys() == {"cpu-fp32", "cpu-int8"}


def test_cost_counts_cpu_and_money(found: dict[str, Any], measured: tuple[Path, str]) -> None:
    assert found["cost"]["loads"].keys() == {"cpu-int8, DistilBERT", "cpu-int8, bert-base"}
    assert found["cost"]["price_per_s"] == 0.01
    assert all(load["answers"] and load["server_cpu_s"] for (load,) in found["cost"]["loads"].values())


@pytest.fixture
def begun(tiny: list[str], measured: tuple[Path, str], tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The suite, once cost, which it was told to measure first, is done."""
    command = [*SUITE, *tiny, "--results", str(tmp_path), "--only", "cost", "--only", "kernels"]
    command = ["env", "--default-signal=INT", *command]  # which what a shell has in the background ignores
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line == "kernels:\n":
                break
        yield process
        process.kill()


def test_sigterm_leaves_nothing_running(begun: subprocess.Popen[str], tmp_path: Path) -> None:
    begun.send_signal(signal.SIGTERM)
    begun.communicate(timeout=60)
    assert begun.returncode == 128 + signal.SIGTERM
    assert list(load(tmp_path)["parts"]) == ["cost"]
    with pytest.raises(ProcessLookupError):
        os.killpg(begun.pid, 0)


def test_ctrl_c_keeps_what_is_finished(begun: subprocess.Popen[str], tmp_path: Path) -> None:
    os.killpg(begun.pid, signal.SIGINT)  # as a terminal does
    _, said = begun.communicate(timeout=60)
    assert begun.returncode == 130
    assert said.endswith("stopped; what was finished is kept\n")
    assert list(load(tmp_path)["parts"]) == ["cost"]
    assert "## Cost" in (tmp_path / "report.md").read_text()
    with pytest.raises(ProcessLookupError):
        os.killpg(begun.pid, 0)  # no worker is left


def test_the_pages_show_the_newest_reports() -> None:
    """Of a CPU, and of a GPU where there is one; the README's figures are the newest of a CPU."""
    page = (ROOT / "docs" / "speed.md").read_text()
    shown = set(re.findall(r"\(\.\./benchmarks/results/([\w-]+)/", page))
    committed = subprocess.run(
        ["git", "ls-files", RESULTS], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    folders = {Path(path).parent for path in committed.splitlines()}
    by_age = sorted(folders, key=lambda folder: max(part["began"] for part in load(ROOT / folder)["parts"].values()))
    newest = {"gpu" in load(ROOT / folder)["environment"]: folder for folder in by_age}
    assert {folder.name for folder in newest.values()} == shown
    assert list(load(ROOT / newest[False])["parts"]) == list(PARTS)
    assert f"(../{newest[False]}/latency.svg)" in page
    for folder in newest.values():
        assert main_table(load(ROOT / folder)) in page
        assert f"(../{folder}/report.md)" in page
    (table,) = re.findall(r"^\| DistilBERT on .*?\n\n", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    found = set(re.findall(r"\d+\.\d+", (ROOT / newest[False] / "report.md").read_text()))
    assert set(re.findall(r"\d+\.\d+", table)) <= found


def test_stored_reports_say_what_their_json_says() -> None:
    folders = [path.parent for path in RESULTS.glob("*/report.md")]
    assert folders
    for folder in folders:
        assert (folder / "report.md").read_text() == report(load(folder))
