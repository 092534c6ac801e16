"""The wheel: what is in it, and what each extra alone is good for in an otherwise empty environment."""

from __future__ import annotations

import json
import shlex
import sys
import tomllib
import zipfile
from collections.abc import Callable
from email import message_from_string
from pathlib import Path

import pytest
from tests.integration.environments import install, output, run

from distilqa.reader import Reader

ROOT = Path(__file__).parents[2]
PACKAGES = (ROOT / "serving" / "distilqa", ROOT / "export" / "distilqa_export", ROOT / "protos" / "distilqa_protos")

QUESTION = "What does the fox jump over?"
FOX = "The quick brown fox jumps over the lazy dog."

Install = Callable[[str], Path]


@pytest.fixture(scope="module")
def contents(wheel: Path) -> dict[str, bytes]:
    """The wheel's files, by their names in it."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Install:
    """A function that makes an environment with the wheel and the named extras alone, and returns its programs."""
    return lambda extras: install(wheel, extras, tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="module")
def cpu(installed: Install) -> Path:
    return installed("cpu")


@pytest.fixture(scope="module")
def client(installed: Install) -> Path:
    return installed("client")


@pytest.fixture(scope="module")
def server(installed: Install) -> Path:
    return installed("server,cpu")


def missing(programs: Path, modules: list[str], cwd: Path) -> list[str]:
    """Which of the modules cannot be imported there."""
    code = f"""if True:
        import importlib, json
        missing = []
        for name in {modules}:
            try:
                importlib.import_module(name)
            except ModuleNotFoundError:
                missing.append(name)
        print(json.dumps(missing))"""
    names: list[str] = json.loads(output(programs, code, cwd))
    return names


def test_wheel_has_every_file_of_the_packages_and_nothing_else(contents: dict[str, bytes]) -> None:
    expected = {
        path.relative_to(package.parent).as_posix(): path.read_bytes()
        for package in PACKAGES
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name: content for name, content in contents.items() if ".dist-info/" not in name} == expected


@pytest.mark.parametrize(
    "name",
    [
        "distilqa/py.typed",
        "distilqa_export/data/evaluation.json.gz",
        "distilqa_export/data/calibration.jsonl",
        "distilqa_export/py.typed",
        "distilqa_protos/py.typed",
        "distilqa_protos/v1/question_answering.proto",
        "distilqa_protos/v1/question_answering_pb2.py",
        "distilqa_protos/v1/question_answering_pb2.pyi",
        "distilqa_protos/v1/question_answering_pb2_grpc.py",
    ],
)
def test_wheel_has(name: str, contents: dict[str, bytes]) -> None:
    assert name in contents


def metadata(contents: dict[str, bytes], name: str) -> str:
    (found,) = (content for path, content in contents.items() if path.endswith(f".dist-info/{name}"))
    return found.decode()


def test_wheel_describes_itself(contents: dict[str, bytes]) -> None:
    for name in ("LICENSE", "NOTICE"):
        assert metadata(contents, f"licenses/{name}") == (ROOT / name).read_text(encoding="utf-8")
    assert "distilqa = distilqa.__main__:main" in metadata(contents, "entry_points.txt")
    fields = message_from_string(metadata(contents, "METADATA"))
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields["Requires-Python"] == ">=3.11"
    assert set(fields.get_all("Provides-Extra", [])) >= {"cpu", "gpu", "client", "server", "export"}
    always = [line for line in fields.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert sorted(line.split(">")[0] for line in always) == ["numpy", "tokenizers"]


def test_the_two_runtimes_are_declared_to_conflict() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert [{"extra": "cpu"}, {"extra": "gpu"}] in project["tool"]["uv"]["conflicts"]


def test_cpu_alone_answers(cpu: Path, bundle: Path, tmp_path: Path) -> None:
    code = f"""if True:
        import dataclasses, json, distilqa
        (answer,) = distilqa.Reader({str(bundle)!r}).answer({QUESTION!r}, {FOX!r})
        print(json.dumps(dataclasses.asdict(answer)))"""
    found = json.loads(output(cpu, code, tmp_path))
    (expected,) = Reader(bundle).answer(QUESTION, FOX)
    assert (found["text"], found["start"], found["end"]) == (expected.text, expected.start, expected.end)
    assert found["score"] == pytest.approx(expected.score, abs=0.1)


def test_cpu_alone_is_small(cpu: Path, tmp_path: Path) -> None:
    unwanted = ["torch", "transformers", "onnx", "grpc", "pydantic"]
    assert missing(cpu, [*unwanted, "numpy", "tokenizers", "onnxruntime"], tmp_path) == unwanted


def test_cpu_alone_has_the_command(cpu: Path, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "fox.txt").write_text(FOX, encoding="utf-8")
    done = run(cpu / "distilqa", "ask", QUESTION, "--passage", "fox.txt", "--bundle", bundle, cwd=tmp_path, check=True)
    assert "[the lazy dog]" in done.stdout


def test_client_alone_has_the_clients(client: Path, tmp_path: Path) -> None:
    code = f"""if True:
        import asyncio, distilqa
        async def ask() -> None:
            async with distilqa.AsyncClient("unix:none") as client:
                try:
                    await client.answer({QUESTION!r}, {FOX!r})
                except distilqa.Unavailable:
                    print("async")
        with distilqa.Client("unix:none") as client:
            try:
                client.model()
            except distilqa.Unavailable:
                print("sync")
        asyncio.run(ask())"""
    assert output(client, code, tmp_path).split() == ["sync", "async"]


def test_client_alone_is_small(client: Path, tmp_path: Path) -> None:
    unwanted = ["onnxruntime", "torch", "transformers", "onnx", "pydantic"]
    assert missing(client, [*unwanted, "grpc"], tmp_path) == unwanted


def test_client_alone_says_what_a_reader_needs(client: Path, bundle: Path, tmp_path: Path) -> None:
    code = f"""if True:
        import distilqa
        try:
            distilqa.Reader({str(bundle)!r})
        except distilqa.MissingDependency as error:
            print(error)"""
    assert "pip install '.[cpu]'" in output(client, code, tmp_path)


def test_client_alone_inspects(client: Path, bundle: Path, tmp_path: Path) -> None:
    assert "digests verified" in run(client / "distilqa", "inspect", bundle, cwd=tmp_path, check=True).stdout


def test_server_has_what_it_needs(server: Path, tmp_path: Path) -> None:
    assert missing(
        server, ["torch", "transformers", "onnx", "distilqa.server.app", "distilqa.server.single_process"], tmp_path
    ) == [
        "torch",
        "transformers",
        "onnx",
    ]
    assert "--max-requests" in run(server / "distilqa", "serve", "--help", cwd=tmp_path, check=True).stdout


# Each command where its extra is missing, and the command that mends it. BUNDLE stands for the bundle's path.
@pytest.mark.parametrize(
    ("environment", "command", "mend"),
    [
        ("cpu", "serve BUNDLE", "pip install '.[server,cpu]'"),
        ("cpu", "serve BUNDLE --port 0", "pip install '.[server,cpu]'"),
        ("client", "serve --port 0 BUNDLE", "pip install '.[server,cpu]'"),
        ("cpu", "export nowhere -o out", "pip install '.[export,cpu]'"),
        ("cpu", "ask Who? --passage fox.txt --target localhost:0", "pip install '.[client]'"),
        ("client", "serve BUNDLE", "pip install '.[server,cpu]'"),
        ("client", "export nowhere -o out", "pip install '.[export,cpu]'"),
        ("client", "ask Who? --passage fox.txt --bundle BUNDLE", "pip install '.[cpu]'"),
    ],
)
def test_a_command_without_its_extra_says_what_to_run(
    environment: str, command: str, mend: str, bundle: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "fox.txt").write_text(FOX, encoding="utf-8")
    programs: Path = request.getfixturevalue(environment)
    arguments = command.replace("BUNDLE", str(bundle)).split()
    done = run(programs / "distilqa", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("distilqa: ")
    assert mend in line


def test_generated_protobuf_code_is_what_the_definition_gives(tmp_path: Path) -> None:
    """By the Makefile's own command, written elsewhere."""
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("-m grpc_tools.protoc", 1)[1]
    options = shlex.split(recipe.replace("\\\n", " ").split("\n", 1)[0])
    assert sum(option.endswith("_out=protos") for option in options) == 3
    elsewhere = [option.replace("_out=protos", f"_out={tmp_path}") for option in options]
    run(sys.executable, "-m", "grpc_tools.protoc", *elsewhere, cwd=ROOT, check=True)
    generated = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*_pb2*")}
    protos = ROOT / "protos"
    committed = {path.relative_to(protos): path.read_text() for path in protos.rglob("*_pb2*") if path.suffix != ".pyc"}
    assert generated == committed


def test_reference_of_the_protocol_is_what_the_definition_gives() -> None:
    made = run(sys.executable, "docs/protocol.py", cwd=ROOT, check=True).stdout
    assert made == (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
