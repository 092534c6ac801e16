"""What comes before a call's message, and beside calls: connections, streams and pings, each with its limit.

gRPC ignores an option that it does not know, so each that the server passes is seen here to do what it is for.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import h2.events
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tests.integration.callers import NOT_SERVING, PASSAGE, QUESTION, SERVING
from tests.integration.http2 import Peer, connected, framed
from tests.integration.servers import held_server

from distilqa.server import health, reflection, timeouts
from distilqa_protos.v1 import SERVICE
from distilqa_protos.v1 import question_answering_pb2 as pb
from distilqa_protos.v1.question_answering_pb2_grpc import QuestionAnsweringStub

EXHAUSTED, DEADLINE = str(grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]), str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])
OK, UNAVAILABLE = "0", str(grpc.StatusCode.UNAVAILABLE.value[0])

REQUEST = framed(pb.AnswerRequest(question=QUESTION, passages=[pb.Passage(text=PASSAGE)]).SerializeToString())
HEALTH = "grpc.health.v1.Health"


async def answers(address: str) -> bool:
    async with grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        reply = await QuestionAnsweringStub(channel).Answer(pb.AnswerRequest.FromString(REQUEST[5:]), timeout=30)
        return bool(reply.answers[0].text == "the lazy dog")


async def ping(peer: Peer, times: int, every_s: float) -> None:
    for _ in range(times):
        await asyncio.sleep(every_s)
        peer.h2.ping(b"01234567")
        peer.send()
        await peer.event(h2.events.PingAckReceived)


@pytest.mark.parametrize("during", ["nothing", "a call", "a stream"])
async def test_a_client_may_ask_whether_the_server_is_there(bundle: Path, during: str) -> None:
    """As gRPC's clients do with a keepalive; gRPC itself ends the connection at the third time."""
    async with held_server(bundle) as (server, engine), connected(server.address) as peer:
        stream = 0
        if during != "nothing":
            method = "Answer" if during == "a call" else "AnswerStream"
            stream = peer.call(method, data=REQUEST if during == "a call" else None, end=during == "a call")
        await ping(peer, 5, timeouts.LEAST_PING_S * 1.1)
        assert not peer.closed.done()
        engine.release.set()
        if during == "a call":
            assert await peer.status(stream) == (OK, "")
        for _ in range(6):  # at once is still no way to behave
            peer.h2.ping(b"01234567")
        peer.send()
        assert (await peer.event(h2.events.ConnectionTerminated)).additional_data == b"too_many_pings"


async def test_a_caller_who_is_gone_is_found_out(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "KEEPALIVE_S", 1)
    monkeypatch.setattr(timeouts, "KEEPALIVE_ANSWER_S", 1)
    async with (
        held_server(bundle) as (server, _),
        connected(server.address) as there,
        connected(server.address) as gone,
    ):
        for peer in (there, gone):
            peer.call("Answer", data=REQUEST, end=True)
        await asyncio.wait_for(gone.event(h2.events.PingReceived), 5)
        gone.send()
        gone.answers_pings = False
        await asyncio.wait_for(gone.closed, 10)
        for _ in range(4):  # not only twice
            await asyncio.wait_for(there.event(h2.events.PingReceived), 5)
        assert not there.closed.done()
        assert server.calls.outcomes == {"CANCELLED": 1}


async def test_a_connection_that_says_nothing_is_closed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeouts, "HANDSHAKE_S", 1)
    async with held_server(bundle) as (server, _):
        host, _, port = server.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        assert await asyncio.wait_for(reader.read(), 10) is not None  # to its end
        writer.close()


async def test_an_idle_connection_is_closed_and_one_with_a_call_is_not(bundle: Path) -> None:
    async with (
        held_server(bundle, connection_idle_s=1) as (server, engine),
        connected(server.address) as idle,
        connected(server.address) as busy,
    ):
        call = busy.call("Answer", data=REQUEST, end=True)
        await asyncio.wait_for(idle.closed, 10)
        assert not busy.closed.done()
        engine.release.set()
        assert await busy.status(call) == (OK, "")


