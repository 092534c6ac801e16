"""The model card: what was measured, what the checkpoint says of itself, and "unknown" for all else."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace

import pytest

from distilqa.bundle import Architecture, File, Manifest, Source, Variant
from distilqa_export.graph.checkpoint import Checkpoint
from distilqa_export.writing.card import write_card

SECTIONS = (
    "Model",
    "What it is for",
    "Misuse",
    "Limits and biases",
    "Training",
    "Evaluation",
    "Technical data",
    "Environment",
    "Citation",
    "The checkpoint's own card",
)

SAID = """---
license: apache-2.0
language:
- en
- de
datasets: [squad, "squad v2"]
base_model: some/encoder
co2_eq_emissions:
  emissions: 1234
  source: a meter
---
# Mine
It was trained for long.
"""

UNKNOWN = "unknown: the metadata of the checkpoint's card do not say"

# The card's own numbers: papers, SQuAD's version, the longest answer and the overlap of windows in tokens, the level of
# the interval, the length that is timed.
KNOWN = {"2019", "1910.01108", "1810.04805", "2016", "100,000", "1606.05250", "1.1", "30", "128", "95", "1x128"}

FP32 = {"largest_difference_from_pytorch": 0.000021, "exact_match": 61.25, "f1": 72.5, "questions": 4321.0}
INT8 = {
    "largest_difference_from_fp32": 0.717,
    "answers_as_fp32": 0.935,
    "f1_drop": 0.46,
    "f1_drop_low": -0.19,
    "f1_drop_high": 1.07,
    "exact_match": 60.75,
    "f1": 72.04,
    "questions": 4321.0,
    "milliseconds_of_1x128": 4.56,
}
FILES = {"cpu-int8.onnx": File(23_400_000, "d" * 64), "cpu-fp32.onnx": File(90_100_000, "e" * 64)}


@pytest.fixture
def manifest() -> Manifest:
    int8 = Variant("cpu-int8.onnx", "int8", "by a method", {"Mul": 17}, 0.7, INT8, {"layer3.narrow": 0.0456}, True)
    return Manifest(
        name="mine",
        version="1",
        created="2026-01-01T00:00:00+00:00",
        source=Source("org/mine", "f" * 40, "c" * 64),
        architecture=Architecture("distilbert", 6, 384, 12, 1536, 30522, 512, 22_600_000),
        window_tokens=383,
        variants={
            "cpu-int8": int8,
            "cpu-fp32": Variant("cpu-fp32.onnx", "fp32", "none", {"Add": 18}, 1e-3, FP32, {}, True),
        },
        data={"evaluation": "mine.json, SHA-256 abc", "calibration": "other.jsonl, SHA-256 def"},
        tools={"onnx": "1.99.9"},
        processor="some processor (avx2)",
        files={},
    )


def card_of(manifest: Manifest, checkpoint: Checkpoint, own: str) -> str:
    return write_card(manifest, replace(checkpoint, card=own), FILES)


def section(card: str, name: str) -> str:
    return re.split(r"^## ", card.split(f"\n## {name}\n")[1], flags=re.MULTILINE)[0]


def test_has_all_sections(manifest: Manifest, tiny: Checkpoint) -> None:
    assert tuple(re.findall(r"^## (.*)$", card_of(manifest, tiny, ""), flags=re.MULTILINE)) == SECTIONS


def test_repeats_what_the_checkpoint_says(manifest: Manifest, tiny: Checkpoint) -> None:
    card = card_of(manifest, tiny, SAID)
    assert "- Licence of the checkpoint: apache-2.0\n" in card
    assert "- Language: en, de\n" in card
    assert "- Data: squad, squad v2\n" in card
    assert "- Started from: some/encoder\n" in card
    assert "emissions 1234, source a meter" in section(card, "Environment")
    assert "> # Mine\n> It was trained for long.\n" in card
    assert UNKNOWN not in card


@pytest.mark.parametrize(
    "own",
    [
        "",
        "# No metadata",
        "---\n- a list\n---\n",
        "---\nlicense: [\n---\n",
        "---\n[a, b]: c\n---\n",
        "---\n1: x\nno: x\nself: x\nto_dict: x\nignore_metadata_errors: true\n---\n",
        "---\nlicense: " + "[" * 100_000 + "\n---\n",
        "---\nlicense: ''\nlanguage: []\ndatasets: {}\nbase_model: ''\n---\n",
    ],
)
def test_what_it_does_not_say_is_unknown(own: str, manifest: Manifest, tiny: Checkpoint) -> None:
    card = card_of(manifest, tiny, own)
    assert card.count(UNKNOWN) == 5
    assert tuple(re.findall(r"^## (.*)$", card, flags=re.MULTILINE)) == SECTIONS


@pytest.mark.parametrize(
    ("licence", "shown"),
    [
        ("no", "no"),
        ("[on, mit]", "on, mit"),
        ("!!bool foo", "foo"),
        ("!!int ''", UNKNOWN),
        ("!!timestamp foo", "foo"),
        ("!!python/object/apply:os.system ['true']", "true"),
        ("0x" + "f" * 5000, "0x" + "f" * 5000),
        (r'"\uD800"', "?"),
        ("!!pairs [k: [lol, lol]]", UNKNOWN),
    ],
)
def test_metadata_are_texts(licence: str, shown: str, manifest: Manifest, tiny: Checkpoint) -> None:
    """Whatever YAML would make of them: languages and licences are no booleans, numbers or dates."""
    card = card_of(manifest, tiny, f"---\nlicense: {licence}\n---\n")
    assert f"- Licence of the checkpoint: {shown}" in card
    card.encode()


def test_metadata_without_end_ends(manifest: Manifest, tiny: Checkpoint) -> None:
    """Lists of lists of lists, each ten of the one before: in words they would not fit any memory."""
    lists = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n" for n in range(1, 30))
    own = f"---\nl0: &l0 [mine]\n{lists}license: *l29\ndatasets: *l0\n---\n"
    card = card_of(manifest, tiny, own)
    assert "- Data: mine\n" in card
    assert f"- Licence of the checkpoint: {UNKNOWN}" in card


def test_invents_no_number(manifest: Manifest, tiny: Checkpoint) -> None:
    """Each number in it is one of the manifest, as it is written there or rounded."""
    card = card_of(manifest, tiny, "")
    given = set(_spellings(_numbers(asdict(manifest)))) | KNOWN | {"23.4", "90.1"}
    found = set(re.findall(r"(?<![\w.-])\d[\d,]*(?:\.\d+)*\b", _without_digests(card)))
    assert found <= given, found - given
    assert {"22,600,000", "4,321", "72.50", "60.75", "93.5", "383", "0.0456"} <= found


def _without_digests(card: str) -> str:
    return re.sub(r"[0-9a-f]{40,}|\d[\d.]*e-\d+|layer\d|2026-\S+|int8|fp32|SHA-256|1\.99\.9", "", card)


def _numbers(value: object) -> list[float]:
    if isinstance(value, dict):
        return [number for one in value.values() for number in _numbers(one)]
    return [value] if isinstance(value, int | float) else []


def _spellings(numbers: Sequence[float]) -> list[str]:
    spelt = []
    for number in (abs(one) for one in numbers):
        spelt += [
            f"{number:.3g}",
            f"{number:.2f}",
            f"{number:.0f}",
            f"{number:,.0f}",
            f"{100 * number:.1f}",
            f"{number:.1f}",
        ]
    return spelt


def test_int8_against_fp32(manifest: Manifest, tiny: Checkpoint) -> None:
    evaluated = " ".join(section(card_of(manifest, tiny, ""), "Evaluation").split())
    assert "loses 0.46 points of F1" in evaluated
    assert "-0.19 to 1.07" in evaluated
    assert "same place for 93.5 % of the answers" in evaluated
    assert "layer3.narrow (0.0456)" in evaluated
    assert "| cpu-int8 | 4,321 | 60.75 | 72.04 |" in evaluated


@pytest.mark.parametrize("asked", [4321.0, 987.0])
def test_says_how_many_questions_fp32_was_asked_where_that_was_not_all(
    asked: float, manifest: Manifest, tiny: Checkpoint
) -> None:
    variants = {
        name: replace(variant, measured={**variant.measured, "fp32_questions_asked": asked})
        for name, variant in manifest.variants.items()
    }
    card = card_of(replace(manifest, variants=variants), tiny, "")
    assert ("fp32 was asked 987 of these questions: " in section(card, "Evaluation")) == (asked == 987)


def test_technical_data(manifest: Manifest, tiny: Checkpoint) -> None:
    technical = section(card_of(manifest, tiny, ""), "Technical data")
    assert "one machine, some processor (avx2):" in technical
    assert "| cpu-int8 | 23.4 MB | logits differ from fp32's by at most 0.72, " in technical
    assert "| cpu-fp32 | 90.1 MB | logits differ from PyTorch's by at most 2.1e-05, " in technical
    assert "a window of 128 tokens on one thread 4.6 ms" in technical
    assert "- cpu-int8: by a method\n- cpu-fp32: none\n" in technical
    assert "Operators of cpu-int8: 17 Mul\n" in technical
    assert "onnx 1.99.9" in technical


@pytest.mark.parametrize(("architecture", "paper"), [("distilbert", "1910.01108"), ("bert", "1810.04805")])
def test_cites_the_architecture(architecture: str, paper: str, manifest: Manifest, tiny: Checkpoint) -> None:
    manifest = replace(manifest, architecture=replace(manifest.architecture, type=architecture))
    assert re.findall(r"arXiv:(\S+)", card_of(manifest, tiny, ""))[0] == paper
