"""Every command and every program of the README is run, in its order, as a reader would.

What differs from a reader's: the hub is a stand-in on loopback, the server takes a free port, PyTorch's index is not
asked, a device is the folder itself, SQuAD's file, which the reader has downloaded, has three questions, exports take
few questions too, benchmarks run at their smallest, and what is for a GPU is served with a CPU's variant.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.conftest import CHECKPOINT, ROOT
from tests.integration.hub import Repository, serve
from tests.integration.servers import serving
from tests.unit.export.conftest import random_model, save_with_tokenizer

from distilqa_export.samples import write_calibration

ADDRESS = "localhost:50051"
PRINTED_ADDRESS = "127.0.0.1:50051"  # as the server has it in the command that it prints
TARGET_ID = "distilbert/distilbert-base-uncased-distilled-squad"

SQUAD = "dev-v1.1.json"

# `make test` is what runs this test.
COVERED_BY_BEING_HERE = {"make test"}

SMALLEST = {
    ".venv/bin/python -m benchmarks.load": "--rounds 1 --questions 2 --seconds 1 --requests 20",
    ".venv/bin/python -m benchmarks.accuracy": "--first 2",
}


def blocks() -> list[tuple[str, str]]:
    """The README's fenced blocks, as (language, content)."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert {language for language, _ in found} == {"console", "sh", "python"}
    return found


class Shell:
    """Runs the README's blocks in one directory, keeping the servers that they start."""

    def __init__(self, directory: Path, environment: dict[str, str], evaluation: Path, stack: ExitStack) -> None:
        self.directory, self.environment, self.stack = directory, environment, stack
        write_calibration(directory / "twenty.jsonl", passages=20)
        self.tiny = ""
        for kind in ("distilbert", "bert"):
            save_with_tokenizer(random_model(kind), directory / f"tiny-{kind}", CHECKPOINT)
            self.tiny += f" --{kind} {directory}/tiny-{kind}"
        self.few = f"--calibration {directory / 'twenty.jsonl'} --eval {evaluation} --max-f1-drop 100"
        self.smallest = SMALLEST | {"distilqa export": self.few}
        self.address = ADDRESS

    def run(self, command: str) -> str:
        """Run a command and return what it prints; one that serves stays in the background."""
        in_checkout = command.startswith(("make ", ".venv/bin/python ", "python3 -m venv venv", "venv/"))
        directory = ROOT if in_checkout else self.directory
        for name, options in self.smallest.items():
            command = command.replace(name, f"{name} {options}")
        command = re.sub(r"^\.venv/bin/python ", f"{sys.executable} ", command)
        command = re.sub(r" --index-url \S+", "", command)
        if in_checkout:
            command = command.replace(SQUAD, str(self.directory / SQUAD))
        command = command.replace("venv/bin/pip", f"{self.directory}/venv/bin/pip")
        command = command.replace("-m venv venv", f"-m venv {self.directory}/venv")
        command = command.replace(".venv/bin/distilqa", "distilqa").replace(ADDRESS, self.address)
        command = command.replace(PRINTED_ADDRESS, self.address).replace("serve gpu-bundle", "serve bundle")
        if command.startswith("make bench"):
            results = self.directory / command.removeprefix("make ")
            command += f" BENCH_FLAGS='--tiny --only cost {self.tiny} --results {results}'"
        if command in ("make serve", "make dist"):
            command += f" BUNDLE={self.directory / 'served'} CHECKPOINT='{CHECKPOINT}' EXPORT_FLAGS='{self.few}'"
            command += f" DIST={self.directory / 'dist'}"
        command = re.sub(r"^scp (\S+) device:$", r"cp \1 .", command)
        if command.startswith(("make serve", "distilqa serve ")) and not command.endswith("--print-settings"):
            serving_now = serving(shlex.split(command), cwd=directory, env=self.environment)
            self.address = self.stack.enter_context(serving_now)[1]
            return ""
        done = subprocess.run(
            ["bash", "-ec", command], cwd=directory, env=self.environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def run_program(self, source: str) -> str:
        source = source.replace(ADDRESS, self.address)
        return self.run(f"{shlex.quote(sys.executable)} -W error -c {shlex.quote(source)}")


@pytest.fixture
def shell(tmp_path: Path, squad: Path, evaluation: Path) -> Iterator[Shell]:
    assert squad == tmp_path / SQUAD
    with ExitStack() as stack:
        hub = stack.enter_context(serve(Repository(TARGET_ID, CHECKPOINT, commit="0" * 40)))
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hub"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        yield Shell(tmp_path, environment, evaluation, stack)


def test_every_block_runs(shell: Shell) -> None:
    printed: dict[str, str] = {}
    shown = {}
    for language, content in blocks():
        if language == "console":
            command, _, output = content.removeprefix("$ ").partition("\n")
            shown[command] = output
        elif language == "python":
            printed[content] = shell.run_program(content)
        else:
            for command in content.splitlines():
                if command not in COVERED_BY_BEING_HERE:
                    printed[command] = shell.run(command)
    assert len(printed) > 12
    for command, output in shown.items():
        assert _without_numbers(shell.run(command)) == _without_numbers(output)
    for text in printed.values():
        assert "Traceback" not in text
    asked = [text for command, text in printed.items() if "ask" in command or "answer" in command]
    assert len(asked) == 11
    assert all("lazy dog" in text for text in asked)


def _without_numbers(text: str) -> str:
    """Scores in the second decimal depend on the processor."""
    return re.sub(r"\d", "#", text)
