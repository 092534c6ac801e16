"""Energy, where the machine counts it."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.parts.cost import Cost, energy_uj, joules, report


def counter(root: Path, name: str, domain: str, spent: int, most: int = 999) -> None:
    folder = root / name
    folder.mkdir()
    (folder / "name").write_text(f"{domain}\n")
    (folder / "energy_uj").write_text(f"{spent}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")


def test_each_processor_is_counted_once(tmp_path: Path) -> None:
    counter(tmp_path, "intel-rapl:0", "package-0", 100)
    counter(tmp_path, "intel-rapl:0:0", "core", 50)
    counter(tmp_path, "intel-rapl:1", "psys", 400)  # of the platform, which the package is a part of
    counter(tmp_path, "intel-rapl:2", "package-1", 7, most=99)
    assert energy_uj(tmp_path) == {"intel-rapl:0": (100, 999), "intel-rapl:2": (7, 99)}
    assert energy_uj(tmp_path / "none") == {}


def test_energy_of_some_processors_is_none(tmp_path: Path) -> None:
    counter(tmp_path, "intel-rapl:0", "package-0", 100)
    counter(tmp_path, "intel-rapl:1", "package-1", 100)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert energy_uj(tmp_path) == {}


@pytest.mark.parametrize(
    ("before", "after", "spent"),
    [
        ({"a": (1_000_000, 9_999_999)}, {"a": (3_500_000, 9_999_999)}, 2.5),
        ({"a": (0, 9), "b": (1, 9)}, {"a": (2, 9), "b": (4, 9)}, 5e-6),
        ({"a": (8, 9)}, {"a": (1, 9)}, 3e-6),  # it began again
        ({}, {}, None),
        ({"a": (1, 9)}, {}, None),
    ],
)
def test_joules(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], spent: float | None) -> None:
    assert joules(before, after) == spent


def test_what_is_not_counted_or_priced_is_not_estimated() -> None:
    load = {"answers": 500, "answers_per_s": 50.0, "seconds": 12.0, "server_cpu_s": 20.0, "generator_cpu_s": 0.1}
    found = Cost(price_per_s=None, loads={"cpu-int8, DistilBERT": [load | {"joules": None}]})  # type: ignore[list-item]
    assert report(found).splitlines()[-1] == "| cpu-int8, DistilBERT | 40.0 | 50.0 | no counter | no price |"
    found = Cost(price_per_s=0.25, loads={"cpu-int8, DistilBERT": [load | {"joules": 600.0}]})  # type: ignore[list-item]
    assert "| cpu-int8, DistilBERT | 40.0 | 50.0 | 1200 | 5 |" in report(found)
    assert report(found).endswith("\n\nA second of the machine costs 0.25.")
