"""The engine: which bundles it refuses, what it feeds the model, and that company in a run changes nothing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from onnx import numpy_helper
from tests.bundles import let_products_be_wrong, replace_file
from tokenizers import Tokenizer

from distilqa.bundle import INT8_PROBE, MANIFEST, SELF_TEST, VARIANTS, Bundle
from distilqa.engine import (
    SHARED_RUN_WINDOWS,
    Engine,
    _cgroup_quota,
    import_onnxruntime,
    open_engine,
    run_session,
    token_types,
    usable_cores,
)
from distilqa.errors import BundleError, MissingDependency, VariantUnusable
from distilqa.spans import Float32
from distilqa.windows import Int64, Windower

CLS, SEP = 101, 102


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, made of links to its files: replace them, never write into them."""
    return Path(shutil.copytree(bundle, tmp_path / "bundle", copy_function=os.link))


def windows_of(length: int, count: int) -> list[Int64]:
    """Different inputs of one length, the same in every run of the tests."""
    ids = np.random.default_rng(length).integers(1000, 30000, (count, length))
    ids[:, 0], ids[:, 5], ids[:, -1] = CLS, SEP, SEP
    return list(ids)


@pytest.fixture(scope="module")
def engines(bundle: Path) -> dict[int, Engine]:
    """The int8 variant by its number of threads."""
    return {threads: Engine(Bundle.open(bundle), "cpu-int8", threads=threads) for threads in (1, 2)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_passes_its_self_test(bundle: Path, variant: str) -> None:
    engine = Engine(Bundle.open(bundle), variant, threads=1)
    assert (engine.variant, engine.threads) == (variant, 1)
    ((start, end),) = engine.run(windows_of(20, 1))
    assert (start.shape, end.shape) == ((20,), (20,))
    assert start.dtype == end.dtype == np.float32


def test_a_window_that_the_model_has_no_room_for(bundle: Path, tmp_path: Path) -> None:
    """The manifest says more than the model can: better found now than on the first long passage."""
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    fields = json.loads((copy / MANIFEST).read_text())
    fields["window_tokens"] = fields["architecture"]["positions"] = 513
    (copy / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(BundleError, match="has no room for window_tokens: the model failed on 513 tokens"):
        Engine(Bundle.open(copy))


def test_threads_are_all_usable_cores_by_default(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distilqa.engine.usable_cores", lambda: 3)
    engine = Engine(Bundle.open(bundle))
    assert (engine.variant, engine.threads) == ("cpu-int8", 3)


@pytest.mark.parametrize("length", [8, 23, 64])
@pytest.mark.parametrize("count", [2, SHARED_RUN_WINDOWS])
def test_int8_logits_are_the_same_bits_in_any_run(engines: dict[int, Engine], length: int, count: int) -> None:
    windows = windows_of(length, count)
    alone = [engines[1].run([window])[0] for window in windows]
    assert len({start.tobytes() for start, _ in alone}) == count
    for engine in engines.values():
        for again in (engine.run(windows), [engine.run([window])[0] for window in windows]):
            assert [(s.tobytes(), e.tobytes()) for s, e in again] == [(s.tobytes(), e.tobytes()) for s, e in alone]


@pytest.mark.parametrize("length", [65, 384])
def test_int8_logits_are_the_same_bits_with_two_threads(engines: dict[int, Engine], length: int) -> None:
    ((start, end),), ((start_2, end_2),) = (engines[threads].run(windows_of(length, 1)) for threads in (1, 2))
    assert (start.tobytes(), end.tobytes()) == (start_2.tobytes(), end_2.tobytes())


@pytest.fixture(scope="module")
def concurrent(bundle: Path) -> Engine:
    return Engine(Bundle.open(bundle), "cpu-int8", threads=2, concurrent=True)


@pytest.mark.parametrize("length", [7, 64, 384])
def test_int8_logits_are_the_same_bits_alone_on_all_cores(concurrent: Engine, length: int) -> None:
    windows = windows_of(length, 2)
    shared, alone = concurrent.run(windows), concurrent.run(windows, alone=True)
    assert [(s.tobytes(), e.tobytes()) for s, e in shared] == [(s.tobytes(), e.tobytes()) for s, e in alone]


@pytest.mark.parametrize(
    ("options", "sessions"),
    [
        ({"threads": 2}, [(2, "0")]),
        ({"threads": 2, "concurrent": True}, [(1, "0"), (2, "1")]),
        ({"threads": 1, "concurrent": True}, [(1, "0")]),
    ],
)
def test_sessions(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], sessions: list[tuple[int, str]]
) -> None:
    """Threads and spinning of each: a core for a run, and all for one that is alone."""
    opened: list[tuple[int, str]] = []
    real = onnxruntime.InferenceSession

    def session(model: Path, settings: Any, **more: Any) -> Any:
        if model.name == "cpu-int8.onnx":
            spinning = settings.get_session_config_entry("session.intra_op.allow_spinning")
            opened.append((settings.intra_op_num_threads, spinning))
            assert not settings.enable_mem_pattern
        return real(model, settings, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    Engine(Bundle.open(bundle), "cpu-int8", **options)
    assert opened == sessions


def test_int8_logits_are_the_same_bits_under_load(engines: dict[int, Engine]) -> None:
    runs = [windows_of(length, count) for length, count in ((9, 8), (200, 1), (30, 3), (384, 1), (64, 8), (65, 1))] * 3
    alone = [engines[2].run(windows) for windows in runs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(engines[2].run, runs))
    for expected, actual in zip(alone, together, strict=True):
        assert np.array_equal(np.array(actual), np.array(expected))


def reverse(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values[::-1].copy()


def make_nan(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.full_like(values, np.nan)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("change", [reverse, make_nan])
def test_self_test_refuses_other_weights(
    copy: Path, variant: str, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> None:
    model = onnx.load(copy / f"{variant}.onnx")
    (weights,) = (tensor for tensor in model.graph.initializer if "position_embeddings" in tensor.name)
    weights.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weights)), weights.name))
    replace_file(copy, f"{variant}.onnx", model.SerializeToString(), listed=True)
    with pytest.raises(VariantUnusable, match=f"the self-test of {variant} failed") as caught:
        Engine(Bundle.open(copy), variant)
    assert str(copy) in str(caught.value)


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


def test_a_processor_whose_products_are_wrong_is_refused(copy: Path) -> None:
    """Before the model is even read."""
    let_products_be_wrong(copy)
    replace_file(copy, "cpu-int8.onnx", b"", listed=False)
    with pytest.raises(VariantUnusable, match="it multiplies 8-bit numbers wrongly") as caught:
        Engine(Bundle.open(copy), "cpu-int8")
    assert "cpu-int8" in str(caught.value)
    Engine(Bundle.open(copy), "cpu-fp32")


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


@pytest.mark.parametrize(
    ("product", "expected", "problem"),
    [
        (np.array(["1"], object), np.array(["2"], object), "cannot be run"),
        (np.zeros(1, np.float32), np.zeros(2, np.float32), "cannot be run"),
        (np.zeros(0, np.float32), np.zeros(0, np.float32), "tests nothing"),
    ],
    ids=["strings", "other sizes", "nothing"],
)
def test_a_probe_of_other_outputs_is_damaged(
    copy: Path, product: npt.NDArray[Any], expected: npt.NDArray[Any], problem: str
) -> None:
    tensors = [numpy_helper.from_array(product, "given"), numpy_helper.from_array(expected, "right")]
    outputs = ("product", "expected")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [one.name], [out]) for one, out in zip(tensors, outputs, strict=True)],
        "probe",
        [],
        [
            onnx.helper.make_tensor_value_info(out, one.data_type, one.dims)
            for one, out in zip(tensors, outputs, strict=True)
        ],
        tensors,
    )
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 21)])
    replace_file(copy, INT8_PROBE, model.SerializeToString(), listed=True)
    with pytest.raises(BundleError, match=f"{INT8_PROBE}: {problem}") as caught:
        open_engine(Bundle.open(copy))
    assert not isinstance(caught.value, VariantUnusable)


