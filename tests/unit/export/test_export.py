"""From a checkpoint to a bundle: what is written, and that nothing is where a step fails."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distilqa.bundle import CARD, INT8_PROBE, MANIFEST, SELF_TEST, TOKENIZER, VARIANTS, Bundle, Manifest
from distilqa.engine.cuda import engine as cuda
from distilqa.engine.segments import token_types
from distilqa.engine.session import open_session
from distilqa.errors import BundleError
from distilqa.reader import Reader
from distilqa.text import spans
from distilqa_export import samples
from distilqa_export.errors import CheckpointError, ExportError
from distilqa_export.export import export
from distilqa_export.gate import judge
from distilqa_export.gate import release as gate
from distilqa_export.gate.judge import Drop
from distilqa_export.graph.checkpoint import Checkpoint
from distilqa_export.graph.pack import pack

MakeTiny = Callable[..., Path]

QUESTION = "What does the fox jump over?"
FOX = "The quick brown fox jumps over the lazy dog."


@dataclass(frozen=True)
class Exported:
    """A bundle, the manifest that `export` returned, and the steps it told of."""

    path: Path
    manifest: Manifest
    steps: list[str]


@pytest.fixture(scope="module")
def exported(tiny_folder: Path, evaluation: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A bundle of each tiny checkpoint with both variants. Tests must not change it."""
    steps: list[str] = []
    target = tmp_path_factory.mktemp("exported") / "bundle"
    manifest = export(str(tiny_folder), target, evaluation=evaluation, max_f1_drop=100, progress=steps.append)
    return Exported(target, manifest, steps)


@pytest.fixture(scope="module")
def distilbert(make_tiny: MakeTiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DistilBERT checkpoint."""
    return make_tiny(tmp_path_factory.mktemp("export") / "tiny")


@pytest.fixture
def few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five of the packaged questions, where a test is not about what was measured, and any drop in F1 will do."""
    calibration, evaluation = samples.packaged_calibration()[:5], samples.packaged_evaluation()[:5]
    monkeypatch.setattr(samples, "packaged_calibration", lambda: calibration)
    monkeypatch.setattr(samples, "packaged_evaluation", lambda: evaluation)
    monkeypatch.setattr("distilqa_export.gate.judge.f1_drop", lambda *_: Drop(0, 0, 0))
    monkeypatch.setattr("distilqa_export.export._LEAST_F1", 0)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go during the test."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_writes_what_the_manifest_lists(exported: Exported) -> None:
    bundle = Bundle.open(exported.path)
    assert bundle.manifest == exported.manifest
    assert set(bundle.manifest.files) == {"cpu-int8.onnx", "cpu-fp32.onnx", INT8_PROBE, TOKENIZER, SELF_TEST, CARD}
    assert {path.name for path in exported.path.iterdir()} == {*bundle.manifest.files, MANIFEST}
    for name in bundle.manifest.files:
        bundle.verified(name)
    assert [path.name for path in exported.path.parent.iterdir()] == ["bundle"]


def test_describes_the_model(exported: Exported, tiny: Checkpoint, kind: str) -> None:
    manifest = exported.manifest
    assert (manifest.name, manifest.window_tokens) == (f"tiny-{kind}", 384)
    assert (manifest.source, manifest.architecture) == (tiny.source, tiny.architecture)
    assert manifest.tools["torch"] == version("torch")
    fp32, int8 = manifest.variants["cpu-fp32"], manifest.variants["cpu-int8"]
    assert (fp32.precision, int8.precision) == ("fp32", "int8")
    assert fp32.operators["Attention"] == 2
    assert "Attention" not in int8.operators
    assert int8.operators["MatMulIntegerToFloat"] == 16
    assert 0 < fp32.measured["largest_difference_from_pytorch"] < fp32.tolerance == 1e-3
    assert 0 < int8.measured["largest_difference_from_fp32"] < int8.tolerance < 10
    for variant in (int8, fp32):
        assert variant.measured["milliseconds_of_1x128"] > 0
    assert 0 < int8.measured["answers_as_fp32"] <= 1
    assert int8.measured["questions"] == fp32.measured["questions"] == 100
    for variant in (fp32, int8):
        assert 0 <= variant.measured["exact_match"] <= variant.measured["f1"] <= 100
    assert int8.measured["f1_drop"] == pytest.approx(fp32.measured["f1"] - int8.measured["f1"])
    assert int8.measured["f1_drop_low"] <= int8.measured["f1_drop"] <= int8.measured["f1_drop_high"]
    assert int8.fp32_matmuls == fp32.fp32_matmuls == {}
    assert manifest.data["evaluation"].startswith("hundred.json, SHA-256 ")
    assert manifest.data["calibration"].startswith("200 questions on 200 passages of SQuAD v1.1's training set (calib")


def test_tells_of_each_step(exported: Exported) -> None:
    told = [step.split()[0] for step in exported.steps]
    fp32, int8, calibrate = ["cpu-fp32:"] * 10, ["cpu-int8:"] * 10, ["calibrate"] * 11
    assert told[:15] == ["load", "trace", "fuse", "check", *calibrate]
    assert told[15:] == ["quantise,", *int8, *fp32, "int8", "100", "time,"], "a hundred questions are too few, it says"


def test_says_nothing_of_where_it_was_made(exported: Exported, tiny_folder: Path) -> None:
    for name in (MANIFEST, CARD):
        text = (exported.path / name).read_text(encoding="utf-8")
        assert str(tiny_folder.parent) not in text
        assert str(exported.path.parent) not in text


def test_keeps_self_test_inputs_of_several_lengths(exported: Exported) -> None:
    content = json.loads((exported.path / SELF_TEST).read_text(encoding="utf-8"))
    lengths = [len(ids) for ids in content["inputs"]]
    assert len(lengths) == 3
    assert lengths == sorted(set(lengths))
    assert set(content["logits"]) == set(VARIANTS)
    for logits in content["logits"].values():
        assert [[len(side) for side in window] for window in logits] == [[n, n] for n in lengths]
    assert content["logits"]["cpu-int8"] != content["logits"]["cpu-fp32"]


@pytest.mark.usefixtures("few_samples")
def test_a_question_of_several_windows_will_do_for_the_self_test(distilbert: Path, tmp_path: Path) -> None:
    question = {"id": "1", "question": QUESTION, "answers": [{"text": "dog"}]}
    article = {"title": "t", "paragraphs": [{"context": FOX * 100, "qas": [question]}]}
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"data": [article]}))
    export(str(distilbert), tmp_path / "bundle", evaluation=own, variants=["cpu-fp32"])
    content = json.loads((tmp_path / "bundle" / SELF_TEST).read_text(encoding="utf-8"))
    assert len({len(ids) for ids in content["inputs"]}) > 1


