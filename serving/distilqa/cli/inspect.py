"""``distilqa inspect``: verify a bundle and show what is in it."""

from __future__ import annotations

import argparse
from pathlib import Path

from distilqa.bundle import GPU_VARIANTS, Bundle
from distilqa.cli.commands import Commands, add_command
from distilqa.engine.processor import read_processor
from distilqa.errors import BundleError, MissingDependency, VariantUnusable
from distilqa.wording import printable


def add(commands: Commands) -> None:
    inspect = add_command(commands, "inspect", _run, "verify a bundle and show what is in it")
    inspect.add_argument("bundle", type=Path, metavar="BUNDLE")
    inspect.add_argument("--json", action="store_true", help="print the manifest")


def _run(arguments: argparse.Namespace) -> int:
    bundle = Bundle.open(arguments.bundle)
    manifest = bundle.manifest
    for name in manifest.files:
        bundle.verified(name)
    if arguments.json:
        print(manifest.to_json(), end="")
        return 0
    source, shape = manifest.source, manifest.architecture

    def show(line: str) -> None:
        print(printable(line))

    show(f"{manifest.name} version {manifest.version}, made {manifest.created}")
    show(f"  checkpoint    {source.checkpoint}, revision {source.revision or 'unknown (a local folder)'}")
    show(f"  weights       SHA-256 {source.weights_sha256}")
    show(
        f"  architecture  {shape.type}: {shape.layers} layers of {shape.hidden}, {shape.heads} heads,"
        f" feed-forward {shape.feed_forward}, {shape.parameters:,} parameters"
    )
    show(f"  window        {manifest.window_tokens} tokens")
    show(f"  made with     {', '.join(f'{tool} {number}' for tool, number in manifest.tools.items())}")
    show(f"  made on       {manifest.processor}")
    show(f"  this machine  {read_processor()}")
    usable = _usable(bundle)
    for name, variant in manifest.variants.items():
        show(f"variant {name} ({variant.precision}{'' if variant.verified else ', unverified'})")
        operators = ", ".join(f"{count} {op}" for op, count in variant.operators.items())
        shown = variant.shown() | {
            "quantisation": variant.quantization,
            "self-test: logits may differ by": f"{variant.tolerance:.3g}",
            "operators": operators,
        }
        shown |= {f"in fp32: {name}": f"logit error {error:.2g}" for name, error in variant.fp32_matmuls.items()}
        for measure, text in (usable.get(name, {}) | shown).items():
            show(f"  {measure:42}{text}")
    for use, questions in manifest.data.items():
        show(f"{use} on {questions}")
    show("files (digests verified)")
    for name, file in manifest.files.items():
        show(f"  {name:16}{file.bytes:>12,}  {file.sha256}")
    return 0


def _usable(bundle: Bundle) -> dict[str, dict[str, str]]:
    """Of each variant, whether it can be used here; of none where there is no runtime."""
    from distilqa.engine.cpu import CpuEngine
    from distilqa.engine.cuda.runtime import load_runtime
    from distilqa.engine.open import usable_variants

    try:
        by_preference = usable_variants()
    except MissingDependency:
        return {}
    found, passed_over = {}, set()
    for name, variant in bundle.manifest.variants.items():
        told = "yes" if variant.verified else "yes, where it is allowed"
        try:
            if name in GPU_VARIANTS:
                load_runtime()
            else:
                CpuEngine(bundle, name)
        except (MissingDependency, BundleError) as error:
            told = f"no: {str(error).removeprefix(f'{bundle.path}: ')}"
            if isinstance(error, VariantUnusable):
                passed_over.add(name)
        found[name] = told
    # As `open_engine` does it: what is not passed over answers, or is an error.
    default = next((name for name in by_preference if name in found and name not in passed_over), None)
    return {
        name: {
            "can be used on this machine": told + ", and is where none is named" * (name == default and told == "yes")
        }
        for name, told in found.items()
    }