@pytest.mark.parametrize("side", [0, 1], ids=["start", "end"])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(("share", "passes"), [(0.9, True), (1.1, False), (-1.1, False)])
def test_self_test_looks_at_every_logit(copy: Path, side: int, number: int, share: float, passes: bool) -> None:
    """A single expected logit is moved by a share of the tolerance."""
    bundle = Bundle.open(copy)
    test = json.loads((copy / SELF_TEST).read_text(encoding="utf-8"))
    assert len(test["inputs"]) == 3
    test["logits"]["cpu-int8"][number][side][7] += share * bundle.manifest.variants["cpu-int8"].tolerance
    replace_file(copy, SELF_TEST, json.dumps(test).encode(), listed=True)
    if passes:
        Engine(Bundle.open(copy), "cpu-int8")
    else:
        with pytest.raises(BundleError, match="the self-test of cpu-int8 failed"):
            Engine(Bundle.open(copy), "cpu-int8")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "cannot be run"),
        (b"[]", "cannot be run"),
        (b"{}", "cannot be run"),
        (b"\xff", "cannot be run"),
        (b"[" * 100_000, "cannot be run"),
        (b'{"inputs": [[101, 999999999, 102]], "logits": {"cpu-fp32": [[[0], [0]]]}}', "cannot be run"),
        (b'{"inputs": [["a"]], "logits": {"cpu-fp32": [[[0], [0]]]}}', "cannot be run"),
        (b'{"inputs": [[101, 102]], "logits": {"cpu-fp32": []}}', "cannot be run"),
        (b'{"inputs": [[101, 102]], "logits": {}}', "cannot be run"),
        (b'{"inputs": [[]], "logits": {"cpu-fp32": [[[], []]], "cpu-int8": [[[], []]]}}', "cannot be run"),
        (b'{"inputs": [], "logits": {"cpu-fp32": []}}', "tests nothing"),
    ],
)
def test_a_self_test_that_says_nothing_is_refused(copy: Path, content: bytes, problem: str) -> None:
    replace_file(copy, SELF_TEST, content, listed=True)
    with pytest.raises(BundleError, match=problem):
        Engine(Bundle.open(copy), "cpu-fp32")


