"""What `make` says and when it sets up, with a Python in the place of the real one that only writes down its calls.

The real set-up is what CI runs the tests in, and `tests/integration/test_documents.py` runs its commands.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.conftest import ROOT

EXPORT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["export"]
(TORCH,) = (line for line in EXPORT if line.startswith("torch=="))

on_linux = pytest.mark.skipif(platform.system() != "Linux", reason="PyPI's PyTorch is the CPU build but on Linux")

DEV = ".venv/.ready-dev"

# Makes .venv with itself as its Python. A call that FAIL matches fails, and at one that KILL matches make is killed.
STAND_IN = """#!/bin/sh
echo "$*" >> calls
case "$*" in
    "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    *"index versions"*) echo "Available versions: $FOUND" ;;
esac
if test -n "$KILL" && echo "$*" | grep -q -e "$KILL"; then kill -KILL 0; fi
if test -n "$FAIL" && echo "$*" | grep -q -e "$FAIL"; then exit 1; fi
"""


@dataclass
class Checkout:
    """A folder with the Makefile, the project's file and the stand-in."""

    folder: Path

    def make(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run make; ``calls`` then has what it called Python with."""
        (self.folder / "calls").write_text("")
        return subprocess.run(
            ["make", "PYTHON=./python", *arguments],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"]} | environment,
            capture_output=True,
            text=True,
            timeout=60,
            start_new_session=True,
            check=False,
        )

    def installs(self) -> list[str]:
        """What pip was told to install, without the options that are always there."""
        calls = (self.folder / "calls").read_text().splitlines()
        return [call.split("--no-compile", 1)[1].strip() for call in calls if " install " in call]

    def is_ready(self) -> bool:
        return self.make("--question", "setup").returncode == 0


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    return Checkout(tmp_path)


def test_the_quick_start_names_the_same_pytorch() -> None:
    assert f"pip install {TORCH} --index-url" in (ROOT / "docs" / "quickstart.md").read_text()


def test_make_alone_prints_every_target_and_variable(checkout: Checkout) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets, _ = re.findall(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    variables = re.findall(r"^([A-Z_]+) \?=", makefile, flags=re.MULTILINE)
    done = checkout.make()
    assert done.returncode == 0
    assert re.findall(r"^  (\S+) +\S", done.stdout, flags=re.MULTILINE) == targets.split() + variables
    assert checkout.installs() == []


@on_linux
def test_a_wheel_at_hand_is_taken(checkout: Checkout) -> None:
    assert checkout.make("setup", "PIP_FLAGS=--find-links there").returncode == 0
    assert checkout.installs() == [
        "--find-links there --quiet --upgrade pip",
        f"--find-links there --no-index --no-deps {TORCH}",
        "--find-links there --editable .[cpu,server,export]",
    ]


@on_linux
def test_pytorchs_index_is_asked_for_pytorch_alone(checkout: Checkout) -> None:
    done = checkout.make(
        "setup", "TORCH_INDEX=https://there/cpu", FAIL="--no-index", FOUND=f"{TORCH[7:]}+cpu, 2.0.0+cpu"
    )
    assert done.returncode == 0
    assert checkout.installs()[2:] == [
        f"--no-deps --index-url https://there/cpu {TORCH}+cpu",
        "--editable .[cpu,server,export]",
    ]
    assert "GB" not in done.stdout


@on_linux
def test_where_it_cannot_be_reached_a_line_says_what_that_costs(checkout: Checkout) -> None:
    done = checkout.make("setup", FAIL="--no-index")
    assert done.returncode == 0
    assert checkout.installs()[2:] == ["--editable .[cpu,server,export]"]
    assert "PyTorch comes from PyPI, with CUDA: 2.9 GB to fetch" in done.stdout


def test_what_is_ready_is_not_set_up_again(checkout: Checkout) -> None:
    checkout.make("setup")
    assert checkout.is_ready()
    assert checkout.make("setup").returncode == 0
    assert checkout.installs() == []


def test_the_environment_grows(checkout: Checkout) -> None:
    checkout.make("setup")
    checkout.make(DEV)
    assert checkout.installs() == ["--quiet --dry-run --editable .[dev]", "--editable .[dev]"]
    checkout.make(DEV)
    assert checkout.installs() == []
    assert checkout.is_ready()


def test_another_project_file_sets_up_again(checkout: Checkout) -> None:
    checkout.make("setup")
    os.utime(checkout.folder / ".venv" / ".ready", (0, 0))
    assert not checkout.is_ready()
    assert checkout.make("setup").returncode == 0
    assert checkout.installs()[0] == "--quiet --dry-run --editable .[cpu,server,export]"
    assert checkout.is_ready()


@pytest.mark.parametrize(
    ("target", "where"),
    [("setup", "-m venv"), ("setup", "upgrade pip"), ("setup", "--editable"), (DEV, "no-compile *--editable")],
)
def test_what_was_interrupted_is_made_anew(target: str, where: str, checkout: Checkout) -> None:
    if target == DEV:
        checkout.make("setup")
    assert checkout.make(target, KILL=where).returncode != 0
    assert not checkout.is_ready()
    (checkout.folder / ".venv" / "half").touch()
    assert checkout.make("setup").returncode == 0
    assert checkout.is_ready()
    assert not (checkout.folder / ".venv" / "half").exists()


def test_another_make_is_not_disturbed(checkout: Checkout) -> None:
    (checkout.folder / ".venv").mkdir()
    for name in (".made", ".unfinished"):
        (checkout.folder / ".venv" / name).write_text(f"{os.getpid()}\n")
    done = checkout.make("setup")
    assert done.returncode != 0
    assert "Another make is setting up .venv." in done.stderr
    assert checkout.installs() == []
    assert (checkout.folder / ".venv" / ".made").exists()


def test_an_environment_of_others_is_added_to_and_never_removed(checkout: Checkout) -> None:
    own = checkout.folder / ".venv" / "own"
    own.parent.mkdir()
    own.touch()
    for target in ("setup", DEV):
        assert checkout.make(target, KILL="no-compile *--editable").returncode != 0
        assert not checkout.is_ready()
        assert checkout.make(target).returncode == 0
        assert checkout.is_ready()
    assert own.exists()


def test_the_python_that_is_there_is_the_one_that_is_asked(checkout: Checkout) -> None:
    checkout.make("setup")
    os.utime(checkout.folder / ".venv" / ".ready", (0, 0))
    assert checkout.make("setup", "PYTHON=missing").returncode == 0
    assert checkout.is_ready()


def test_an_environment_that_has_lost_its_python_is_made_anew(checkout: Checkout) -> None:
    checkout.make("setup")
    (checkout.folder / ".venv" / "half").touch()
    python = checkout.folder / ".venv" / "bin" / "python"
    python.unlink()
    python.symlink_to("gone")
    assert not checkout.is_ready()
    assert checkout.make("setup").returncode == 0
    assert checkout.is_ready()
    assert not (checkout.folder / ".venv" / "half").exists()


def put_bundle(checkout: Checkout, name: str, *, of: str) -> None:
    (checkout.folder / name).mkdir()
    manifest = json.dumps({"source": {"checkpoint": of}}, indent=2)
    (checkout.folder / name / "manifest.json").write_text(manifest)


@pytest.mark.parametrize("checkpoint", ["models/mine", "models/mine/", "mine"])
def test_a_bundle_of_the_checkpoint_is_not_made_again(checkout: Checkout, checkpoint: str) -> None:
    put_bundle(checkout, "build", of="mine")
    done = checkout.make("bundle", "BUNDLE=build", f"CHECKPOINT={checkpoint}")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "build is there already; remove it to export again.")


@pytest.mark.parametrize("target", ["serve", "dist"])
def test_a_bundle_of_another_checkpoint_is_not_taken_for_it(checkout: Checkout, target: str) -> None:
    put_bundle(checkout, "a", of="mine")
    put_bundle(checkout, "a-int8", of="mine")
    done = checkout.make(target, "BUNDLE=a", "CHECKPOINT=mine-2")
    assert done.returncode != 0
    assert "is of another checkpoint than mine-2. Remove it, or name another BUNDLE." in done.stderr


def test_names_with_spaces(checkout: Checkout) -> None:
    put_bundle(checkout, "my bundle", of="my model")
    done = checkout.make("bundle", "BUNDLE=my bundle", "CHECKPOINT=models/my model/")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        0, "my bundle is there already; remove it to export again.",
    )  # fmt: skip
    planned = checkout.make("--just-print", "dist", "BUNDLE=a bundle/", "DIST=my dist", "CHECKPOINT=a b").stdout
    for part in ("distilqa export 'a b' --output 'a bundle-int8' --variant", "build --directory 'my dist'"):
        assert part in planned


def test_what_cannot_be_fetched_leaves_a_ready_environment(checkout: Checkout) -> None:
    checkout.make("setup")
    assert checkout.make(DEV, FAIL="--dry-run").returncode != 0
    assert checkout.is_ready()