def test_card_has_the_numbers_of_the_manifest(exported: Exported) -> None:
    card, manifest = (exported.path / CARD).read_text(encoding="utf-8"), exported.manifest
    assert card.startswith(f"# {manifest.name}\n")
    assert manifest.source.weights_sha256 in card
    assert f"{manifest.architecture.parameters:,} parameters" in card
    for tool, number in manifest.tools.items():
        assert f"{tool} {number}" in card
    for name, variant in manifest.variants.items():
        technical = card.split("## Technical data")[1]
        row = next(line for line in technical.splitlines() if line.startswith(f"| {name} |"))
        assert f"| {manifest.files[variant.file].bytes / 1e6:.1f} MB |" in row
        for measure, text in variant.shown().items():
            assert f"{measure} {text}" in row


def test_the_self_test_does_not_depend_on_the_callers_questions(
    distilbert: Path, evaluation: Path, tmp_path: Path
) -> None:
    """How far int8 may be off is a property of the model; a few easy questions must not make it strict."""
    one = tmp_path / "one.json"
    samples.write_evaluation(one, passages=1)
    found = [
        export(str(distilbert), tmp_path / file.stem, evaluation=file, max_f1_drop=100).variants["cpu-int8"]
        for file in (one, evaluation)
    ]
    assert found[0].tolerance == found[1].tolerance
    assert found[0].tolerance == 2 * found[0].measured["largest_difference_from_fp32"]


