"""A checkpoint's files, in a folder or on the hub, and whether they are of a kind that can be exported.

This needs no PyTorch, whose import takes seconds: what cannot be exported is refused before. Weights are read from
safetensors only: no pickle is ever opened and no code from a checkpoint is run.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from huggingface_hub import constants, model_info, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from safetensors import SafetensorError, safe_open

from distilqa.bundle import MANIFEST
from distilqa_export.errors import CheckpointError

_ADAPTER = "adapter_config.json"

# Weights as transformers names them: in one file, or in shards that an index lists; and as it once did.
_WEIGHTS = "model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"
_PICKLE = "pytorch_model.bin"

# All that is fetched from a hub: no pickles, no code.
_FILES = [
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.txt",
    "README.md",
    _ADAPTER,
]

# How a file begins that stands for one.
_LFS = b"version https://git-lfs"

_QUANTIZED = "quantization_config"

# What a config may not say, and what is needed instead.
_NEEDED = {
    "is_decoder": "needed is an encoder, whose tokens see all others",
    "add_cross_attention": "needed is a model that reads one text",
    "pruned_heads": "needed are layers of equally many heads",
    _QUANTIZED: "needed are plain weights, not quantised ones, and no such key",
}

# Code of a checkpoint's own that would make another model of it.
_OWN_CODE = {"AutoConfig", "AutoModel", "AutoModelForQuestionAnswering"}

# The types of models that can be exported, and what counts their heads and layers.
_COUNTS = {
    "bert": ("num_attention_heads", "num_hidden_layers"),
    "distilbert": ("n_heads", "n_layers", "num_attention_heads", "num_hidden_layers"),
}

_HEAD = ("qa_outputs.weight", "qa_outputs.bias")

_LAYER = re.compile(r"(?:bert\.encoder|distilbert\.transformer)\.layer\.(\d+)\.")

_CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; save_file({name: tensor.clone() for name,'
    f" tensor in torch.load('{_PICKLE}', weights_only=True).items()}}, '{_WEIGHTS}', {{'format': 'pt'}})\""
)

_MOST_LISTED = 3


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The files of a checkpoint of a kind that can be exported: its ``config`` and its files of ``weights``.

    ``origin`` says where it is from: an id of the hub, whose ``commit`` it is, or the name of a folder.
    """

    origin: str
    folder: Path
    commit: str | None
    config: dict[str, Any]
    weights: list[Path]

    def __str__(self) -> str:
        return self.origin

    @property
    def weights_sha256(self) -> str:
        """Of all of them, one after another."""
        digest = hashlib.sha256()
        for path in self.weights:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


