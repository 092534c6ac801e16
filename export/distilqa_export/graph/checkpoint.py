"""Load a question-answering checkpoint, or refuse it with what was found and what is needed."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BertForQuestionAnswering,
    DistilBertForQuestionAnswering,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from distilqa.bundle import Architecture, Source
from distilqa.text.windows import Windower, no_panic
from distilqa_export.checkpoint_files import CheckpointFiles, find_checkpoint, padding_problem
from distilqa_export.errors import CheckpointError, listed

MODELS: dict[str, type[PreTrainedModel]] = {
    "distilbert": DistilBertForQuestionAnswering,
    "bert": BertForQuestionAnswering,
}

# What changes how a model is called or computed, but not what it answers.
_AS_IT_ANSWERS = {
    "chunk_size_feed_forward": 0,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
    "torchscript": False,
    "attn_implementation": "sdpa",
}

# Query, key and value of a layer.
_PROJECTION = re.compile(r"(.*)\.(?:[qkv]_lin|query|key|value)\.weight")

# The reference pipeline's window.
_WINDOW_TOKENS = 384

_ANY_LENGTH = 10**30
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


def load_checkpoint(checkpoint: str | CheckpointFiles, revision: str | None = None) -> Checkpoint:
    """Load a checkpoint: from its files, or a local folder, or by its id from the hub (``HF_ENDPOINT`` names another).

    ``revision`` is a branch, tag or commit of the hub. Raises CheckpointError if it cannot be had, or is anything
    but a DistilBERT or BERT question-answering model with all its tensors and its tokenizer.
    """
    files = checkpoint if isinstance(checkpoint, CheckpointFiles) else find_checkpoint(checkpoint, revision)
    card = files.folder / "README.md"
    model = _load_model(files.folder, MODELS[files.config["model_type"]])
    tokenizer = _load_tokenizer(files.folder, model.config.vocab_size)
    if files.config["model_type"] == "bert":
        _unite_segments(model, tokenizer)
    return Checkpoint(
        name=files.origin.rsplit("/", 1)[-1],
        model=model,
        tokenizer=tokenizer,
        source=Source(files.origin, files.commit, files.weights_sha256),
        card=card.read_text(encoding="utf-8", errors="replace") if card.is_file() else "",
    )


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint as a local folder that `load_checkpoint` reads."""
    checkpoint.model.save_pretrained(folder, safe_serialization=True)
    checkpoint.tokenizer.save_pretrained(folder)


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
    # transformers would initialise these at random and go on; it leaves out what an index says is there.
    missing = {*report["missing_keys"], *(name for name, tensor in model.state_dict().items() if tensor.is_meta)}
    if missing:
        raise CheckpointError(f"{folder}: tensors are missing: {listed(sorted(missing))}")
    unread = [
        name
        for name in report["unexpected_keys"]
        if name.startswith(f"{model.base_model_prefix}.") and ".layer." in name
    ]
    if unread:
        raise CheckpointError(f"{folder}: the config has no place for tensors: {listed(sorted(unread))}")
    if model.config.max_position_embeddings < _LEAST_POSITIONS:
        positions = model.config.max_position_embeddings
        raise CheckpointError(f"the model has {positions} positions; needed are at least {_LEAST_POSITIONS}")
    if model.config.num_labels != 2:
        raise CheckpointError(f"the head has {model.config.num_labels} outputs; needed are 2, start and end")
    others = {str(tensor.dtype) for tensor in model.parameters()} - {"torch.float32"}
    if others:
        raise CheckpointError(f"{folder}: found weights of {', '.join(sorted(others))} that do not become float32")
    broken = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        raise CheckpointError(f"{folder}: tensors hold values that are not finite: {', '.join(broken)}")
    _check_attention(model)
    try:
        with torch.inference_mode():
            model.eval()(torch.zeros((1, 2), dtype=torch.long))
    except Exception as error:  # a config may have text where numbers are needed
        raise CheckpointError(f"{folder}: the model cannot be run ({error})") from error
    return model


