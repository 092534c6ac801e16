"""The model card of a bundle: what it is, and only numbers that were measured."""

from __future__ import annotations

from distilqa.bundle import File, Manifest
from distilqa_export.checkpoint import Checkpoint

_INT8 = """int8: weights with one scale a column, activations with static scales (the least and greatest values seen in
calibration, after equalising), word embeddings and attention's weights with one scale a row. The rest is fp32.

"""


def write_card(manifest: Manifest, checkpoint: Checkpoint, files: dict[str, File]) -> str:
    """The card as Markdown. What is not known is said to be unknown."""
    shape = manifest.architecture
    rows = "\n".join(
        f"| {name} | {variant.precision} | {files[variant.file].bytes / 1e6:.1f} MB | {_measured(variant.measured)} |"
        for name, variant in manifest.variants.items()
    )
    scores = "\n".join(
        "| {} | {questions:,.0f} | {exact_match:.2f} | {f1:.2f} |".format(name, **variant.measured)
        for name, variant in manifest.variants.items()
    )
    tools = ", ".join(f"{name} {version}" for name, version in manifest.tools.items())
    return f"""# {manifest.name}

An extractive question-answering model as a distilqa bundle. It finds the span of a passage that answers a question.

## Use
For English questions on passages that hold the answer, unless the checkpoint's own card says otherwise. An answer is
always a span of a passage, also where no span answers the question: read its score, or allow "no answer".
Not for decisions about people, nor as a source of facts: an answer is only as right as its passage.

## Where it comes from
- Checkpoint: `{manifest.source.checkpoint}`, revision {manifest.source.revision or "unknown (a local folder)"},
  SHA-256 of the weights `{manifest.source.weights_sha256}`
- Architecture: {shape.type}, {shape.layers} layers of {shape.hidden}, {shape.heads} heads, feed-forward
  {shape.feed_forward}, {shape.parameters:,} parameters
- Made {manifest.created} with {tools}

## Variants
| variant | precision | size | measured at export |
|---|---|---|---|
{rows}

{_INT8 if any(v.precision == "int8" for v in manifest.variants.values()) else ""}## Accuracy
Exact match and F1 by SQuAD v1.1's metric, answers of up to 30 tokens, on {manifest.data["evaluation"]}.

| variant | questions | exact match | F1 |
|---|---|---|---|
{scores}
{_int8_against_fp32(manifest)}
## Limits and biases
Those of the checkpoint and of what it was trained on. This export adds none that were looked for beyond the above.

## The checkpoint's own card
{_quoted(checkpoint.card)}
"""


def _int8_against_fp32(manifest: Manifest) -> str:
    """What int8 costs in answers, and what stayed fp32 for that."""
    int8 = manifest.variants.get("cpu-int8")
    if int8 is None:
        return ""
    measured = int8.measured
    kept = ", ".join(f"{name} ({error:.3g})" for name, error in int8.fp32_matmuls.items()) or "none"
    return f"""
int8 loses {measured["f1_drop"]:.2f} points of F1 against fp32 (95 % interval, paired bootstrap over passages:
{measured["f1_drop_low"]:.2f} to {measured["f1_drop_high"]:.2f}) and gives the same place for
{100 * measured["answers_as_fp32"]:.1f} % of the answers. It was calibrated on {manifest.data["calibration"]}.
Matmuls that stayed fp32 for that, with the error of the logits that each caused in int8: {kept}.
"""


def _measured(measured: object) -> str:
    assert isinstance(measured, dict)
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in measured.items())


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines()) if text.strip() else "It has none."
