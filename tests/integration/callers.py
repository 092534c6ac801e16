"""Who asks a server, and what comes of it."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from distilqa_protos.v1 import SERVICE
from distilqa_protos.v1 import question_answering_pb2 as pb
from distilqa_protos.v1.question_answering_pb2_grpc import QuestionAnsweringStub

QUESTION = "What does the fox jump over?"
PASSAGE = "The quick brown fox jumps over the lazy dog."

# No call is tried again, and each channel has a connection of its own.
OPTIONS = (("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1))

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
    async with grpc.aio.insecure_channel(address, options=OPTIONS) as channel:
        stub: Any = QuestionAnsweringStub(channel)
        if method == "AnswerStream":
            return await stub.AnswerStream(timeout=30).code()  # type: ignore[no-any-return]
        request = pb.AnswerRequest(question=QUESTION, passages=[pb.Passage(text=PASSAGE)])
        call = stub.Answer(request, timeout=30) if method == "Answer" else stub.GetModel(pb.GetModelRequest())
        return await call.code()  # type: ignore[no-any-return]


def ask(address: str, *passages: str, timeout_s: float = 600) -> str:
    """The answer, or how the call ended, without being tried again."""
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        request = pb.AnswerRequest(question=QUESTION, passages=[pb.Passage(text=text) for text in passages])
        try:
            return str(QuestionAnsweringStub(channel).Answer(request, timeout=timeout_s).answers[0].text)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"


class Caller:
    """Asks one question after another from several threads until the server is gone, and counts how that ended."""

    def __init__(self, address: str, threads: int) -> None:
        self.ends: Counter[str] = Counter()
        self.answered = threading.Event()
        self._address = address
        self._pool = ThreadPoolExecutor(threads)
        self._loops = [self._pool.submit(self._ask) for _ in range(threads)]

    def _ask(self) -> None:
        with grpc.insecure_channel(self._address, options=OPTIONS) as channel:
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