def _check_attention(model: PreTrainedModel) -> None:
    """Refuse what the trace would make one product of, so that attention is not found in it."""
    weights: dict[str, list[tuple[str, torch.Tensor]]] = {}
    for name, tensor in model.state_dict().items():
        if found := _PROJECTION.fullmatch(name):
            weights.setdefault(found[1], []).append((name, tensor))
    for projections in weights.values():
        for (name, tensor), (other, another) in combinations(projections, 2):
            if torch.equal(tensor, another):
                raise CheckpointError(
                    f"found the same weights in {name} and {other}; needed are query, key and value that differ"
                )


def _unite_segments(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Make the second of BERT's segments the first, where the tokenizer tells of no other.

    transformers gives such a model the first for all tokens; a bundle always tells question and passage apart.
    """
    types = set(tokenizer("a", "b").get("token_type_ids", ()))
    embeddings = model.bert.embeddings.token_type_embeddings
    if types <= {0}:
        embeddings.weight = torch.nn.Parameter(embeddings.weight[:1].detach().repeat(2, 1))
        embeddings.num_embeddings = model.config.type_vocab_size = 2
    elif max(types) >= embeddings.num_embeddings:
        raise CheckpointError(
            f"the tokenizer tells of {max(types) + 1} token types, the model has {embeddings.num_embeddings}"
        )


def _load_tokenizer(folder: Path, vocabulary: int) -> PreTrainedTokenizerFast:
    kind, options = _reading(folder)
    try:
        with no_panic():
            tokenizer = kind.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{folder}: the tokenizer cannot be read ({error})") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(f"{folder}: found a {type(tokenizer).__name__}; needed is BERT's WordPiece tokenizer")
    for role in ("cls_token", "sep_token"):
        if getattr(tokenizer, f"{role}_id") is None:
            raise CheckpointError(f"{folder}: the tokenizer has no {role}")
    if tokenizer.padding_side != "right":
        raise CheckpointError(f"{folder}: {padding_problem(tokenizer.padding_side)}")
    try:
        Windower(tokenizer.backend_tokenizer.to_str(), max_tokens=_WINDOW_TOKENS)
        tokenizer("a", "b")
    except Exception as error:  # BundleError, and whatever its settings can make transformers raise
        problem = str(error).removeprefix("tokenizer.json: ")
        raise CheckpointError(f"{folder}: the tokenizer cannot be used ({problem})") from error
    # A blank line at the end of vocab.txt is a token too, which no text becomes.
    largest, token = max((id, token) for token, id in tokenizer.get_vocab().items() if token)
    if largest >= vocabulary:
        raise CheckpointError(
            f"{folder}: the tokenizer has ids up to {largest} ({token!a:.40}), the model's vocabulary has {vocabulary}"
        )
    return tokenizer


def _reading(folder: Path) -> tuple[Any, dict[str, Any]]:
    """What reads a tokenizer, and its options: transformers 5 writes some things as this version cannot read them."""
    options: dict[str, Any] = {"model_max_length": _ANY_LENGTH}
    try:
        config: Any = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except OSError:
        config = {}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder}: tokenizer_config.json cannot be read ({error})") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder}: tokenizer_config.json is not an object")
    if isinstance(extra := config.get("extra_special_tokens"), list):
        options |= {"extra_special_tokens": {}, "additional_special_tokens": extra}
    if config.get("tokenizer_class") != "TokenizersBackend":
        return AutoTokenizer, options | {"use_fast": True, "trust_remote_code": False}
    names = {f"{role}_token": name for role, name in _ROLES.items() if f"{role}_token" not in config}
    return PreTrainedTokenizerFast, options | names | {
        "model_input_names": config.get("model_input_names", ["input_ids", "attention_mask"])
    }
