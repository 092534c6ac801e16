"""Fixtures shared by all tests: the shipped checkpoint, the bundle made of it once a run, a small SQuAD file."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from distilqa_export.export import export
from distilqa_export.samples import write_evaluation

ROOT = Path(__file__).parent.parent
CHECKPOINT = ROOT / "models" / "distilbert-384-squad"


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The folder of the shipped checkpoint."""
    return CHECKPOINT


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first hundred of the packaged questions, as a file: exporting takes less time with them."""
    path = tmp_path_factory.mktemp("evaluation") / "hundred.json"
    write_evaluation(path, passages=50)
    return path


@pytest.fixture(scope="session")
def bundle(evaluation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the shipped checkpoint with both variants. Tests must not change it."""
    target = tmp_path_factory.mktemp("export") / "bundle"
    export(str(CHECKPOINT), target, evaluation=evaluation, max_f1_drop=100)
    return target


@pytest.fixture(scope="session")
def gpu_bundle(evaluation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the shipped checkpoint with fp32 and a variant for a GPU nobody ran. Tests must not change it."""
    target = tmp_path_factory.mktemp("export") / "gpu-bundle"
    export(str(CHECKPOINT), target, variants=("cpu-fp32", "cuda-fp16"), evaluation=evaluation, max_f1_drop=100)
    return target


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    """A small SQuAD v1.1 file, ``dev-v1.1.json``: one question is answered right, one nearly, one wrong."""
    context = "The lighthouse – 49 metres high – was built by Renée Solberg in 1887."
    asked = {
        "who": ("Who built the lighthouse?", ["Solberg", "the Renée Solberg!"]),
        "when": ("When was the lighthouse built?", ["the year 1887", "in 1887 or so"]),
        "wrong": ("How high is the lighthouse?", ["nobody knows"]),
    }
    questions = [
        {"id": id, "question": text, "answers": [{"text": answer, "answer_start": 0} for answer in answers]}
        for id, (text, answers) in asked.items()
    ]
    content = {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": questions}]}]}
    path = tmp_path / "dev-v1.1.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """SIGINT interrupts this process and those it starts, also where the tests were started to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
