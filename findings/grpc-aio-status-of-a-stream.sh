#!/usr/bin/env bash
# grpcio 1.85.0 (and 1.80.1), Linux: of a stream by grpc.aio that the server ends while the client writes, the caller is
# mostly told INTERNAL, "Internal error from Core", and not what the server said. The write that fails gives the call
# that status after it had the right one, and code() and details() say so from then on. A client that retries on
# RESOURCE_EXHAUSTED, or tells a passed deadline from a fault, cannot by them. The synchronous client is right always.
# A callback of add_done_callback() is called with each status that a call is given, the right one among them.
# Seen, for 300 streams each that the server ends at once with RESOURCE_EXHAUSTED (a run; the numbers differ):
#     grpc.aio: INTERNAL 252, RESOURCE_EXHAUSTED 48
#     grpc: RESOURCE_EXHAUSTED 300
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.0
cat > "$folder/streams.py" <<'PYTHON'
import asyncio
from collections import Counter

import grpc

STREAMS = 300


async def refuse(requests, context):
    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")


async def by_asyncio(channel):
    async def send(call):
        try:
            for _ in range(100):
                await call.write(bytes(1000))
        except (grpc.RpcError, asyncio.InvalidStateError):
            pass  # the call is over

    ends = Counter()
    for _ in range(STREAMS):
        call = channel.stream_stream("/s/Stream")()
        sending = asyncio.create_task(send(call))
        try:
            async for _ in call:
                pass
        except grpc.RpcError as error:
            ends[error.code().name] += 1
        await sending
    return ends


def by_threads(port):
    ends = Counter()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for _ in range(STREAMS):
            try:
                list(channel.stream_stream("/s/Stream")(bytes(1000) for _ in range(100)))
            except grpc.RpcError as error:
                ends[error.code().name] += 1
    return ends


async def main():
    server = grpc.aio.server()
    methods = {"Stream": grpc.stream_stream_rpc_method_handler(refuse)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        wrong = await by_asyncio(channel)
    right = await asyncio.to_thread(by_threads, port)
    await server.stop(0)
    print("grpc.aio:", ", ".join(f"{name} {count}" for name, count in wrong.most_common()))
    print("grpc:", ", ".join(f"{name} {count}" for name, count in right.most_common()))
    assert wrong["INTERNAL"] > STREAMS // 10, "grpc.aio no longer replaces the status"
    assert right == {"RESOURCE_EXHAUSTED": STREAMS}, "the synchronous client's status is replaced too"


asyncio.run(main())
PYTHON
"$folder/venv/bin/python" "$folder/streams.py"
