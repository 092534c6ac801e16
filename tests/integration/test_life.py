"""The server's life: it starts in order, drains in order, and accounts for every call, whatever ends it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.integration.callers import NOT_SERVING, PASSAGE, QUESTION, SERVING, Caller, ask, end_of_call, health
from tests.integration.servers import CLI, HeldEngine, entries, held_server, json_serving, serving

from distilqa import AsyncClient, Client, DistilqaError, Overloaded
from distilqa.engine.base import Engine
from distilqa.engine.open import open_engine
from distilqa.errors import BindError, BrokenError, BundleError
from distilqa.server import back_end, front_end, timeouts
from distilqa.server.app import serve
from distilqa.server.settings import ServerSettings
from distilqa.server.single_process import SingleProcess

BOOK = f"{PASSAGE} " * 1000  # a few dozen windows


def ask_until_let_in(address: str, *passages: str) -> str:
    while (end := ask(address, *passages)).startswith("RESOURCE_EXHAUSTED"):
        pass
    return end


class TestStart:
    async def test_until_the_model_is_there_nobody_is_served(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The port is bound first, so that who asks hears that the server is starting."""
        began, go_on = threading.Event(), threading.Event()

        def slow(*arguments: Any, **options: Any) -> Engine:
            began.set()
            assert go_on.wait(60)
            return open_engine(*arguments, **options)

        monkeypatch.setattr(back_end, "open_engine", slow)
        server = SingleProcess(ServerSettings(bundle=bundle, port=0))
        starting = asyncio.create_task(server.start())
        await asyncio.to_thread(began.wait)
        assert await health(server.address) == NOT_SERVING
        for method in ("Answer", "AnswerStream", "GetModel"):
            assert await end_of_call(server.address, method) is grpc.StatusCode.UNAVAILABLE
        go_on.set()
        await starting
        assert await health(server.address) == SERVING
        assert await end_of_call(server.address) is grpc.StatusCode.OK
        await server.stop(0)

    async def test_a_bundle_that_cannot_be_used_frees_the_port(self, tmp_path: Path) -> None:
        for _ in range(2):
            server = SingleProcess(ServerSettings(bundle=tmp_path, port=0))
            with pytest.raises(BundleError):
                await server.start()
            with pytest.raises(DistilqaError), Client(server.address) as client:
                client.model(timeout_s=2)

    async def test_a_signal_while_it_starts_ends_it(self, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """But not under the feet of ONNX Runtime, which would abort the process."""
        began, go_on = threading.Event(), threading.Event()

        def stopped(*_arguments: Any, **_options: Any) -> Engine:
            began.set()
            go_on.wait(60)
            raise BundleError("nobody hears this")

        monkeypatch.setattr(back_end, "open_engine", stopped)
        monkeypatch.setattr(back_end, "CLOSE_S", 60)
        running = asyncio.create_task(serve(ServerSettings(bundle=bundle, port=0), lambda _: pytest.fail("ready")))
        await asyncio.to_thread(began.wait)
        signal.raise_signal(signal.SIGTERM)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not running.done()
        go_on.set()
        await asyncio.wait_for(running, 60)


# A server whose model does as the code given first says.
_CHANGED_SERVER = """
import sys, time
from distilqa.cli.main import main
from distilqa.scheduling.scheduler import Scheduler
from distilqa.server import back_end, front_end
exec(sys.argv.pop(1))
sys.exit(main())
"""


def changed(change: str, bundle: Path) -> list[str]:
    return [sys.executable, "-c", _CHANGED_SERVER, change, "serve", str(bundle), "--log-format", "json"]


class TestStuck:
    """What hangs does not keep the process from ending."""

    def test_while_it_loads(self, bundle: Path) -> None:
        change = (
            "back_end.CLOSE_S = 0.1;"
            " back_end.open_engine = lambda *_, **__: print('loading', flush=True) or time.sleep(600)"
        )
        with subprocess.Popen(
            [*changed(change, bundle), "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "loading\n"
            process.send_signal(signal.SIGTERM)
            log = entries(process)
        assert log[-1]["message"] == "stopped"

    def test_in_a_run(self, bundle: Path) -> None:
        change = (
            "front_end.CLOSE_S = 0.1; Scheduler._run = lambda *_, **__: print('running', flush=True) or time.sleep(600)"
        )
        with serving(changed(change, bundle)) as (process, address), ThreadPoolExecutor() as pool:
            asked = pool.submit(ask, address, PASSAGE)
            assert process.stdout is not None
            while process.stdout.readline() != "running\n":
                pass
            process.send_signal(signal.SIGTERM)
            while asyncio.run(health(address)) == SERVING:
                pass
            process.send_signal(signal.SIGTERM)
            log = entries(process)
            assert asked.result(60).startswith("UNAVAILABLE")
        assert log[-1]["message"] == "stopped"


class TestEnd:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_every_call_is_accounted_for(self, bundle: Path, number: signal.Signals) -> None:
        """With calls in flight all the time: what the server says it answered is what the callers got."""
        with json_serving(bundle) as (process, address):
            caller = Caller(address, threads=8)
            assert caller.answered.wait(60)
            process.send_signal(number)
            log = entries(process)
            ends = caller.finish()
        assert ends.total() - ends["OK"] == 8
        # The last is what gRPC makes of a call that arrives in the moment in which the port is closed.
        assert ends.keys() <= {"OK", "UNAVAILABLE", "UNAVAILABLE by the server", "CANCELLED"}
        draining, stopped = ([entry for entry in log if entry["message"] == word] for word in ("draining", "stopped"))
        assert draining[0]["signal"] == number.name
        assert stopped[0]["ended"] == {
            outcome: count
            for outcome, count in (("OK", ends["OK"]), ("UNAVAILABLE", ends["UNAVAILABLE by the server"]))
            if count
        }

    def test_a_second_signal_forces_the_end(self, bundle: Path) -> None:
        """Long before two books are read, which are told so."""
        options = ("--drain-s", "600", "--threads", "1", "--max-requests", "2")
        with (
            json_serving(bundle, *options) as (process, address),
            ThreadPoolExecutor() as pool,
            Client(address) as client,
        ):
            books = [pool.submit(ask_until_let_in, address, *[BOOK] * 5) for _ in range(2)]
            while not any(book.done() for book in books):  # until both are there
                try:
                    client.answer(QUESTION, PASSAGE)
                except Overloaded:
                    break
            process.send_signal(signal.SIGTERM)
            while asyncio.run(health(address)) == SERVING:
                pass
            process.send_signal(signal.SIGTERM)
            log = entries(process)
            ends = [book.result(60) for book in books]
        assert ends == ["UNAVAILABLE: the server stopped before this was done"] * 2
        assert [entry["message"] for entry in log if "signal" in entry] == ["draining", "forced to stop"]
        assert log[-1]["message"] == "stopped"
        assert log[-1]["ended"]["UNAVAILABLE"] == 2

    async def test_stopping_finishes_what_is_in_flight_and_refuses_the_rest(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(front_end, "REFUSE_S", 1)
        async with held_server(bundle) as (server, engine), AsyncClient(server.address) as client:
            first = asyncio.create_task(client.answer(QUESTION, PASSAGE))
            await asyncio.to_thread(engine.began.wait)
            stopping = asyncio.create_task(server.stop(60))
            while not server._permits.draining.is_set():
                await asyncio.sleep(0)
            assert await health(server.address) == NOT_SERVING
            assert await asyncio.to_thread(ask, server.address, PASSAGE) == "UNAVAILABLE: the server is stopping"
            assert await end_of_call(server.address, "GetModel") is grpc.StatusCode.UNAVAILABLE
            engine.release.set()
            assert (await first)[0].text == "the lazy dog"
            await stopping

    async def test_stopping_sends_clients_elsewhere(self, bundle: Path) -> None:
        """Also those that have a connection, while others keep the server waiting."""
        async with held_server(bundle) as (server, engine), AsyncClient(server.address) as client:
            first = asyncio.create_task(client.answer(QUESTION, PASSAGE))
            await asyncio.to_thread(engine.began.wait)
            stopping = asyncio.create_task(server.stop(60))
            port = int(server.address.rpartition(":")[2])
            while True:
                await asyncio.sleep(timeouts.REFUSE_S)
                other = SingleProcess(ServerSettings(bundle=bundle, port=port))
                with suppress(BindError):  # the first has not left yet
                    await other.start()
                    break
            assert (await client.answer(QUESTION, PASSAGE))[0].text == "the lazy dog"
            assert not stopping.done()
            engine.release.set()
            assert (await first)[0].text == "the lazy dog"
            await stopping
            await other.stop(0)

    async def test_stopping_gives_up_at_its_deadline(self, bundle: Path) -> None:
        """What runs by then is finished, what waits is told."""
        async with held_server(bundle) as (server, engine), AsyncClient(server.address) as client:
            first = asyncio.create_task(client.answer(QUESTION, PASSAGE))
            await asyncio.to_thread(engine.began.wait)
            second = asyncio.create_task(asyncio.to_thread(ask, server.address, PASSAGE))
            while not server._scheduler._queue.windows:
                await asyncio.sleep(0)
            stopping = asyncio.create_task(server.stop(0))
            assert await second == "UNAVAILABLE: the server stopped before this was done"
            engine.release.set()
            assert (await first)[0].text == "the lazy dog"
            await stopping


class TestBroken:
    async def test_a_dead_lane_takes_the_health_with_it(self, bundle: Path) -> None:
        async with held_server(bundle) as (server, engine):
            engine.release.set()
            engine.deadly = True
            assert await end_of_call(server.address) is grpc.StatusCode.UNAVAILABLE
            await asyncio.wait_for(server.broken.wait(), 60)
            assert await health(server.address) == NOT_SERVING
            assert await end_of_call(server.address) is grpc.StatusCode.UNAVAILABLE

    async def test_a_server_that_is_broken_ends_with_an_error(self, bundle: Path) -> None:
        """So that what watches over it starts another."""
        ready = asyncio.get_running_loop().create_future()
        running = asyncio.create_task(serve(ServerSettings(bundle=bundle, port=0), ready.set_result))
        server = await asyncio.wait_for(ready, 60)
        HeldEngine(server).deadly = True
        assert await end_of_call(server.address) is grpc.StatusCode.UNAVAILABLE
        with pytest.raises(BrokenError):
            await asyncio.wait_for(running, 60)


@contextmanager
def serving_to(stdout: int, bundle: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server that is ready, whose stdout is that file, and its address."""
    command = [*CLI, "serve", str(bundle), "--log-format", "json", "--port", "0"]
    with subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        yield process, next(entry["address"] for entry in map(json.loads, process.stderr) if "address" in entry)


class TestTerminal:
    def test_where_the_signal_of_a_closed_terminal_is_ignored_it_stays_so(self, bundle: Path) -> None:
        with serving(["nohup", *CLI, "serve", str(bundle), "--log-format", "json"]) as (process, address):
            process.send_signal(signal.SIGHUP)
            assert ask(address, PASSAGE) == "the lazy dog"
            process.terminate()
            log = entries(process)
        assert [entry["signal"] for entry in log if entry["message"] == "draining"] == ["SIGTERM"]

    def test_a_reader_of_stdout_that_leaves_ends_no_server(self, bundle: Path) -> None:
        read, write = os.pipe()
        os.close(read)
        with serving_to(write, bundle) as (process, address):
            os.close(write)
            assert ask(address, PASSAGE) == "the lazy dog"
            process.terminate()
            log = process.communicate(timeout=60)[1]
        assert process.returncode == 0
        assert [json.loads(line)["message"] for line in log.splitlines()][-1] == "stopped"

    def test_a_stdout_that_nobody_reads_holds_no_server_up(self, bundle: Path) -> None:
        read, write = os.pipe()
        os.set_blocking(write, False)
        with suppress(BlockingIOError):
            while True:
                os.write(write, bytes(4096))
        os.set_blocking(write, True)
        with serving_to(write, bundle) as (process, address):
            os.close(write)
            assert ask(address, PASSAGE) == "the lazy dog"
            process.terminate()
            assert process.wait(60) == 0
        os.close(read)

    def test_a_stdout_that_is_full_is_no_failure(self, bundle: Path) -> None:
        with open("/dev/full", "w") as full, serving_to(full.fileno(), bundle) as (process, _):
            process.terminate()
            assert process.wait(60) == 0

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_pipe_that_nobody_writes_to_can_be_interrupted(
        self, bundle: Path, tmp_path: Path, number: signal.Signals
    ) -> None:
        os.mkfifo(tmp_path / "callers.toml")
        command = [*CLI, "serve", str(bundle), "--port", "0", "--credentials", str(tmp_path / "callers.toml")]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            while True:
                with suppress(OSError):  # until it reads
                    write = os.open(tmp_path / "callers.toml", os.O_WRONLY | os.O_NONBLOCK)
                    break
            process.send_signal(number)
            assert process.wait(60) == {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 130}[number]
            os.close(write)

    @pytest.mark.parametrize("module", ["cli.main", "cli.serve", "server.app", "server.single_process", "engine.open"])
    def test_an_interrupt_while_it_is_loaded_is_no_traceback(self, bundle: Path, tmp_path: Path, module: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(
            "import sys\nclass Interrupt:\n    def find_spec(self, name, *_):\n"
            f"        if name == 'distilqa.{module}': raise KeyboardInterrupt\n"
            "sys.meta_path.insert(0, Interrupt())\n"
        )
        path = os.pathsep.join([str(tmp_path), *sys.path])
        command = [*CLI, "serve", str(bundle), "--port", "0"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONPATH": path}
        )
        assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (130, "", False)
