"""The command line as a user meets it: what it prints, and how it fails."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.integration.servers import CLI

QUESTION = "What does the fox jump over?"
PASSAGE = "The quick brown fox jumps over the lazy dog."


def run(arguments: Sequence[str], stdin: bytes = b"", env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """Run the command line and return its exit status, stdout and stderr."""
    done = subprocess.run(
        [*CLI, *arguments], input=stdin, capture_output=True, timeout=120, env=os.environ | (env or {})
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("where", ["bundle", "target"])
def test_ask(bundle: Path, target: str, where: str) -> None:
    location = ["--bundle", str(bundle)] if where == "bundle" else ["--target", target]
    status, out, err = run(["ask", QUESTION, "--passage", "-", *location], PASSAGE.encode())
    assert (status, err) == (0, "")
    answer, line = out.splitlines()
    assert answer.startswith("the lazy dog (0.")
    assert line.strip() == "The quick brown fox jumps over [the lazy dog]."


def test_ask_prints_json(bundle: Path, tmp_path: Path) -> None:
    """Line ends and characters beyond ASCII keep their places."""
    first, second = tmp_path / "one", tmp_path / "two"
    first.write_bytes("Überall\r\nnichts.".encode())
    second.write_bytes("日本 🦊\r\nThe fox jumps over the lazy dog.".encode())
    options = ["--passage", str(first), "--passage", str(second), "--bundle", str(bundle), "--json", "--top-k", "2"]
    status, out, err = run(["ask", QUESTION, *options])
    assert (status, err) == (0, "")
    reply = json.loads(out)
    assert reply["question"] == QUESTION
    assert len(reply["answers"]) == 2
    best = reply["answers"][0]
    text = second.read_bytes().decode()
    assert (best["passage"], text[best["start"] : best["end"]]) == (1, best["text"])


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["ask", "", "--passage", "-"], PASSAGE.encode(), "question: is empty"),
        (["ask", QUESTION, "--passage", "-"], b"", "passages[0]: has no words"),
        (["ask", QUESTION, "--passage", "-"], b"\xff\xfe", "--passage: -: is not UTF-8 at byte 0"),
        (["ask", QUESTION, "--passage", "nowhere"], b"", "--passage: nowhere: No such file or directory"),
        (["ask", QUESTION, "--passage", "-", "--top-k", "0"], b"x", "top_k: is 0, must be 1 to 100"),
        (["ask", QUESTION, "--passage", "-", "--variant", "gpu"], b"x", "it has cpu-fp32, cpu-int8"),
    ],
)  # fmt: skip
def test_ask_refuses(bundle: Path, arguments: list[str], stdin: bytes, message: str) -> None:
    status, out, err = run([*arguments, "--bundle", str(bundle)], stdin)
    assert (status, out) == (1, "")
    assert err.startswith("distilqa: ")
    assert err.rstrip().endswith(message)
    assert len(err.splitlines()) == 1


def test_ask_where_nobody_is() -> None:
    status, _, err = run(["ask", QUESTION, "--passage", "-", "--target", "127.0.0.1:1"], PASSAGE.encode())
    assert status == 1
    assert err.startswith("distilqa: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "nowhere"], "nowhere is not a bundle"),
        (["serve"], "bundle"),
        (["serve", "BUNDLE", "--port", "99999"], "port"),
        (["serve", "BUNDLE", "--port", "abc"], "port"),
        (["serve", "BUNDLE", "--variant", "cuda"], "has no variant 'cuda'"),
        (["serve", "BUNDLE", "--host", "256.0.0.1", "--port", "0"], "cannot bind 256.0.0.1:0"),
        (["inspect", "nowhere"], "nowhere is not a bundle"),
        (["export", "nowhere/nothing", "-o", "BUNDLE"], "exists; pass --overwrite to replace it"),
        (["export", "./nowhere", "-o", "new"], "./nowhere"),
    ],
)
def test_commands_refuse(bundle: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    arguments = [str(tmp_path / "new") if a == "new" else str(bundle) if a == "BUNDLE" else a for a in arguments]
    status, _, err = run(arguments, env={"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_DISABLE_TELEMETRY": "1"})
    assert status == 1
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("distilqa: ")
    assert message in err.splitlines()[-1]


def test_settings_come_from_the_environment_too(bundle: Path) -> None:
    status, _, err = run(["serve", str(bundle)], env={"DISTILQA_MAX_REQUESTS": "0"})
    assert status == 1
    assert "max_requests" in err


def test_inspect(bundle: Path) -> None:
    status, out, err = run(["inspect", str(bundle)])
    assert (status, err) == (0, "")
    manifest = json.loads((bundle / "manifest.json").read_text())
    shown = [manifest["source"]["weights_sha256"], *manifest["variants"], *manifest["files"]]
    shown += [file["sha256"] for file in manifest["files"].values()]
    shown += [f"{tool} {number}" for tool, number in manifest["tools"].items()]
    shown += ["answers as fp32", "largest difference from pytorch", "6 Attention", "22,565,378 parameters"]
    assert [text for text in shown if text not in out] == []
    status, out, err = run(["inspect", str(bundle), "--json"])
    assert (status, err, json.loads(out)) == (0, "", manifest)


def test_inspect_finds_damage_in_any_file(bundle: Path, tmp_path: Path) -> None:
    for name in json.loads((bundle / "manifest.json").read_text())["files"]:
        damaged = tmp_path / f"without-{name}"
        damaged.mkdir()
        for path in bundle.iterdir():
            (damaged / path.name).hardlink_to(path)
        content = bytearray((damaged / name).read_bytes())
        content[len(content) // 2] ^= 1
        (damaged / name).unlink()
        (damaged / name).write_bytes(content)
        status, _, err = run(["inspect", str(damaged)])
        assert status == 1
        assert name in err
