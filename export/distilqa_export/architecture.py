"""Whether a checkpoint is of a model that can be exported, by its config and by what its files of weights begin with.

What they contradict each other in, transformers would find only as it loads the model, and say without a name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from distilqa_export.errors import CheckpointError, listed

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

_HEAD = ("qa_outputs.weight", "qa_outputs.bias")
_OUTPUTS = 2

# Frameworks whose tensors are as PyTorch's; and the types that become float32.
_FORMATS = (None, "pt", "mlx")
_TYPES = ("F64", "F32", "F16", "BF16")


class _Kind(NamedTuple):
    """A type of models that can be exported.

    ``counts`` are the config's keys for sizes. ``shapes`` has of tensors the keys that give their sizes.
    """

    counts: tuple[str, ...]
    heads: str
    layers: str
    activation: str
    shapes: dict[str, tuple[str, str]]


_KINDS = {
    "bert": _Kind(
        ("num_attention_heads", "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size",
         "max_position_embeddings", "type_vocab_size"),
        "num_attention_heads",
        "num_hidden_layers",
        "hidden_act",
        {
            "bert.embeddings.word_embeddings.weight": ("vocab_size", "hidden_size"),
            "bert.embeddings.position_embeddings.weight": ("max_position_embeddings", "hidden_size"),
            "bert.embeddings.token_type_embeddings.weight": ("type_vocab_size", "hidden_size"),
            "bert.encoder.layer.0.intermediate.dense.weight": ("intermediate_size", "hidden_size"),
        },
    ),
    "distilbert": _Kind(
        ("n_heads", "n_layers", "num_attention_heads", "num_hidden_layers", "dim", "hidden_dim", "vocab_size",
         "max_position_embeddings"),
        "n_heads",
        "n_layers",
        "activation",
        {
            "distilbert.embeddings.word_embeddings.weight": ("vocab_size", "dim"),
            "distilbert.embeddings.position_embeddings.weight": ("max_position_embeddings", "dim"),
            "distilbert.transformer.layer.0.ffn.lin1.weight": ("hidden_dim", "dim"),
        },
    ),
}  # fmt: skip

_LAYER = re.compile(r"(bert|distilbert)\.(?:encoder|transformer)\.layer\.(\d+)\.")


class _Tensor(NamedTuple):
    type: str
    shape: tuple[int, ...]


def check_architecture(config: dict[str, Any], weights: list[Path]) -> None:
    """Refuse what is not a BERT-like encoder with a question-answering head. Raises CheckpointError."""
    named = config.get("architectures")
    architectures = ", ".join(map(str, named)) if isinstance(named, list) else "no architecture named"
    type = config.get("model_type")
    found = f"{type!r} ({architectures})"
    if type not in tuple(_KINDS):  # which may be of any type
        older = "" if type else ' (of older checkpoints config.json does not say: "model_type": "bert" there does)'
        raise CheckpointError(f"found a model of type {found}; needed is one of {', '.join(_KINDS)}{older}")
    _check_config(config, _KINDS[type])
    tensors = _read_tensors(weights)
    _check_names(found, f"{type}.", set(tensors))
    _check_sizes(config, _KINDS[type], tensors)
    layers = len({one[2] for one in map(_LAYER.match, tensors) if one and one[1] == type})
    for name in (one for one in _KINDS[type].counts if one.endswith("layers") and one in config):
        if config[name] != layers:
            raise CheckpointError(f"found {name} {config[name]} in config.json, and weights of {layers} layers")


def _check_config(config: dict[str, Any], kind: _Kind) -> None:
    for name, needed in _NEEDED.items():
        if config.get(name) or (name == _QUANTIZED and name in config):  # which transformers cannot read empty
            raise CheckpointError(f"found {name} {config[name]!r:.100} in config.json; {needed}")
    own_code = config.get("auto_map")
    if isinstance(own_code, dict) and _OWN_CODE & own_code.keys():
        raise CheckpointError(
            f"found auto_map {own_code!r:.100} in config.json; needed is a model without code of its own, which is"
            " never run here"
        )
    activation = config.get(kind.activation, "gelu")
    if activation != "gelu":
        raise CheckpointError(f"found the activation {activation!r}; needed is 'gelu'")
    positions = config.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise CheckpointError(f"found {positions!r} position embeddings; needed are 'absolute' ones")
    for name in kind.counts:
        count = config.get(name, 1)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise CheckpointError(f"found {name} {count!r} in config.json; needed is an integer of 1 or more")


def _read_tensors(weights: list[Path]) -> dict[str, _Tensor]:
    """What files of weights have, by name. The values are not read."""
    tensors: dict[str, _Tensor] = {}
    for path in weights:
        try:
            with safe_open(path, framework="np") as file:
                format = (file.metadata() or {}).get("format")
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
                tensors |= {name: _Tensor(one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: is not a readable safetensors file ({error})") from error
        if format not in _FORMATS:
            raise CheckpointError(f"{path}: found weights in the format {format!r:.100}; needed are PyTorch's ('pt')")
    return tensors


def _check_names(found: str, prefix: str, names: set[str]) -> None:
    """Refuse what has no head, or tensors that transformers would not find."""
    if missing := [name for name in _HEAD if name not in names]:
        others = sorted(name for name in names.difference(_HEAD) if name.endswith(_HEAD))
        hint = f"; found {listed(others)}, under names that are not transformers' own" if others else ""
        raise CheckpointError(
            f"found {found} without a question-answering head (no tensor {' and '.join(missing)}){hint}"
        )
    if not any(name.startswith(prefix) for name in names):
        raise CheckpointError(
            f"found {found} without tensors named {prefix}*; found {listed(sorted(names.difference(_HEAD)))}"
        )


def _check_sizes(config: dict[str, Any], kind: _Kind, tensors: dict[str, _Tensor]) -> None:
    """Refuse tensors of types that are no weights', and of other sizes than the config says."""
    if other := sorted(name for name, tensor in tensors.items() if tensor.type not in _TYPES and _counts(name)):
        raise CheckpointError(f"found weights of type {tensors[other[0]].type} ({listed(other)}); needed are floats")
    (outputs, *_) = tensors[_HEAD[0]].shape or (0,)
    if outputs != _OUTPUTS:
        raise CheckpointError(f"the head has {outputs} outputs; needed are {_OUTPUTS}, start and end")
    for name, keys in kind.shapes.items():
        sizes = tensors[name].shape if name in tensors else ()
        for key, size in zip(keys, sizes, strict=False):
            if config.get(key, size) != size:
                raise CheckpointError(f"found {key} {config[key]} in config.json, and {name} of {list(sizes)}")
    hidden = next(iter(kind.shapes.values()))[1]
    if hidden in config and kind.heads in config and config[hidden] % config[kind.heads]:
        raise CheckpointError(
            f"found {hidden} {config[hidden]} and {kind.heads} {config[kind.heads]} in config.json; needed are heads"
            " of equal size"
        )


def _counts(name: str) -> bool:
    """Whether it is a weight: the numbers of positions are saved too."""
    return name.endswith(("weight", "bias"))
