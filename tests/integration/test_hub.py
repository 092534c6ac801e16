"""Exporting a checkpoint from a hub by its id, with a stand-in of the hub on loopback."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.export.conftest import random_model, save_with_tokenizer

from distilqa.bundle import Bundle

from .hub import Hub, Repository, serve

ID = "distilbert/distilbert-base-uncased-distilled-squad"
COMMIT = "564e9b582944a57a3e586bbb98fd6f0a4118db7f"
TAG = "v1.0"
WANTED = {
    "added_tokens.json",
    "README.md",
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
}
UNWANTED = {
    "pytorch_model.bin",
    "tf_model.h5",
    "modeling_distilbert.py",
    ".gitattributes",
    "checkpoint-500/model.safetensors",
    "onnx/config.json",
}


@pytest.fixture
def hub(checkpoint: Path, tmp_path: Path) -> Iterator[Hub]:
    """A hub that has a tiny checkpoint under the target's id, among files that nobody should want."""
    folder = save_with_tokenizer(random_model("distilbert"), tmp_path / "repository", checkpoint)
    shutil.copy(checkpoint / "README.md", folder)
    (folder / "added_tokens.json").write_text("{}")
    for name in UNWANTED:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not to be opened")
    with serve(Repository(ID, folder, COMMIT, tags=(TAG,))) as running:
        yield running


def run(endpoint: str, home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command with that hub and an empty cache. A command that hangs fails the test."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_ETAG_TIMEOUT": "1",  # how long a silent hub is waited for, in seconds
        "NO_PROXY": "127.0.0.1",
    }
    return subprocess.run(
        command, env=inherited | settings, cwd=home, capture_output=True, text=True, timeout=120, check=False
    )


def export(endpoint: str, home: Path, checkpoint: str, *options: str) -> subprocess.CompletedProcess[str]:
    distilqa = str(Path(sys.executable).with_name("distilqa"))
    return run(endpoint, home, distilqa, "export", checkpoint, "-o", str(home / "bundle"), *options)


def asked_for(hub: Hub, method: str) -> set[str]:
    return {path for asked, path in (request.split(" ", 1) for request in hub.requests) if asked == method}


def test_exports_by_id(hub: Hub, tmp_path: Path) -> None:
    """With all defaults but the budget, so that all packaged questions are asked."""
    done = export(hub.url, tmp_path, ID, "--max-f1-drop", "100")
    assert done.returncode == 0, done.stderr
    assert "cpu-int8: 3,000 of 3,000 questions" in done.stderr
    assert f"wrote {tmp_path / 'bundle'}" in done.stdout
    manifest = Bundle.open(tmp_path / "bundle").manifest
    assert manifest.name == ID.split("/")[1]
    assert manifest.source.checkpoint == ID
    assert manifest.source.revision == COMMIT
    assert f"`{ID}`, revision {COMMIT}" in (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    files = {f"/{ID}/resolve/{COMMIT}/{name}" for name in WANTED}
    assert asked_for(hub, "HEAD") == files
    info = asked_for(hub, "GET") - files
    assert asked_for(hub, "GET") > files
    assert all(path.startswith(f"/api/models/{ID}") for path in info), "nothing else of the repository is fetched"


def test_a_tag_is_recorded_as_its_commit(hub: Hub, tmp_path: Path) -> None:
    load = f"from distilqa_export.graph.checkpoint import load_checkpoint as load; print(load({ID!r}, {TAG!r}).source)"
    done = run(hub.url, tmp_path, sys.executable, "-c", load)
    assert done.returncode == 0, done.stderr
    assert f"revision='{COMMIT}'" in done.stdout
    assert f"/api/models/{ID}/revision/{TAG}" in asked_for(hub, "GET")


def assert_refused(done: subprocess.CompletedProcess[str], home: Path, *words: str) -> None:
    """Exit status 1 and, after the progress, one line on stderr that has these words; nothing was written."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    said = [line for line in done.stderr.splitlines() if not line.startswith("[")]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("distilqa: ")
    for word in words:
        assert word in said[0]
    assert not (home / "bundle").exists()


def test_a_repository_that_has_only_pickles(checkpoint: Path, tmp_path: Path) -> None:
    """It is said before anything is fetched."""
    folder = save_with_tokenizer(random_model("distilbert"), tmp_path / "repository", checkpoint)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with serve(Repository(ID, folder, COMMIT)) as hub:
        done = export(hub.url, tmp_path, ID)
        assert_refused(done, tmp_path, f"{ID}: found only pytorch_model.bin", "torch.load('pytorch_model.bin'")
        assert asked_for(hub, "HEAD") == set()


def test_a_repository_that_has_only_pickles_at_its_top(checkpoint: Path, tmp_path: Path) -> None:
    folder = save_with_tokenizer(random_model("distilbert"), tmp_path / "repository", checkpoint)
    (folder / "onnx").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "onnx")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with serve(Repository(ID, folder, COMMIT)) as hub:
        assert_refused(export(hub.url, tmp_path, ID), tmp_path, f"{ID}: found only pytorch_model.bin")


def load_cached(hub: Hub, home: Path, *names: str) -> subprocess.CompletedProcess[str]:
    """Load a checkpoint of which these files are cached, while the hub is out of reach."""
    fetch = f"from huggingface_hub import snapshot_download as fetch; fetch({ID!r}, allow_patterns={list(names)})"
    assert run(hub.url, home, sys.executable, "-c", fetch).returncode == 0
    find = f"from distilqa_export.checkpoint_files import find_checkpoint; print(find_checkpoint({ID!r}))"
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return run(f"http://127.0.0.1:{bound.getsockname()[1]}", home, sys.executable, "-c", find)


def test_what_is_cached_while_the_hub_is_out_of_reach(hub: Hub, tmp_path: Path) -> None:
    done = load_cached(hub, tmp_path, *WANTED)
    assert done.stdout == f"{ID} from the cache, since the hub is out of reach\n", done.stderr


@pytest.mark.parametrize(
    ("missing", "problem"),
    [
        ({"model.safetensors"}, "found no weights"),
        ({"tokenizer.json", "tokenizer_config.json"}, "neither tokenizer.json nor tokenizer_config.json"),
    ],
)
def test_half_a_checkpoint_is_cached(hub: Hub, tmp_path: Path, missing: set[str], problem: str) -> None:
    """Without its configuration a tokenizer might take case for nothing."""
    done = load_cached(hub, tmp_path, *(WANTED - missing))
    assert done.returncode == 1
    assert problem in done.stderr
    assert f"this is what is cached of {ID}, and the hub is out of reach" in done.stderr


def test_an_unknown_id(hub: Hub, tmp_path: Path) -> None:
    assert_refused(export(hub.url, tmp_path, "nobody/nothing"), tmp_path, "nobody/nothing", "Not Found")


def test_an_unknown_revision(hub: Hub, tmp_path: Path) -> None:
    assert_refused(export(hub.url, tmp_path, ID, "--revision", "v9"), tmp_path, ID, "v9", "Not Found")


@pytest.mark.parametrize("listens", [False, True], ids=["refuses connections", "never answers"])
def test_a_hub_that_is_down(listens: bool, tmp_path: Path) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        if listens:
            bound.listen()
        endpoint = f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert_refused(export(endpoint, tmp_path, ID), tmp_path, ID, "could not be fetched from the hub")
