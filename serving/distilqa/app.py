"""A server, all in one process or in several, and its life: start, serve until told to stop, drain."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeAlias

from distilqa.bundle import Bundle
from distilqa.credentials import load_callers
from distilqa.errors import BrokenError
from distilqa.front_end import FrontEnd, Model, tell_ready, tell_stopped, warn_of_address, warn_of_model
from distilqa.model import cores, open_model, use_huge_pages
from distilqa.processes import Processes
from distilqa.reader import open_windower
from distilqa.settings import ServerSettings
from distilqa.tasks import first_of, in_thread
from distilqa.tls import load_certificate

logger = logging.getLogger(__name__)


class Server(FrontEnd):
    """One bundle, served by this process alone. Raises SettingsError."""

    def __init__(self, settings: ServerSettings) -> None:
        self._threads = cores(settings)
        super().__init__(settings, load_callers(settings), load_certificate(settings), threads=self._threads)

    async def start(self) -> None:
        """Raises BundleError and MissingDependency too."""
        await super().start()
        self._keep(use_huge_pages())

    async def _open(self) -> Model:
        warn_of_address(self._settings, self._callers, self.address)
        began = time.monotonic()
        bundle = Bundle.open(self._settings.bundle)
        windower = await in_thread(partial(open_windower, bundle))
        self._engine, self._scheduler = await open_model(
            self._settings, bundle, self._threads, lambda: self._keep(self._break())
        )
        model = Model(bundle.manifest, self._engine.variant, self._engine.device, windower, self._scheduler)
        warn_of_model(self._settings, self._callers, model.manifest.name)
        tell_ready(self.address, model.manifest, model.variant, time.monotonic() - began)
        return model

    async def stop(self, grace_s: float) -> None:
        await super().stop(grace_s)
        tell_stopped(self.calls.outcomes, self._scheduler.run_sizes if self._service else Counter())


AnyServer: TypeAlias = Server | Processes


async def serve(settings: ServerSettings, on_ready: Callable[[AnyServer], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the drain at once.

    Raises what `Server`, or `Processes`, and its `start` do, and BrokenError if the server could not go on.
    """
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signals.put_nowait, number)
    server = Server(settings) if settings.processes == 1 else Processes(settings)
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