@pytest.mark.parametrize("name", ["cpu-int8.onnx", SELF_TEST])
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda content: content[: len(content) // 2], "bytes, the manifest says"),
        (lambda content: content[:-100] + bytes(100), "SHA-256"),
    ],
    ids=["truncated", "corrupted"],
)
def test_damaged_file_is_refused(copy: Path, name: str, damage: Callable[[bytes], bytes], why: str) -> None:
    replace_file(copy, name, damage((copy / name).read_bytes()), listed=False)
    with pytest.raises(BundleError) as caught:
        Engine(Bundle.open(copy), "cpu-int8")
    assert str(copy / name) in str(caught.value)
    assert why in str(caught.value)


def test_damage_to_another_variant_is_no_hindrance(copy: Path) -> None:
    replace_file(copy, "cpu-fp32.onnx", b"", listed=False)
    assert Engine(Bundle.open(copy)).variant == "cpu-int8"


class FakeModel:
    """Keeps what it was fed."""

    def run(self, outputs: Sequence[str], feeds: dict[str, Int64]) -> list[Float32]:
        self.outputs, self.feeds = outputs, feeds
        return [np.zeros(feeds["input_ids"].shape, np.float32) for _ in outputs]


@pytest.mark.parametrize("inputs", [["input_ids"], ["input_ids", "token_type_ids"]], ids=["DistilBERT", "BERT"])
def test_feeds(inputs: list[str]) -> None:
    model: Any = FakeModel()
    windows = windows_of(10, 3)
    start, end = run_session(model, inputs, windows)
    assert start.shape == end.shape == (3, 10)
    assert list(model.outputs) == ["start_logits", "end_logits"]
    assert sorted(model.feeds) == inputs
    assert model.feeds["input_ids"].tolist() == [window.tolist() for window in windows]
    if "token_type_ids" in inputs:
        assert model.feeds["token_type_ids"].tolist() == [[0] * 6 + [1] * 4] * 3


@pytest.fixture(scope="module")
def windower(tokenizer_json: str) -> Windower:
    return Windower(tokenizer_json, max_tokens=384)


TEXTS = st.lists(st.sampled_from(("fox", "jumps", "é", "東", "[CLS]", "?")), min_size=1, max_size=8).map(" ".join)


@given(question=TEXTS, passages=st.lists(TEXTS | st.just("a [SEP] b [SEP]"), min_size=1, max_size=3))
def test_token_types_are_the_tokenizers(
    windower: Windower, tokenizer: Tokenizer, question: str, passages: list[str]
) -> None:
    windows = windower.tokenize(question, passages).windows
    assume(len({window.length for window in windows}) == 1)
    types = token_types(np.stack([window.input_ids for window in windows]))
    assert types.dtype == np.int64
    assert types.tolist() == [tokenizer.encode(question, passage).type_ids for passage in passages]


def test_token_types_of_a_question_that_quotes_a_separator(windower: Windower, tokenizer: Tokenizer) -> None:
    question, passage = "What does [SEP] mean?", "The token [SEP] separates."
    (window,) = windower.tokenize(question, [passage]).windows
    assert token_types(window.input_ids[None]).tolist() == [tokenizer.encode(question, passage).type_ids]


def installed(*names: str) -> Callable[[str], object]:
    """A stand-in for importlib.metadata.distribution where only these are installed."""

    def distribution(name: str) -> object:
        if name not in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return object()

    return distribution