@pytest.mark.usefixtures("few_samples")
def test_says_where_the_verdict_may_be_chance(
    distilbert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = "5 questions on 3 passages are too few to judge by"
    for least, high, doubt in ((3, 0.4, ""), (3, 0.6, "the interval reaches beyond 0.5"), (4, 0.4, few)):
        monkeypatch.setattr("distilqa_export.gate.release._LEAST_PASSAGES", least)
        steps: list[str] = []
        monkeypatch.setattr("distilqa_export.gate.judge.f1_drop", lambda *_, high=high: Drop(0.1, -0.2, high))
        export(str(distilbert), tmp_path / f"{least} {high}", progress=steps.append)
        said = [step for step in steps if step.startswith("int8 with") or "more questions" in step]
        assert said[0] == (
            f"int8 with 0 of 14 matmuls in fp32 loses 0.10 points of F1 (95 % interval -0.20 to {high:.2f});"
            " 0.5 are allowed"
        )
        assert said[1:] == ([f"{doubt}: more questions (--eval) would make it surer"] if doubt else [])


@pytest.mark.parametrize("variant", VARIANTS)
def test_bundle_answers(variant: str, exported: Exported) -> None:
    (answer,) = Reader(exported.path, variant).answer(QUESTION, FOX)
    assert answer.text == FOX[answer.start : answer.end] != ""
    assert 0 < answer.score <= 1


def test_bundle_answers_as_pytorch_does(exported: Exported, tiny: Checkpoint) -> None:
    reader = Reader(exported.path, "cpu-fp32")
    tokenized = reader.windower.tokenize(QUESTION, [FOX, "A hen sits. A cow stands by it."])
    logits = []
    for window in tokenized.windows:
        inputs = {"input_ids": torch.from_numpy(window.input_ids[None])}
        if tiny.architecture.type == "bert":
            inputs["token_type_ids"] = torch.from_numpy(token_types(window.input_ids[None]))
        with torch.inference_mode():
            output = tiny.model(**inputs)
        logits.append((output.start_logits[0].numpy(), output.end_logits[0].numpy()))
    expected = spans.decode(tokenized, logits, top_k=5)
    found = reader.answer(QUESTION, [passage.text for passage in tokenized.passages], top_k=5)
    assert [(a.passage, a.start, a.end) for a in found] == [(a.passage, a.start, a.end) for a in expected]
    np.testing.assert_allclose([a.score for a in found], [a.score for a in expected], rtol=1e-3)


@pytest.mark.parametrize(("variant", "other"), [VARIANTS, VARIANTS[::-1]])
@pytest.mark.usefixtures("few_samples")
def test_a_single_variant(variant: str, other: str, distilbert: Path, tmp_path: Path) -> None:
    manifest = export(str(distilbert), tmp_path / "bundle", variants=[variant])
    assert set(manifest.variants) == {variant}
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {*manifest.files, MANIFEST}
    assert f"{other}.onnx" not in manifest.files
    assert (INT8_PROBE in manifest.files) == (variant == "cpu-int8")
    assert set(json.loads((tmp_path / "bundle" / SELF_TEST).read_text(encoding="utf-8"))["logits"]) == {variant}
    assert Reader(tmp_path / "bundle").engine.variant == variant


@pytest.mark.usefixtures("few_samples")
def test_card_of_fp32_alone_is_silent_on_int8(distilbert: Path, tmp_path: Path) -> None:
    export(str(distilbert), tmp_path / "bundle", variants=["cpu-fp32"])
    assert "int8" not in (tmp_path / "bundle" / CARD).read_text(encoding="utf-8")


@pytest.mark.usefixtures("few_samples")
def test_a_variant_named_twice_is_made_once(distilbert: Path, tmp_path: Path) -> None:
    manifest = export(str(distilbert), tmp_path / "bundle", variants=["cpu-int8", "cpu-int8"])
    assert set(manifest.variants) == {"cpu-int8"}


@pytest.mark.parametrize(("variants", "named"), [(["cpu-int4"], "cpu-int4"), ([], r"\(none\)")])
def test_refuses_unknown_variants(variants: list[str], named: str, distilbert: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"unknown variant {named}; there are cpu-int8, cpu-fp32"):
        export(str(distilbert), tmp_path / "bundle", variants=variants)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("few_samples")
def test_calibrates_on_the_callers_own_questions(distilbert: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"question": QUESTION, "context": FOX}), encoding="utf-8")
    steps: list[str] = []
    usual = export(str(distilbert), tmp_path / "usual").files
    mine = export(str(distilbert), tmp_path / "mine", calibration=own, progress=steps.append).files
    assert "calibrate int8: 1 of 1 windows" in steps
    assert usual["cpu-fp32.onnx"] == mine["cpu-fp32.onnx"]
    assert usual["cpu-int8.onnx"].sha256 != mine["cpu-int8.onnx"].sha256


