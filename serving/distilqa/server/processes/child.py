"""A process of a server of several: a front end, or the one that has the model.

`distilqa.server.processes.parent` starts them:

python -m distilqa.server.processes.child model | front-end NUMBER
"""

from __future__ import annotations

import asyncio
import multiprocessing
import pickle
import socket
import sys
from contextlib import suppress

from distilqa.bundle import Bundle
from distilqa.errors import DistilqaError
from distilqa.scheduling.scheduler import Scheduler
from distilqa.server.admission import Counts
from distilqa.server.back_end import open_back_end, threads_to_use, use_huge_pages
from distilqa.server.front_end import FrontEnd
from distilqa.server.log_messages import report_growth
from distilqa.server.logs import logging_to
from distilqa.server.processes.control import (
    MODEL,
    Alive,
    Beginning,
    Connect,
    Control,
    Ended,
    Failed,
    Force,
    Ready,
    Stop,
)
from distilqa.server.processes.link import Link, Requests
from distilqa.server.service import Served
from distilqa.server.tasks import first_of
from distilqa.server.timeouts import ALIVE_S, CLOSE_S
from distilqa.text.windows import Windower

# How often the parent is told how calls have ended, and of what size runs were.
_TELL_S = 1.0


def main() -> int:
    """Do what the parent says, until it says no more."""
    try:
        begin: Beginning = pickle.load(sys.stdin.buffer)
    except EOFError:  # nobody has told it anything
        return 2
    settings = begin.settings
    multiprocessing.current_process().name = " ".join(sys.argv[1:])  # which entries of the log have
    with logging_to(sys.stderr.fileno(), form=settings.log_format, level=settings.log_level):
        return asyncio.run(_live(sys.argv[1], begin))


async def _live(kind: str, begin: Beginning) -> int:
    control = Control(socket.socket(fileno=begin.control))
    alive = asyncio.create_task(_say_alive(control))
    try:
        return await (_have_model(begin, control) if kind == MODEL else _face_callers(begin, control))
    except DistilqaError as error:
        control.send(Failed(error))
        return 1
    finally:
        alive.cancel()
        control.close()


class RemoteFrontEnd(FrontEnd):
    """Serves a model that another process has, and perhaps another after it."""

    def __init__(self, begin: Beginning, control: Control) -> None:
        counts = Counts(begin.settings.processes, begin.own, begin.counts_descriptor)
        super().__init__(begin.settings, begin.access, counts=counts)
        self._control = control
        self._manifest, self._tokenizer_json = begin.manifest, begin.tokenizer_json
        self._link = Link(self._tell_health)
        self._first: asyncio.Future[Connect] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        await super().start()
        self._keep(report_growth(self.calls.outcomes, lambda ended: self._control.send(Ended(ended)), _TELL_S))

    async def _open(self) -> Served:
        windower = Windower(self._tokenizer_json, max_tokens=self._manifest.window_tokens)
        first = await self._first
        return Served(self._manifest, first.variant, first.device, windower, self._link)

    async def connect(self, model: Connect, connection: socket.socket) -> None:
        """Use the model that is at the other end of this connection."""
        await self._link.attach(connection)
        if not self._first.done():
            self._first.set_result(model)
        self._tell_health()

    @property
    def _can_answer(self) -> bool:
        return super()._can_answer and self._link.is_attached


async def _face_callers(begin: Beginning, control: Control) -> int:
    own = RemoteFrontEnd(begin, control)
    told: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    obeying = asyncio.create_task(_obey(own, control, told))
    starting = asyncio.create_task(own.start())
    await first_of(starting, obeying)
    if starting.done():
        await starting
        control.send(Ready())
        await asyncio.wait((obeying, told), return_when=asyncio.FIRST_COMPLETED)
        if not told.done():
            await obeying  # which raises why it can obey no more
        await own.stop(await told)
    return 0


async def _obey(own: RemoteFrontEnd, control: Control, told: asyncio.Future[float]) -> None:
    """Do as the parent says, also where it says no more, since it has ended."""
    while received := await control.receive():
        match received:
            case Connect() as model, connections:
                await own.connect(model, *connections)  # raises TypeError if there was no descriptor left for it
            case Stop(grace_s), _:
                told.set_result(grace_s)
            case Force(), _:
                own.force()
    own.force()
    if not told.done():
        told.set_result(0)


async def _have_model(begin: Beginning, control: Control) -> int:
    """Returns 1 if the model can be run no more."""
    died = asyncio.Event()
    bundle = Bundle(begin.settings.bundle, begin.manifest)
    engine, scheduler = await open_back_end(begin.settings, bundle, threads_to_use(begin.settings), died.set)
    control.send(Ready(engine.variant, engine.device))
    collapsing = asyncio.create_task(use_huge_pages())
    telling = asyncio.create_task(
        report_growth(scheduler.run_sizes, lambda sizes: control.send(Ended(run_sizes=sizes)), _TELL_S)
    )
    dead, serving = asyncio.create_task(died.wait()), asyncio.create_task(_serve_front_ends(control, scheduler))
    await first_of(dead, serving)
    collapsing.cancel()
    if dead.done():
        return 1
    await serving  # which raises why it can serve no more
    with suppress(TimeoutError):
        await asyncio.wait_for(scheduler.close(), CLOSE_S)
    telling.cancel()
    await asyncio.wait((telling,))
    return 0


async def _say_alive(control: Control) -> None:
    while True:
        await asyncio.sleep(ALIVE_S)
        control.send(Alive())


async def _serve_front_ends(control: Control, scheduler: Scheduler) -> None:
    """Until the parent says to stop, or says no more."""
    while received := await control.receive():
        match received:
            case Connect(), connections:
                await Requests(scheduler).attach(*connections)  # raises TypeError if there was no descriptor left
            case Stop(), _:
                return


if __name__ == "__main__":
    sys.exit(main())