async def test_a_connection_ends_at_its_age(bundle: Path) -> None:
    """Clients make another, and what is in flight may finish within the time of a stop."""
    async with (
        held_server(bundle, connection_age_s=1, drain_s=2) as (server, engine),
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        stub = QuestionAnsweringStub(channel)
        stream: Any = stub.AnswerStream(timeout=60)
        assert await stream.code() is grpc.StatusCode.UNAVAILABLE
        engine.release.set()
        assert await answers(server.address)


async def test_connections_are_bounded(bundle: Path) -> None:
    async with held_server(bundle, max_connections=2) as (server, engine), AsyncExitStack() as stack:
        engine.release.set()
        first, _second = [await stack.enter_async_context(connected(server.address)) for _ in range(2)]
        await asyncio.gather(*(peer.event(h2.events.SettingsAcknowledged) for peer in (first, _second)))
        third = await stack.enter_async_context(connected(server.address))
        await asyncio.wait_for(third.closed, 10)
        first.close()
        while True:  # gRPC counts it out a moment later
            with suppress(grpc.RpcError):
                assert await answers(server.address)
                return


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """The files that this process may have open from now on."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = 128
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, before[1]))
    yield few
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_a_server_uses_the_descriptors_that_it_may_have(bundle: Path, few_descriptors: int) -> None:
    async with held_server(bundle):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft == hard > few_descriptors


async def test_calls_of_a_connection_are_bounded(bundle: Path) -> None:
    async with held_server(bundle, max_connection_calls=2) as (server, _), connected(server.address) as peer:
        await peer.event(h2.events.SettingsAcknowledged)
        assert peer.h2.remote_settings.max_concurrent_streams == 2


@pytest.mark.parametrize("sent", [None, framed(b"abc", length=1000)], ids=["none", "half of one"])
@pytest.mark.parametrize(
    ("service", "method"),
    [("distilqa.v1.QuestionAnswering", "Answer"), ("distilqa.v1.QuestionAnswering", "GetModel"), (HEALTH, "Check"),
     (HEALTH, "Watch")],
)  # fmt: skip
async def test_a_message_that_does_not_come_is_not_waited_for(
    bundle: Path, service: str, method: str, sent: bytes | None
) -> None:
    async with held_server(bundle, message_s=0.5) as (server, _), connected(server.address) as peer:
        call = peer.call(method, service, data=sent)
        assert await asyncio.wait_for(peer.status(call), 10) == (DEADLINE, "no message came within 0.5 s")
        assert server.calls.outcomes == ({} if service == HEALTH else {"DEADLINE_EXCEEDED message_s": 1})


async def test_calls_without_a_message_are_bounded_and_shut_nobody_out(bundle: Path) -> None:
    async with held_server(bundle, max_requests=1) as (server, engine), connected(server.address) as peer:
        engine.release.set()
        waiting = [peer.call("Answer") for _ in range(4)]
        assert await peer.status(peer.call("Answer", data=REQUEST, end=True)) == (OK, "")
        problem = "4 calls have not sent their message, and this one has waited for long (max_requests); try again in"
        assert await peer.status(waiting[0]) == (EXHAUSTED, f"{problem} 0.1 s")
        assert server.calls.outcomes == {"OK": 1, "RESOURCE_EXHAUSTED max_requests": 1}
        peer.h2.send_data(waiting[1], REQUEST, end_stream=True)
        peer.send()
        assert await peer.status(waiting[1]) == (OK, "")


async def test_a_connection_of_such_calls_shuts_no_other_out(bundle: Path) -> None:
    """Nor one whose message takes its time."""
    async with (
        held_server(bundle, max_requests=1) as (server, engine),
        connected(server.address) as slow,
        connected(server.address) as peer,
    ):
        engine.release.set()
        first = slow.call("Answer", data=REQUEST[:10])
        assert await answers(server.address)  # so that the first is there
        waiting = [peer.call("Answer") for _ in range(8)]
        assert (await peer.status(waiting[0]))[0] == EXHAUSTED
        slow.h2.send_data(first, REQUEST[10:], end_stream=True)
        slow.send()
        assert await slow.status(first) == (OK, "")


async def test_probes_without_a_message_shut_nobody_out(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_MOST_WAITING", 2)
    async with held_server(bundle) as (server, _), connected(server.address) as peer:
        waiting = [peer.call(method, HEALTH) for method in ("Check", "Watch")]
        while len(server._health._messages._waiting) < 2:
            await asyncio.sleep(0.01)
        assert await watch(server.address) == [SERVING]
        assert (await peer.status(waiting[0]))[0] == EXHAUSTED


async def test_a_stop_ends_calls_that_have_not_sent_their_message(bundle: Path) -> None:
    async with held_server(bundle) as (server, _), connected(server.address) as peer:
        calls = [
            peer.call(method, data=sent)
            for method in ("Answer", "GetModel")
            for sent in (None, framed(b"abc", length=1000))
        ]
        assert await watch(server.address) == [SERVING]  # so that those before are there too
        await server.stop(2)
        for call in calls:
            assert await peer.status(call) == (UNAVAILABLE, "the server is stopping")


async def test_a_reply_that_is_not_taken_keeps_nobody_waiting(bundle: Path) -> None:
    async with held_server(bundle, max_requests=2) as (server, engine), connected(server.address, window=0) as peer:
        engine.release.set()
        for service, method in ((SERVICE, "Answer"), (SERVICE, "GetModel"), (HEALTH, "Check")) * 3:
            peer.call(method, service, data=framed(b"") if method != "Answer" else REQUEST, end=True)
            assert await answers(server.address)
        began = time.monotonic()
        await server.stop(2)
        assert time.monotonic() - began < 2 + timeouts.CLOSE_S + 4 * timeouts.SEND_S


async def test_a_reply_that_is_taken_slowly_is_waited_for_at_a_stop(bundle: Path) -> None:
    """As long as calls in flight are, but for a few seconds at most."""
    async with held_server(bundle) as (server, engine), connected(server.address, window=0) as peer:
        engine.release.set()
        call = peer.call("Answer", data=REQUEST, end=True)
        while not server.calls.outcomes:
            await asyncio.sleep(0.01)
        stopping = asyncio.create_task(server.stop(30))
        await asyncio.sleep(timeouts.TAKE_S - timeouts.SEND_S)
        peer.h2.increment_flow_control_window(1000, call)
        peer.send()
        assert await peer.status(call) == ("0", "")
        await stopping


async def test_an_idle_stream_is_ended(bundle: Path) -> None:
    """But not one whose requests are worked on."""
    async with held_server(bundle, stream_idle_s=0.5, max_requests=2) as (server, engine):
        async with connected(server.address) as idle, connected(server.address) as busy:
            first, second = idle.call("AnswerStream"), busy.call("AnswerStream", data=b"")
            item = pb.AnswerStreamRequest(id="a", request=pb.AnswerRequest.FromString(REQUEST[5:]))
            busy.h2.send_data(second, framed(item.SerializeToString()))
            busy.send()
            assert await idle.status(first) == (DEADLINE, "no request came within 0.5 s")
            await asyncio.sleep(1)
            engine.release.set()
            reply = pb.AnswerStreamResponse.FromString((await busy.event(h2.events.DataReceived)).data[5:])
            assert (reply.id, reply.response.answers[0].text) == ("a", "the lazy dog")
            assert await busy.status(second) == (DEADLINE, "no request came within 0.5 s")
            assert server._permits.streams == 0
        assert server.calls.outcomes == {"DEADLINE_EXCEEDED stream_idle_s": 2, "OK": 1}


async def test_a_stream_is_idle_from_its_last_reply_on(bundle: Path) -> None:
    async with held_server(bundle, stream_idle_s=1) as (server, engine), connected(server.address) as peer:
        asked = pb.AnswerStreamRequest(id="a", request=pb.AnswerRequest.FromString(REQUEST[5:]))
        item = framed(asked.SerializeToString())
        stream = peer.call("AnswerStream", data=item)
        await asyncio.sleep(0.8)
        engine.release.set()
        await peer.event(h2.events.DataReceived)
        await asyncio.sleep(0.6)
        peer.h2.send_data(stream, item, end_stream=True)
        peer.send()
        assert await peer.status(stream) == (OK, "")


async def test_a_stream_that_takes_no_reply_is_ended(bundle: Path) -> None:
    async with held_server(bundle, stream_idle_s=0.5) as (server, engine), connected(server.address, window=0) as peer:
        engine.release.set()
        item = pb.AnswerStreamRequest(id="a", request=pb.AnswerRequest.FromString(REQUEST[5:]))
        stream = peer.call("AnswerStream", data=framed(item.SerializeToString()))
        while "DEADLINE_EXCEEDED stream_idle_s" not in server.calls.outcomes:
            await asyncio.sleep(0.01)
        assert server._permits.streams == 0
        peer.h2.increment_flow_control_window(1 << 20, stream)
        peer.send()
        assert await peer.status(stream) == (DEADLINE, "a reply was not taken within 0.5 s")


async def watch(address: str, service: str = "") -> list[int]:
    """What a watcher is told first."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        return [(await stub.Watch(health_pb2.HealthCheckRequest(service=service)).read()).status]


async def test_a_watcher_is_told_of_each_change(bundle: Path) -> None:
    async with held_server(bundle) as (server, _), grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        watcher = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watcher.read()).status == SERVING
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"))
        assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        server._break()
        assert (await watcher.read()).status == NOT_SERVING
        await server.stop(0)
        assert await watcher.code() is grpc.StatusCode.UNAVAILABLE
        assert await watcher.details() == "the server is stopping"


