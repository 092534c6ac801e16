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

# Where weights are that are in one file.
WEIGHTS = "model.safetensors"

_HEAD = ("qa_outputs.weight", "qa_outputs.bias")
_OUTPUTS = 2

# Frameworks whose tensors are as PyTorch's, as the metadata of a file of weights names them; and the types that become
# float32.
_FORMATS = ("pt", "mlx")
_TYPES = ("F64", "F32", "F16", "BF16")


class _Kind(NamedTuple):
    """A type of models that can be exported.

    ``sizes`` are the config's, with what they are where it does not say; ``aliases`` other keys for them, which count
    more. ``shapes`` are those of some tensors, in these sizes.
    """

    sizes: dict[str, int]
    aliases: dict[str, str]
    hidden: str
    heads: str
    layers: str
    activation: str
    shapes: dict[str, tuple[str, str]]


_KINDS = {
    "bert": _Kind(
        {
            "num_attention_heads": 12, "num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072,
            "vocab_size": 30522, "max_position_embeddings": 512, "type_vocab_size": 2,
        },
        {},
        "hidden_size",
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
        {
            "n_heads": 12, "n_layers": 6, "dim": 768, "hidden_dim": 3072, "vocab_size": 30522,
            "max_position_embeddings": 512,
        },
        {"n_heads": "num_attention_heads", "n_layers": "num_hidden_layers", "dim": "hidden_size"},
        "dim",
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
    _check_types(type, tensors)
    layers = {one[2] for one in map(_LAYER.match, tensors) if one and one[1] == type}
    _check_sizes(_Sizes(config, _KINDS[type]), tensors, len(layers))


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
    for name in (*kind.sizes, *kind.aliases.values()):
        if kind.aliases.get(name) in config:  # which counts alone
            continue
        size = config.get(name, 1)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise CheckpointError(f"found {name} {size!r} in config.json; needed is an integer of 1 or more")


def _read_tensors(weights: list[Path]) -> dict[str, _Tensor]:
    """What files of weights have, by name. The values are not read."""
    tensors: dict[str, _Tensor] = {}
    for path in weights:
        try:
            path.open("rb").close()  # of one that may not be read safetensors says that it is not there
            with safe_open(path, framework="np") as file:
                metadata = file.metadata()
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
                tensors |= {name: _Tensor(one.get_dtype(), tuple(one.get_shape())) for name, one in slices.items()}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: is not a readable safetensors file ({error})") from error
        # In shards transformers takes tensors of any that it knows for PyTorch's.
        if path.name == WEIGHTS and metadata is not None and (format := metadata.get("format")) not in _FORMATS:
            raise CheckpointError(f"{path}: found metadata with the format {format!r:.100}; needed is PyTorch's, 'pt'")
    return tensors


def _check_names(found: str, prefix: str, names: set[str]) -> None:
    """Refuse what has no head, or tensors that transformers would not find."""
    if missing := [name for name in _HEAD if name not in names]:
        others = sorted(name for name in names.difference(_HEAD) if name.endswith(_HEAD))
        hint = f"; found {listed(others)}, under names that are not transformers' own" if others else ""
        raise CheckpointError(
            f"found {found} without a question-answering head (no tensor {' or '.join(missing)}){hint}"
        )
    if not any(name.startswith(prefix) for name in names):
        raise CheckpointError(
            f"found {found} without tensors named {prefix}*; found {listed(sorted(names.difference(_HEAD)))}"
        )


def _check_types(type: str, tensors: dict[str, _Tensor]) -> None:
    """Refuse weights that are none, of the layers, the embeddings and the head: others are not read."""
    read = (f"{type}.embeddings.", *_HEAD)
    other = sorted(
        name
        for name, tensor in tensors.items()
        if tensor.type not in _TYPES
        and name.endswith(("weight", "bias"))  # the numbers of positions are saved too
        and (name.startswith(read) or ((layer := _LAYER.match(name)) and layer[1] == type))
    )
    if other:
        raise CheckpointError(f"found weights of type {tensors[other[0]].type} ({listed(other)}); needed are floats")


class _Sizes:
    """The sizes that a config gives, by their names."""

    def __init__(self, config: dict[str, Any], kind: _Kind) -> None:
        self._config, self.kind = config, kind

    def __getitem__(self, name: str) -> int:
        size: int = self._config.get(self._key(name), self.kind.sizes[name])
        return size

    def told(self, name: str) -> str:
        """What there is of it, for people."""
        key = self._key(name)
        return f"{key} {self[name]} in config.json" if key in self._config else f"{key} {self[name]} (by default)"

    def _key(self, name: str) -> str:
        alias = self.kind.aliases.get(name, name)
        return alias if alias in self._config else name


def _check_sizes(sizes: _Sizes, tensors: dict[str, _Tensor], layers: int) -> None:
    """Refuse tensors of other sizes than the config says."""
    weight, bias = (tensors[name].shape for name in _HEAD)
    if weight[:1] != (_OUTPUTS,) or bias != (_OUTPUTS,):
        found = f"{list(weight)} and {list(bias)}"
        raise CheckpointError(f"the head has tensors of {found}; needed are {_OUTPUTS} outputs, start and end")
    for name, keys in sizes.kind.shapes.items():
        shape = tensors[name].shape if name in tensors else ()
        for key, size in zip(keys, shape, strict=False):
            if sizes[key] != size:
                raise CheckpointError(f"found {sizes.told(key)}, and {name} of {list(shape)}")
    kind = sizes.kind
    if sizes[kind.layers] != layers:
        raise CheckpointError(f"found {sizes.told(kind.layers)}, and weights of {layers} layers")
    if sizes[kind.hidden] % sizes[kind.heads]:
        raise CheckpointError(
            f"found {sizes.told(kind.hidden)} and {sizes.told(kind.heads)}; needed are heads of equal size"
        )
