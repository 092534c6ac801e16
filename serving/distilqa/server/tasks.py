"""Waiting, on the event loop, for what may not end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

_Result = TypeVar("_Result")


async def in_thread(work: Callable[[], _Result], *, finish_s: float = 0.0) -> _Result:
    """What some work gives, done by a thread that holds up the end of the process no longer than who waits for it.

    Cancelled, it waits so many seconds more for the work to end: ONNX Runtime aborts a process that ends while it opens
    a model.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_Result] = loop.create_future()

    def deliver(give: Callable[[Any], None], outcome: Any) -> None:
        if not done.done():
            give(outcome)

    def run() -> None:
        try:
            give, outcome = done.set_result, work()
        except BaseException as error:
            give, outcome = done.set_exception, error  # type: ignore[assignment]
        with suppress(RuntimeError):  # the event loop has ended
            loop.call_soon_threadsafe(deliver, give, outcome)

    threading.Thread(target=run, daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait([done], timeout=finish_s)
        done.cancel()
        raise


async def first_of(*tasks: asyncio.Task[Any], timeout_s: float | None = None) -> None:
    """Wait until one of them has ended, or for so many seconds."""
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
