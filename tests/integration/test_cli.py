"""The command line as a user meets it: what it prints, and how it fails."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.bundles import let_products_be_wrong, replace_file
from tests.integration.servers import CLI, serving

from distilqa.bundle import SELF_TEST, VARIANTS
from distilqa.engine.processor import read_processor

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


def test_no_passage_steers_the_terminal(bundle: Path, tmp_path: Path) -> None:
    passage = tmp_path / "\x1b[31mred"
    passage.write_text("\x1b]0;title\x07The fox jumps over\x1b[2J the lazy dog.\u202e")
    (tmp_path / "other").write_text(" \n")
    status, out, err = run(
        ["ask", QUESTION, "--passage", str(passage), str(tmp_path / "other"), "--bundle", str(bundle)]
    )
    assert (status, err) == (0, "")
    assert out.isascii()
    assert out.replace("\n", "").isprintable()
    assert out.count(r"\x1b") == 3


def test_no_manifest_steers_the_terminal(bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(bundle, tmp_path / "bundle")
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    manifest["source"]["checkpoint"] = manifest["created"] = "\x1b[2Jforged\nname"
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    status, out, _ = run(["inspect", str(tmp_path / "bundle")])
    assert status == 0
    assert out.replace("\n", "").isprintable()
    assert out.count(r"\x1b[2Jforged\nname") == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serve", "b", "--max-reqeusts", "3"], "--max-reqeusts (is --max-requests meant?) 3"),
        (["eval", "b", "f", "--prediction=x"], "--prediction=x (is --predictions meant?)"),
        (["eval", "b", "f", "--novel"], "--novel"),
    ],
)
def test_a_misspelt_flag_is_told_what_was_meant(arguments: list[str], told: str) -> None:
    status, _, err = run(arguments)
    assert status == 2
    assert err.endswith(f"unrecognized arguments: {told}\n")


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
    assert (best["passage"], best["file"], text[best["start"] : best["end"]]) == (1, str(second), best["text"])


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["ask", "", "--passage", "-"], PASSAGE.encode(), "QUESTION: is empty"),
        (["ask", QUESTION, "--passage", "-"], b"", "--passage: -: has no words"),
        (["ask", QUESTION, "--passage", "-", "-"], b"Text.", "--passage: - may be given once; stdin can be read once"),
        (["ask", QUESTION, "--passage", "-"], b"\xff\xfe", "--passage: -: is not UTF-8 at byte 0"),
        (["ask", QUESTION, "--passage", "nowhere"], b"", "--passage: nowhere: No such file or directory"),
        (["ask", QUESTION, "--passage", "-", "--top-k", "0"], b"x", "--top-k: is 0, must be 1 to 100"),
        (["ask", QUESTION, "--passage", "-", "--variant", "gpu"], b"x", "it has cpu-fp32, cpu-int8"),
    ],
)  # fmt: skip
def test_ask_refuses(bundle: Path, arguments: list[str], stdin: bytes, message: str) -> None:
    status, out, err = run([*arguments, "--bundle", str(bundle)], stdin)
    assert (status, out) == (1, "")
    assert err.startswith("distilqa: ")
    assert err.rstrip().endswith(message)
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("nowhere", ["127.0.0.1:1", ""])
def test_ask_where_nobody_is(nowhere: str) -> None:
    status, _, err = run(["ask", QUESTION, "--passage", "-", "--target", nowhere], PASSAGE.encode())
    assert status == 1
    assert err.startswith("distilqa: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve", "nowhere"], "nowhere is not a bundle"),
        (["serve"], "BUNDLE: is missing"),
        (["serve", "CHECKPOINT"], "it looks like a checkpoint: distilqa export"),
        (["serve", "BUNDLE", "--port", "99999"], "--port: Input should be less than or equal to 65535 (got '99999')"),
        (["serve", "BUNDLE", "--port", "abc"], "--port: Input should be a valid integer (got 'abc')"),
        (["serve", "BUNDLE", "--config", "nowhere"], "--config: nowhere: No such file or directory"),
        (["serve", "BUNDLE", "--variant", "cuda"], "has no variant 'cuda'"),
        (["serve", "BUNDLE", "--host", "256.0.0.1", "--port", "0"], "cannot bind 256.0.0.1:0"),
        (["inspect", "nowhere"], "nowhere is not a bundle"),
        (["export", "nowhere/nothing", "-o", "BUNDLE"], "exists; pass --overwrite to replace it"),
        (["export", "./nowhere", "-o", "new"], "./nowhere"),
    ],
)
def test_commands_refuse(bundle: Path, checkpoint: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    named = {"new": tmp_path / "new", "BUNDLE": bundle, "CHECKPOINT": checkpoint}
    arguments = [str(named.get(argument, argument)) for argument in arguments]
    status, _, err = run(arguments, env={"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HUB_DISABLE_TELEMETRY": "1"})
    assert status == 1
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("distilqa: ")
    assert message in err.splitlines()[-1]
    if arguments[0] == "serve":  # of which gRPC would talk too
        assert err.count("\n") == 1


def test_settings_come_from_the_environment_too(bundle: Path) -> None:
    status, _, err = run(["serve", str(bundle)], env={"DISTILQA_MAX_REQUESTS": "0"})
    assert status == 1
    assert err.startswith("distilqa: DISTILQA_MAX_REQUESTS: ")


def test_settings_come_from_a_file_too(bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(f"bundle = '{bundle}'\nport = 0\n")
    with serving([*CLI, "serve", "--config", str(file)]) as (process, _):
        process.terminate()
        assert process.wait(timeout=60) == 0


def test_settings_are_printed(tmp_path: Path) -> None:
    """Whatever the encoding of stdout."""
    environment = {"PYTHONIOENCODING": "ascii", "DISTILQA_CREDENTIALS": "é.toml", "DISTILQA_DRAIN_S": "5"}
    status, out, err = run(["serve", "nowhere", "--print-settings"], env=environment)
    assert (status, err) == (0, "")
    file = tmp_path / "server.toml"
    file.write_text(out)
    status, again, err = run(["serve", "--config", str(file), "--print-settings"])
    assert (status, err) == (0, "")
    assert tomllib.loads(again) == tomllib.loads(out)
    assert tomllib.loads(again)["credentials"] == "é.toml"


def test_inspect(bundle: Path) -> None:
    status, out, err = run(["inspect", str(bundle)])
    assert (status, err) == (0, "")
    manifest = json.loads((bundle / "manifest.json").read_text())
    shown = [manifest["source"]["weights_sha256"], *manifest["variants"], *manifest["files"]]
    shown += [file["sha256"] for file in manifest["files"].values()]
    shown += [f"{tool} {number}" for tool, number in manifest["tools"].items()]
    shown += [
        "answers in fp32's place",
        "logits differ from PyTorch's by at most",
        manifest["processor"],
        "6 Attention",
        "22,565,378 parameters",
    ]
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


def test_eval(bundle: Path, squad: Path) -> None:
    """One answer of three is right; "1887" against "the year 1887", two words, has F1 2/3; the third is wrong."""
    status, out, err = run(["eval", str(bundle), str(squad)])
    assert status == 0
    lines = out.splitlines()
    assert {line.partition(":")[0] for line in lines} == set(VARIANTS)
    for line in lines:
        assert ": exact match 33.33, F1 55.56; 3 questions, " in line
        assert line.endswith(" answers/s")
    assert {line.partition(":")[0] for line in err.splitlines()} == set(VARIANTS)
    assert err.count(": 3 of 3, ") == 2


def test_on_a_cpu_a_variant_for_a_gpu_is_left_out_or_refused(gpu_bundle: Path, squad: Path) -> None:
    status, out, err = run(["eval", str(gpu_bundle), str(squad)])
    assert (status, [line.partition(":")[0] for line in out.splitlines()]) == (0, ["cpu-fp32"])
    assert "cuda-fp16: left out, since this ONNX Runtime is for CPUs alone\n" in err
    _, out, _ = run(["inspect", str(gpu_bundle)])
    assert "variant cuda-fp16 (fp16, unverified)\n" in out
    for command, problem in (
        (["eval", str(gpu_bundle), str(squad)], "this ONNX Runtime has no CUDAExecutionProvider: pip uninstall"),
        (["serve", str(gpu_bundle), "--port", "0"], "cuda-fp16 is unverified: no GPU ran it when it was made."),
        (["serve", str(gpu_bundle), "--port", "0", "--unverified", "allow"], "has no CUDAExecutionProvider"),
    ):
        status, out, err = run([*command, "--variant", "cuda-fp16"])
        assert (status, out) == (1, "")
        assert problem in err


@pytest.fixture
def half_usable(bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose int8 variant this processor is not right for, by its probe."""
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle", copy_function=os.link))
    let_products_be_wrong(copy)
    return copy


