"""How many connections there may be, and are."""

from __future__ import annotations

import asyncio
import logging
import os
import resource

from distilqa.server.settings import ServerSettings
from distilqa.server.timeouts import TELL_S

logger = logging.getLogger(__name__)

# What a process opens beside connections, beyond what it has when it begins to serve.
_SPARE = 32

# Of the connections that there may be; from here on the log tells.
_MANY = 0.9


class Connections:
    """The limit on those of this process, and a watch over it.

    A connection takes a file descriptor. Without one left newcomers would neither be let in nor turned away.
    """

    def __init__(self, settings: ServerSettings) -> None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._own = _descriptors()
        possible = settings.max_connections if most < 0 else max(most - self._own - _SPARE, 1)
        self.limit = min(settings.max_connections, possible)
        if self.limit < settings.max_connections:
            logger.warning(
                "%s: %d at most, since this process may have %d files open",
                settings.source("max_connections"), self.limit, most,
            )  # fmt: skip

    async def watch(self) -> None:
        """Tell from time to time where there are nearly as many as may be. gRPC tells of none that it turns away."""
        while True:
            await asyncio.sleep(TELL_S)
            if (there := _descriptors() - self._own) >= _MANY * self.limit:
                logger.warning("many connections", extra={"fields": {"connections": there, "limit": self.limit}})


def _descriptors() -> int:
    """How many are in use."""
    return len(os.listdir("/dev/fd"))
