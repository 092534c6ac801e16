"""The model in this process: its engine, and the scheduler that runs windows on it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from distilqa import huge_pages
from distilqa.bundle import Bundle
from distilqa.engine import Engine, open_engine, usable_cores
from distilqa.scheduler import Scheduler
from distilqa.settings import ServerSettings
from distilqa.tasks import in_thread

logger = logging.getLogger(__name__)

# How long a run that is under way may take to end, and a model that is being opened to open.
CLOSE_S = 5.0


def cores(settings: ServerSettings) -> int:
    """How many are to be used."""
    usable = usable_cores()
    if settings.threads is not None and settings.threads > usable:
        logger.warning("%s: this process may use %d cores only", settings.source("threads"), usable)
    return settings.threads or usable


async def open_model(
    settings: ServerSettings, bundle: Bundle, threads: int, on_death: Callable[[], None]
) -> tuple[Engine, Scheduler]:
    """The engine for the variant of the settings, and lanes on it, which call ``on_death`` should they die.

    Raises BundleError and MissingDependency.
    """
    engine = await in_thread(
        partial(
            open_engine,
            bundle,
            settings.variant,
            unverified=settings.unverified == "allow",
            objective_s=settings.objective_ms / 1e3,
            threads=threads,
            concurrent=True,
        ),
        finish_s=CLOSE_S,
    )
    return engine, Scheduler(
        engine, lanes=engine.lanes, max_queued_windows=settings.max_queued_windows, on_death=on_death
    )


async def use_huge_pages() -> None:
    """While the first windows are run: it would hold up the start."""
    collapsed = await in_thread(huge_pages.collapse)
    logger.info("huge pages", extra={"fields": {"mb": round(collapsed / 1e6)}})
