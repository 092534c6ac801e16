"""The model card of a bundle (after Mitchell et al., 2019): what it is, and only numbers that were measured.

What the checkpoint says of itself, in the metadata at the head of its own card, is repeated as it stands; what it does
not say is written as unknown.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from importlib.resources import files
from string import Template
from typing import Any

import yaml

from distilqa.bundle import File, Manifest, Variant
from distilqa.evaluation.evaluate import MAX_ANSWER_TOKENS
from distilqa.text.windows import DEFAULT_DOC_STRIDE
from distilqa_export.graph.checkpoint import Checkpoint

# Blank lines part its sections; what is put in begins and ends with none.
_CARD = Template((files(__package__) / "card.md").read_text(encoding="utf-8"))

_UNKNOWN = "unknown: the metadata of the checkpoint's card do not say; its text, below, may"

_METADATA = re.compile(r"---\s*\n(.*?)\n---\s*(\n|$)", re.DOTALL)

_PAPERS = {
    "distilbert": "DistilBERT: Sanh, Debut, Chaumond and Wolf, \"DistilBERT, a distilled version of BERT: smaller,"
    " faster, cheaper and lighter\", 2019, arXiv:1910.01108",
    "bert": "BERT: Devlin, Chang, Lee and Toutanova, \"BERT: Pre-training of Deep Bidirectional Transformers for"
    " Language Understanding\", 2019, arXiv:1810.04805",
}  # fmt: skip


def write_card(manifest: Manifest, checkpoint: Checkpoint, written: dict[str, File]) -> str:
    """The card as Markdown. ``written`` are the files of the bundle."""
    said = _metadata(checkpoint.card)
    shape = manifest.architecture
    return _CARD.substitute(
        asdict(shape),
        name=manifest.name,
        checkpoint=manifest.source.checkpoint,
        revision=manifest.source.revision or "unknown (a local folder)",
        weights_sha256=manifest.source.weights_sha256,
        parameters=f"{shape.parameters:,}",
        language=said.get("language", _UNKNOWN),
        license=said.get("license", _UNKNOWN),
        window_tokens=manifest.window_tokens,
        datasets=said.get("datasets", _UNKNOWN),
        base_model=said.get("base_model", _UNKNOWN),
        answer_tokens=MAX_ANSWER_TOKENS,
        doc_stride=DEFAULT_DOC_STRIDE,
        evaluation=manifest.data["evaluation"],
        scores=_scores(manifest),
        asked=_asked(manifest),
        against_fp32=_against_fp32(manifest),
        processor=manifest.processor,
        variants=_variants(manifest, written),
        quantization=_quantization(manifest),
        operators=_operators(manifest),
        created=manifest.created,
        tools=", ".join(f"{name} {version}" for name, version in manifest.tools.items()),
        paper=_PAPERS[shape.type],
        own_card=_quoted(checkpoint.card),
        co2=said.get("co2_eq_emissions", _UNKNOWN),
    )


def _metadata(card: str) -> dict[str, str]:
    """What the YAML at the head of a checkpoint's card says, each as one line of text."""
    found = _METADATA.match(card)
    if found is None:
        return {}
    try:
        # The base loader makes nothing but texts, lists and mappings, whatever tags say: "no" is Norwegian.
        said = yaml.load(found[1], yaml.BaseLoader)
    except (ValueError, RecursionError, yaml.YAMLError):  # it is none; the card itself is quoted all the same
        return {}
    if not isinstance(said, dict):
        return {}
    return {name: words for name, value in said.items() if (words := _in_words(value))}


def _in_words(value: Any) -> str:
    """A text, or a list or mapping of such. What is nested deeper is left out: it might have no end."""
    if isinstance(value, dict):
        return ", ".join(f"{_plain(key)} {_plain(one)}" for key, one in value.items() if _plain(one))
    if isinstance(value, list):
        return ", ".join(filter(None, map(_plain, value)))
    return _plain(value)


def _plain(value: Any) -> str:
    return " ".join(value.encode(errors="replace").decode().split()) if isinstance(value, str) else ""


def _scores(manifest: Manifest) -> str:
    return "\n".join(
        "| {} | {questions:,.0f} | {exact_match:.2f} | {f1:.2f} |".format(name, **variant.measured)
        for name, variant in manifest.variants.items()
    )


def _asked(manifest: Manifest) -> str:
    """How many questions fp32 was asked, where that was not all."""
    measured = next(iter(manifest.variants.values())).measured
    asked = measured.get("fp32_questions_asked")
    if asked is None or asked == measured["questions"]:
        return ""
    return f"""
fp32 was asked {asked:,.0f} of these questions: those in which the other variant's best two answers are nearly as
likely, and a sample of the others, in which each counts for those that were left out.
"""


def _against_fp32(manifest: Manifest) -> str:
    """What the others cost in answers, and what stayed fp32 for that."""
    said = []
    if int8 := manifest.variants.get("cpu-int8"):
        kept = ", ".join(f"{name} ({error:.3g})" for name, error in int8.fp32_matmuls.items()) or "none"
        said.append(f"""
{_lost(int8)} It was calibrated on {manifest.data["calibration"]}.
Matmuls that stayed fp32 for that, with the error of the logits that each caused in int8: {kept}.
""")
    if fp16 := manifest.variants.get("cuda-fp16"):
        twin = "**Unverified**: no GPU ran it; this was found with the same graph on a CPU, attention over a mask. "
        said.append(f"""
{"" if fp16.verified else twin}{_lost(fp16)}
""")
    return "".join(said)


def _lost(variant: Variant) -> str:
    measured = variant.measured
    return f"""{variant.precision} loses {measured["f1_drop"]:.2f} points of F1 against fp32 (95 % interval, paired
bootstrap over passages: {measured["f1_drop_low"]:.2f} to {measured["f1_drop_high"]:.2f}) and gives the same place for
{100 * measured["answers_as_fp32"]:.1f} % of the answers."""


def _variants(manifest: Manifest, files: dict[str, File]) -> str:
    return "\n".join(
        f"| {name} | {files[variant.file].bytes / 1e6:.1f} MB | {_measured(variant)} |"
        for name, variant in manifest.variants.items()
    )


def _measured(variant: Variant) -> str:
    return ", ".join(f"{name} {text}" for name, text in variant.shown().items())


def _quantization(manifest: Manifest) -> str:
    return "\n".join(f"- {name}: {variant.quantization}" for name, variant in manifest.variants.items())


def _operators(manifest: Manifest) -> str:
    return "\n".join(
        f"- Operators of {name}: {', '.join(f'{count} {op}' for op, count in variant.operators.items())}"
        for name, variant in manifest.variants.items()
    )


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines()) if text.strip() else "It has none."
