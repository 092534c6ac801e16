"""The server's life: it starts in order, drains in order, and accounts for every call, whatever ends it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.integration.servers import CLI, HeldEngine, held_server, serving

from distilqa import AsyncClient, Client, DistilqaError, Overloaded, Unavailable
from distilqa import model as model_module
from distilqa.app import Server, serve
from distilqa.engine import Engine, open_engine
from distilqa.errors import BrokenError, BundleError
from distilqa.settings import ServerSettings
from distilqa_protos.v1 import question_answering_pb2 as pb
from distilqa_protos.v1.question_answering_pb2_grpc import QuestionAnsweringStub

QUESTION = "What does the fox jump over?"
PASSAGE = "The quick brown fox jumps over the lazy dog."
BOOK = f"{PASSAGE} " * 1000  # a few dozen windows
SERVICE = "distilqa.v1.QuestionAnswering"

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(address: str) -> int:
    """Of the server and of its service, which change one after the other: asked again until they are the same."""
    statuses: set[int] = set()
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        while len(statuses) != 1:
            statuses = {
                (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status for service in ("", SERVICE)
            }
    return statuses.pop()


async def end_of_call(address: str, method: str = "Answer") -> grpc.StatusCode:
    """How one call ends, without being tried again."""
    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
        stub: Any = QuestionAnsweringStub(channel)
        if method == "AnswerStream":
            return await stub.AnswerStream(timeout=30).code()  # type: ignore[no-any-return]
        request = pb.AnswerRequest(question=QUESTION, passages=[pb.Passage(text=PASSAGE)])
        call = stub.Answer(request, timeout=30) if method == "Answer" else stub.GetModel(pb.GetModelRequest())
        return await call.code()  # type: ignore[no-any-return]


def ask(address: str, *passages: str) -> str:
    """The answer, or how the call ended, without being tried again."""
    with grpc.insecure_channel(address, options=[("grpc.enable_retries", 0)]) as channel:
        request = pb.AnswerRequest(question=QUESTION, passages=[pb.Passage(text=text) for text in passages])
        try:
            return str(QuestionAnsweringStub(channel).Answer(request, timeout=600).answers[0].text)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"


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

        monkeypatch.setattr(model_module, "open_engine", slow)
        server = Server(ServerSettings(bundle=bundle, port=0))
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
            server = Server(ServerSettings(bundle=tmp_path, port=0))
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

        monkeypatch.setattr(model_module, "open_engine", stopped)
        monkeypatch.setattr(model_module, "CLOSE_S", 60)
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
from distilqa import front_end, model
from distilqa.cli import main
from distilqa.scheduler import Scheduler
exec(sys.argv.pop(1))
sys.exit(main())
"""


def changed(change: str, bundle: Path) -> list[str]:
    return [sys.executable, "-c", _CHANGED_SERVER, change, "serve", str(bundle), "--log-format", "json"]


class TestStuck:
    """What hangs does not keep the process from ending."""

    def test_while_it_loads(self, bundle: Path) -> None:
        change = (
            "model.CLOSE_S = 0.1; model.open_engine = lambda *_, **__: print('loading', flush=True) or time.sleep(600)"
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


class Caller:
    """Asks one question after another from several threads until the server is gone, and counts how that ended."""

    def __init__(self, address: str, threads: int) -> None:
        self.ends: Counter[str] = Counter()
        self.answered = threading.Event()
        self._address = address
        self._pool = ThreadPoolExecutor(threads)
        self._loops = [self._pool.submit(self._ask) for _ in range(threads)]

    def _ask(self) -> None:
        with grpc.insecure_channel(self._address, options=[("grpc.enable_retries", 0)]) as channel:
            stub: Any = QuestionAnsweringStub(channel)
            while True:
                try:
                    reply = stub.Answer(
                        pb.AnswerRequest(question=QUESTION, passages=[pb.Passage(text=PASSAGE)]), timeout=60
                    )
                except grpc.RpcError as error:
                    details = str(error.details())
                    refused = "is stopping" in details
                    self.ends[f"{error.code().name}{' by the server' if refused else ''}"] += 1
                    return
                assert reply.answers[0].text == "the lazy dog"
                self.ends["OK"] += 1
                self.answered.set()

    def finish(self) -> Counter[str]:
        for loop in self._loops:
            loop.result(60)
        self._pool.shutdown()
        return self.ends


@contextmanager
def json_serving(bundle: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    with serving([*CLI, "serve", str(bundle), "--log-format", "json", *options]) as running:
        yield running


def entries(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """The log of a server that ends by itself."""
    _, log = process.communicate(timeout=60)
    assert process.returncode == 0, log
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]


class TestEnd:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
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

    async def test_stopping_finishes_what_is_in_flight_and_refuses_the_rest(self, bundle: Path) -> None:
        async with held_server(bundle) as (server, engine), AsyncClient(server.address) as client:
            first = asyncio.create_task(client.answer(QUESTION, PASSAGE))
            await asyncio.to_thread(engine.began.wait)
            stopping = asyncio.create_task(server.stop(60))
            while not server._permits.draining.is_set():
                await asyncio.sleep(0)
            assert await health(server.address) == NOT_SERVING
            with pytest.raises(Unavailable, match="the server is stopping"):
                await client.answer(QUESTION, PASSAGE)
            engine.release.set()
            assert (await first)[0].text == "the lazy dog"
            await stopping

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
