"""On processors unlike this one int8 products are exact, and logits are the bundle's.

The kernels that can go wrong add two products in 16 bits: the one for x86 without VNNI saturates, the one for Arm
without dot products wraps around. Each kind is first shown to be what it claims, by what is wrong on it alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from tests.emulated import products
from tests.emulated.kinds import KINDS, Kind, missing
from tests.emulated.products import Array, Product

from distilqa.bundle import SELF_TEST, Bundle
from distilqa_export.quantization.probe import int8_probe

PROGRAM = Path(__file__).with_name("run.py")
INT8 = "cpu-int8"
TOKENS = (8, 16, 31)

# Pairs of 127 at activations of 255; two weights of -128, eight rows apart, at activations of 0.
BROKEN = [
    Product(np.full((1, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)),
    Product(np.zeros((1, 16), np.uint8), np.repeat(np.arange(16) % 8 == 0, 16).reshape(16, 16) * np.int8(-128)),
]
# What each kind makes of them: what is wrong on one is right on the others.
MADE_OF_BROKEN = {
    "Haswell": (64 // 2 * 32767, 0),
    "cortex-a72": (64 * 255 * 127, -(2**16)),
    "neoverse-n1": (64 * 255 * 127, 0),
}

Outputs = Mapping[str, Mapping[str, Array]]


@dataclass(frozen=True, slots=True)
class Cases:
    """What each kind runs: ``folder`` is as `run.py` wants it, ``products`` are those of a case.

    ``watched`` is how many products the bundle's model itself has.
    """

    folder: Path
    products: Mapping[str, list[Product]]
    watched: int


@pytest.fixture(scope="session", params=KINDS, ids=lambda kind: kind.cpu)
def kind(request: pytest.FixtureRequest) -> Kind:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    found: Kind = request.param
    return found


@pytest.fixture(scope="session")
def cases(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Cases:
    folder = tmp_path_factory.mktemp("cases")
    _, variant = Bundle.open(bundle).variant(INT8)
    model = onnx.load(bundle / variant.file)
    made = {
        "broken": BROKEN,
        "own-weights": products.of_weights(model),
        "limited-in-pairs": products.limited_in_pairs(),
        "limited-in-range": products.limited_in_range(constant=True),
        "limited-at-run-time": products.limited_in_range(constant=False),
    }
    models = {case: folder / f"{case}.onnx" for case in ["probe", "watched", *made]}
    feeds = {case: products.write(of, models[case]) for case, of in made.items()}
    ir.save(int8_probe(), models["probe"])
    feeds["probe"] = {}
    watched = products.write_watched(model, models["watched"])
    ids = json.loads((bundle / SELF_TEST).read_text())["inputs"][0]
    for length in TOKENS:
        models[f"logits-{length}"] = bundle / variant.file
        feeds[f"logits-{length}"] = {"input_ids": np.array([ids[: length - 1] + ids[-1:]], np.int64)}
    feeds["watched"] = feeds[f"logits-{TOKENS[-1]}"]
    for case, values in feeds.items():
        np.savez(folder / f"{case}.npz", **values)  # type: ignore[arg-type]
    (folder / "cases.json").write_text(json.dumps({case: str(model) for case, model in models.items()}))
    return Cases(folder, made, watched)


@pytest.fixture(scope="session")
def outputs(kind: Kind, cases: Cases, tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    """What each case gives on a kind. One process runs them all, since it takes seconds to come up."""
    folder = tmp_path_factory.mktemp(kind.cpu)
    kind.run(PROGRAM, cases.folder, folder)
    assert (folder / "machine").read_text() == kind.machine
    return read(folder)


@pytest.fixture(scope="session")
def outputs_here(cases: Cases, tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    folder = tmp_path_factory.mktemp("here")
    subprocess.run([sys.executable, PROGRAM, cases.folder, folder], check=True)
    return read(folder)


def read(folder: Path) -> Outputs:
    return {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}


def count_wrong(found: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, int]:
    return {name: int((found[name] != values).sum()) for name, values in expected.items()}


def test_is_the_kind_that_it_claims(kind: Kind, outputs: Outputs) -> None:
    made = tuple(np.unique(values).tolist() for values in outputs["broken"].values())
    assert made == tuple([value] for value in MADE_OF_BROKEN[kind.cpu])


def test_probe(outputs: Outputs) -> None:
    np.testing.assert_array_equal(outputs["probe"]["product"], outputs["probe"]["expected"])


@pytest.mark.parametrize("case", ["own-weights", "limited-in-pairs", "limited-in-range", "limited-at-run-time"])
def test_products_are_exact(case: str, outputs: Outputs, cases: Cases) -> None:
    expected = {f"y{number}": product.exact for number, product in enumerate(cases.products[case])}
    assert expected
    assert count_wrong(outputs[case], expected) == dict.fromkeys(expected, 0)


def test_products_are_exact_as_the_model_runs(outputs: Outputs, cases: Cases) -> None:
    """Attention's too, both of whose operands come with the text."""
    watched = outputs["watched"]
    expected = {}
    for number in range(cases.watched):
        a, b = watched[f"a{number}"], watched[f"b{number}"]
        zeros = (watched.get(f"{name}{number}", np.array(0)) for name in ("a_zero", "b_zero"))
        expected[f"y{number}"] = products.exact(a, b, *zeros)
    assert expected
    assert count_wrong(watched, expected) == dict.fromkeys(expected, 0)


@pytest.mark.parametrize("length", TOKENS)
def test_logits(length: int, outputs: Outputs, outputs_here: Outputs, bundle: Path) -> None:
    _, variant = Bundle.open(bundle).variant(INT8)
    for name, expected in outputs_here[f"logits-{length}"].items():
        assert expected.shape == (1, length)
        np.testing.assert_allclose(outputs[f"logits-{length}"][name], expected, rtol=0, atol=variant.tolerance)
