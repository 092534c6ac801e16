"""A server of several processes: it answers as one does, and what ends of it takes no other with it."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.integration.callers import NOT_SERVING, PASSAGE, QUESTION, SERVING, Caller, ask, health
from tests.integration.servers import CLI, entries, serving

from distilqa import Client, Reader
from distilqa.errors import BindError
from distilqa.server.address import held_address
from distilqa.server.admission import Counts
from distilqa.server.processes.parent import Processes
from distilqa.server.settings import ServerSettings
from distilqa.server.single_process import SingleProcess
from distilqa_export.samples import packaged_evaluation

FRONT_ENDS = 2

# So many connections that not all of them are one front end's.
CONNECTIONS = 24

# After this long something hangs that must not, and the test fails. Nothing that works waits for it.
GUARD_S = 30.0

# What each Python of the server does first: runs of the model wait while a file is there, and die of another.
CHANGES = """
import os, time
from pathlib import Path
from distilqa.engine.cpu import CpuEngine
from distilqa.server import timeouts

folder, run = Path(os.environ["CHANGES"]), CpuEngine.run

if (folder / "impatient").exists():
    timeouts.ALIVE_S, timeouts.FIRST_SILENCES = 0.1, 100

def changed(self, windows, *, alone=False):
    if (folder / "deadly").exists():
        raise SystemExit("a defect")
    if (folder / "hold").exists():
        (folder / "began").touch()
    while (folder / "hold").exists():
        time.sleep(0.01)
    return run(self, windows, alone=alone)

CpuEngine.run = changed
"""


@dataclass(frozen=True)
class Running:
    """A server of several processes, and files that change what its model does."""

    parent: subprocess.Popen[str]
    address: str
    folder: Path

    def pid(self, name: str) -> int | None:
        """Of the child of that name, None while there is none."""
        children = Path(f"/proc/{self.parent.pid}/task/{self.parent.pid}/children").read_text()
        for pid in map(int, children.split()):
            if _command(pid).endswith(f"distilqa.server.processes.child {name}"):
                return pid
        return None

    def requests(self) -> int:
        """How many have a permit, as the front ends share it."""
        size = FRONT_ENDS * Counts.BYTES
        for file in Path(f"/proc/{self.pid('front-end 0')}/fd").iterdir():
            if os.readlink(file).startswith("/memfd:distilqa") and file.stat().st_size == size:
                return int(np.frombuffer(file.read_bytes(), np.int64).reshape(FRONT_ENDS, -1)[:, 0].sum())
        raise AssertionError("there is no such file")

    def replaced(self, name: str, pid: int) -> None:
        """Return when another child is in the place of that one."""
        until(lambda: self.pid(name) not in (None, pid))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Runs of the model wait for the end of the block."""
        (self.folder / "hold").touch()
        try:
            yield
        finally:
            (self.folder / "hold").unlink()


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()
    except OSError:
        return ""


def until(true: Any) -> None:
    deadline = time.monotonic() + GUARD_S
    while not true():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.01)


@contextmanager
def processes(bundle: Path, folder: Path, *options: str) -> Iterator[Running]:
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(CHANGES)
    environment = os.environ | {"PYTHONPATH": str(folder), "CHANGES": str(folder)}
    command = [*CLI, "serve", str(bundle), "--processes", str(FRONT_ENDS), "--log-format", "json", *options]
    with serving(command, env=environment) as (parent, address):
        yield Running(parent, address, folder)


@pytest.fixture
def running(bundle: Path, tmp_path: Path) -> Iterator[Running]:
    with processes(bundle, tmp_path) as found:
        yield found


def ask_all(running: Running, pool: ThreadPoolExecutor, count: int = CONNECTIONS) -> list[Future[str]]:
    """Calls under way, each over a connection of its own, of which the model has heard."""
    calls = [pool.submit(ask, running.address, PASSAGE) for _ in range(count)]
    until((running.folder / "began").exists)
    until(lambda: running.requests() >= count)
    until(lambda: connections(running.address) >= count)
    return calls


