"""Who gets through to the service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import grpc

from distilqa.rpc import AUTHORIZATION
from distilqa.server.credentials import Callers
from distilqa.server.statuses import CALLER, Calls, Handler
from distilqa_protos.v1 import SERVICE
from distilqa_protos.v1 import question_answering_pb2 as pb

# Open to all: the probes that ask for health cannot send credentials.
_HEALTH = "/grpc.health.v1.Health/"

# Our methods, and what the log calls them.
_NAMES = {f"/{SERVICE}/{one.name}": one.name for one in pb.DESCRIPTOR.services_by_name["QuestionAnswering"].methods}


class CallersOnly(grpc.aio.ServerInterceptor):
    """Lets in known callers who may use ``model``, which may raise, and everybody to the health service."""

    def __init__(self, callers: Callers, model: Callable[[], str], calls: Calls) -> None:
        self._callers, self._model, self._calls = callers, model, calls

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The handler of the call, or one that refuses it."""
        method = handler_call_details.method
        if not method.startswith(_HEALTH):
            try:
                caller = self._callers.identify(_authorization(handler_call_details))
                CALLER.set(caller.name)
                caller.require(self._model())
            except Exception as error:  # gRPC would send the words of any that left here
                if method in _NAMES:
                    return self._calls.refuse(_NAMES[method], error)
                return self._calls.refuse("unknown method", error, method=method)
        return await continuation(handler_call_details)


def _authorization(details: grpc.HandlerCallDetails) -> str | None:
    """What the call carries. Several are joined, as HTTP joins them: together they are nobody's."""
    sent = [str(value) for key, value in details.invocation_metadata if key == AUTHORIZATION]
    return ", ".join(sent) if sent else None
