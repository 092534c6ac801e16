"""A server's life: start, serve until told to stop, drain."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from typing import Protocol

from distilqa.errors import BrokenError
from distilqa.server import not_installed
from distilqa.server.processes.parent import Processes
from distilqa.server.settings import ServerSettings
from distilqa.server.tasks import first_of

logger = logging.getLogger(__name__)

_CHILDREN_NEED = ("google.protobuf", "google.rpc", "grpc", "grpc_health", "grpc_reflection", "tokenizers")


class Server(Protocol):
    """What `serve` runs: one process, or several. It is made on the event loop that it is used on.

    ``address`` is where, and ``description`` what is served, once it has started. ``broken`` is set if it cannot go on.
    """

    address: str
    description: str
    broken: asyncio.Event

    async def start(self) -> None:
        """Take the address, open the model and serve; until then, calls end as UNAVAILABLE.

        Raises BindError, BundleError and MissingDependency.
        """

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, let those in flight finish within ``grace_s`` seconds, and close."""

    def force(self) -> None:
        """Let a `stop` wait no longer: calls in flight end as UNAVAILABLE."""


def make_server(settings: ServerSettings) -> Server:
    """Of as many processes as the settings say. Raises SettingsError and MissingDependency."""
    if settings.processes > 1:
        # It needs neither gRPC nor a tokenizer, which take memory; its children do.
        for name in _CHILDREN_NEED:
            try:
                found = find_spec(name)
            except ImportError as error:  # of what it is part of
                raise not_installed(error) from error
            if not found:
                raise not_installed(ImportError(f"No module named {name!r}"))
        return Processes(settings)
    try:
        from distilqa.server.single_process import SingleProcess
    except ImportError as error:
        raise not_installed(error) from error
    return SingleProcess(settings)


async def serve(settings: ServerSettings, on_ready: Callable[[Server], None]) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then drain; a second signal ends the drain at once.

    SIGHUP, which a terminal sends as it closes, is ignored where it was (nohup).

    Raises what `make_server` and the server's `start` do, and BrokenError if the server could not go on.
    """
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio's would wait until this does
    server = make_server(settings)  # first, since it may read a pipe that nobody writes to
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, signals.put_nowait, number)
    first = asyncio.create_task(signals.get())
    starting = asyncio.create_task(server.start())
    await first_of(starting, first)
    if starting.done():
        await starting
        on_ready(server)
        await first_of(first, broken := asyncio.create_task(server.broken.wait()))
        broken.cancel()
    else:
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
    if first.done():
        logger.info("draining", extra={"fields": {"signal": first.result().name, "at_most_s": settings.drain_s}})
    drain = asyncio.create_task(server.stop(settings.drain_s))
    await first_of(drain, second := asyncio.create_task(signals.get()))
    if not drain.done():
        logger.warning("forced to stop", extra={"fields": {"signal": second.result().name}})
        server.force()
    second.cancel()
    first.cancel()
    await drain
    if server.broken.is_set():
        raise BrokenError("the server is broken; its log says why")