def find_checkpoint(checkpoint: str, revision: str | None = None) -> CheckpointFiles:
    """Those of a local folder, or of the hub's checkpoint of this id, which are fetched.

    Raises CheckpointError if they cannot be had, or are not those of a BERT-like question-answering model.
    """
    folder, commit = _fetch(checkpoint, revision)
    _check_whole(folder)
    config = _read_config(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise CheckpointError(f"{folder}: no tokenizer; needed is tokenizer.json or vocab.txt")
    weights = _weight_files(folder)
    _check_architecture(config, weights)
    return CheckpointFiles(_origin(checkpoint), folder, commit, config, weights)


def _origin(checkpoint: str) -> str:
    """A folder by its name only: where it lay on the machine of the export means nothing elsewhere.

    Line ends and the like in it would break what is printed of a bundle.
    """
    if not Path(checkpoint).is_dir():
        return checkpoint
    name = Path(checkpoint).resolve().name
    return "".join(character if character.isprintable() and character != "`" else "_" for character in name)


def _fetch(checkpoint: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder with the checkpoint's files, and the hub's commit (None for a local folder)."""
    if Path(checkpoint).is_dir():
        if revision is not None:
            raise CheckpointError(f"{checkpoint} is a local folder and has no revision {revision!r}")
        return Path(checkpoint), None
    try:
        folder = Path(_snapshot(checkpoint, revision))
    except HFValidationError as error:
        file = "; it is a file" if Path(checkpoint).is_file() else ""
        raise CheckpointError(f"{checkpoint!r} is neither a folder nor an id of the hub (OWNER/NAME){file}") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{checkpoint} is not a folder, and could not be fetched from the hub, which is out of reach"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(
            f"{checkpoint} is not a folder, and could not be fetched from the hub: {error}"
        ) from error
    return folder, folder.name


def _snapshot(checkpoint: str, revision: str | None) -> str:
    """Fetch a hub's checkpoint, or take it from the cache where the hub is out of reach."""
    try:
        # snapshot_download asks this too, but waits for a silent hub for ever.
        info = model_info(checkpoint, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        revision, reached = info.sha, True
    except (requests.ConnectionError, requests.Timeout, OfflineModeIsEnabled):
        reached = False
    if reached:
        names = [file.rfilename for file in info.siblings or ()]
        if not any(name.endswith(".safetensors") for name in names) and any(map(_is_pickle, names)):
            raise _pickles_only(checkpoint, [name for name in names if "/" not in name])
    return snapshot_download(
        checkpoint, revision=revision, allow_patterns=_FILES, ignore_patterns="*/*", local_files_only=not reached
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        if (folder / MANIFEST).is_file():
            raise CheckpointError(f"{folder}: is a bundle, and needs no export; needed is a checkpoint")
        below = sorted(f"{inner.parent}" for inner in folder.glob("*/config.json"))
        raise CheckpointError(f"{folder}: no config.json" + (f"; is {below[-1]} meant?" if below else ""))
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}: no readable config.json ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder}: config.json is not an object")
    return config


def _check_whole(folder: Path) -> None:
    """Refuse what is less than a checkpoint, as git or a broken download leave it, or more."""
    if (folder / _ADAPTER).is_file():
        raise CheckpointError(
            f"{folder}: found an adapter ({_ADAPTER}), which would not count; needed is a checkpoint that it is merged"
            " into (peft's merge_and_unload, and save_pretrained)"
        )
    for path in sorted(path for pattern in _FILES for path in folder.glob(pattern)):
        with suppress(OSError), path.open("rb") as file:
            if file.read(len(_LFS)) == _LFS:
                raise CheckpointError(f"{path}: is a pointer to a file that git-lfs has not fetched (git lfs pull)")


def _weight_files(folder: Path) -> list[Path]:
    """Those that transformers reads: one, or the shards of an index."""
    if (folder / _WEIGHTS).is_file():
        return [folder / _WEIGHTS]
    index = folder / _INDEX
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            missing = [shard for shard in shards if not (folder / shard).is_file()]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{index}: names no files of weights ({error!r:.200})") from error
        if missing:
            raise CheckpointError(f"{folder}: files of weights are missing: {listed(missing)}")
        return [folder / shard for shard in shards]
    names = sorted(path.name for path in folder.iterdir())
    if others := [name for name in names if name.endswith(".safetensors")]:
        raise CheckpointError(f"{folder}: found {listed(others)}; needed is {_WEIGHTS}, or {_INDEX} for its shards")
    if any(map(_is_pickle, names)):
        raise _pickles_only(str(folder), names)
    raise CheckpointError(f"{folder}: found no weights; they are needed as {_WEIGHTS}")


def _is_pickle(name: str) -> bool:
    return name.endswith((".bin", ".pt", ".pth", ".ckpt"))


def _pickles_only(checkpoint: str, names: list[str]) -> CheckpointError:
    """What to do with a checkpoint that has no other weights."""
    hint = f"this makes it, in its folder: {_CONVERT}"
    if _PICKLE not in names:
        hint = "transformers' from_pretrained and save_pretrained make it"
    return CheckpointError(
        f"{checkpoint}: found only {listed(sorted(filter(_is_pickle, names)))}; weights are needed as {_WEIGHTS}, and"
        f" pickles are never opened here. Of one that you trust {hint}"
    )


def _check_architecture(config: dict[str, Any], weights: list[Path]) -> None:
    """Refuse what is not a BERT-like encoder with a question-answering head, before anything large is loaded."""
    named = config.get("architectures")
    architectures = ", ".join(map(str, named)) if isinstance(named, list) else "no architecture named"
    kind = config.get("model_type")
    found = f"{kind!r} ({architectures})"
    if kind not in tuple(_COUNTS):  # which may be of any type
        older = "" if kind else ' (of older checkpoints config.json does not say: "model_type": "bert" there does)'
        raise CheckpointError(f"found a model of type {found}; needed is one of {', '.join(_COUNTS)}{older}")
    for name, needed in _NEEDED.items():
        if config.get(name) or (name == _QUANTIZED and name in config):  # which transformers cannot read empty
            raise CheckpointError(f"found {name} {config[name]!r:.100} in config.json; {needed}")
    own_code = config.get("auto_map")
    if isinstance(own_code, dict) and _OWN_CODE & own_code.keys():
        raise CheckpointError(
            f"found auto_map {own_code!r:.100} in config.json; needed is a model without code of its own, which is"
            " never run here"
        )
    names = _tensor_names(weights)
    _check_names(found, f"{kind}.", names)
    activation = config.get("activation" if kind == "distilbert" else "hidden_act", "gelu")
    if activation != "gelu":
        raise CheckpointError(f"found the activation {activation!r}; needed is 'gelu'")
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise CheckpointError(f"found {positions!r} position embeddings; needed are 'absolute' ones")
    there = len({found[1] for found in map(_LAYER.match, names) if found})
    for name in _COUNTS[kind]:
        count = config.get(name, 1)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise CheckpointError(f"found {name} {count!r} in config.json; needed is an integer of 1 or more")
        if name.endswith("layers") and name in config and count != there:
            raise CheckpointError(f"found {name} {count} in config.json, and weights of {there} layers")


def _tensor_names(weights: list[Path]) -> set[str]:
    names: set[str] = set()
    for path in weights:
        try:
            with safe_open(path, framework="np") as tensors:
                names.update(tensors.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: is not a readable safetensors file ({error})") from error
    return names


def _check_names(found: str, prefix: str, names: set[str]) -> None:
    """Refuse what has no head, or tensors that transformers would not find."""
    if not names.issuperset(_HEAD):
        others = sorted(name for name in names if name.endswith(_HEAD))
        hint = f"; found {listed(others)}, under names that are not transformers' own" if others else ""
        raise CheckpointError(f"found {found} without a question-answering head (tensors {' and '.join(_HEAD)}){hint}")
    if not any(name.startswith(prefix) for name in names):
        raise CheckpointError(
            f"found {found} without tensors named {prefix}*; found {listed(sorted(names - set(_HEAD)))}"
        )


def listed(names: list[str]) -> str:
    """A few of them: a config may ask for hundreds."""
    return ", ".join(names[:_MOST_LISTED]) + (
        f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    )
