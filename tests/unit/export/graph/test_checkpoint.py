"""Checkpoints that load, and every way in which one is refused."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import ROOT
from transformers import AutoTokenizer, DistilBertConfig, DistilBertForMaskedLM

from distilqa.bundle import Architecture
from distilqa.text.windows import Windower
from distilqa_export.errors import CheckpointError
from distilqa_export.graph.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

MakeTiny = Callable[..., Path]
Damage = Callable[[Path], object]
Tensors = dict[str, torch.Tensor]

MIDDLE = "distilbert.transformer.layer.1.ffn.lin1.weight"


def edit(name: str, **changes: Any) -> Damage:
    """Set keys of a JSON file; one that is set to ``...`` is removed."""

    def damage(folder: Path) -> None:
        fields = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({key: value for key, value in fields.items() if value is not ...}))

    return damage


def config(**changes: Any) -> Damage:
    return edit("config.json", **changes)


def write(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def remove(*names: str) -> Damage:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def both(one: Damage, other: Damage) -> Damage:
    return lambda folder: (one(folder), other(folder))


def tensors(change: Callable[[Tensors], object]) -> Damage:
    def damage(folder: Path) -> None:
        values = load_file(folder / "model.safetensors")
        change(values)
        save_file(values, folder / "model.safetensors", {"format": "pt"})

    return damage


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def masked_language_model(folder: Path) -> None:
    DistilBertForMaskedLM(DistilBertConfig(dim=32, hidden_dim=64, n_layers=2, n_heads=2)).save_pretrained(folder)


def add_token(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.add_tokens(["zzyzx"]) == 1
    tokenizer.save_pretrained(folder)


def three_labels(folder: Path) -> None:
    head = {"qa_outputs.weight": torch.ones(3, 32), "qa_outputs.bias": torch.ones(3)}
    tensors(lambda values: values.update(head))(folder)
    config(id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})(folder)


def few_positions(folder: Path) -> None:
    name = "distilbert.embeddings.position_embeddings.weight"
    tensors(lambda values: values.update({name: values[name][:16].clone()}))(folder)
    config(max_position_embeddings=16)(folder)


def one_segment(folder: Path) -> None:
    name = "bert.embeddings.token_type_embeddings.weight"
    tensors(lambda values: values.update({name: values[name][:1].clone()}))(folder)
    config(type_vocab_size=1)(folder)


def metadata(**entries: str) -> Damage:
    def damage(folder: Path) -> None:
        save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors", entries)

    return damage


def newer_tokenizer(folder: Path) -> None:
    """Which transformers reads in the place of tokenizer.json."""
    shutil.copy(folder / "tokenizer.json", folder / "tokenizer.4.0.0.json")
    padded_on_the_left(folder)
    (folder / "tokenizer.json").rename(folder / "left")
    (folder / "tokenizer.4.0.0.json").rename(folder / "tokenizer.json")
    (folder / "left").rename(folder / "tokenizer.4.0.0.json")
    edit("tokenizer_config.json", fast_tokenizer_files=["tokenizer.json", "tokenizer.4.0.0.json"])(folder)


def index_of_more(folder: Path) -> None:
    """Than its shard has."""
    values = load_file(folder / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(values, "model-1.safetensors")}
    values.pop(MIDDLE)
    save_file(values, folder / "model-1.safetensors", {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def link_to_nothing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("blob")


def padded_on_the_left(folder: Path) -> None:
    """As a tokenizer is saved after it has padded so."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    side = {"strategy": "BatchLongest", "direction": "Left", "pad_to_multiple_of": None}
    tokenizer["padding"] = side | {"pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    edit("tokenizer_config.json", padding_side=...)(folder)


def rename_weights(name: str) -> Damage:
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def move_below(folder: Path) -> None:
    (folder / "checkpoint-500").mkdir()
    (folder / "config.json").rename(folder / "checkpoint-500" / "config.json")


HEAD = "qa_outputs.weight"
KEYS = "distilbert.transformer.layer.1.attention.k_lin.weight"

# Each damage to a tiny DistilBERT checkpoint, and what the refusal must say.
REFUSALS: dict[str, tuple[Damage, str | None]] = {
    "no config": (remove("config.json"), "no config.json"),
    "broken config": (write("config.json", b'{"model_type": '), "no readable config.json"),
    "config not UTF-8": (write("config.json", b'{"model_type": "\xff"}'), "no readable config.json"),
    "config a list": (write("config.json", b"[]"), "config.json is not an object"),
    "gpt2": (config(model_type="gpt2"), r"found a model of type 'gpt2' \(Dist.*\); needed is one of bert, distilbert"),
    "roberta": (config(model_type="roberta"), "found a model of type 'roberta'"),
    "no type": (config(model_type=..., architectures=...), r"type None \(no architecture named\)"),
    "no head": (masked_language_model, "DistilBertForMaskedLM.*without a question-answering head"),
    "tensor missing": (tensors(lambda values: values.pop(MIDDLE)), f"tensors are missing: {MIDDLE}$"),
    "NaN": (tensors(lambda values: values[MIDDLE][3, 5].fill_(torch.nan)), f"not finite: {MIDDLE}$"),
    "infinity": (tensors(lambda values: values[MIDDLE][3, 5].fill_(-torch.inf)), f"not finite: {MIDDLE}$"),
    "no weights": (remove("model.safetensors"), "found no weights; they are needed as model.safetensors"),
    "only pickles": (only_pickles, "found only pytorch_model.bin; .*pickles are never opened"),
    "junk weights": (write("model.safetensors", b"x" * 100), "model.safetensors: is not a readable safetensors file"),
    "truncated weights": (truncate, "model.safetensors: is not a readable safetensors file"),
    "empty weights": (write("model.safetensors", b""), "model.safetensors: is not a readable safetensors file"),
    "relu": (config(activation="relu"), "found the activation 'relu'; needed is 'gelu'"),
    "heads no integer": (config(n_heads=4.0), "found n_heads 4.0 in config.json; needed is an integer of 1 or more"),
    "heads below 1": (config(n_heads=-4), "found n_heads -4 in config.json"),
    "heads true": (config(n_heads=True), "found n_heads True in config.json"),
    "8-bit head": (
        tensors(lambda values: values.update({HEAD: values[HEAD].to(torch.float8_e4m3fn)})),
        r"found weights of type F8_E4M3 \(qa_outputs.weight\); needed are floats",
    ),
    "integers": (
        tensors(lambda values: values.update({MIDDLE: values[MIDDLE].to(torch.int8)})),
        rf"found weights of type I8 \({MIDDLE}\)",
    ),
    "no bias of the head": (
        tensors(lambda values: values.pop("qa_outputs.bias")),
        r"without a question-answering head \(no tensor qa_outputs.bias\)$",
    ),
    "of TensorFlow": (metadata(format="tf"), r"found metadata with the format 'tf'; needed is PyTorch's, 'pt'"),
    "metadata of others": (metadata(total="1"), r"found metadata with the format None; needed is PyTorch's, 'pt'"),
    "another name for the width": (
        config(hidden_size=64),
        r"found hidden_size 64 in config.json, and \S+ of \[30522, 32\]",
    ),
    "no width": (config(dim=...), r"found dim 768 \(by default\), and \S+ of \[30522, 32\]"),
    "another tokenizer file that counts, padded on the left": (
        newer_tokenizer,
        "found the padding side 'left'; needed is 'right'",
    ),
    "an index that names more": (
        both(rename_weights("model-1.safetensors"), index_of_more),
        rf"tensors are missing: {MIDDLE}$",
    ),
    "a link to nothing": (
        link_to_nothing,
        "model.safetensors: is a link to a file that is not there",
    ),
    "padded on the left, once": (padded_on_the_left, "found the padding side 'Left'"),
    "fewer words": (
        config(vocab_size=100),
        r"found vocab_size 100 in config.json, and distilbert\.\S+ of \[30522, 32\]",
    ),
    "keys that are queries": (
        tensors(lambda values: values.update({KEYS: values[KEYS.replace("k_lin", "q_lin")].clone()})),
        rf"found the same weights in \S+layer\.1\S+ and {KEYS}; needed are query, key",
    ),
    "input without names": (edit("tokenizer_config.json", model_input_names=None), "the tokenizer cannot be used"),
    "no unknown word": (
        both(remove("tokenizer.json"), write("vocab.txt", b"[PAD]\n[CLS]\n[SEP]\n[MASK]\nfox\n")),
        "the tokenizer cannot be used",
    ),
    "no word": (both(remove("tokenizer.json"), write("vocab.txt", b"")), "the tokenizer cannot be used"),
    "no tokenizer": (remove("tokenizer.json", "vocab.txt"), "no tokenizer; needed is tokenizer.json or vocab.txt"),
    "broken tokenizer": (write("tokenizer.json", b"{"), "no readable tokenizer.json"),
    "no tokenizer in it": (write("tokenizer.json", b"{}"), "the tokenizer cannot be read"),
    "other tokenizer, vocabulary alone": (
        both(edit("tokenizer_config.json", tokenizer_class="Nobodys"), remove("tokenizer.json")),
        "the tokenizer cannot be read",
    ),
    "larger tokenizer": (add_token, r"the tokenizer has ids up to 30522 \('zzyzx'\), the model's vocabulary has 30522"),
    "larger tokenizer, default vocabulary": (
        both(add_token, config(vocab_size=...)),
        r"the tokenizer has ids up to 30522 \('zzyzx'\), the model's vocabulary has 30522",
    ),
    "three labels": (three_labels, r"the head has tensors of \[3, 32\] and \[3\]; needed are 2 outputs"),
    "other width": (config(dim=64), r"found dim 64 in config.json, and \S+ of \[30522, 32\]"),
    "more layers": (config(n_layers=500), "found n_layers 500 in config.json, and weights of 2 layers"),
    "fewer layers": (config(n_layers=1), "found n_layers 1 in config.json, and weights of 2 layers"),
    "many tensors missing": (
        tensors(lambda values: [values.pop(name) for name in list(values) if ".layer.1.ffn" in name]),
        r"tensors are missing: distil\S+, \S+, \S+ and 1 more$",
    ),
    "decoder": (config(is_decoder=True), "found is_decoder True in config.json; needed is an encoder"),
    "pruned": (
        config(pruned_heads={"0": [1]}),
        r"found pruned_heads \{'0': \[1\]\} in config.json; needed are layers of",
    ),
    "git-lfs": (
        write("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 265463672\n"),
        r"model\.safetensors: is a pointer to a file that git-lfs has not fetched",
    ),
    "git-lfs tokenizer": (
        write("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 711396\n"),
        r"tokenizer\.json: is a pointer",
    ),
    "broken index": (
        both(rename_weights("model-1.safetensors"), write("model.safetensors.index.json", b'{"weight_map": 3}')),
        "names no files of weights",
    ),
    "weights of another name": (
        rename_weights("model.fp16.safetensors"),
        r"found model\.fp16\.safetensors; needed is model\.safetensors, or model\.safetensors\.index\.json for",
    ),
    "a folder of training": (
        both(rename_weights("pytorch_model.bin"), write("optimizer.pt", b"")),
        r"found only optimizer\.pt, pytorch_model\.bin; .*torch\.load\('pytorch_model\.bin'",
    ),
    "no role": (
        both(edit("tokenizer_config.json", sep_token=None), edit("special_tokens_map.json", sep_token=None)),
        "the tokenizer has no sep_token",
    ),
    "a byte order mark": (write("config.json", b"\xef\xbb\xbf{}"), "no readable config.json .*BOM"),
    "heads do not divide": (
        config(n_heads=5),
        "found dim 32 in config.json and n_heads 5 in config.json; needed are heads",
    ),
    "no heads": (config(n_heads=0), None),
    "width a word": (config(dim="wide"), "found dim 'wide' in config.json; needed is an integer"),
    "type a list": (config(model_type=["bert"]), "needed is one of bert, distilbert"),
    "architecture a number": (config(model_type="gpt2", architectures=5), "needed is one of bert, distilbert"),
    "quantised": (
        config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
        "quantization_config",
    ),
    "few positions": (few_positions, "16 positions"),
    "quantised, or not": (config(quantization_config=None), "quantization_config None in config.json"),
    "an adapter beside": (write("adapter_config.json", b"{}"), r"found an adapter .* merge_and_unload"),
    "code of its own": (config(auto_map={"AutoModelForQuestionAnswering": "a.B"}), "found auto_map .* never run here"),
    "names of a parallel run": (
        tensors(lambda values: [values.update({f"module.{name}": values.pop(name)}) for name in list(values)]),
        r"without a question-answering head .*; found module\.qa_outputs\.bias, module\.qa_outputs\.weight, under",
    ),
    "names of BERT": (
        tensors(lambda values: [values.update({one.removeprefix("distil"): values.pop(one)}) for one in list(values)]),
        r"without tensors named distilbert\.\*; found bert\.embeddings\.",
    ),
    "a bundle": (both(remove("config.json"), write("manifest.json", b"{}")), "is a bundle, and needs no export"),
    "in a folder below": (move_below, "no config.json; is .*checkpoint-500 meant[?]"),
    "padded on the left": (edit("tokenizer_config.json", padding_side="left"), "found the padding side 'left'"),
    "tokenizer's config a list": (write("tokenizer_config.json", b"[]"), "tokenizer_config.json is not an object"),
}


@pytest.mark.parametrize(("damage", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refuses(damage: Damage, message: str | None, make_tiny: MakeTiny, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "checkpoint")
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(folder))


# What only BERT has.
BERT_REFUSALS: dict[str, tuple[Damage, str]] = {
    "relu": (config(hidden_act="relu"), "found the activation 'relu'"),
    "approximate gelu": (config(hidden_act="gelu_new"), "found the activation 'gelu_new'"),
    "relative positions": (config(position_embedding_type="relative_key"), "'relative_key' position embeddings"),
    "three labels": (three_labels, r"the head has tensors of \[3, 32\] and \[3\]; needed are 2 outputs"),
    "other width": (config(hidden_size=64), "found hidden_size 64 in config.json"),
    "input without names": (edit("tokenizer_config.json", model_input_names=None), "the tokenizer cannot be used"),
    "no unknown word": (
        both(remove("tokenizer.json"), write("vocab.txt", b"[PAD]\n[CLS]\n[SEP]\n[MASK]\nfox\n")),
        "the tokenizer cannot be used",
    ),
    "one segment": (one_segment, "the tokenizer tells of 2 token types, the model has 1"),
}


@pytest.mark.parametrize(("damage", "message"), BERT_REFUSALS.values(), ids=BERT_REFUSALS)
def test_refuses_bert(damage: Damage, message: str, make_tiny: MakeTiny, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "checkpoint", "bert")
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(str(folder))


@pytest.mark.parametrize("name", ["no/such/folder", "./nothing-here", "/no/such/folder", "two words"])
def test_refuses_what_is_neither_folder_nor_hub_id(name: str) -> None:
    with pytest.raises(CheckpointError, match="is neither a folder nor an id of the hub"):
        load_checkpoint(name)


def test_a_local_folder_has_no_revision(tiny_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is a local folder and has no revision 'v1'"):
        load_checkpoint(str(tiny_folder), "v1")


def test_loads_the_shipped_checkpoint(shipped: Checkpoint, checkpoint: Path) -> None:
    assert shipped.name == "distilbert-384-squad"
    assert shipped.architecture == Architecture("distilbert", 6, 384, 12, 1536, 30522, 512, 22565378)
    assert shipped.window_tokens == 384
    assert shipped.source.checkpoint == "distilbert-384-squad"
    assert shipped.source.revision is None
    assert shipped.source.weights_sha256 == hashlib.sha256((checkpoint / "model.safetensors").read_bytes()).hexdigest()
    assert shipped.card == (checkpoint / "README.md").read_text()
    assert not shipped.model.training
    assert {parameter.dtype for parameter in shipped.model.parameters()} == {torch.float32}


def test_loads_a_tiny_checkpoint(tiny: Checkpoint, tiny_folder: Path, kind: str) -> None:
    saved = load_file(tiny_folder / "model.safetensors")
    loaded = tiny.model.state_dict()
    assert set(saved) <= set(loaded)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in saved.items())
    assert tiny.card == ""
    shape = tiny.architecture
    assert (shape.type, shape.layers, shape.hidden, shape.heads, shape.feed_forward) == (kind, 2, 32, 2, 64)


@pytest.mark.parametrize(("positions", "window_tokens"), [(512, 384), (384, 384), (200, 200)])
def test_a_window_has_no_more_tokens_than_the_model_has_positions(
    positions: int, window_tokens: int, make_tiny: MakeTiny, tmp_path: Path
) -> None:
    folder = make_tiny(tmp_path / "checkpoint", max_position_embeddings=positions)
    assert load_checkpoint(str(folder)).window_tokens == window_tokens


def test_loads_weights_in_several_files(tiny: Checkpoint, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tiny.model.save_pretrained(folder, max_shard_size="1MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    loaded = load_checkpoint(str(folder)).model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tiny.model.state_dict().items())


def test_names_the_file_of_weights_that_is_missing(tiny: Checkpoint, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    shutil.copytree(tiny_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tiny.model.save_pretrained(folder, max_shard_size="1MB")
    lost = max(folder.glob("*.safetensors"))
    lost.unlink()
    with pytest.raises(CheckpointError, match=f"files of weights are missing: {lost.name}$"):
        load_checkpoint(str(folder))


@pytest.mark.parametrize(
    "flags",
    [{"output_attentions": True}, {"output_hidden_states": True}, {"chunk_size_feed_forward": 64},
     {"torchscript": True}, {"use_cache": False}, {"return_dict": False}],
    ids=str,
)  # fmt: skip
def test_flags_that_change_no_answer_change_nothing(
    flags: dict[str, Any], tiny: Checkpoint, tiny_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "tiny")
    config(**flags)(tmp_path / "tiny")
    ids = torch.tensor([[101, 2054, 102, 2054, 102]])
    found, expected = (one.model(ids) for one in (load_checkpoint(str(tmp_path / "tiny")), tiny))
    assert torch.equal(found.start_logits, expected.start_logits)
    assert found.keys() == expected.keys()


# As transformers 5 writes them, which 4 cannot read; and what the tokens in a text are then.
NEWER: dict[str, Damage] = {
    "a class of its own": edit("tokenizer_config.json", tokenizer_class="TokenizersBackend", backend="tokenizers"),
    "a list of extra tokens": edit("tokenizer_config.json", extra_special_tokens=["[unused1]", "[unused2]"]),
}


@pytest.mark.parametrize("change", NEWER.values(), ids=NEWER)
def test_loads_tokenizers_of_a_newer_transformers(
    change: Damage, make_tiny: MakeTiny, tiny: Checkpoint, tmp_path: Path
) -> None:
    folder = make_tiny(tmp_path / "checkpoint")
    change(folder)
    remove("vocab.txt", "special_tokens_map.json")(folder)
    loaded = load_checkpoint(str(folder))
    windows = [
        Windower(one.tokenizer_json, max_tokens=384)
        .tokenize("Why?", ["It is unbelievable."])
        .windows[0]
        .input_ids.tolist()
        for one in (loaded, tiny)
    ]
    assert windows[0] == windows[1]
    assert (loaded.tokenizer.cls_token_id, loaded.tokenizer.sep_token_id) == (101, 102)


def other_weights_beside(folder: Path) -> None:
    """Of training, and of a deeper model."""
    name = "distilbert.transformer.layer.9.ffn.lin1.weight"
    save_file({"state.layer.17.exp_avg": torch.ones(2)}, folder / "optimizer.safetensors", {"format": "pt"})
    save_file({name: torch.ones(2)}, folder / "teacher.safetensors", {"format": "pt"})


# What transformers passes over too.
HARMLESS: dict[str, Damage] = {
    "other weights beside": other_weights_beside,
    "other tensors beside": tensors(lambda values: values.update({"teacher.layer.9.weight": torch.ones(2)})),
    "integers beside": tensors(
        lambda values: values.update(
            {"teacher.x.weight": torch.ones(2, dtype=torch.int8), "bert.pooler.bias": torch.ones(2, dtype=torch.bool)}
        )
    ),
    "another model beside": tensors(lambda values: values.update({"bert.encoder.layer.9.x.weight": torch.ones(2)})),
    "a size that another name gives": config(dim=None, hidden_size=32),
    "a count of other models": config(encoder_layers=9),
    "code for another task": config(auto_map={"AutoModelForSequenceClassification": "a.B"}),
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_loads_what_has_more_than_it_needs(change: Damage, make_tiny: MakeTiny, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "checkpoint")
    plain = load_checkpoint(str(folder))
    change(folder)
    loaded = load_checkpoint(str(folder))
    ids = torch.tensor([[101, 2040, 102, 2002, 102]])
    with torch.inference_mode():
        assert torch.equal(loaded.model(ids).start_logits, plain.model(ids).start_logits)
    whole = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert loaded.source.weights_sha256 == whole


SEGMENTS: dict[str, tuple[Damage, bool]] = {
    "as ever": (lambda folder: None, True),
    "none": (edit("tokenizer_config.json", model_input_names=["input_ids", "attention_mask"]), False),
    "none by its class": (edit("tokenizer_config.json", tokenizer_class="TokenizersBackend"), False),
    "one": (both(edit("tokenizer_config.json", model_input_names=["input_ids"]), one_segment), False),
}


@pytest.mark.parametrize(("change", "two"), SEGMENTS.values(), ids=SEGMENTS)
def test_bert_has_the_segments_that_its_tokenizer_tells_of(
    change: Damage, two: bool, make_tiny: MakeTiny, tmp_path: Path
) -> None:
    """transformers gives the model the first where it tells of none."""
    folder = make_tiny(tmp_path / "checkpoint", "bert")
    change(folder)
    loaded = load_checkpoint(str(folder))
    ids = torch.tensor([[101, 2040, 102, 2002, 102]])
    told = loaded.tokenizer("a", "b").get("token_type_ids")
    assert (told is not None) == two
    with torch.inference_mode():
        first, second = (
            loaded.model(ids, token_type_ids=torch.tensor([types])).start_logits for types in ([0] * 5, [0, 0, 0, 1, 1])
        )
    assert torch.equal(first, second) != two


def test_loads_a_vocabulary_that_ends_with_a_blank_line(make_tiny: MakeTiny, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "checkpoint")
    remove("tokenizer.json")(folder)
    with (folder / "vocab.txt").open("a") as file:
        file.write("\n")
    assert max(load_checkpoint(str(folder)).tokenizer.get_vocab().values()) == 30522


def test_says_how_a_pickle_becomes_safetensors(
    make_tiny: MakeTiny, tiny: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_tiny(tmp_path / "checkpoint")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    remove("model.safetensors")(folder)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(str(folder))
    _, _, command = str(caught.value).partition("in its folder: python ")
    subprocess.run(f"{sys.executable} {command}", shell=True, check=True, cwd=folder)
    assert load_checkpoint(str(folder)).source.checkpoint == "checkpoint"
    assert command in (ROOT / "docs" / "exporting.md").read_text()


def test_loads_a_tokenizer_of_a_vocabulary_alone(make_tiny: MakeTiny, tiny: Checkpoint, tmp_path: Path) -> None:
    folder = make_tiny(tmp_path / "checkpoint")
    remove("tokenizer.json")(folder)
    windowers = [
        Windower(one.tokenizer_json, max_tokens=384).tokenize("Où est l'ânesse?", ["Elle est à Rome, unbelievably."])
        for one in (tiny, load_checkpoint(str(folder)))
    ]
    ids = [tokenized.windows[0].input_ids.tolist() for tokenized in windowers]
    assert ids[0] == ids[1]


def test_saves_what_it_loads(tiny: Checkpoint, tmp_path: Path) -> None:
    save_checkpoint(tiny, tmp_path / "saved")
    again = load_checkpoint(str(tmp_path / "saved"))
    assert again.architecture == tiny.architecture
    assert again.tokenizer_json == tiny.tokenizer_json
    loaded = again.model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tiny.model.state_dict().items())


@pytest.mark.parametrize("safetensors_too", [True, False])
def test_never_opens_a_pickle(safetensors_too: bool, make_tiny: MakeTiny, tmp_path: Path) -> None:
    folder, mark = make_tiny(tmp_path / "checkpoint"), tmp_path / "opened"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Trap(mark)))
    if safetensors_too:
        load_checkpoint(str(folder))
    else:
        remove("model.safetensors")(folder)
        with pytest.raises(CheckpointError, match=r"found only pytorch_model\.bin"):
            load_checkpoint(str(folder))
    assert not mark.exists()


class _Trap:
    """Makes a directory when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


# Where a checkpoint can name code of its own, and whether there is another way to read it.
REMOTE_CODE: dict[str, tuple[Damage, bool]] = {
    "model": (config(auto_map={"AutoConfig": "code.Config", "AutoModelForQuestionAnswering": "code.Model"}), False),
    "tokenizer": (edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Slow", "code.Fast"]}), True),
    "tokenizer of an unknown class": (
        edit("tokenizer_config.json", tokenizer_class="Mine", auto_map={"AutoTokenizer": ["code.Slow", "code.Fast"]}),
        False,
    ),
}


@pytest.mark.parametrize(("name_code", "loads"), REMOTE_CODE.values(), ids=REMOTE_CODE)
def test_never_runs_code_of_a_checkpoint(
    name_code: Damage, loads: bool, make_tiny: MakeTiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even if somebody at the terminal would say yes."""
    folder, mark = make_tiny(tmp_path / "checkpoint"), tmp_path / "ran"
    (folder / "code.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    name_code(folder)
    asked: list[str] = []

    def say_yes(prompt: str = "") -> str:
        asked.append(prompt)
        return "y"

    monkeypatch.setattr("builtins.input", say_yes)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with nullcontext() if loads else pytest.raises(CheckpointError, match=r"auto_map|tokenizer cannot be read"):
        load_checkpoint(str(folder))
    assert not mark.exists()
    assert asked == []


def test_a_folder_whose_name_would_break_what_is_printed(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a\n# Heading `b`"
    shutil.copytree(tiny_folder, folder)
    loaded = load_checkpoint(str(folder))
    assert loaded.name == loaded.source.checkpoint == "a_# Heading _b_"
