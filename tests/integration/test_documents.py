"""Every command and every program of the README and of each page is run, in its order, as a reader would.

Each page is read by itself, in a folder that has a bundle unless the page makes one. What differs from a reader's: the
hub is a stand-in on loopback, the server takes a free port, PyTorch is the one that is here, a device is the folder
itself, SQuAD's file, which the reader has downloaded, has three questions, exports take few questions too, benchmarks
run at their smallest, and what is for a GPU is served with a CPU's variant.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from google.protobuf.json_format import ParseDict
from tests.conftest import CHECKPOINT, ROOT
from tests.integration.environments import link
from tests.integration.hub import Repository, serve
from tests.integration.servers import serving
from tests.unit.export.conftest import random_model, save_with_tokenizer

from distilqa_export.samples import write_calibration
from distilqa_protos.v1 import SERVICE
from distilqa_protos.v1 import question_answering_pb2 as pb

ADDRESS = "localhost:50051"
PRINTED_ADDRESS = "127.0.0.1:50051"  # as the server has it in the command that it prints
TARGET_ID = "distilbert/distilbert-base-uncased-distilled-squad"

SQUAD = "dev-v1.1.json"

# `make test` is what runs this test.
COVERED_BY_BEING_HERE = {"make test"}

SMALLEST = {
    ".venv/bin/python -m benchmarks.load": "--rounds 1 --questions 2 --seconds 1 --requests 20",
    ".venv/bin/python -m benchmarks.accuracy": "--first 2 --no-steps",  # each step has its own test
}

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]

# What other programs are asked, and what is shown of none.
NOT_RUN = {"text"}

# How many answers the pages get at least that show how.
ASK = {"README.md": 3, "docs/clients.md": 6, "docs/edge.md": 2, "docs/quickstart.md": 2, "docs/security.md": 2}

EXPORT = f"distilqa export {TARGET_ID} -o bundle"
MAKES_A_BUNDLE = re.compile(r"^distilqa export .*-o bundle$", re.MULTILINE)


def blocks(page: str) -> list[tuple[str, str]]:
    """The page's fenced blocks, as (language, content)."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    assert {language for language, _ in found} <= {"sh", "python"} | NOT_RUN
    return found


class Shell:
    """Runs a page's blocks in one directory, keeping the servers that they start."""

    def __init__(
        self, directory: Path, environment: dict[str, str], evaluation: Path, exported: Path, stack: ExitStack
    ) -> None:
        self.directory, self.environment, self.exported, self.stack = directory, environment, exported, stack
        write_calibration(directory / "twenty.jsonl", passages=20)
        self.tiny = ""
        for kind in ("distilbert", "bert"):
            save_with_tokenizer(random_model(kind), directory / f"tiny-{kind}", CHECKPOINT)
            self.tiny += f" --{kind} {directory}/tiny-{kind}"
        self.few = f"--calibration {directory / 'twenty.jsonl'} --eval {evaluation} --max-f1-drop 100"
        self.smallest = SMALLEST | {"distilqa export": self.few}
        self.smallest[".venv/bin/python -m benchmarks.load"] += f" --bundle {directory / 'bundle'}"
        self.address = ADDRESS

    def run(self, command: str) -> str:
        """Run a command and return what it prints; one that serves stays in the background.

        What several pages export is exported once.
        """
        if command == EXPORT and self.exported.exists():
            shutil.copytree(self.exported, self.directory / "bundle")
            return ""
        printed = self._run(command)
        if command == EXPORT:
            shutil.copytree(self.directory / "bundle", self.exported)
        return printed

    def _run(self, command: str) -> str:
        in_checkout = command.startswith(("make ", ".venv/bin/python ", "python3 -m venv venv", "venv/"))
        directory = ROOT if in_checkout else self.directory
        for name, options in self.smallest.items():
            command = command.replace(name, f"{name} {options}")
        command = command.replace(f'"{TARGET_ID.partition("/")[2]}"', f'"{CHECKPOINT.name}"')
        command = re.sub(r"^\.venv/bin/python ", f"{sys.executable} ", command)
        if command.startswith("venv/bin/pip install torch"):
            link("torch", self.directory / "venv")
            return ""
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


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the bundle is once it has been exported."""
    return tmp_path_factory.mktemp("exported") / "bundle"


@pytest.fixture
def shell(tmp_path: Path, squad: Path, evaluation: Path, exported: Path) -> Iterator[Shell]:
    assert squad == tmp_path / SQUAD
    with ExitStack() as stack:
        hub = stack.enter_context(serve(Repository(TARGET_ID, CHECKPOINT, commit="0" * 40)))
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hub"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        yield Shell(tmp_path, environment, evaluation, exported, stack)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_every_block_runs(page: str, shell: Shell, bundle: Path) -> None:
    if not MAKES_A_BUNDLE.search((ROOT / page).read_text()):
        shutil.copytree(bundle, shell.directory / "bundle")
    printed, asked = "", []
    for language, content in blocks(page):
        if language == "python":
            asked.append(shell.run_program(content))
        elif language == "sh":
            for command in content.splitlines():
                if command not in COVERED_BY_BEING_HERE:
                    printed = shell.run(command)
                    assert "Traceback" not in printed
                    asked += [printed] if "distilqa ask" in command else []
        elif not content.startswith("grpcurl"):  # what the last command prints
            assert _without_numbers(content) == _without_numbers(printed)
    assert all("lazy dog" in text for text in asked)
    assert len(asked) >= ASK.get(page, 0)


def _without_numbers(text: str) -> str:
    """Scores in the second decimal depend on the processor."""
    return re.sub(r"\d", "#", text)


def test_what_the_pages_ask_with_grpcurl_is_of_the_protocol() -> None:
    (command,) = (content for _, content in blocks("docs/clients.md") if content.startswith("grpcurl"))
    _, _, _, asked, _, method = shlex.split(command.replace("\\\n", ""))
    service, _, name = method.partition("/")
    assert service == SERVICE
    assert name in {one.name for one in pb.DESCRIPTOR.services_by_name["QuestionAnswering"].methods}
    assert ParseDict(json.loads(asked), pb.AnswerRequest()).question


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_site_has_no_broken_link_and_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True)
    pages = [path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.html")]
    assert len(pages) > len(PAGES)
    fetched = [
        found
        for page in pages
        for found in re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?(https?:)?//", page)
    ]
    assert not fetched


def test_links_of_the_readme_lead_somewhere() -> None:
    """Those of the pages are the site's to check."""
    for target in re.findall(r"\]\(([^)]+)\)", (ROOT / "README.md").read_text()):
        path, _, heading = target.partition("#")
        if ":" not in path:
            path = path or "README.md"
            assert (ROOT / path).exists(), target
            headings = re.findall(r"^#+ (.*)$", (ROOT / path).read_text(), flags=re.MULTILINE) if heading else [""]
            assert heading in {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}, target
