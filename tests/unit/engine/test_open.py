"""Which variant of a bundle is opened, and what is said where that is not the fastest."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.bundles import let_products_be_wrong, replace_file

from distilqa.bundle import INT8_PROBE, SELF_TEST, VARIANTS, Bundle
from distilqa.engine.open import open_engine
from distilqa.errors import BundleError, VariantUnusable


def let_self_test_fail(copy: Path, *variants: str) -> None:
    """Have it expect other logits of some variants."""
    test = json.loads((copy / SELF_TEST).read_text(encoding="utf-8"))
    for variant in variants:
        test["logits"][variant][0][0][7] += 10
    replace_file(copy, SELF_TEST, json.dumps(test).encode(), listed=True)


def without_variant(copy: Path, name: str) -> Bundle:
    bundle = Bundle.open(copy)
    variants = {one: variant for one, variant in bundle.manifest.variants.items() if one != name}
    return Bundle(bundle.path, replace(bundle.manifest, variants=variants))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (let_products_be_wrong, "it multiplies 8-bit numbers wrongly"),
        (lambda copy: let_self_test_fail(copy, "cpu-int8"), "the self-test of cpu-int8 failed"),
    ],
    ids=["probe", "self-test"],
)
def test_where_the_fastest_cannot_be_used_the_next_is(
    copy: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None], problem: str
) -> None:
    """One line says so; but one that was named, or has no other beside it, is never replaced."""
    spoil(copy)
    assert open_engine(Bundle.open(copy)).variant == "cpu-fp32"
    (entry,) = caplog.records
    assert (entry.levelname, entry.getMessage().count("\n")) == ("WARNING", 0)
    assert problem in entry.getMessage()
    assert entry.getMessage().endswith("cpu-fp32 is used instead; --variant cpu-fp32 asks for it by name")
    caplog.clear()
    assert open_engine(Bundle.open(copy), "cpu-fp32").variant == "cpu-fp32"
    with pytest.raises(VariantUnusable, match=problem):
        open_engine(Bundle.open(copy), "cpu-int8")
    with pytest.raises(VariantUnusable, match=problem):
        open_engine(without_variant(copy, "cpu-fp32"))
    assert not caplog.records


def test_where_none_can_be_used_the_fastest_says_why(copy: Path, caplog: pytest.LogCaptureFixture) -> None:
    let_self_test_fail(copy, *VARIANTS)
    with pytest.raises(VariantUnusable, match="the self-test of cpu-int8 failed"):
        open_engine(Bundle.open(copy))
    assert not caplog.records


@pytest.mark.parametrize("name", ["cpu-int8.onnx", INT8_PROBE])
@pytest.mark.parametrize("content", [b"", b"not a model"])
@pytest.mark.parametrize("listed", [False, True])
def test_damage_is_no_reason_for_another_variant(copy: Path, name: str, content: bytes, listed: bool) -> None:
    """Nor is a file that ONNX Runtime cannot open."""
    replace_file(copy, name, content, listed=listed)
    with pytest.raises(BundleError, match=name) as caught:
        open_engine(Bundle.open(copy))
    assert not isinstance(caught.value, VariantUnusable)


def test_a_probe_that_tells_nothing_is_damaged(copy: Path) -> None:
    replace_file(copy, INT8_PROBE, (copy / "cpu-fp32.onnx").read_bytes(), listed=True)
    with pytest.raises(BundleError, match=f"{INT8_PROBE}: cannot be run") as caught:
        open_engine(Bundle.open(copy))
    assert not isinstance(caught.value, VariantUnusable)


def test_damage_of_the_next_variant_does_not_hide_why_it_was_needed(copy: Path) -> None:
    let_products_be_wrong(copy)
    replace_file(copy, "cpu-fp32.onnx", b"", listed=False)
    with pytest.raises(BundleError, match=r"it multiplies 8-bit numbers wrongly .* And .*cpu-fp32\.onnx: has 0 bytes"):
        open_engine(Bundle.open(copy))
