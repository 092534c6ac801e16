"""What has the model: its engine, and the scheduler that runs windows on it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from distilqa.bundle import GPU_VARIANTS, VARIANTS, Bundle
from distilqa.engine import huge_pages
from distilqa.engine.base import Engine
from distilqa.engine.cores import usable_cores
from distilqa.engine.open import open_engine
from distilqa.scheduling.scheduler import Scheduler
from distilqa.server.settings import ServerSettings
from distilqa.server.tasks import in_thread
from distilqa.server.timeouts import CLOSE_S

logger = logging.getLogger(__name__)


def threads_to_use(settings: ServerSettings) -> int:
    """How many are to be used."""
    usable = usable_cores()
    if settings.threads is not None and settings.threads > usable:
        logger.warning("%s: this process may use %d cores only", settings.source("threads"), usable)
    return settings.threads or usable


async def open_back_end(
    settings: ServerSettings, bundle: Bundle, threads: int, on_death: Callable[[], None]
) -> tuple[Engine, Scheduler]:
    """The engine for the variant of the settings, and lanes on it, which call ``on_death`` should they die.

    Raises BundleError and MissingDependency.
    """
    bundle.variant(settings.variant, (*VARIANTS, *GPU_VARIANTS))  # raises before anything is said
    logger.info(
        "opening the model", extra={"fields": {"bundle": str(bundle.path), "variant": settings.variant or "any"}}
    )
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
