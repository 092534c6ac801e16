"""A checkpoint's files, in a folder or on the hub, and whether they are of a kind that can be exported.

This needs no PyTorch, whose import takes seconds: what cannot be exported is refused before. Weights are read from
safetensors only: no pickle is ever opened and no code from a checkpoint is run.
"""

from __future__ import annotations

import hashlib
import json
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

from distilqa.bundle import MANIFEST
from distilqa_export.architecture import WEIGHTS, check_architecture
from distilqa_export.errors import CheckpointError, listed

_ADAPTER = "adapter_config.json"
_TOKENIZER = "tokenizer_config.json"

# Weights as transformers names them: in one file, or in shards that an index lists; and as it once did.
_INDEX = f"{WEIGHTS}.index.json"
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

_CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; save_file({name: tensor.clone() for name,'
    f" tensor in torch.load('{_PICKLE}', weights_only=True).items()}}, '{WEIGHTS}', {{'format': 'pt'}})\""
)


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """The files of a checkpoint of a kind that can be exported: its ``config`` and its files of ``weights``.

    ``origin`` says where it is from: an id of the hub, whose ``commit`` it is, or the name of a folder. ``is_cached``
    says that they were fetched once and the hub is out of reach.
    """

    origin: str
    folder: Path
    commit: str | None
    config: dict[str, Any]
    weights: list[Path]
    is_cached: bool

    def __str__(self) -> str:
        return f"{self.origin} from the cache, since the hub is out of reach" if self.is_cached else self.origin

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
    if Path(checkpoint).is_dir():
        if revision is not None:
            raise CheckpointError(f"{checkpoint} is a local folder and has no revision {revision!r}")
        folder, commit, is_cached = Path(checkpoint), None, False
    else:
        folder, is_cached = _fetch(checkpoint, revision)
        commit = folder.name
    try:
        _check_whole(folder)
        config = _read_config(folder)
        _check_tokenizer(folder, is_cached)
        weights = _weight_files(folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error})") from error
    except CheckpointError as error:
        if not is_cached:
            raise
        raise CheckpointError(
            f"{error}; this is what is cached of {checkpoint}, and the hub is out of reach"
        ) from error
    check_architecture(config, weights)
    return CheckpointFiles(_origin(checkpoint), folder, commit, config, weights, is_cached)


def _origin(checkpoint: str) -> str:
    """A folder by its name only: where it lay on the machine of the export means nothing elsewhere.

    Line ends and the like in it would break what is printed of a bundle.
    """
    if not Path(checkpoint).is_dir():
        return checkpoint
    name = Path(checkpoint).resolve().name
    return "".join(character if character.isprintable() and character != "`" else "_" for character in name)


def _fetch(checkpoint: str, revision: str | None) -> tuple[Path, bool]:
    """The folder with the files of a hub's checkpoint, which is named as its commit, and whether it is what is cached
    of it, because the hub is out of reach."""
    try:
        folder, reached = _snapshot(checkpoint, revision)
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
    return Path(folder), not reached


def _snapshot(checkpoint: str, revision: str | None) -> tuple[str, bool]:
    """Fetch a hub's checkpoint, or take it from the cache. Returns also whether the hub was reached."""
    try:
        # snapshot_download asks this too, but waits for a silent hub for ever.
        info = model_info(checkpoint, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        revision, reached = info.sha, True
    except (requests.ConnectionError, requests.Timeout, OfflineModeIsEnabled):
        reached = False
    if reached:
        names = [file.rfilename for file in info.siblings or () if "/" not in file.rfilename]
        if not any(name.endswith(".safetensors") for name in names) and any(map(_is_pickle, names)):
            raise _pickles_only(checkpoint, names)
    folder = snapshot_download(
        checkpoint, revision=revision, allow_patterns=_FILES, ignore_patterns="*/*", local_files_only=not reached
    )
    return folder, reached


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        if (folder / MANIFEST).is_file():
            raise CheckpointError(f"{folder}: is a bundle, and needs no export; needed is a checkpoint")
        below = sorted(f"{inner.parent}" for inner in folder.glob("*/config.json"))
        raise CheckpointError(f"{folder}: no config.json" + (f"; is {below[-1]} meant?" if below else ""))
    return _read_object(path)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.parent}: no readable {path.name} ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.parent}: {path.name} is not an object")
    return content


def _check_tokenizer(folder: Path, is_cached: bool) -> None:
    """Refuse one that is not there, of another order of texts, or that may be half of one."""
    whole, words, settings = (folder / name for name in ("tokenizer.json", "vocab.txt", _TOKENIZER))
    if not whole.is_file() and not words.is_file():
        raise CheckpointError(f"{folder}: no tokenizer; needed is tokenizer.json or vocab.txt")
    if is_cached and not whole.is_file() and not settings.is_file():  # which say whether case counts
        raise CheckpointError(f"{folder}: neither tokenizer.json nor {_TOKENIZER}")
    padding = _read_object(whole).get("padding") if whole.is_file() else None
    side = padding.get("direction") if isinstance(padding, dict) else "right"
    if settings.is_file():
        side = _read_object(settings).get("padding_side", side)
    if str(side).lower() != "right":
        raise CheckpointError(f"{folder}: {padding_problem(side)}")


def padding_problem(side: object) -> str:
    """What is wrong with any side but the right."""
    return (
        f"found the padding side {side!r:.100}; needed is 'right', since with the other transformers puts the passage"
        " before the question"
    )


def _check_whole(folder: Path) -> None:
    """Refuse what is less than a checkpoint, as git or a broken download leave it, or more."""
    if (folder / _ADAPTER).is_file():
        raise CheckpointError(
            f"{folder}: found an adapter ({_ADAPTER}), which would not count; needed is a checkpoint that it is merged"
            " into (peft's merge_and_unload, and save_pretrained)"
        )
    for path in sorted(path for pattern in _FILES for path in folder.glob(pattern)):
        if not path.exists():
            raise CheckpointError(f"{path}: is a link to a file that is not there")
        with suppress(OSError), path.open("rb") as file:
            if file.read(len(_LFS)) == _LFS:
                raise CheckpointError(f"{path}: is a pointer to a file that git-lfs has not fetched (git lfs pull)")


def _weight_files(folder: Path) -> list[Path]:
    """Those that transformers reads: one, or the shards of an index."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
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
        raise CheckpointError(f"{folder}: found {listed(others)}; needed is {WEIGHTS}, or {_INDEX} for its shards")
    if any(map(_is_pickle, names)):
        raise _pickles_only(str(folder), names)
    raise CheckpointError(f"{folder}: found no weights; they are needed as {WEIGHTS}")


def _is_pickle(name: str) -> bool:
    return name.endswith((".bin", ".pt", ".pth", ".ckpt"))


def _pickles_only(checkpoint: str, names: list[str]) -> CheckpointError:
    """What to do with a checkpoint that has no other weights."""
    hint = f"this makes it, in its folder: {_CONVERT}"
    if _PICKLE not in names:
        hint = "transformers' from_pretrained and save_pretrained make it"
    return CheckpointError(
        f"{checkpoint}: found only {listed(sorted(filter(_is_pickle, names)))}; weights are needed as {WEIGHTS}, and"
        f" pickles are never opened here. Of one that you trust {hint}"
    )
