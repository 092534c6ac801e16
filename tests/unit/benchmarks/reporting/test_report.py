"""What the parts make of samples that are known, and whether a report says that they cannot be trusted."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.parts import claims, kernels
from benchmarks.parts.kernels import ONNXRUNTIME, OPENVINO, OPTIMUM, OURS, Kernels, share_of_products
from benchmarks.racing.breakdown import GROUPS, group
from benchmarks.racing.child import SystemFailed
from benchmarks.racing.race import Raced, ratio, unsteadiness
from benchmarks.reporting.report import main_table, report, summary
from benchmarks.reporting.results import Part, Results
from benchmarks.reporting.tables import faster, table

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
    usual = {"quick": True, "tiny": False, "distilbert": None, "bert": None, "rounds": 15, "load_s": 10}
    shape = {"layers": layers, "hidden": 768, "positions": 512}
    return Results(
        environment={"cpu": "a processor", "packages": {"numpy": "2"}, "features": ["avx2", "fma"]},
        setting=usual | {"distilbert_shape": shape} | setting,
        parts=parts,
    )


COST: dict[str, Any] = {"price_per_s": None, "loads": {}}
JUDGED = {"swayed": 0, "lost": {"points": 0.2, "low": 0.1, "high": 0.3}, "moved": 0, "exact_match": 1, "f1": 1}
QUALITY = {"judged": {OURS: JUDGED}, "asked": 500, "bert": {}, "checkpoint": "", "questions": "", "answers": []}


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
    assert told == "**Others used the machine: the times of Cost mean little.**"
    assert "**Contended.**" in report(results({"cost": part(COST, contended=True)}))


def test_what_has_no_times_is_not_called_contended() -> None:
    assert "ontended" not in report(results({"quality": part(QUALITY, contended=True)}))


@pytest.mark.parametrize(
    ("name", "found", "products", "told"),
    [
        ("quality", QUALITY, "saturate", True),
        ("quality", QUALITY, "do not saturate", False),
        ("quality", QUALITY, None, False),  # of before
        ("cost", COST, "saturate", False),
    ],
)
def test_a_report_says_which_stock_recipes_it_compares_with(
    name: str, found: Any, products: str | None, told: bool
) -> None:
    measured = results({name: part(found)})
    measured["environment"] |= {"int8_products": products} if products else {}
    assert ("stock int8 recipes would be wrong here, so they have weights of 7 bits" in report(measured)) is told


def test_times_that_vary_are_said() -> None:
    calm, restless = raced({"1x128": {OURS: 1.0}}), raced({"1x128": {OURS: 1.0}})
    restless["samples_s"]["1x128"][OURS] = [[1.0], [1.2], [1.4]]
    assert unsteadiness(calm) == 0
    assert unsteadiness(restless) == pytest.approx(0.2 / 1.2)
    assert "varied" not in summary(results({"cost": part(COST | {"races": [calm]})}))
    assert "The times of Cost varied" in summary(
        results({"cost": part(COST | {"races": [calm, {"deeper": restless}]})})
    )


def test_times_of_a_contended_machine_are_neither_met_nor_missed() -> None:
    times = {"1x128": {"cpu-int8, DistilBERT": 1.0, "PyTorch fp32, bert-base": 7.0}}
    measured = {"races": [raced(times)]}
    assert main_table(results({"claims": part(measured)})).endswith(" | yes |")
    assert main_table(results({"claims": part(measured, contended=True)})).endswith(" | contended |")


def test_whether_others_used_the_machine_excuses_no_wrong_answer() -> None:
    judged: Any = {"swayed": 3, "lost": {"points": 0.2, "low": 0.1, "high": 0.3}}
    table = main_table(results({"quality": part({"judged": {OURS: judged}, "asked": 500}, contended=True)}))
    assert "| 3 of 500 | 0 | NO |" in table


@pytest.mark.parametrize(("low", "high", "told"), [(0.1, 0.5, "yes"), (-0.1, 0.9, "undecided"), (0.6, 0.9, "NO")])
def test_a_loss_is_within_bounds_if_its_interval_is(low: float, high: float, told: str) -> None:
    judged: Any = {"swayed": 0, "lost": {"points": 0.4, "low": low, "high": high}}
    table = main_table(results({"quality": part({"judged": {OURS: judged}, "asked": 500})}))
    assert table.endswith(f" | at most 0.5 | {told} |")


def test_a_ratio_misses_where_more_than_half_of_the_rounds_do() -> None:
    def met(*rounds: float) -> bool | None:
        return faster("", ratio([[1.0]] * len(rounds), [[one] for one in rounds]), 1.2).met

    assert met(1.1, 1.2, 1.3, 1.4) is True
    assert met(1.0, 1.1, 1.3) is None
    assert met(1.0, 1.1, 1.1, 1.1, 1.3) is False


def test_nothing_was_asked_of_other_shapes() -> None:
    times = {"1x128": {"cpu-int8, DistilBERT": 1.0, "PyTorch fp32, bert-base": 7.0}}
    assert "6 layers of 768, only" in main_table(results({"claims": part({"races": [raced(times)]})}, layers=4))


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
        profiles={},
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
        ("cpu-int8 at 1x128 as a share of the rate of the int8 product, 1 thread", "50.0%", False),
        ("cpu-int8 at 1x128 as a share of the rate of the int8 product of many weights, 1 thread", "62.5%", False),
    ]
    assert share_of_products(measured, measured["products"][0], "int8 product") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("operator", "rank", "expected"),
    [
        ("MatMulIntegerToFloat", 3, "products by weights"),
        ("DynamicQuantizeMatMul", 3, "products by weights"),
        ("Gemm", 2, "products by weights"),
        ("MatMulIntegerToFloat", 4, "attention"),
        ("QuantizeLinear", 4, "attention"),
        ("Transpose", 3, "attention"),
        ("Attention", 3, "attention"),
        ("Gelu", 3, "Gelu"),
        ("BiasGelu", 3, "Gelu"),
        ("QuantizeLinear", 3, "norms, sums, rounding"),
        ("Shape", 0, "norms, sums, rounding"),
    ],
)
def test_operators_are_told_apart(operator: str, rank: int, expected: str) -> None:
    assert group(operator, rank) == expected


def test_a_report_shows_where_the_time_of_a_run_goes() -> None:
    times = dict.fromkeys([OURS, OPTIMUM, ONNXRUNTIME, *OPENVINO], 1.0)
    measured = found({"1x128": 1.0}, {"1x128": times})
    measured["batches"] = raced({"8x16": times})
    measured["profiles"] = {"1x128": {OURS: dict(zip(GROUPS, (0.5, 0.3, 0.0, 0.2), strict=True))}}
    text = kernels.report(measured)
    assert f"| ms of 1x128, 1 thread | {' | '.join(GROUPS)} |" in text
    assert f"| {OURS} | 500.0 | 300.0 | - | 200.0 |" in text
    assert "8x16" not in text, "which has an appendix"
    assert "| ms, 1 thread | 8x16 |" in report(results({"kernels": part(measured)})).partition("## Appendix")[2]


def test_a_report_begins_with_what_is_most_worth_knowing() -> None:
    rivals = {"1x8": {OPTIMUM: 1.25, OPENVINO[0]: 0.75, OPENVINO[1]: 0.9}}
    rivals["1x128"] = {OPTIMUM: 1.5, OPENVINO[0]: 1.125, OPENVINO[1]: 1.0625}
    measured = found({"1x8": 1.0, "1x128": 1.0}, rivals)
    measured["batches"] = raced({"8x16": dict.fromkeys([OURS, OPTIMUM, ONNXRUNTIME, *OPENVINO], 1.0)})
    for samples in measured["lengths"][0]["samples_s"].values():
        samples[ONNXRUNTIME] = samples[OURS]
    _, kernel, missed, *_ = (line for line in report(results({"kernels": part(measured)})).splitlines() if line)
    assert kernel.startswith("- One window on one thread: cpu-int8 is 1.25 to 1.50 times as fast as optimum int8")
    assert "and 0.75 to 1.06 times as fast as OpenVINO's int8" in kernel
    assert missed == "- 3 of the 5 figures that were asked for were missed: see the table."


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
