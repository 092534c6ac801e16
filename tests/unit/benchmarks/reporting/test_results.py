"""What is stored, and that nothing finished is lost."""

from __future__ import annotations

import json
import re
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from benchmarks.__main__ import main
from benchmarks.parts import cost, serving
from benchmarks.parts.cost import Cost
from benchmarks.reporting import plots, results
from benchmarks.setting import Setting
from tests.conftest import CHECKPOINT
from tests.unit.export.conftest import random_model, save_with_tokenizer

from distilqa.errors import DatasetError
from distilqa_export.errors import CheckpointError

COST = Cost(price_per_s=None, loads={})


@pytest.fixture(autouse=True)
def without_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made, and only cost is measured."""
    monkeypatch.setattr(Setting, "check", lambda self: None)
    monkeypatch.setattr(Setting, "to_json", lambda self: SETTING | {"quick": self.quick})
    monkeypatch.setattr(cost, "prepare", lambda setting: None)
    monkeypatch.setattr(cost, "measure", lambda setting: COST | {"price_per_s": setting.price_per_s})


SETTING = {
    "tiny": False,
    "distilbert": None,
    "distilbert_shape": {"layers": 6, "hidden": 768, "positions": 512},
    "bert": None,
    "rounds": 1,
    "load_s": 1,
}


def measure_cost(folder: Path, *arguments: str) -> int:
    return main(["--only", "cost", "--results", str(folder), *arguments])


def test_a_folder_is_of_a_processor_or_a_gpu_and_a_day(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    begun = results.new(Setting())
    for cpu, name in (
        ("Intel(R) Xeon(R) Processor @ 2.10GHz, Sapphire Rapids", "intel-xeon-sapphire-rapids"),
        ("AMD EPYC 7B13 64-Core Processor, Zen 3", "amd-epyc-7b13-zen-3"),
        ("Neoverse-N1", "neoverse-n1"),
    ):
        begun["environment"]["cpu"] = cpu
        folder = results.open_folder(None, begun)
        assert re.fullmatch(rf"{name}-20\d\d-\d\d-\d\d", folder.name)
    begun["environment"]["gpu"] = {"name": "NVIDIA H200"}
    assert results.open_folder(None, begun).name.startswith("nvidia-h200-20")


def test_what_was_measured_otherwise_goes_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    for arguments in ([], ["--quick"], []):
        assert main(["--only", "cost", *arguments]) == 0
    folders = sorted(folder.name for folder in tmp_path.iterdir())
    assert len(folders) == 2
    assert folders[1] == f"{folders[0]}-2"


def test_a_named_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure_cost(tmp_path) == 0
    stored = results.load(tmp_path)
    assert measure_cost(tmp_path, "--quick") == 1
    assert "has results of another quick; name another folder" in capsys.readouterr().err
    assert results.load(tmp_path) == stored


def test_what_is_stored_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        results.load(tmp_path / "none")
    stored = results.new(Setting()) | {"parts": {"cost": results.measure(cost, Setting())}}
    results.store(tmp_path / "new", stored)
    assert results.load(tmp_path / "new") == stored
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("text", "said"), [("{", "is no JSON"), ("[1]", "is not what"), ('{"cost": 1}', "is not what")]
)
def test_other_json_is_refused(text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text(text)
    for arguments in (["--report", str(tmp_path)], ["--only", "cost", "--results", str(tmp_path)]):
        assert main(arguments) == 1
        assert f"results.json {said}" in capsys.readouterr().err


def test_results_of_another_version_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure_cost(tmp_path) == 0
    stored = results.load(tmp_path)
    del stored["parts"]["cost"]["found"]["loads"]
    results.store(tmp_path, stored)
    capsys.readouterr()
    assert main(["--report", str(tmp_path)]) == 1
    assert "error: cost was measured by another version of the benchmarks" in capsys.readouterr().err


def test_a_part_says_when_it_was_measured_and_what_others_did() -> None:
    part = results.measure(cost, Setting(price_per_s=2.0))
    assert part["began"].endswith("+00:00")
    assert part["watched"].keys() == {"others_cores", "stolen_share", "contended"}
    assert part["found"] == COST | {"price_per_s": 2.0}


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (DatasetError("no such part"), 1)])
def test_finished_parts_are_kept(
    error: BaseException,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(setting: Setting) -> None:
        raise error

    monkeypatch.setattr(serving, "prepare", fail)
    assert measure_cost(tmp_path, "--only", "serving") == status
    assert results.load(tmp_path)["parts"].keys() == {"cost"}
    assert "## Cost" in (tmp_path / "report.md").read_text()
    assert ("stopped" if status == 130 else "error: no such part") in capsys.readouterr().err


def test_another_ctrl_c_does_not_lose_the_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    draw = plots.draw

    def impatient(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        draw(*arguments)

    monkeypatch.setattr(plots, "draw", impatient)
    assert measure_cost(tmp_path) == 0
    assert (tmp_path / "report.md").exists()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_part_that_is_measured_again_leaves_the_others(tmp_path: Path) -> None:
    assert measure_cost(tmp_path) == 0
    other = results.load(tmp_path)["parts"]["cost"]
    results.add(tmp_path, "another", other)
    assert measure_cost(tmp_path, "--price-per-second", "0.5") == 0
    parts = results.load(tmp_path)["parts"]
    assert parts["another"] == other
    assert parts["cost"]["found"]["price_per_s"] == 0.5


def test_parts_are_stored_in_the_order_of_the_suite(tmp_path: Path) -> None:
    assert measure_cost(tmp_path) == 0
    for name in ("kernels", "claims"):
        results.add(tmp_path, name, results.load(tmp_path)["parts"]["cost"])
    assert list(results.load(tmp_path)["parts"]) == ["claims", "kernels", "cost"]


def test_a_folder_that_cannot_be_written_is_told_before_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cost, "prepare", lambda setting: pytest.fail("something was measured"))
    (tmp_path / "file").touch()
    assert measure_cost(tmp_path / "file" / "folder") == 1
    assert "Not a directory" in capsys.readouterr().err


def test_json_is_all_that_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert measure_cost(tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out) == results.load(tmp_path)


def test_a_folder_without_results_has_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--report", str(tmp_path)]) == 1
    assert "results.json" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "benchmarks.suite.find_spec", lambda name: None if name in ("nncf", "openvino") else find_spec(name)
    )
    assert main(["--only", "cost"]) == 1
    assert capsys.readouterr().err == (
        "error: nncf, openvino not installed: pip install --editable '.[cpu,server,export,bench]'\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--price-per-second", "-1"],
        ["--price-per-second", "nan"],
        ["--only", "gpu"],
        ["--report", "folder", "--price-per-second", "0"],
        ["--report", "folder", "--only", "cost"],
    ],
)
def test_wrong_arguments_are_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_what_the_caller_gave_is_read_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    missing = tmp_path / "missing.json"
    assert main(["--squad", str(missing), "--results", str(tmp_path / "results"), "--tiny"]) == 1
    assert "missing.json" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_a_model_that_takes_too_little_text_is_refused(tmp_path: Path) -> None:
    short = save_with_tokenizer(random_model("distilbert", max_position_embeddings=256), tmp_path / "short", CHECKPOINT)
    with pytest.raises(CheckpointError, match="takes 256 tokens; windows of 384 are measured"):
        _ = Setting(distilbert=str(short)).distilbert_checkpoint