def connections(address: str) -> int:
    """How many are open to an address, by the kernel's table of this machine's."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    lines = [line for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
    return sum(fields[1].endswith(port) and fields[3] == "01" for fields in map(str.split, lines))


def is_stopping(address: str) -> bool:
    """Also of one that would let a call wait: it says so at first, and then lets no connection in."""
    return ask(address, PASSAGE, timeout_s=0.5).startswith("UNAVAILABLE")


def stop(running: Running) -> list[dict[str, Any]]:
    running.parent.terminate()
    return entries(running.parent)


class TestAnswers:
    def test_they_are_those_of_one_process(self, bundle: Path, running: Running) -> None:
        reader = Reader(bundle)
        with Client(running.address, connections=8) as client:
            for question in packaged_evaluation()[:40]:
                asked = question.question, question.context
                assert client.answer(*asked, top_k=3) == reader.answer(*asked, top_k=3)
            model = client.model()
        assert (model.name, model.variant) == (reader.model, reader.variant)
        log = stop(running)
        assert log[-1]["ended"] == {"OK": 41}
        assert sum(int(size) * count for size, count in log[-1]["runs_by_windows"].items()) >= 40

    def test_limits_are_those_of_all_together(self, bundle: Path, tmp_path: Path) -> None:
        """Never more; one less where both take the last at once, and are both refused."""
        with (
            processes(bundle, tmp_path, "--max-requests", "4") as running,
            ThreadPoolExecutor(CONNECTIONS) as pool,
        ):
            with running.held():
                calls = [pool.submit(ask, running.address, PASSAGE) for _ in range(CONNECTIONS)]
                until(lambda: sum(call.done() for call in calls) >= CONNECTIONS - 4)
                refused = [call.result() for call in calls if call.done()]
            ends = [call.result(GUARD_S) for call in calls]
        assert all(re.match(r"RESOURCE_EXHAUSTED: \d requests are in flight \(max_requests\)", end) for end in refused)
        assert ends.count("the lazy dog") == CONNECTIONS - len(refused) in (3, 4)

    def test_all_of_them_ask_for_the_token(self, bundle: Path, tmp_path: Path) -> None:
        """Also one that takes another's place after the file has gone: it is read once, as the tokenizer is."""
        callers, token = tmp_path / "callers.toml", "0123456789abcdef"
        callers.write_text(f"[search]\ntoken = '{token}'\n")
        with processes(bundle, tmp_path, "--credentials", str(callers)) as running:
            callers.unlink()
            for name in ("front-end 0", "front-end 1"):
                pid = running.pid(name)
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                running.replaced(name, pid)
            with Client(running.address, token=token) as client:
                assert client.answer(QUESTION, PASSAGE)[0].text == "the lazy dog"
            assert ask(running.address, PASSAGE).startswith("UNAUTHENTICATED")


