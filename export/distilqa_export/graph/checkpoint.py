"""Load a question-answering checkpoint, or refuse it with what was found and what is needed.

Weights are read from safetensors only: no pickle is ever opened and no code from a checkpoint is run.
"""

from __future__ import annotations

import hashlib
import json
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import requests
import torch
from huggingface_hub import constants, model_info, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoTokenizer,
    BertForQuestionAnswering,
    DistilBertForQuestionAnswering,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from distilqa.bundle import Architecture, Source
from distilqa_export.errors import CheckpointError

MODELS: dict[str, type[PreTrainedModel]] = {
    "distilbert": DistilBertForQuestionAnswering,
    "bert": BertForQuestionAnswering,
}

# All that is fetched from a hub: no pickles, no code.
_FILES = [
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "README.md",
]

# How a file begins that stands for one.
_LFS = b"version https://git-lfs"

# What a config may not say, and what is needed instead.
_NEEDED = {
    "is_decoder": "needed is an encoder, whose tokens see all others",
    "add_cross_attention": "needed is a model that reads one text",
    "pruned_heads": "needed are layers of equally many heads",
}

# What changes how a model is called or computed, but not what it answers.
_AS_IT_ANSWERS = {
    "chunk_size_feed_forward": 0,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
    "torchscript": False,
}

_LAYER = re.compile(r"\.layer\.(\d+)\.")

_CONVERT = (
    'python -c "import torch; from safetensors.torch import save_file; save_file({{name: tensor.clone() for name,'
    " tensor in torch.load('{}', weights_only=True).items()}}, 'model.safetensors', {{'format': 'pt'}})\""
)

# The reference pipeline's window.
_WINDOW_TOKENS = 384

_MOST_LISTED = 3

_TOKENIZER = "tokenizer.json"
_ROLES = {"cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"}

# Room for the longest question that is taken, and as much of the passage.
_LEAST_POSITIONS = 200


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: the fp32 model in evaluation mode, its tokenizer, and where it came from.

    ``card`` is the checkpoint's own README, empty if it has none.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    source: Source
    card: str

    @property
    def architecture(self) -> Architecture:
        config = self.model.config
        distil = config.model_type == "distilbert"
        return Architecture(
            type=config.model_type,
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            feed_forward=config.hidden_dim if distil else config.intermediate_size,
            vocabulary=config.vocab_size,
            positions=config.max_position_embeddings,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
        )

    @property
    def window_tokens(self) -> int:
        return min(_WINDOW_TOKENS, self.architecture.positions)

    @property
    def tokenizer_json(self) -> str:
        text: str = self.tokenizer.backend_tokenizer.to_str()
        return text

    def with_model(self, model: PreTrainedModel) -> Checkpoint:
        return replace(self, model=model)