@pytest.mark.usefixtures("few_samples")
def test_records_the_digests_of_what_a_pipe_brought(distilbert: Path, tmp_path: Path) -> None:
    question = {"id": "1", "question": QUESTION, "answers": [{"text": "dog"}]}
    content = {
        "eval.json": json.dumps({"data": [{"title": "t", "paragraphs": [{"context": FOX, "qas": [question]}]}]}),
        "calibration.jsonl": json.dumps({"question": QUESTION, "context": FOX}),
    }
    with ThreadPoolExecutor() as pool:
        for name, text in content.items():
            os.mkfifo(tmp_path / name)
            pool.submit((tmp_path / name).write_text, text)
        manifest = export(
            str(distilbert),
            tmp_path / "bundle",
            evaluation=tmp_path / "eval.json",
            calibration=tmp_path / "calibration.jsonl",
        )
    digests = [f"{name}, SHA-256 {hashlib.sha256(text.encode()).hexdigest()}" for name, text in content.items()]
    assert [manifest.data["evaluation"], manifest.data["calibration"]] == digests


def test_a_file_that_is_not_there(distilbert: Path, tmp_path: Path) -> None:
    none, target = tmp_path / "none.json", tmp_path / "bundle"
    with pytest.raises(ExportError, match=r"none\.json: No such file"):
        export(str(distilbert), target, evaluation=none)
    with pytest.raises(ExportError, match=r"none\.json: No such file"):
        export(str(distilbert), target, calibration=none)