WRONG = "cpu-int8 cannot be used on this processor: it multiplies 8-bit numbers wrongly ("


def test_ask_uses_the_next_variant_and_says_so_in_a_line(half_usable: Path) -> None:
    options = ["--passage", "-", "--bundle", str(half_usable)]
    status, out, err = run(["ask", QUESTION, *options], PASSAGE.encode())
    assert (status, out.partition(" (0.")[0]) == (0, "the lazy dog")
    assert err.startswith(f"{half_usable}: {WRONG}")
    assert err.endswith("cpu-fp32 is used instead; --variant cpu-fp32 asks for it by name\n")
    assert err.count("\n") == 1
    assert run(["ask", QUESTION, *options, "--variant", "cpu-fp32"], PASSAGE.encode()) == (0, out, "")
    status, out, err = run(["ask", QUESTION, *options, "--variant", "cpu-int8"], PASSAGE.encode())
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(f"distilqa: {half_usable}: {WRONG}")


def test_nothing_is_kept_in_the_users_home(bundle: Path, tmp_path: Path) -> None:
    """ONNX Runtime would, and send it to its makers."""
    options = ["--passage", "-", "--bundle", str(bundle)]
    without = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [*CLI, "ask", QUESTION, *options], input=PASSAGE.encode(), env=without | {"HOME": str(tmp_path)}, check=True
    )
    assert done.returncode == 0
    assert list(tmp_path.rglob("*")) == []