def load_checkpoint(checkpoint: str, revision: str | None = None) -> Checkpoint:
    """Load a checkpoint from a local folder or, by its id, from the hub (``HF_ENDPOINT`` names another hub).

    ``revision`` is a branch, tag or commit of the hub. Raises CheckpointError if it cannot be had, or is anything
    but a DistilBERT or BERT question-answering model with all its tensors and its tokenizer.
    """
    folder, commit = _fetch(checkpoint, revision)
    _check_whole(folder)
    config = _read_config(folder)
    weights = _weight_files(folder)
    _check_architecture(config, weights)
    card = folder / "README.md"
    model = _load_model(folder, MODELS[config["model_type"]])
    return Checkpoint(
        name=_origin(checkpoint).rsplit("/", 1)[-1],
        model=model,
        tokenizer=_load_tokenizer(folder, model.config.vocab_size),
        source=Source(_origin(checkpoint), commit, _digest(weights)),
        card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "",
    )


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint as a local folder that `load_checkpoint` reads."""
    checkpoint.model.save_pretrained(folder, safe_serialization=True)
    checkpoint.tokenizer.save_pretrained(folder)


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
        raise CheckpointError(f"{checkpoint!r} is neither a folder nor a hub id: {error}") from error
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
        revision = model_info(checkpoint, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT).sha
        reached = True
    except (requests.ConnectionError, requests.Timeout, OfflineModeIsEnabled):
        reached = False
    return snapshot_download(checkpoint, revision=revision, allow_patterns=_FILES, local_files_only=not reached)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}: no readable config.json ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder}: config.json is not an object")
    return config


def _check_whole(folder: Path) -> None:
    """Refuse what git or a broken download has left of a checkpoint."""
    for path in sorted(path for pattern in _FILES for path in folder.glob(pattern)):
        with suppress(OSError), path.open("rb") as file:
            if file.read(len(_LFS)) == _LFS:
                raise CheckpointError(f"{path}: is a pointer to a file that git-lfs has not fetched (git lfs pull)")
    for index in folder.glob("*.safetensors.index.json"):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            missing = sorted(shard for shard in shards if not (folder / shard).is_file())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{index}: names no files of weights ({error!r:.200})") from error
        if missing:
            raise CheckpointError(f"{folder}: files of weights are missing: {_listed(missing)}")


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return files
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if not pickles:
        raise CheckpointError(f"{folder}: found no weights; they are needed as model.safetensors")
    raise CheckpointError(
        f"{folder}: found only {', '.join(pickles)}; weights are needed as model.safetensors, and pickles are never"
        f" opened here. Of one that you trust this makes it, in its folder: {_CONVERT.format(pickles[0])}"
    )


def _check_architecture(config: dict[str, Any], weights: list[Path]) -> None:
    """Refuse what is not a BERT-like encoder with a question-answering head, before anything large is loaded."""
    named = config.get("architectures")
    architectures = ", ".join(map(str, named)) if isinstance(named, list) else "no architecture named"
    found = f"{config.get('model_type')!r} ({architectures})"
    if config.get("model_type") not in tuple(MODELS):
        raise CheckpointError(f"found a model of type {found}; needed is one of {', '.join(sorted(MODELS))}")
    for name, needed in _NEEDED.items():
        if config.get(name):
            raise CheckpointError(f"found {name} {config[name]!r:.100} in config.json; {needed}")
    names: set[str] = set()
    for path in weights:
        try:
            with safe_open(path, framework="pt") as tensors:
                names.update(tensors.keys())
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: is not a readable safetensors file ({error})") from error
    if not {"qa_outputs.weight", "qa_outputs.bias"} <= names:
        raise CheckpointError(f"found {found} without a question-answering head (tensors qa_outputs.weight and .bias)")
    activation = config.get("activation" if config["model_type"] == "distilbert" else "hidden_act", "gelu")
    if activation != "gelu":
        raise CheckpointError(f"found the activation {activation!r}; needed is 'gelu'")
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise CheckpointError(f"found {positions!r} position embeddings; needed are 'absolute' ones")
    for name in ("n_heads", "n_layers", "num_attention_heads", "num_hidden_layers"):
        count = config.get(name, 1)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise CheckpointError(f"found {name} {count!r} in config.json; needed is an integer of 1 or more")
        there = len({found[1] for found in map(_LAYER.search, names) if found})
        if name in ("n_layers", "num_hidden_layers") and name in config and count != there:
            raise CheckpointError(f"found {name} {count} in config.json, and weights of {there} layers")
    if "quantization_config" in config:
        raise CheckpointError("found quantised weights (quantization_config); needed are plain ones")


def _load_model(folder: Path, model_class: type[PreTrainedModel]) -> PreTrainedModel:
    try:
        model, report = model_class.from_pretrained(
            folder,
            dtype=torch.float32,
            **_AS_IT_ANSWERS,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever a config can make transformers raise
        raise CheckpointError(f"{folder}: the model cannot be loaded ({error})") from error
    # transformers would initialise these at random and go on.
    if report["missing_keys"]:
        raise CheckpointError(f"{folder}: tensors are missing: {_listed(sorted(report['missing_keys']))}")
    unread = [name for name in report["unexpected_keys"] if ".layer." in name]
    if unread:
        raise CheckpointError(f"{folder}: the config has no place for tensors: {_listed(sorted(unread))}")
    if model.config.max_position_embeddings < _LEAST_POSITIONS:
        positions = model.config.max_position_embeddings
        raise CheckpointError(f"the model has {positions} positions; needed are at least {_LEAST_POSITIONS}")
    if getattr(model.config, "type_vocab_size", 2) < 2:
        raise CheckpointError("the model has 1 token type; needed are 2, question and passage")
    if model.config.num_labels != 2:
        raise CheckpointError(f"the head has {model.config.num_labels} outputs; needed are 2, start and end")
    others = {str(tensor.dtype) for tensor in model.parameters()} - {"torch.float32"}
    if others:
        raise CheckpointError(f"{folder}: found weights of {', '.join(sorted(others))} that do not become float32")
    broken = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"{folder}: tensors hold values that are not finite: {', '.join(broken)}")
    return model.eval()


def _load_tokenizer(folder: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    if not any((folder / name).is_file() for name in (_TOKENIZER, "vocab.txt")):
        raise CheckpointError(f"{folder}: no tokenizer; needed is {_TOKENIZER} or vocab.txt")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises bare Exception
        # Newer versions of transformers write what this one cannot read, and nothing that is needed.
        tokenizer = _tokenizer_alone(folder)
        if tokenizer is None:
            raise CheckpointError(f"{folder}: the tokenizer cannot be read ({error})") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast) or tokenizer.cls_token_id is None:
        raise CheckpointError(f"{folder}: found a {type(tokenizer).__name__}; needed is BERT's WordPiece tokenizer")
    # A blank line at the end of vocab.txt is a token too, which no text becomes.
    largest = max(id for token, id in tokenizer.get_vocab().items() if token)
    if largest >= vocabulary:
        raise CheckpointError(
            f"{folder}: the tokenizer has ids up to {largest}, the model's vocabulary has {vocabulary}"
        )
    return tokenizer


def _tokenizer_alone(folder: Path) -> PreTrainedTokenizerFast | None:
    """The tokenizer by its own file, with [CLS] and [SEP] as tokenizer_config.json calls them; None if that fails."""
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        names = {f"{role}_token": config.get(f"{role}_token", name) for role, name in _ROLES.items()}
        return PreTrainedTokenizerFast(tokenizer_file=str(folder / _TOKENIZER), **names)
    except Exception:  # tokenizers raises bare Exception
        return None


def _listed(names: list[str]) -> str:
    """A few of them: a config may ask for hundreds."""
    return ", ".join(names[:_MOST_LISTED]) + (
        f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    )


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