class TestReplacing:
    @pytest.mark.parametrize("name", ["front-end 0", "model"])
    def test_one_that_hangs_is_replaced(self, bundle: Path, tmp_path: Path, name: str) -> None:
        """It has stopped, and so neither ends nor answers."""
        (tmp_path / "impatient").touch()
        with processes(bundle, tmp_path) as running:
            pid = running.pid(name)
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            running.replaced(name, pid)
            until(lambda: ask(running.address, PASSAGE, timeout_s=5) == "the lazy dog")
            log = stop(running)
        told = [entry for entry in log if entry.get("pid") == pid]
        assert [entry["message"] for entry in told] == [
            "a process says nothing any more, and is killed",
            "a process ended, and another takes its place",
        ]
        assert {entry["process"] for entry in told} == {name}

    @pytest.mark.parametrize("name", ["front-end 0", "front-end 1"])
    def test_a_front_end_takes_its_own_callers_with_it(self, running: Running, name: str) -> None:
        """And no others; what it held is free again, and another takes its place."""
        pid = running.pid(name)
        assert pid is not None
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            with running.held():
                calls = ask_all(running, pool)
                os.kill(pid, signal.SIGKILL)
                running.replaced(name, pid)
            ends = [call.result(GUARD_S) for call in calls]
        lost = [end for end in ends if end != "the lazy dog"]
        assert 0 < len(lost) < CONNECTIONS
        assert all(end.startswith("UNAVAILABLE") for end in lost)
        with Client(running.address, connections=8) as client:
            assert [client.answer(QUESTION, PASSAGE)[0].text for _ in range(16)] == ["the lazy dog"] * 16
        log = stop(running)
        (told,) = [entry for entry in log if entry["message"] == "a process ended, and another takes its place"]
        assert (told["process"], told["pid"], told["status"]) == (name, pid, -signal.SIGKILL)
        assert log[-1]["ended"]["OK"] >= CONNECTIONS - len(lost) + 16

    def test_a_model_takes_what_it_was_asked_with_it(self, running: Running) -> None:
        """While there is none nothing is served, and health says so; then all is as before."""
        pid = running.pid("model")
        assert pid is not None
        with running.held(), ThreadPoolExecutor(8) as pool:
            calls = ask_all(running, pool, 8)
            os.kill(pid, signal.SIGKILL)
            ends = {call.result(GUARD_S) for call in calls}
            assert ends == {"UNAVAILABLE: the process that has the model has ended"}
            assert asyncio.run(health(running.address)) == NOT_SERVING  # its self-test is held too
            assert ask(running.address, PASSAGE).startswith("UNAVAILABLE: the process that has the model has ended")
        until(lambda: asyncio.run(health(running.address)) == SERVING)
        with Client(running.address, connections=8) as client:
            assert [client.answer(QUESTION, PASSAGE)[0].text for _ in range(16)] == ["the lazy dog"] * 16

    def test_a_model_that_dies_of_a_defect_is_replaced(self, running: Running) -> None:
        pid = running.pid("model")
        assert pid is not None
        deadly = running.folder / "deadly"
        deadly.touch()
        assert ask(running.address, PASSAGE).startswith("UNAVAILABLE: the server is broken")
        deadly.unlink()
        running.replaced("model", pid)
        with Client(running.address) as client:
            until(lambda: asyncio.run(health(running.address)) == SERVING)
            assert client.answer(QUESTION, PASSAGE)[0].text == "the lazy dog"

    def test_one_that_is_killed_as_it_begins_is_replaced_too(self, running: Running) -> None:
        """It says nothing of the next, as one that cannot begin does."""
        for name in ("front-end 0", "model"):
            pid = running.pid(name)
            for _ in range(2):
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                running.replaced(name, pid)
                pid = running.pid(name)
        until(lambda: asyncio.run(health(running.address)) == SERVING)
        with Client(running.address, connections=8) as client:
            assert [client.answer(QUESTION, PASSAGE)[0].text for _ in range(16)] == ["the lazy dog"] * 16
        ended = [entry["process"] for entry in stop(running) if "another takes its place" in entry["message"]]
        assert ended == ["front-end 0"] * 2 + ["model"] * 2

    def test_one_that_hangs_as_it_begins_is_replaced(self, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "impatient").touch()
        with processes(bundle, tmp_path) as running:
            pid = running.pid("model")
            for number in (signal.SIGKILL, signal.SIGSTOP):
                assert pid is not None
                os.kill(pid, number)
                running.replaced("model", pid)
                pid = running.pid("model")
            until(lambda: ask(running.address, PASSAGE, timeout_s=5) == "the lazy dog")

    def test_where_that_is_not_possible_the_server_ends(self, bundle: Path, tmp_path: Path) -> None:
        """With status 1, so that what watches over it hears of it."""
        copy = tmp_path / "bundle"
        copy.mkdir()
        for file in bundle.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        with processes(copy, tmp_path / "changes") as running:
            (copy / "cpu-int8.onnx").write_bytes(b"another")
            pid = running.pid("model")
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            _, log = running.parent.communicate(timeout=GUARD_S)
        assert running.parent.returncode == 1
        assert "cpu-int8.onnx: has 7 bytes" in log
        assert log.splitlines()[-1] == "distilqa: the server is broken; its log says why"

    async def test_one_that_cannot_be_had_just_now_is_tried_again(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As where the machine has no memory, files or processes for a moment; but not as the server starts."""

        def refuse(*_arguments: Any, **_options: Any) -> None:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

        server = Processes(ServerSettings(bundle=bundle, port=0, processes=2))
        await server.start()
        assert not signal.pthread_sigmask(signal.SIG_BLOCK, ())  # it is the children that hear none
        place = server._front_ends[0]
        child = place.child
        assert child is not None
        with monkeypatch.context() as patched:
            patched.setattr(subprocess, "Popen", refuse)
            patched.setattr(threading.Thread, "start", refuse)
            os.kill(child.pid, signal.SIGKILL)
            async with asyncio.timeout(GUARD_S):
                while "a process could not be started, which is tried again" not in caplog.messages:
                    await asyncio.sleep(0.01)
            with pytest.raises(BlockingIOError):
                await Processes(ServerSettings(bundle=bundle, port=0, processes=2)).start()
        async with asyncio.timeout(GUARD_S):
            while place.child in (None, child) or not place.child.ready:
                await asyncio.sleep(0.01)
        assert not server.broken.is_set()
        await server.stop(0)


class TestEnd:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    @pytest.mark.parametrize("whole_group", [False, True])
    def test_every_call_is_accounted_for(self, running: Running, number: signal.Signals, whole_group: bool) -> None:
        """Whether the signal is sent to the parent alone, or to all, as a terminal does."""
        caller = Caller(running.address, threads=8)
        assert caller.answered.wait(GUARD_S)
        (os.killpg if whole_group else os.kill)(running.parent.pid, number)
        log = entries(running.parent)
        ends = caller.finish()
        assert ends.total() - ends["OK"] == 8
        # The last is what gRPC makes of a call that arrives in the moment in which the port is closed.
        assert ends.keys() <= {"OK", "UNAVAILABLE", "UNAVAILABLE by the server", "CANCELLED"}
        assert log[-1]["message"] == "stopped"
        assert log[-1]["ended"].get("OK") == ends["OK"]
        assert log[-1]["ended"].get("UNAVAILABLE", 0) == ends["UNAVAILABLE by the server"]

    def test_what_is_in_flight_is_finished(self, running: Running) -> None:
        with ThreadPoolExecutor(8) as pool:
            with running.held():
                calls = ask_all(running, pool, 8)
                running.parent.terminate()
                until(lambda: is_stopping(running.address))
            assert {call.result(GUARD_S) for call in calls} == {"the lazy dog"}
        assert entries(running.parent)[-1]["ended"]["OK"] == 8

    def test_a_second_signal_forces_the_end(self, bundle: Path, tmp_path: Path) -> None:
        with processes(bundle, tmp_path, "--drain-s", "600") as running, ThreadPoolExecutor(8) as pool:
            with running.held():
                calls = ask_all(running, pool, 8)
                running.parent.terminate()
                until(lambda: is_stopping(running.address))
                running.parent.terminate()
                ends = {call.result(GUARD_S) for call in calls}
            assert ends == {"UNAVAILABLE: the server stopped before this was done"}
            assert entries(running.parent)[-1]["ended"]["UNAVAILABLE"] >= 8

    def test_no_child_outlives_its_parent(self, running: Running) -> None:
        names = ["model", *(f"front-end {own}" for own in range(FRONT_ENDS))]
        pids = [pid for name in names if (pid := running.pid(name))]
        assert len(pids) == len(names)
        running.parent.kill()
        until(lambda: not any("distilqa.server.processes.child" in _command(pid) for pid in pids))
        with socket.create_server(("127.0.0.1", int(running.address.rpartition(":")[2]))):
            pass

    def test_a_signal_while_it_starts_ends_it(self, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "sitecustomize.py").write_text(CHANGES)
        (tmp_path / "hold").touch()
        command = [*CLI, "serve", str(bundle), "--processes", "2", "--port", "0", "--log-format", "json"]
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "CHANGES": str(tmp_path)}
        with subprocess.Popen(
            command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as parent:
            until((tmp_path / "began").exists)
            parent.terminate()
            assert entries(parent)[-1]["message"] == "stopped"


def failed_start(bundle: Path, *options: str) -> str:
    command = [*CLI, "serve", str(bundle), "--processes", "2", "--port", "0", *options]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=GUARD_S)
    assert ended.returncode == 1
    return ended.stderr.splitlines()[-1]


class TestStart:
    def test_what_a_child_cannot_do_is_the_servers_error(self, bundle: Path) -> None:
        assert "distilqa: " in failed_start(bundle, "--variant", "cuda-fp16")
        assert "has no variant 'cuda-fp16'" in failed_start(bundle, "--variant", "cuda-fp16")

    def test_a_port_that_another_has_is_not_shared(self, bundle: Path, running: Running) -> None:
        """Not with one process, nor with several."""
        port = running.address.rpartition(":")[2]
        for several in ("1", "2"):
            assert f"cannot bind 127.0.0.1:{port}" in failed_start(bundle, "--processes", several, "--port", port)

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "[::1]", "0.0.0.0", "::"])
    def test_an_address_is_held(self, host: str) -> None:
        with held_address(host, 0) as (address, port):
            assert re.fullmatch(r"[^:]+:\d+|\[[:0-9]+\]:\d+", address)
            with (
                pytest.raises(BindError, match="is another server there"),
                held_address(host, port),
            ):
                pytest.fail("the block must not run")
        with held_address(host, port):
            pass

    @pytest.mark.parametrize("host", ["192.0.2.1", "a..b", "a" * 70, "\udcff"])
    async def test_a_host_that_is_not_ours_is_refused(self, bundle: Path, host: str) -> None:
        with pytest.raises(BindError, match="the host not this machine's"), held_address(host, 0):
            pytest.fail("the block must not run")
        with pytest.raises(BindError, match="the host not this machine's"):
            await SingleProcess(ServerSettings(bundle=bundle, host=host, port=0)).start()
