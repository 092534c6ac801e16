"""What is stored, and that nothing finished is lost."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from benchmarks import claims, cost, quality, results, serving
from benchmarks.__main__ import main
from benchmarks.cost import Cost
from benchmarks.setting import Setting

from distilqa.errors import DatasetError

COST = Cost(price_per_s=None, loads={})


@pytest.fixture(autouse=True)
def without_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is made, and only cost is measured."""
    monkeypatch.setattr(Setting, "check", lambda self: None)
    monkeypatch.setattr(cost, "measure", lambda setting: COST)


def parts(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


def test_a_folder_is_of_a_processor_and_a_day(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(results, "processor", lambda: "Intel(R) Xeon(R) Processor @ 2.10GHz")
    name = results.todays_folder(tmp_path).name
    assert name.startswith("intel-xeon-processor-2-10ghz-20")
    assert len(name.removeprefix("intel-xeon-processor-2-10ghz-")) == len("2026-01-31")


def test_what_is_stored_is_loaded(tmp_path: Path) -> None:
    assert results.load(tmp_path / "none") == {}
    stored = {"cost": results.measure(lambda setting: COST, Setting(tiny=True))}
    results.store(tmp_path / "new", stored)
    assert results.load(tmp_path / "new") == stored
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["results.json"]
    (tmp_path / "new" / "results.json").write_text("{")
    with pytest.raises(DatasetError, match=r"results\.json is no JSON"):
        results.load(tmp_path / "new")


def test_a_part_says_when_and_where_and_how_it_was_measured() -> None:
    part = results.measure(lambda setting: COST, Setting(tiny=True, price_per_s=2.0))
    assert part["setting"]["rounds"] == 1
    assert part["environment"]["cpu"]
    assert part["watched"].keys() == {"others_cores", "stolen_share", "contended"}
    assert part["found"] == COST


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

    monkeypatch.setattr(serving, "measure", fail)
    assert main(["--only", "cost", "--only", "serving", "--results", str(tmp_path)]) == status
    assert parts(tmp_path).keys() == {"cost"}
    assert "## Cost" in (tmp_path / "report.md").read_text()
    said = capsys.readouterr().err
    assert ("stopped" if status == 130 else "error: no such part") in said


def test_a_part_that_is_measured_again_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = results.measure(lambda setting: COST, Setting(tiny=True))
    results.store(tmp_path, {"quality": other, "cost": other})
    monkeypatch.setattr(cost, "measure", lambda setting: COST | {"price_per_s": setting.price_per_s})
    for module in (quality, claims):
        monkeypatch.setattr(module, "report", lambda found: "")
        monkeypatch.setattr(module, "targets", lambda found: [])
    monkeypatch.setattr("benchmarks.plots.PLOTS", ())
    monkeypatch.setattr("benchmarks.report.PLOTS", ())
    assert main(["--only", "cost", "--results", str(tmp_path), "--price-per-second", "0.5"]) == 0
    assert parts(tmp_path)["quality"] == other
    assert parts(tmp_path)["cost"]["found"]["price_per_s"] == 0.5


def test_json_is_all_that_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "cost", "--results", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == parts(tmp_path)


def test_a_folder_without_results_has_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--report", str(tmp_path)]) == 1
    assert "has no results.json" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "benchmarks.__main__.find_spec", lambda name: None if name in ("nncf", "openvino") else find_spec(name)
    )
    assert main(["--only", "cost"]) == 1
    assert capsys.readouterr().err == (
        "error: nncf, openvino not installed: pip install --editable '.[cpu,server,export,bench]'\n"
    )


@pytest.mark.parametrize("arguments", [["--price-per-second", "-1"], ["--price-per-second", "nan"], ["--only", "gpu"]])
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