async def test_a_watcher_who_does_not_read_keeps_nobody_waiting(bundle: Path) -> None:
    async with held_server(bundle) as (server, engine), connected(server.address, window=0) as peer:
        engine.release.set()
        for _ in range(20):
            peer.call("Watch", HEALTH, data=framed(b""), end=True)
        assert await answers(server.address)
        for _ in range(3):
            server._health.tell(False)
            server._health.tell(True)
        assert await watch(server.address) == [SERVING]
        began = time.monotonic()
        await server.stop(2)
        assert time.monotonic() - began < 2 + timeouts.CLOSE_S + 4 * timeouts.SEND_S


async def test_watchers_are_bounded(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_MOST_WATCHERS", 2)
    async with held_server(bundle) as (server, _), connected(server.address) as peer:
        calls = [peer.call("Watch", HEALTH, data=framed(b""), end=True) for _ in range(3)]
        assert await peer.status(calls[2]) == (EXHAUSTED, "2 watchers are there")
        peer.close()
        while True:  # a moment later
            with suppress(grpc.RpcError):
                assert await watch(server.address) == [SERVING]
                return


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"\xff\xff", "request: is not a grpc.reflection.v1alpha.ServerReflectionRequest"),
        (b"\x1a\x01\xff", "file_by_filename: is not valid UTF-8"),
    ],
)
async def test_a_lookup_that_is_none(bundle: Path, raw: bytes, problem: str, caplog: pytest.LogCaptureFixture) -> None:
    async with held_server(bundle) as (server, _), connected(server.address) as peer:
        call = peer.call("ServerReflectionInfo", "grpc.reflection.v1alpha.ServerReflection", data=framed(raw))
        invalid = str(grpc.StatusCode.INVALID_ARGUMENT.value[0])
        assert await peer.status(call) == (invalid, problem)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_lookups_are_bounded(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflection, "_MOST_CALLS", 1)
    monkeypatch.setattr(reflection, "_LONGEST_S", 0.5)
    async with held_server(bundle) as (server, _), grpc.aio.insecure_channel(server.address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
        first = stub.ServerReflectionInfo()
        await first.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert len((await first.read()).list_services_response.service) == 3
        assert await stub.ServerReflectionInfo().code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await first.code() is grpc.StatusCode.DEADLINE_EXCEEDED
