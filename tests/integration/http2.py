"""A peer that speaks HTTP/2 and does with it what gRPC's own clients never do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from h2.connection import ConnectionState

from distilqa_protos.v1 import SERVICE

_Event = TypeVar("_Event", bound=h2.events.Event)
_Headers: tuple[type[Any], ...] = (h2.events.ResponseReceived, h2.events.TrailersReceived)


class Peer:
    """A connection to a server. ``closed`` is done once the server has closed it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, window: int | None) -> None:
        self._reader, self._writer = reader, writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        if window is not None:
            self.h2.local_settings = h2.settings.Settings(
                client=True, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
            )
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []
        self.answers_pings = True
        self._came = asyncio.Event()
        self.closed = asyncio.create_task(self._read())
        self.send()

    def send(self) -> None:
        """What has been said so far."""
        self._writer.write(self.h2.data_to_send())

    def call(self, method: str, service: str = SERVICE, *, data: bytes | None = None, end: bool = False) -> int:
        """Begin a call, and send so much of its message."""
        stream = self.h2.get_next_available_stream_id()
        self.h2.send_headers(
            stream,
            [
                (":method", "POST"),
                (":scheme", "http"),
                (":path", f"/{service}/{method}"),
                (":authority", "tests"),
                ("te", "trailers"),
                ("content-type", "application/grpc"),
            ],
        )
        if data is not None:
            for start in range(0, len(data), 16384):
                self.h2.send_data(stream, data[start : start + 16384], end_stream=end and start + 16384 >= len(data))
        self.send()
        return stream

    async def event(
        self, kind: type[_Event] | tuple[type[_Event], ...], wanted: Callable[[_Event], bool] = lambda _: True
    ) -> _Event:
        """The first event of a kind, also of those that have come; it is taken."""
        while True:
            for event in self.events:
                if isinstance(event, kind) and wanted(event):
                    self.events.remove(event)
                    return event
            self._came.clear()
            came = asyncio.create_task(self._came.wait())
            await asyncio.wait((came, self.closed), return_when=asyncio.FIRST_COMPLETED)
            came.cancel()
            if self.closed.done() and not self._came.is_set():
                raise ConnectionError(f"closed, after {self.events}")

    async def status(self, stream: int) -> tuple[str, str]:
        """How a call ends: its status, and what is said of it."""
        while True:  # they may come with the headers or after them
            came = await self.event(_Headers, lambda event: event.stream_id == stream)
            headers = {_text(key): _text(value) for key, value in came.headers or ()}
            if "grpc-status" in headers:
                return headers["grpc-status"], headers.get("grpc-message", "")

    async def _read(self) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:  # frame by frame, since h2 takes nothing after the one that ends the connection
                head = await self._reader.readexactly(9)
                frame = head + await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                with suppress(h2.exceptions.ProtocolError):
                    self.events += self.h2.receive_data(frame)
                if self.h2.state_machine.state is ConnectionState.CLOSED:  # by a GOAWAY, after which calls go on
                    self.h2.state_machine.state = ConnectionState.CLIENT_OPEN
                self._came.set()
                if self.answers_pings:
                    self.send()

    def close(self) -> None:
        self.closed.cancel()
        self._writer.close()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def framed(message: bytes, length: int | None = None) -> bytes:
    """A message as gRPC sends it, with its own length or another before it."""
    return b"\0" + (len(message) if length is None else length).to_bytes(4, "big") + message


@asynccontextmanager
async def connected(address: str, *, window: int | None = None) -> AsyncIterator[Peer]:
    """A connection, whose streams take ``window`` bytes before the server must wait."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    peer = Peer(reader, writer, window)
    try:
        yield peer
    finally:
        peer.close()
