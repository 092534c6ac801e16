"""The model card of a bundle: what it is, and only numbers that were measured."""

from __future__ import annotations

from distilqa.bundle import File, Manifest
from distilqa_export.checkpoint import Checkpoint

_INT8 = """int8: weights with one scale a column, activations with static scales, word embeddings and attention's
weights with one scale a row. The rest is fp32.
Its agreement above is the share of packaged questions (SQuAD v1.1 development set) whose best answer is the same
place as fp32's.

"""


def write_card(manifest: Manifest, checkpoint: Checkpoint, files: dict[str, File]) -> str:
    """The card as Markdown. What is not known is said to be unknown."""
    shape = manifest.architecture
    rows = "\n".join(
        f"| {name} | {variant.precision} | {files[variant.file].bytes / 1e6:.1f} MB | {_measured(variant.measured)} |"
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
F1 and exact match of this bundle: not measured.

## Limits and biases
Those of the checkpoint and of what it was trained on. This export adds none that were looked for beyond the above.

## The checkpoint's own card
{_quoted(checkpoint.card)}
"""


def _measured(measured: object) -> str:
    assert isinstance(measured, dict)
    return ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in measured.items())


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines()) if text.strip() else "It has none."
