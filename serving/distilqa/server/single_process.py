"""A server that is one process: it faces the callers, and has the model."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial

from distilqa.bundle import Bundle
from distilqa.reader import open_windower
from distilqa.server.access import Access
from distilqa.server.back_end import open_back_end, threads_to_use, use_huge_pages
from distilqa.server.front_end import FrontEnd
from distilqa.server.log_messages import (
    report_growth,
    tell_not_answered,
    tell_ready,
    tell_stopped,
    warn_of_address,
    warn_of_model,
)
from distilqa.server.service import Served
from distilqa.server.settings import ServerSettings
from distilqa.server.tasks import in_thread
from distilqa.server.timeouts import TELL_S


class SingleProcess(FrontEnd):
    """One bundle, served by this process alone. Raises SettingsError."""

    def __init__(self, settings: ServerSettings) -> None:
        self._threads = threads_to_use(settings)
        super().__init__(settings, Access.load(settings), threads=self._threads)

    async def start(self) -> None:
        """Raises BundleError and MissingDependency too."""
        await super().start()
        self._keep(report_growth(self.calls.outcomes, tell_not_answered, TELL_S))
        self._keep(use_huge_pages())

    async def _open(self) -> Served:
        callers = self._access.callers
        warn_of_address(self._settings, callers, self.address)
        began = time.monotonic()
        bundle = Bundle.open(self._settings.bundle)
        windower = await in_thread(partial(open_windower, bundle))
        engine, self._scheduler = await open_back_end(self._settings, bundle, self._threads, self._break)
        warn_of_model(self._settings, callers, bundle.manifest.name)
        tell_ready(self.address, bundle.manifest, engine.variant, time.monotonic() - began)
        return Served(bundle.manifest, engine.variant, engine.device, windower, self._scheduler)

    async def stop(self, grace_s: float) -> None:
        await super().stop(grace_s)
        tell_stopped(self.calls.outcomes, self._scheduler.run_sizes if self._service else Counter())
