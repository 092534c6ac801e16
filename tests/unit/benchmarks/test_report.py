"""What the parts make of samples that are known, and whether a report says that they cannot be trusted."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks import claims, kernels
from benchmarks.kernels import OPENVINO, OPTIMUM, OURS, Kernels, share_of_products
from benchmarks.race import Raced, unsteadiness
from benchmarks.report import main_table, report, summary
from benchmarks.results import Part, Results
from benchmarks.tables import table
from benchmarks.worker import SystemFailed

ROUNDS = 3


def raced(times: dict[str, dict[str, float]], threads: int = 1) -> Raced:
    """A race in which every run of a system takes the same time, by shape and system in seconds."""
    samples = {shape: {name: [[time]] * ROUNDS for name, time in of.items()} for shape, of in times.items()}
    return Raced(threads=threads, samples_s=samples, resident_mb={}, left_out={})


def part(found: Any, **watched: Any) -> Part:
    calm = {"others_cores": 0.0, "stolen_share": 0.0, "contended": False}
    return Part(began="2026-01-31T10:20:30+00:00", seconds=90.0, watched=calm | watched, found=found)


def results(parts: dict[str, Part], layers: int = 6, **setting: Any) -> Results:
    """Of models of the target's shape, or of others."""
    usual = {"quick": True, "distilbert": None, "bert": None, "rounds": 15, "load_s": 10}
    shape = {"layers": layers, "hidden": 768, "positions": 512}
    return Results(
        environment={"cpu": "a processor", "packages": {"numpy": "2"}, "features": ["avx2", "fma"]},
        setting=usual | {"distilbert_shape": shape} | setting,
        parts=parts,
    )


COST: dict[str, Any] = {"price_per_s": None, "loads": {}}


def test_a_report_says_when_and_where_and_with_what() -> None:
    text = report(results({"cost": part(COST, others_cores=0.25)}, bert="org/bert", layers=4))
    assert text.startswith("# distilqa on a processor, 2026-01-31\n")
    assert "Begun at 2026-01-31 10:20 UTC, 1.5 minutes; others used 0.25 cores" in text
    assert "DistilBERT is the shipped checkpoint, widened: 4 layers of 768; bert-base is `org/bert`; 15 rounds" in text
    assert "| features | avx2, fma |" in text
    assert "## Kernels" not in text
    assert "| measure |" not in text, "nothing was asked of cost"


def test_a_contended_machine_is_said() -> None:
    assert "contended" not in summary(results({"cost": part(COST)}))
    told = summary(results({"cost": part(COST, contended=True)}))
    assert told == "**The machine was contended: the times of cost mean little.**"


def test_times_that_vary_are_said() -> None:
    calm, restless = raced({"1x128": {OURS: 1.0}}), raced({"1x128": {OURS: 1.0}})
    restless["samples_s"]["1x128"][OURS] = [[1.0], [1.2], [1.4]]
    assert unsteadiness(calm) == 0
    assert unsteadiness(restless) == pytest.approx(0.2 / 1.2)
    assert "contended" not in summary(results({"cost": part(COST | {"races": [calm]})}))
    assert "contended" in summary(results({"cost": part(COST | {"races": [calm, {"deeper": restless}]})}))


def test_what_was_measured_on_a_contended_machine_is_neither_met_nor_missed() -> None:
    times = {"1x128": {"cpu-int8, DistilBERT": 1.0, "PyTorch fp32, bert-base": 7.0}}
    measured = {"races": [raced(times)]}
    assert main_table(results({"claims": part(measured)})).endswith(" | yes |")
    assert main_table(results({"claims": part(measured, contended=True)})).endswith(" | contended |")


def test_nothing_was_asked_of_other_shapes() -> None:
    times = {"1x128": {"cpu-int8, DistilBERT": 1.0, "PyTorch fp32, bert-base": 7.0}}
    assert main_table(results({"claims": part({"races": [raced(times)]})}, layers=4)) == ""


def test_a_name_cannot_break_a_table() -> None:
    assert table(["a|b"], [["c"]]) == "| a\\|b |\n| --- |\n| c |"


def found(ours: dict[str, float], rivals: dict[str, dict[str, float]]) -> Kernels:
    lengths = raced({shape: {OURS: time, **rivals[shape]} for shape, time in ours.items()})
    bare = {"int8 product": 0.5, "int8 product of many weights": 0.625}
    return Kernels(
        # a run of 128 tokens is as many operations as the bare products are
        operations_per_token=2 * 768 * 3072 * 18,
        lengths=[lengths],
        products=[raced({"1x128": {OURS: 1.0, **bare}})],
        batches=raced({}),
    )


def test_kernels_are_judged_where_they_are_slowest() -> None:
    fast, bf16 = OPENVINO
    measured = found(
        {"1x8": 1.0, "1x128": 1.0},
        {"1x8": {OPTIMUM: 0.9, fast: 2.0, bf16: 1.5}, "1x128": {OPTIMUM: 1.2, fast: 1.1, bf16: 1.3}},
    )
    asked = [(one.measure, one.found.split()[0], one.met) for one in kernels.targets(measured)]
    assert asked == [
        ("cpu-int8 against optimum int8, 1x128, 1 thread", "1.20", True),
        ("cpu-int8 against optimum int8, where it is slowest: 1x8, 1 thread", "0.90", False),
        ("cpu-int8 against OpenVINO int8, where it is slowest: 1x128, 1 thread", "1.10", True),
        ("cpu-int8 at 1x128 as a share of the rate of the int8 product, 1 thread", "50%", False),
        ("cpu-int8 at 1x128 as a share of the rate of the int8 product of many weights, 1 thread", "62%", False),
    ]
    assert share_of_products(measured, measured["products"][0], "int8 product") == pytest.approx(0.5)


def test_claims_take_the_faster_pytorch() -> None:
    tried = raced(
        {
            "1x128": {"DistilBERT, pytorch": 1.0, "DistilBERT, pytorch_compiled": 1.1},
            "1x384": {"DistilBERT, pytorch": 4.0, "DistilBERT, pytorch_compiled": 3.0, "bert-base, pytorch": 9.0},
        }
    )
    assert claims.faster_kind(tried, "DistilBERT") == "pytorch_compiled"
    assert claims.faster_kind(tried, "bert-base") == "pytorch"
    tried["left_out"]["other, pytorch"] = "pytorch ended: no memory"
    with pytest.raises(SystemFailed, match="no memory"):
        claims.faster_kind(tried, "other")


def test_claims_are_judged_against_bert_base_in_pytorch() -> None:
    times = {
        "1x128": {"cpu-int8, DistilBERT": 1.0, "PyTorch fp32, bert-base": 7.0},
        "1x384": {"cpu-int8, DistilBERT": 2.0, "PyTorch fp32, bert-base": 10.0},
    }
    measured: Any = {"races": [raced(times, threads=2)]}
    assert [(one.measure, one.met) for one in claims.targets(measured)] == [
        ("DistilBERT cpu-int8 against bert-base in PyTorch fp32, 1x128, 2 threads", True),
        ("DistilBERT cpu-int8 against bert-base in PyTorch fp32, 1x384, 2 threads", False),
    ]
