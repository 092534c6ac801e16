"""The bundle's manifest, its digests, and how a bundle comes to be under its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from distilqa.bundle import (
    MANIFEST,
    SCHEMA_VERSION,
    VARIANTS,
    Architecture,
    Bundle,
    File,
    Manifest,
    Source,
    Variant,
    describe,
)
from distilqa.errors import BundleError

CONTENT = b"not really a model"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def manifest_of(variants: tuple[str, ...] = VARIANTS, files: Mapping[str, File] | None = None) -> Manifest:
    return Manifest(
        name="small",
        version="1",
        created="2026-01-01T00:00:00+00:00",
        source=Source("small", None, DIGEST),
        architecture=Architecture("distilbert", 1, 4, 2, 8, 30, 512, 999),
        window_tokens=384,
        variants={
            name: Variant(f"{name}.onnx", "fp32", "none", {"Add": 1}, 0.5, {"questions": 2}, {}, True)
            for name in variants
        },
        data={"evaluation": "questions.json"},
        tools={"distilqa": "0"},
        processor="a fast one",
        files={"model.onnx": File(len(CONTENT), DIGEST)} if files is None else files,
    )


def write_bundle(path: Path, manifest: Manifest | None = None) -> Path:
    path.mkdir(parents=True)
    (path / MANIFEST).write_text((manifest or manifest_of()).to_json(), encoding="utf-8")
    (path / "model.onnx").write_bytes(CONTENT)
    return path


def manifest_json(change: Callable[[dict[str, Any]], Any]) -> str:
    fields: dict[str, Any] = json.loads(manifest_of().to_json())
    change(fields)
    return json.dumps(fields)


def test_manifest_survives_json() -> None:
    assert Manifest.from_json(manifest_of().to_json()) == manifest_of()


@pytest.mark.parametrize(
    "text", ["", "not JSON", "[]", '["schema_version"]', "null", "1", '"schema_version"', "{}", '{"schema_version": 1']
)
def test_what_is_no_manifest(text: str) -> None:
    with pytest.raises(BundleError, match=r"^manifest\.json: is not a bundle's manifest"):
        Manifest.from_json(text)


@pytest.mark.parametrize("name", ["\ud800", "a\udfff"])
def test_text_that_nobody_could_show(name: str) -> None:
    with pytest.raises(BundleError, match=r"^manifest\.json: is not a bundle's manifest"):
        Manifest.from_json(manifest_json(lambda fields: fields.update(name=name)))


def test_a_name_that_would_steer_the_terminal() -> None:
    with pytest.raises(BundleError, match=r"^manifest\.json: name is 'a\\x1b\[2J', must be printable"):
        Manifest.from_json(manifest_json(lambda fields: fields.update(name="a\x1b[2J")))


@pytest.mark.parametrize("field", ["layers", "parameters", "positions"])
def test_what_is_counted_is_not_negative(field: str) -> None:
    with pytest.raises(BundleError, match=rf"^manifest\.json: architecture\.{field} is -1"):
        Manifest.from_json(manifest_json(lambda fields: fields["architecture"].update({field: -1})))


def test_a_window_that_no_model_has() -> None:
    def widen(fields: dict[str, Any]) -> None:
        fields["architecture"]["positions"] = fields["window_tokens"] = 2**33

    with pytest.raises(BundleError, match=r"^manifest\.json: window_tokens is 8589934592"):
        Manifest.from_json(manifest_json(widen))


def test_errors_do_not_hold_the_whole_manifest() -> None:
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(manifest_json(lambda fields: fields.update(name="\ud800", created="x" * 1_000_000)))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("number", [10**400, -(10**400), 1e300, float("nan"), float("inf")])
def test_numbers_that_nobody_could_show(number: float) -> None:
    with pytest.raises(BundleError, match=r"^manifest\.json: variants\.cpu-int8\.tolerance is "):
        Manifest.from_json(manifest_json(lambda fields: fields["variants"]["cpu-int8"].update(tolerance=number)))


def test_shows_what_was_measured_with_its_unit() -> None:
    measured = {
        "largest_difference_from_pytorch": 0.0000214,
        "answers_as_fp32": 0.9649,
        "f1_drop": 0.046,
        "f1_drop_low": -0.2,
        "f1_drop_high": 0.3,
        "bytes_for_fp32_matmuls": 1_834_110,
        "times_as_long_as_all_int8": 1.047,
        "questions": 10570,
        "milliseconds_of_1x128": 29.46,
        "of_another_version": 3.0,
    }
    assert Variant("a.onnx", "int8", "none", {}, 0.5, measured, {}, True).shown() == {
        "logits differ from PyTorch's by at most": "2.1e-05",
        "answers in fp32's place": "96.5 %",
        "F1 lost against fp32": "0.05 points (95 % interval -0.20 to 0.30)",
        "larger than all int8 by": "1.83 MB",
        "a run against all int8": "1.05 times as long",
        "questions evaluated": "10,570",
        "a window of 128 tokens on one thread": "29.5 ms",
        "of another version": "3",
    }


@pytest.mark.parametrize("schema_version", [SCHEMA_VERSION + 1, SCHEMA_VERSION - 1, "1", None])
def test_other_schema(schema_version: object) -> None:
    """It is refused for its schema, whatever else is new in it."""
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(json.dumps({"schema_version": schema_version, "novelty": {}}))
    assert str(caught.value) == (
        f"manifest.json: has schema {schema_version!r}, this version of distilqa reads {SCHEMA_VERSION}"
    )


FIELDS = [field for field in json.loads(manifest_of().to_json()) if field != "schema_version"]


@pytest.mark.parametrize("field", FIELDS)
def test_missing_field(field: str) -> None:
    with pytest.raises(BundleError, match=rf"^manifest\.json: .*\b{field}\b"):
        Manifest.from_json(manifest_json(lambda fields: fields.pop(field)))


@pytest.mark.parametrize(
    ("path", "missing"),
    [
        (("source",), "weights_sha256"),
        (("architecture",), "layers"),
        (("variants", "cpu-int8"), "file"),
        (("files", "model.onnx"), "sha256"),
    ],
)
def test_missing_and_unknown_inner_fields(path: tuple[str, ...], missing: str) -> None:
    def inner(fields: dict[str, Any]) -> dict[str, Any]:
        for name in path:
            fields = fields[name]
        return fields

    with pytest.raises(BundleError, match=rf"^manifest\.json: .*\b{missing}\b"):
        Manifest.from_json(manifest_json(lambda fields: inner(fields).pop(missing)))
    with pytest.raises(BundleError, match=r"^manifest\.json: .*\bnovelty\b"):
        Manifest.from_json(manifest_json(lambda fields: inner(fields).update(novelty=1)))


def test_unknown_field() -> None:
    with pytest.raises(BundleError, match=r"^manifest\.json: .*\bnovelty\b"):
        Manifest.from_json(manifest_json(lambda fields: fields.update(novelty=1)))


@pytest.mark.parametrize("field", ["source", "architecture", "variants", "files"])
@pytest.mark.parametrize("value", [None, 1, "text", ["list"], {"name": None}, {"name": "text"}])
def test_field_of_another_type(field: str, value: object) -> None:
    with pytest.raises(BundleError, match=r"^manifest\.json: "):
        Manifest.from_json(manifest_json(lambda fields: fields.update({field: value})))


def test_open_reads_the_manifest_only(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "bundle")
    (path / "model.onnx").unlink()
    assert Bundle.open(str(path)) == Bundle(path, manifest_of())


@pytest.mark.parametrize("content", [None, b"\xff\xfe{}"], ids=["missing", "not UTF-8"])
def test_open_what_is_no_bundle(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match="is not a bundle") as caught:
        Bundle.open(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_open_what_is_a_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r" is not a bundle: .*; it looks like a checkpoint: distilqa export makes "):
        Bundle.open(checkpoint)
    with pytest.raises(BundleError) as caught:
        Bundle.open(tmp_path)
    assert "looks like" not in str(caught.value)


def test_open_where_no_folder_can_be() -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        Bundle.open("a\0b")


def test_verified(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "bundle")
    assert Bundle.open(path).verified("model.onnx") == path / "model.onnx"


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(CONTENT[:-1])


def extend(path: Path) -> None:
    path.write_bytes(CONTENT + b"\0")


def flip_a_bit(path: Path) -> None:
    path.write_bytes(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))


def make_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (remove, "No such file"),
        (truncate, f"has {len(CONTENT) - 1} bytes, the manifest says {len(CONTENT)}"),
        (extend, f"has {len(CONTENT) + 1} bytes, the manifest says {len(CONTENT)}"),
        (flip_a_bit, "SHA-256"),
        (make_a_folder, "is not a regular file"),
    ],
)
def test_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], None], why: str) -> None:
    path = write_bundle(tmp_path / "bundle")
    damage(path / "model.onnx")
    with pytest.raises(BundleError) as caught:
        Bundle.open(path).verified("model.onnx")
    assert str(path / "model.onnx") in str(caught.value)
    assert why in str(caught.value)


def test_unlisted_file(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "bundle")
    (path / "other.onnx").write_bytes(CONTENT)
    with pytest.raises(BundleError, match=r"lists no file 'other\.onnx'"):
        Bundle.open(path).verified("other.onnx")


@pytest.mark.parametrize(
    "name", ["../outside.onnx", "inner/model.onnx", "./model.onnx", "{absolute}", "..", ".", "", "inner/../model.onnx"]
)
def test_name_that_leaves_the_bundle(tmp_path: Path, name: str) -> None:
    """Even where the manifest lists it, and the file it leads to has the digest it says."""
    outside = tmp_path / "outside.onnx"
    outside.write_bytes(CONTENT)
    name = name.format(absolute=outside)
    path = write_bundle(tmp_path / "bundle", manifest_of(files={name: File(len(CONTENT), DIGEST)}))
    (path / "inner").mkdir()
    (path / "inner" / "model.onnx").write_bytes(CONTENT)
    with pytest.raises(BundleError):
        Bundle.open(path).verified(name)


@pytest.mark.parametrize(
    ("name", "listed"),
    [("a\0b", True), ("a\0b", False), ("a\ud800b", False)],
    ids=["NUL", "NUL, not listed", "lone surrogate, which no manifest lists"],
)
def test_name_that_no_file_can_have(name: str, listed: bool, tmp_path: Path) -> None:
    manifest = manifest_of(files={name: File(len(CONTENT), DIGEST)} if listed else None)
    path = write_bundle(tmp_path / "bundle", manifest)
    with pytest.raises(BundleError) as caught:
        Bundle.open(path).verified(name)
    assert repr(name) in str(caught.value)


def test_describe(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    assert describe(tmp_path / "file") == File(len(CONTENT), DIGEST)


@pytest.mark.parametrize(
    ("present", "named", "expected"),
    [
        (VARIANTS, None, "cpu-int8"),
        (tuple(reversed(VARIANTS)), None, "cpu-int8"),
        (("cpu-fp32",), None, "cpu-fp32"),
        (VARIANTS, "cpu-fp32", "cpu-fp32"),
        (("novel", "cpu-fp32"), "novel", "novel"),
        (("novel", "cpu-fp32"), None, "cpu-fp32"),
    ],
)
def test_variant(tmp_path: Path, present: tuple[str, ...], named: str | None, expected: str) -> None:
    bundle = Bundle(tmp_path, manifest_of(present))
    assert bundle.variant(named) == (expected, bundle.manifest.variants[expected])


@pytest.mark.parametrize(
    ("present", "named", "why"),
    [
        (VARIANTS, "cpu-fp16", "no variant 'cpu-fp16'; it has cpu-fp32, cpu-int8"),
        (VARIANTS, "", "no variant ''; it has cpu-fp32, cpu-int8"),
        (("novel",), None, "no variant of those that can be used here, cpu-int8, cpu-fp32; it has novel"),
        ((), None, "it has none"),
    ],
)
def test_unknown_variant(tmp_path: Path, present: tuple[str, ...], named: str | None, why: str) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle(tmp_path, manifest_of(present)).variant(named)
    assert str(tmp_path) in str(caught.value)
    assert why in str(caught.value)
