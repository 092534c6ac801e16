"""A call of the clients: its deadline, what goes with it, and what its end means."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from distilqa.client.messages import read_error, unknown_status
from distilqa.errors import DeadlineExceeded, DistilqaError, Unavailable

# How gRPC begins when it found nobody. It names the last address only, and on another the cause may have been TLS.
_NOT_CONNECTED = "failed to connect to all addresses"
_REFUSED = "Connection refused"
_NOBODY_HINT = "Is the server there? Of several addresses this tells of the last. "
_PLAIN_HINT = "This client does not use TLS: does the server?"
_TLS_HINT = "This client uses TLS: does the server, with a certificate that is trusted here (root_certificates)?"
_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")

# What gRPC says of a deadline where the server says nothing.
_DEADLINE_EXCEEDED = "Deadline Exceeded"


def _hint(said: str, tls: bool) -> str:
    """What may be the cause where there is no connection."""
    proxy = next((name for name in _PROXIES if os.environ.get(name)), None)
    way = f" {proxy} is set, so gRPC goes by that proxy to all that no_proxy does not name." if proxy else ""
    return f"{_NOBODY_HINT if _REFUSED in said else ''}{_TLS_HINT if tls else _PLAIN_HINT}{way}"


@dataclass(frozen=True, slots=True)
class OutgoingCall:
    """A call that begins now, by a client that may be closed meanwhile. ``late`` is what to say of its deadline."""

    stub: Any
    metadata: tuple[tuple[str, str], ...] = field(repr=False)  # holds the token
    timeout_s: float
    late: str
    tls: bool
    is_closed: Callable[[], bool]
    began: float = field(default_factory=time.monotonic)

    @property
    def options(self) -> dict[str, Any]:
        """For a method of the stub: what is left of the time, and the metadata."""
        return {"timeout": self.left_s, "metadata": self.metadata}

    @property
    def left_s(self) -> float:
        """How much of the time is left, in seconds."""
        return max(self.began + self.timeout_s - time.monotonic(), 0.0)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Make what ends a call into the error that it means."""
        try:
            yield
        except grpc.RpcError as error:
            raise self.explain(read_error(error)) from error
        except KeyError as error:  # what grpc.aio makes of a status that it does not know
            raise unknown_status(error) from error
        except (ValueError, grpc.aio.UsageError) as error:
            if self.is_closed():  # before the call had begun
                raise Unavailable("the client is closed") from error
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.is_closed() and not (task and task.cancelling()):  # `close` ended the call, nobody the task
                raise Unavailable("the client was closed during the call") from None
            raise

    def explain(self, error: DistilqaError) -> DistilqaError:
        """An error with what only the client knows about it."""
        said = str(error)
        if isinstance(error, DeadlineExceeded):
            return DeadlineExceeded(self.late if said in ("", _DEADLINE_EXCEEDED) else f"{self.late}: {said}")
        if isinstance(error, Unavailable) and self.is_closed():
            return Unavailable("the client was closed during the call")
        if isinstance(error, Unavailable) and said.startswith(_NOT_CONNECTED):
            return Unavailable(f"{said}. {_hint(said, self.tls)}")
        return error
