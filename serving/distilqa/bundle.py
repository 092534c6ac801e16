"""The bundle: a directory with everything that answering needs, described and guarded by its manifest.

    manifest.json       what this is, where it came from, what was measured, and the digest of every other file
    <variant>.onnx      one model a variant: cpu-int8.onnx, cpu-fp32.onnx, cuda-fp16.onnx
    tokenizer.json      the checkpoint's tokenizer
    self-test.json      a few inputs, and the logits that each variant gave for them where it was made
    int8-probe.onnx     with an int8 variant: the largest products there are, and what they must add up to
    README.md           the model card

A file is only ever reached through `Bundle.verified`, which checks its digest, so nothing damaged is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from distilqa.errors import BundleError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
SELF_TEST = "self-test.json"
INT8_PROBE = "int8-probe.onnx"
CARD = "README.md"

# The shortest input there is: [CLS], a token, [SEP], a token, [SEP].
_LEAST_WINDOW = 5
# Far above what attention over all of them allows.
_LONGEST_WINDOW = 2**16

# Those for a processor, in the order in which one is chosen when none is named; and those for a GPU.
VARIANTS = ("cpu-int8", "cpu-fp32")
GPU_VARIANTS = ("cuda-fp16",)


@dataclass(frozen=True, slots=True)
class Source:
    """The checkpoint a bundle was made from. ``revision`` is the hub's commit, None for a local folder."""

    checkpoint: str
    revision: str | None
    weights_sha256: str


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of the model; ``parameters`` counts those of the checkpoint."""

    type: str
    layers: int
    hidden: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Variant:
    """One model of a bundle.

    ``quantization`` says how it was quantised, ``operators`` counts its ONNX operators. ``tolerance`` is the largest
    difference from the logits in the self-test that still counts as the same model. ``measured`` holds the numbers
    measured at export; `shown` has them with their units.
    ``fp32_matmuls`` of an int8 model are those that stayed fp32, with the error of the logits that each caused in int8.
    ``verified`` says that all this was found on the kind of device that the variant is for.
    """

    file: str
    precision: str
    quantization: str
    operators: Mapping[str, int]
    tolerance: float
    measured: Mapping[str, float]
    fp32_matmuls: Mapping[str, float]
    verified: bool

    def shown(self) -> dict[str, str]:
        """What was measured, for people: names, and numbers with their units."""
        shown = {}
        for key, value in self.measured.items():
            if key == "f1_drop" and self.measured.keys() >= _INTERVAL:
                low, high = self.measured["f1_drop_low"], self.measured["f1_drop_high"]
                shown["F1 lost against fp32"] = f"{value:.2f} points (95 % interval {low:.2f} to {high:.2f})"
            elif key in _INTERVAL:
                continue
            elif key in _SHOWN:
                name, show = _SHOWN[key]
                shown[name] = show(value)
            else:
                shown[key.replace("_", " ")] = f"{value:.4g}"
        return shown


_INTERVAL = {"f1_drop_low", "f1_drop_high"}

_SHOWN: dict[str, tuple[str, Callable[[float], str]]] = {
    "largest_difference_from_pytorch": ("logits differ from PyTorch's by at most", "{:.1e}".format),
    "largest_difference_from_fp32": ("logits differ from fp32's by at most", "{:.2f}".format),
    "answers_as_fp32": ("answers in fp32's place", lambda value: f"{100 * value:.1f} %"),
    "exact_match": ("exact match", "{:.2f} %".format),
    "f1": ("F1", "{:.2f} %".format),
    "questions": ("questions evaluated", "{:,.0f}".format),
    "fp32_questions_asked": ("fp32 was asked a sample of these", "{:,.0f}".format),
    "milliseconds_of_1x128": ("a window of 128 tokens on one thread", "{:.1f} ms".format),
    "milliseconds_of_1x128_on_gpu": ("a window of 128 tokens on the GPU", "{:.2f} ms".format),
    "bytes_for_fp32_matmuls": ("larger than all int8 by", lambda value: f"{value / 1e6:.2f} MB"),
    "times_as_long_as_all_int8": ("a run against all int8", "{:.2f} times as long".format),
}


@dataclass(frozen=True, slots=True)
class File:
    """Size and SHA-256 of a file of the bundle."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of ``manifest.json``. ``window_tokens`` is the longest input the bundle is meant for.

    ``data`` says which file of questions the variants were evaluated on, and int8 calibrated on; ``processor`` is
    the one that they ran on, as `distilqa.engine.processor` tells it.
    """

    name: str
    version: str
    created: str
    source: Source
    architecture: Architecture
    window_tokens: int
    variants: Mapping[str, Variant]
    data: Mapping[str, str]
    tools: Mapping[str, str]
    processor: str
    files: Mapping[str, File]
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse a manifest. Raises BundleError if it is not one, or of a newer schema than this version reads."""
        try:
            fields = json.loads(text)
            json.dumps(fields, ensure_ascii=False).encode()  # a lone surrogate could be neither shown nor sent
            schema_version = fields["schema_version"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise BundleError(f"{MANIFEST}: is not a bundle's manifest ({error!r:.200})") from error
        if schema_version != SCHEMA_VERSION:
            raise BundleError(
                f"{MANIFEST}: has schema {schema_version!r}, this version of distilqa reads {SCHEMA_VERSION}"
            )
        manifest = _read(cls, fields, "")
        if not manifest.name.isprintable():
            raise BundleError(f"{MANIFEST}: name is {manifest.name!a:.200}, must be printable")
        if not _LEAST_WINDOW <= manifest.window_tokens <= min(manifest.architecture.positions, _LONGEST_WINDOW):
            raise BundleError(f"{MANIFEST}: window_tokens is {manifest.window_tokens}, which the model cannot have")
        return manifest


_Read = TypeVar("_Read")

# No number in a manifest is as large; some that JSON can have fit no float.
_LARGEST = 1e18


def _read(kind: type[_Read], value: Any, name: str) -> _Read:
    """A dataclass, a mapping or a plain value as JSON gives it, checked against its annotation. Raises BundleError."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        if not isinstance(value, dict) or set(value) != set(hints):
            found = sorted(set(value) ^ set(hints)) if isinstance(value, dict) else value
            raise BundleError(f"{MANIFEST}: {name or 'it'} has missing or unknown fields: {found!r:.200}")
        return kind(**{key: _read(hint, value[key], f"{name}.{key}".lstrip(".")) for key, hint in hints.items()})
    if get_origin(kind) is Mapping:
        item = get_args(kind)[1]
        if not isinstance(value, dict):
            raise BundleError(f"{MANIFEST}: {name} is {value!r:.200}, must be an object")
        return {key: _read(item, one, f"{name}.{key}") for key, one in value.items()}  # type: ignore[return-value]
    sound = isinstance(value, int | float if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    least = 0 if kind is int else -_LARGEST
    if not sound or (isinstance(value, int | float) and not least <= value <= _LARGEST):
        raise BundleError(f"{MANIFEST}: {name} is {value!r:.200}, must be {getattr(kind, '__name__', kind)}")
    return value  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle. Opening reads the manifest only."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read the manifest of the bundle at ``path``. Raises BundleError if there is none or it cannot be read."""
        path = Path(path)
        try:
            _require_regular(path / MANIFEST)
            text = (path / MANIFEST).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:  # it is not UTF-8, or the path has a NUL
            hint = "; it looks like a checkpoint: distilqa export makes a bundle of one" if _is_checkpoint(path) else ""
            problem = f"{MANIFEST}: {error.strerror}" if isinstance(error, OSError) and error.strerror else error
            raise BundleError(f"{path} is not a bundle: {problem}{hint}") from error
        return cls(path, Manifest.from_json(text))

    def verified(self, name: str) -> Path:
        """Return the path of a file of the bundle after checking its size and digest. Raises BundleError."""
        expected = self.manifest.files.get(name)
        if expected is None or Path(name).name != name:
            raise BundleError(f"{self.path}: the manifest lists no file {name!r}")
        path = self.path / name
        try:
            actual = describe(path)
        except OSError as error:
            raise BundleError(f"{path}: {error.strerror or error}") from error
        except ValueError as error:  # a NUL, or a lone surrogate
            raise BundleError(f"{self.path}: no file can have the name {name!r}") from error
        if actual.bytes != expected.bytes:
            raise BundleError(f"{path}: has {actual.bytes} bytes, the manifest says {expected.bytes}")
        if actual.sha256 != expected.sha256:
            raise BundleError(f"{path}: its SHA-256 is not the manifest's; the file is damaged or was changed")
        return path

    def read_tokenizer(self) -> str:
        """The content of ``tokenizer.json``. Raises BundleError."""
        try:
            return self.verified(TOKENIZER).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BundleError(f"{self.path}: {TOKENIZER} is not UTF-8") from error

    def variant(self, name: str | None = None, among: Sequence[str] = VARIANTS) -> tuple[str, Variant]:
        """Return the variant of that name, or by default the first there is of some. Raises BundleError."""
        variants = self.manifest.variants
        for candidate in among if name is None else (name,):
            if candidate in variants:
                return candidate, variants[candidate]
        wanted = f"of those that can be used here, {', '.join(among)}" if name is None else repr(name)
        raise BundleError(f"{self.path} has no variant {wanted}; it has {', '.join(sorted(variants)) or 'none'}")


def _is_checkpoint(path: Path) -> bool:
    """Whether a folder has what transformers writes beside weights."""
    return os.path.isfile(path / "config.json")


def describe(path: Path) -> File:
    """Size and SHA-256 of a file. Raises OSError."""
    _require_regular(path)
    with path.open("rb") as file:
        return File(os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _require_regular(path: Path) -> None:
    """Reading a pipe or a device may never end. Raises OSError."""
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a regular file")
