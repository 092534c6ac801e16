"""What the log says of a server as a whole: what it serves, who may call, how calls end."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from distilqa.bundle import Manifest
from distilqa.server.address import is_loopback
from distilqa.server.credentials import Callers
from distilqa.server.settings import ServerSettings

logger = logging.getLogger(__name__)

_Key = TypeVar("_Key")


class OfCallers(logging.Filter):
    """Drops what gRPC logs of single callers, as errors: metadata that it cannot decode, which it quotes and which may
    hold a token, and replies to who had left.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        message, error = str(record.msg), str(record.exc_info[1]) if record.exc_info else ""
        return not message.startswith("Invalid encoding") and not error.startswith('Failed "execute_batch"')


def describe(manifest: Manifest, variant: str, device: str) -> str:
    """What is served, for people."""
    return f"{manifest.name} version {manifest.version} ({variant}, {device})"


def tell_ready(address: str, manifest: Manifest, variant: str, seconds: float, processes: int = 1) -> None:
    """Log what is served, and by how many front ends."""
    fields = {"address": address, "model": manifest.name, "version": manifest.version, "variant": variant}
    logger.info("ready", extra={"fields": fields | {"processes": processes, "seconds": round(seconds, 3)}})


def tell_not_answered(ended: Counter[str]) -> None:
    """Log how many calls ended otherwise than with an answer, for who logs no single calls."""
    if more := {outcome: count for outcome, count in ended.items() if outcome != "OK"}:
        logger.warning("not answered", extra={"fields": {"ended": more}})


def tell_stopped(ended: Counter[str], run_sizes: Counter[int]) -> None:
    """Log what has been done."""
    fields = {"ended": dict(ended), "runs_by_windows": dict(sorted(run_sizes.items()))}
    logger.info("stopped", extra={"fields": fields})


async def report_growth(counter: Counter[_Key], tell: Callable[[Counter[_Key]], None], every_s: float) -> None:
    """Tell from time to time, and at last when this is cancelled, by how much a counter has grown."""
    told: Counter[_Key] = Counter()

    def tell_more() -> None:
        nonlocal told
        now = Counter(dict(counter))  # which other threads may change
        if growth := now - told:
            tell(growth)
        told = now

    try:
        while True:
            await asyncio.sleep(every_s)
            tell_more()
    finally:
        tell_more()


def warn_of_address(settings: ServerSettings, callers: Callers | None, address: str) -> None:
    """Log what is open that should perhaps not be."""
    if is_loopback(settings.host.strip("[]")):
        return
    if callers is None:
        logger.warning("without --credentials, whoever reaches %s may call", address)
    elif settings.tls_certificate is None:
        logger.warning("without --tls-certificate, tokens travel to %s as plain text", address)


def warn_of_model(settings: ServerSettings, callers: Callers | None, model: str) -> None:
    """Log it where nobody may use the model."""
    if callers is not None and not callers.may_use(model):
        logger.warning("no caller in %s may use the model %r, which is served", settings.credentials, model)