@pytest.mark.parametrize("names", [("onnxruntime",), ("onnxruntime-gpu",)])
def test_one_onnxruntime(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", installed(*names))
    assert import_onnxruntime() is onnxruntime


def test_both_onnxruntimes(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", installed("onnxruntime", "onnxruntime-gpu"))
    with pytest.raises(MissingDependency, match=r"pip uninstall -y onnxruntime onnxruntime-gpu && pip install "):
        Engine(Bundle.open(bundle))


def test_the_rest_of_two_onnxruntimes(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which one was uninstalled, and took files of the other with it."""
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    with pytest.raises(MissingDependency, match=r"is damaged: pip uninstall -y onnxruntime onnxruntime-gpu && pip"):
        Engine(Bundle.open(bundle))


def test_no_onnxruntime(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", installed())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"pip install 'distilqa\[cpu\]'"):
        Engine(Bundle.open(bundle))


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + "\n")


V1 = "5:cpu,cpuacct:/pod/box\n4:memory:/pod/box\n1:name=systemd:/pod/box\n"


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        pytest.param("0::/pod/box\n", {"pod/box/cpu.max": "150000 100000"}, 1.5, id="v2"),
        pytest.param("0::/pod/box\n", {"pod/box/cpu.max": "max 100000"}, None, id="v2 without a limit"),
        pytest.param(
            "0::/pod/box\n",
            {"pod/box/cpu.max": "400000 100000", "pod/cpu.max": "250000 100000", "cpu.max": "300000 100000"},
            2.5,
            id="v2, the one above is less",
        ),
        pytest.param(
            "0::/pod/box\n", {"pod/box/cpu.max": "max 100000", "cpu.max": "50000 100000"}, 0.5, id="v2, only the root's"
        ),
        pytest.param("0::/pod/box\n", {"other/cpu.max": "50000 100000"}, None, id="v2, another group's"),
        pytest.param("0::/pod:box:1\n", {"pod:box:1/cpu.max": "150000 100000"}, 1.5, id="v2 with colons"),
        pytest.param("0::/\n", {"cpu.max": "200000 50000"}, 4.0, id="v2 in a namespace"),
        pytest.param("0::/../../pod\n", {"cpu.max": "200000 100000"}, 2.0, id="v2 outside of its namespace"),
        pytest.param(
            V1,
            {
                "cpu,cpuacct/pod/box/cpu.cfs_quota_us": "150000",
                "cpu,cpuacct/pod/box/cpu.cfs_period_us": "100000",
                "memory/pod/box/cpu.cfs_quota_us": "1",
                "memory/pod/box/cpu.cfs_period_us": "1",
            },
            1.5,
            id="v1",
        ),
        pytest.param(
            V1,
            {"cpu,cpuacct/pod/box/cpu.cfs_quota_us": "-1", "cpu,cpuacct/pod/box/cpu.cfs_period_us": "100000"},
            None,
            id="v1 without a limit",
        ),
        pytest.param(
            V1,
            {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            0.5,
            id="v1, only the root is seen",
        ),
        pytest.param(V1, {"cpu,cpuacct/cpu.cfs_quota_us": "50000"}, None, id="v1 without its period"),
        pytest.param(
            V1 + "0::/pod\n",
            {
                "cpu,cpuacct/pod/cpu.cfs_quota_us": "300000",
                "cpu,cpuacct/pod/cpu.cfs_period_us": "100000",
                "pod/cpu.max": "200000 100000",
            },
            2.0,
            id="v1 and v2",
        ),
        pytest.param(V1, {"pod/box/cpu.max": "50000 100000"}, None, id="v1, not in v2's tree"),
        pytest.param(None, {"cpu.max": "50000 100000"}, None, id="no control groups"),
    ],
)
def test_cgroup_quota(tmp_path: Path, own: str | None, files: dict[str, str], expected: float | None) -> None:
    write_tree(tmp_path / "cgroup", files)
    if own is not None:
        (tmp_path / "own").write_text(own)
    assert _cgroup_quota(tmp_path / "cgroup", tmp_path / "own") == expected


@pytest.mark.parametrize(
    ("quota", "expected"), [(None, 4), (0.5, 1), (1.0, 1), (2.9, 2), (3.0, 3), (4.0, 4), (64.0, 4)]
)
def test_usable_cores(monkeypatch: pytest.MonkeyPatch, quota: float | None, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5, 8})
    monkeypatch.setattr("distilqa.engine._cgroup_quota", lambda: quota)
    assert usable_cores() == expected


@pytest.mark.parametrize(("count", "expected"), [(6, 6), (None, 1)])
def test_usable_cores_without_affinity(monkeypatch: pytest.MonkeyPatch, count: int | None, expected: int) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    monkeypatch.setattr("distilqa.engine._cgroup_quota", lambda: None)
    assert usable_cores() == expected