def test_inspect_tells_what_can_be_used_here(half_usable: Path, gpu_bundle: Path) -> None:
    shown = "can be used on this machine"
    _, out, _ = run(["inspect", str(half_usable)])
    told = [line.split(shown)[1].strip() for line in out.splitlines() if shown in line]
    assert told[0].startswith(f"no: {WRONG}")
    assert told[1:] == ["yes, and is where none is named"]
    assert f"  this machine  {read_processor()}\n" in out
    _, out, _ = run(["inspect", str(gpu_bundle)])
    assert "no: this ONNX Runtime has no CUDAExecutionProvider: " in out


def test_inspect_tells_of_a_variant_that_fails_its_self_test(bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle", copy_function=os.link))
    test = json.loads((copy / SELF_TEST).read_text())
    test["logits"]["cpu-fp32"][0][0][0] += 1
    replace_file(copy, SELF_TEST, json.dumps(test).encode(), listed=True)
    _, out, _ = run(["inspect", str(copy)])
    assert out.count("can be used on this machine               yes, and is where none is named\n") == 1
    assert "no: the self-test of cpu-fp32 failed: " in out


def test_inspect_needs_no_runtime(bundle: Path, tmp_path: Path) -> None:
    """But cannot tell then what can be used."""
    (tmp_path / "onnxruntime.py").write_text("raise ImportError")
    status, out, err = run(["inspect", str(bundle)], env={"PYTHONPATH": os.pathsep.join((str(tmp_path), *sys.path))})
    assert (status, err) == (0, "")
    assert "variant cpu-int8" in out
    assert "can be used" not in out


def test_eval_leaves_out_what_cannot_be_used(half_usable: Path, squad: Path) -> None:
    status, out, err = run(["eval", str(half_usable), str(squad)])
    assert (status, [line.partition(":")[0] for line in out.splitlines()]) == (0, ["cpu-fp32"])
    (line,) = (line for line in err.splitlines() if "cpu-int8" in line)
    assert line.startswith(f"left out: {half_usable}: {WRONG}")
    status, out, err = run(["eval", str(half_usable), str(squad), "--variant", "cpu-int8"])
    assert (status, out) == (1, "")
    assert err.startswith(f"distilqa: {half_usable}: {WRONG}")


@pytest.mark.parametrize("processes", ["1", "2"])
def test_serve_uses_the_next_variant_and_logs_a_line(half_usable: Path, processes: str) -> None:
    command = [*CLI, "serve", str(half_usable), "--processes", processes, "--log-format", "json"]
    with serving(command) as (server, _):
        server.send_signal(signal.SIGTERM)
        _, log = server.communicate(timeout=60)
    entries = [json.loads(line) for line in log.splitlines()]
    (warning,) = (entry for entry in entries if entry["level"] == "warning")
    assert WRONG in warning["message"]
    (ready,) = (entry for entry in entries if entry["message"] == "ready")
    assert ready["variant"] == "cpu-fp32"
    status, _, err = run(["serve", str(half_usable), "--port", "0", "--variant", "cpu-int8", "--processes", processes])
    assert status == 1
    assert err.splitlines()[-1].startswith(f"distilqa: {half_usable}: {WRONG}")


def test_eval_prints_json(bundle: Path, squad: Path) -> None:
    status, out, err = run(["eval", str(bundle), str(squad), "--json"])
    assert (status, "Traceback" in err) == (0, False)
    results = json.loads(out)
    assert set(results) == set(VARIANTS)
    for result in results.values():
        assert set(result) == {"exact_match", "f1", "questions", "not_asked", "answers_per_second"}
        assert result["exact_match"] == pytest.approx(100 / 3)
        assert result["f1"] == pytest.approx(100 * (1 + 2 / 3) / 3)
        assert (result["questions"], result["not_asked"]) == (3, 0)
        assert result["answers_per_second"] > 0


def test_eval_of_one_variant_writes_what_the_official_script_reads(bundle: Path, squad: Path, tmp_path: Path) -> None:
    predictions = tmp_path / "predictions.json"
    predictions.write_text("what an earlier run has left, which is longer than what comes now. " * 10)
    options = ["--variant", "cpu-int8", "--predictions", str(predictions), "--json"]
    status, out, _ = run(["eval", str(bundle), str(squad), *options])
    assert (status, list(json.loads(out))) == (0, ["cpu-int8"])
    assert predictions.read_bytes().isascii()  # so that it can be read in any locale
    assert json.loads(predictions.read_text()) == {"who": "Renée Solberg", "when": "1887", "wrong": "49 metres"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "SQUAD"], "nowhere is not a bundle: "),
        (["BUNDLE", "nowhere"], "nowhere: No such file or directory"),
        (["BUNDLE", "BUNDLE"], ": Is a directory"),
        (["BUNDLE", "MANIFEST"], 'manifest.json: "data" is an object, must be a list; needed is SQuAD'),
        (["BUNDLE", "SQUAD", "--variant", "gpu"], "has no variant 'gpu'; it has cpu-fp32, cpu-int8"),
        (["BUNDLE", "SQUAD", "--variant", ""], "has no variant ''; it has cpu-fp32, cpu-int8"),
        (["BUNDLE", "SQUAD", "--predictions", "FILE"], "--predictions: is one file; choose a --variant of cpu-"),
        (["BUNDLE", "SQUAD", "--variant", "cpu-int8", "--predictions", "FOLDER"], ": Is a directory"),
        (
            ["BUNDLE", "SQUAD", "--variant", "cpu-int8", "--predictions", "nowhere/predictions.json"],
            "--predictions: nowhere/predictions.json: No such file or directory",
        ),
    ],
)
def test_eval_refuses_before_it_works(
    bundle: Path, squad: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    """Nothing but the message is on stderr, so no question was answered."""
    named = {"BUNDLE": bundle, "SQUAD": squad, "MANIFEST": bundle / "manifest.json"}
    named |= {"FILE": tmp_path / "predictions.json", "FOLDER": tmp_path}
    status, out, err = run(["eval", *(str(named.get(argument, argument)) for argument in arguments)])
    assert (status, out) == (1, "")
    assert err.startswith("distilqa: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "predictions.json").exists()


def many_questions(squad: Path, count: int) -> None:
    """Make the file of three questions one of so many."""
    content = json.loads(squad.read_text(encoding="utf-8"))
    (paragraph,) = content["data"][0]["paragraphs"]
    paragraph["qas"] = [paragraph["qas"][0] | {"id": f"q{number}"} for number in range(count)]
    squad.write_text(json.dumps(content))


def ask_instead(squad: Path, *questions: str) -> None:
    """Change the first questions of the file."""
    content = json.loads(squad.read_text(encoding="utf-8"))
    for fields, question in zip(content["data"][0]["paragraphs"][0]["qas"], questions, strict=False):
        fields["question"] = question
    squad.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("questions", "told"),
    [
        (
            ["why " * 300],
            "1 of 4 questions could not be asked and counts as not answered: it is question q0 (question: has ",
        ),
        (
            [" ", "why " * 300, "\ud800"],
            "3 of 4 questions could not be asked and count as not answered: the first is question q0 (question: is em",
        ),
    ],
    ids=["one", "three"],
)
def test_eval_goes_on_after_questions_that_cannot_be_asked(
    bundle: Path, squad: Path, tmp_path: Path, questions: list[str], told: str
) -> None:
    many_questions(squad, 4)
    ask_instead(squad, *questions)
    predictions = tmp_path / "predictions.json"
    options = ["--variant", "cpu-int8", "--predictions", str(predictions)]
    status, out, err = run(["eval", str(bundle), str(squad), *options])
    right = 25 * (4 - len(questions))
    assert (status, out.partition(";")[0]) == (0, f"cpu-int8: exact match {right:.2f}, F1 {right:.2f}")
    assert err.splitlines()[-1].startswith(told)
    assert "Renée Solberg" in (answers := list(json.loads(predictions.read_text()).values()))
    assert answers.count("") == len(questions)


def test_eval_tells_once_what_no_variant_could_ask(bundle: Path, squad: Path) -> None:
    """Also a passage without words."""
    content = json.loads(squad.read_text(encoding="utf-8"))
    content["data"][0]["paragraphs"][0]["context"] = " "
    squad.write_text(json.dumps(content))
    status, out, err = run(["eval", str(bundle), str(squad), "--json"])
    assert status == 0
    results = json.loads(out)
    assert set(results) == set(VARIANTS)
    for result in results.values():
        assert (result["questions"], result["not_asked"], result["answers_per_second"]) == (3, 3, 0)
        assert (result["exact_match"], result["f1"]) == (0, 0)
    assert err.count("could not be asked") == 1
    assert err.endswith("the first is question who (passages[0]: has no words)\n")


def test_eval_with_questions_that_have_no_answer(bundle: Path, squad: Path) -> None:
    content = json.loads(squad.read_text(encoding="utf-8"))
    content["data"][0]["paragraphs"][0]["qas"][2]["answers"] = []
    squad.write_text(json.dumps(content))
    options = ["--variant", "cpu-int8", "--allow-no-answer"]
    status, out, _ = run(["eval", str(bundle), str(squad), *options])
    assert status == 0
    assert out.startswith(
        "cpu-int8: exact match 33.33, F1 55.56; with an answer: exact match 50.00, F1 83.33; without: both 0.00; best "
    )
    assert "; 3 questions, " in out


def test_eval_of_one_question(bundle: Path, squad: Path) -> None:
    many_questions(squad, 1)
    status, out, _ = run(["eval", str(bundle), str(squad), "--variant", "cpu-int8"])
    assert status == 0
    assert out.startswith("cpu-int8: exact match 100.00, F1 100.00; 1 question, ")


def test_eval_is_interrupted(bundle: Path, squad: Path, tmp_path: Path) -> None:
    """Ctrl-C, after a tenth is done; what an earlier run has written stays."""
    many_questions(squad, 4000)
    predictions = tmp_path / "predictions.json"
    predictions.write_text("{}")
    command = [*CLI, "eval", str(bundle), str(squad), "--variant", "cpu-int8", "--predictions", str(predictions)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert first.startswith("cpu-int8: 400 of 4,000, ")
    assert (process.returncode, out) == (130, "")
    assert all(line.startswith("cpu-int8: ") for line in err.splitlines())
    assert "4,000 of 4,000" not in err
    assert predictions.read_text() == "{}"


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "BUNDLE"]])
def test_a_reader_that_has_left(bundle: Path, arguments: list[str]) -> None:
    """Python would complain as it ends, where what it has kept for the pipe cannot go out."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [*CLI, *(str(bundle) if argument == "BUNDLE" else argument for argument in arguments)]
    with os.fdopen(writer, "wb") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, timeout=120, env=environment)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "BUNDLE"]])
def test_a_disk_that_is_full(bundle: Path, arguments: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [*CLI, *(str(bundle) if argument == "BUNDLE" else argument for argument in arguments)]
    with Path("/dev/full").open("wb") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, timeout=120, env=environment)
    assert (done.returncode, done.stderr) == (1, b"distilqa: [Errno 28] No space left on device\n")


def test_the_package_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "distilqa", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{version('distilqa')}\n", "")