# Each wrong second sample of a calibration file.
@pytest.mark.parametrize(
    "sample",
    [
        {"question": "Who?"},
        {"question": "", "context": FOX},
        {"question": "Who?", "context": " "},
        {"question": "who " * 200, "context": FOX},
        {"question": "\ud800?", "context": FOX},
    ],
    ids=["no context", "empty question", "blank context", "long question", "lone surrogate"],
)
@pytest.mark.usefixtures("few_samples")
def test_names_the_line_of_a_wrong_calibration_file(sample: dict[str, str], distilbert: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text(json.dumps({"question": QUESTION, "context": FOX}) + "\n" + json.dumps(sample), encoding="utf-8")
    with pytest.raises(ExportError, match=r"own\.jsonl, line 2: "):
        export(str(distilbert), tmp_path / "bundle", calibration=own)
    assert [path.name for path in tmp_path.iterdir()] == ["own.jsonl"]


def drops(monkeypatch: pytest.MonkeyPatch, *points: float) -> None:
    """Let int8 lose so many points of F1 at each try, and the last ever after."""
    tries = chain(points, repeat(points[-1]))
    monkeypatch.setattr("distilqa_export.gate.judge.f1_drop", lambda *_: Drop(next(tries), 0, 99))


@pytest.mark.usefixtures("few_samples")
def test_a_mixed_bundle_says_what_stayed_fp32(
    distilbert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drops(monkeypatch, 0.7, 0.6, 0.5)
    target = tmp_path / "bundle"
    variant = export(str(distilbert), target).variants["cpu-int8"]
    assert len(variant.fp32_matmuls) == 2
    assert variant.measured["f1_drop"] == 0.5
    assert variant.measured["times_as_long_as_all_int8"] > 0
    whole = export(str(distilbert), tmp_path / "whole", max_f1_drop=1).files["cpu-int8.onnx"].bytes
    file = target / "cpu-int8.onnx"
    assert file.stat().st_size == whole + variant.measured["bytes_for_fp32_matmuls"]
    card = (target / CARD).read_text(encoding="utf-8")
    assert all(f"{name} ({error:.3g})" in card for name, error in variant.fp32_matmuls.items())
    assert Bundle.open(target).variant("cpu-int8")[1] == variant
    assert Reader(target, "cpu-int8").answer(QUESTION, FOX)


@pytest.mark.usefixtures("few_samples")
def test_int8_that_loses_too_much_is_refused(
    distilbert: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drops(monkeypatch, 0.7)
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match=r"loses 0\.70 F1 on 5 questions, with 3 of 14 matmuls left in fp32; 0\.5 is"):
        export(str(distilbert), tmp_path / "out" / "bundle")
    assert list((tmp_path / "out").iterdir()) == []
    assert list(scratch.iterdir()) == []


@pytest.fixture(scope="module")
def packed(tiny_folder: Path, evaluation: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A bundle of each tiny checkpoint with a variant for a GPU, made without one. Tests must not change it."""
    steps: list[str] = []
    target = tmp_path_factory.mktemp("packed") / "bundle"
    manifest = export(
        str(tiny_folder), target, variants=["cuda-fp16"], evaluation=evaluation, max_f1_drop=100, progress=steps.append
    )
    return Exported(target, manifest, steps)


def test_a_variant_for_a_gpu_that_nobody_ran_is_unverified(packed: Exported) -> None:
    """What is said of it was found by its twin."""
    variant = packed.manifest.variants["cuda-fp16"]
    assert not variant.verified
    assert (variant.file, variant.precision, variant.quantization) == ("cuda-fp16.onnx", "fp16", "none")
    assert variant.operators["PackedMultiHeadAttention"] == 2
    assert {"milliseconds_of_1x128_on_gpu", "largest_difference_from_pytorch"}.isdisjoint(variant.measured)
    assert 0 < variant.measured["largest_difference_from_fp32"] < 0.1
    assert 0 < variant.tolerance < 0.1
    assert variant.measured["questions"] == 100
    assert any(
        "no GPU can run it here (this ONNX Runtime has no CUDAExecutionProvider" in step for step in packed.steps
    )
    card = (packed.path / CARD).read_text(encoding="utf-8")
    assert "**Unverified**: no GPU ran it" in card
    assert f"fp16 loses {variant.measured['f1_drop']:.2f} points of F1 against fp32" in card
    assert list(json.loads((packed.path / SELF_TEST).read_text())["logits"]) == ["cuda-fp16"]


def test_with_a_gpu_it_is_verified(
    distilbert: Path, tmp_path: Path, few_samples: None, cpu_as_gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the CPU is taken for one, and the model's twin for the model."""
    twin = partial(pack, twin=True)
    monkeypatch.setattr(gate, "pack", twin)
    for module in (gate, judge, cuda):
        monkeypatch.setattr(module, "open_cuda_session", lambda path, **_: open_session(path, threads=1))
    manifest = export(str(distilbert), tmp_path / "bundle", variants=["cuda-fp16"])
    variant = manifest.variants["cuda-fp16"]
    assert variant.verified
    assert variant.measured["milliseconds_of_1x128_on_gpu"] > 0
    assert "nverified" not in (tmp_path / "bundle" / CARD).read_text(encoding="utf-8")
    assert Reader(tmp_path / "bundle", "cuda-fp16").answer(QUESTION, FOX)


def test_fp16_that_loses_too_much_is_refused(
    distilbert: Path, tmp_path: Path, few_samples: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "f1_drop", lambda *_: Drop(0.7, 0.6, 0.8))
    with pytest.raises(ExportError, match=r"fp16 loses 0\.70 F1 on 5 questions; 0\.5 is allowed"):
        export(str(distilbert), tmp_path / "bundle", variants=["cuda-fp16"])
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(("variant", "kind"), [("cpu-int8", "int8"), ("cuda-fp16", "fp16")])
def test_what_answers_nothing_judges_nothing(
    distilbert: Path, evaluation: Path, tmp_path: Path, variant: str, kind: str
) -> None:
    """To lose nothing of that is easy; an untrained checkpoint can be exported nonetheless, and it says so."""
    with pytest.raises(ExportError, match=rf"fp32 itself has an F1 of \d\.\d .* {kind} cannot be judged"):
        export(str(distilbert), tmp_path / "refused", variants=[variant], evaluation=evaluation)
    assert list(tmp_path.iterdir()) == []
    made = export(str(distilbert), tmp_path / "made", variants=[variant], evaluation=evaluation, max_f1_drop=100)
    assert made.data["evaluation"].endswith("; int8 and fp16 were not judged by it")


@pytest.mark.parametrize("budget", [-0.1, float("nan"), float("inf")])
def test_refuses_a_budget_that_is_none(budget: float, distilbert: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"max_f1_drop is {budget:g}, must be 0 or more points"):
        export(str(distilbert), tmp_path / "bundle", max_f1_drop=budget)
    assert list(tmp_path.iterdir()) == []


STEPS = (
    "load_checkpoint",
    "trace",
    "fuse",
    "check_fp32",
    "Judge",
    "Quantizer",
    "release",
    "int8_probe",
    "write_bundle",
    "Reader",
)
FAILURES: list[tuple[str, BaseException]] = [
    *((step, RuntimeError("a defect")) for step in STEPS),
    ("Reader", KeyboardInterrupt()),
]


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(("step", "error"), FAILURES)
@pytest.mark.usefixtures("few_samples")
def test_a_step_that_fails_leaves_nothing(
    step: str, error: BaseException, distilbert: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"distilqa_export.export.{step}", failing(error))
    (tmp_path / "out").mkdir()
    with pytest.raises(type(error)):
        export(str(distilbert), tmp_path / "out" / "bundle")
    assert list((tmp_path / "out").iterdir()) == []
    assert list(scratch.iterdir()) == []


def test_a_refused_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    for name in ("empty", "out"):
        (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        export(str(tmp_path / "empty"), tmp_path / "out" / "bundle")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tokenizer_that_cannot_be_used_is_refused_before_any_work(make_tiny: MakeTiny, tmp_path: Path) -> None:
    folder, steps = make_tiny(tmp_path / "renamed"), list[str]()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        path = folder / name
        path.write_text(path.read_text(encoding="utf-8").replace("[SEP]", "[END]"), encoding="utf-8")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(content | {"post_processor": None}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"the tokenizer cannot be used \(the vocabulary has no \[SEP\]"):
        export(str(folder), tmp_path / "bundle", progress=steps.append)
    assert [step.split()[0] for step in steps] == ["load"]
    assert not (tmp_path / "bundle").exists()


@pytest.mark.usefixtures("few_samples")
def test_refuses_a_target_that_exists(distilbert: Path, tmp_path: Path) -> None:
    target, steps = tmp_path / "bundle", list[str]()
    export(str(distilbert), target, variants=["cpu-fp32"])
    before = (target / MANIFEST).read_bytes()
    with pytest.raises(BundleError, match=r"bundle exists; pass --overwrite"):
        export(str(distilbert), target, progress=steps.append)
    assert steps == [], "it is refused before any work"
    assert (target / MANIFEST).read_bytes() == before


@pytest.mark.usefixtures("few_samples")
def test_refuses_to_overwrite_what_is_no_bundle(distilbert: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    with pytest.raises(BundleError, match="photos exists and is not a bundle; nothing was written"):
        export(str(distilbert), tmp_path / "photos", overwrite=True)
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"cat"


@pytest.mark.usefixtures("few_samples")
def test_overwrites_when_asked(distilbert: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    export(str(distilbert), target, variants=["cpu-fp32"])
    export(str(distilbert), target, variants=["cpu-int8"], overwrite=True)
    int8 = {"cpu-int8.onnx", INT8_PROBE}
    assert {path.name for path in target.iterdir()} == {*int8, TOKENIZER, SELF_TEST, CARD, MANIFEST}
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.usefixtures("few_samples")
def test_a_failure_leaves_the_old_bundle(distilbert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "bundle"
    export(str(distilbert), target, variants=["cpu-fp32"])
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    monkeypatch.setattr("distilqa_export.export.Reader", failing(RuntimeError("a defect")))
    with pytest.raises(RuntimeError, match="a defect"):
        export(str(distilbert), target, overwrite=True)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.usefixtures("few_samples")
def test_writes_to_another_file_system_than_that_of_temporary_files(
    distilbert: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def within_one_file_system(source: str | Path, target: str | Path) -> None:
        if Path(source).is_relative_to(scratch) != Path(target).is_relative_to(scratch):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source))
        rename(source, target)

    monkeypatch.setattr(os, "rename", within_one_file_system)
    export(str(distilbert), tmp_path / "bundle")
    Reader(tmp_path / "bundle")
