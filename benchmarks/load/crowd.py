"""Generators that load a server together, each in a process of its own: one cannot send what a GPU can answer.

``python -m benchmarks.load.crowd ADDRESS PID CONNECTIONS`` is one of them. A server of several processes has each
connection in one of them, so each generator has many, and its calls take them in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import cycle
from types import TracebackType
from typing import Any, Self

from benchmarks.load.generator import (
    Load,
    answering,
    asked,
    closed,
    connected,
    open_loop,
    serialize,
    serialize_streams,
    streaming,
)  # fmt: skip
from benchmarks.load.processes import Running, ServerFailed
from benchmarks.racing.child import Child


class Crowd:
    """So many generators, with so many connections each, from ``with`` on. Raises SystemFailed where one dies."""

    def __init__(self, running: Running, generators: int, connections: int) -> None:
        arguments = (running.address, f"{running.pid}", f"{connections}")
        self._children = [Child("a generator", "benchmarks.load.crowd", *arguments) for _ in range(generators)]

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for child in self._children:
                stack.enter_context(child)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def closed(self, questions: int, seconds: float, callers: int) -> Load:
        """Callers who ask again as soon as they are answered, ``questions`` in a call. Raises ServerFailed."""
        count = len(self._children)
        shares = [callers // count + (number < callers % count) for number in range(count)]
        return self._load([{"questions": questions, "seconds": seconds, "callers": own} for own in shares if own])

    def open_loop(self, questions: int, seconds: float, rate: float, seed: int) -> Load:
        """Calls at random times, so many a second in all. Raises ServerFailed."""
        count = len(self._children)
        shared = {"questions": questions, "seconds": seconds, "rate": rate / count}
        return self._load([shared | {"seed": seed * count + number} for number in range(count)])

    def _load(self, commands: Sequence[Mapping[str, Any]]) -> Load:
        for child, command in zip(self._children, commands, strict=False):
            child.tell(command)
        replies = [child.hear() for child, _ in zip(self._children, commands, strict=False)]
        if problems := [reply for reply in replies if isinstance(reply, str)]:
            raise ServerFailed(problems[0])
        return Load.together([Load.from_json(reply) for reply in replies])


async def _obey(address: str, pid: int, connections: int, replies: Any) -> None:
    """Do what `Crowd` tells, and reply with the load, or why there is none."""
    async with connected(address, connections) as channels:
        print("null", file=replies, flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            command = json.loads(line)
            questions = command.pop("questions")
            methods = cycle([answering(one) if questions == 1 else streaming(one) for one in channels])
            requests = serialize(asked()) if questions == 1 else serialize_streams(asked(), questions)

            async def method(request: Any, methods: Any = methods, **options: Any) -> Any:
                return await next(methods)(request, **options)

            load = closed if "callers" in command else open_loop
            try:
                reply: Any = (await load(method, pid, requests, **command)).to_json()
            except ServerFailed as error:
                reply = str(error)
            print(json.dumps(reply), file=replies, flush=True)


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load.crowd")
    parser.add_argument("address")
    parser.add_argument("pid", type=int)
    parser.add_argument("connections", type=int)
    arguments = parser.parse_args()
    asyncio.run(_obey(arguments.address, arguments.pid, arguments.connections, sys.stdout))


if __name__ == "__main__":
    main()
