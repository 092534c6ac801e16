#!/usr/bin/env bash
# grpcio 1.85.0 (and 1.80.1), Linux: the server is told a longer deadline than the caller set, by up to one part in a
# hundred: the client sends two or three digits of it, rounded up. After 10 s that is 0.1 s more, after 100 s a second,
# after 1,000 s ten. The caller gives up at its own, earlier, and cancels. So of a call whose time has passed the server
# mostly sees a cancellation with time left, and who counts by that finds callers that left and hardly any deadline.
# Seen (the seconds that a call was given, and what the server was told, less the way there):
#     5.001 -> 5.01
#     10.01 -> 10.1
#     99.91 -> 100
#     100.2 -> 101
#     1001 -> 1010
#     of a call of 10.01 s, the server saw a cancellation with 0.07 s left
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.0
cat > "$folder/timeouts.py" <<'PYTHON'
import asyncio
import time

import grpc

TOLD = {5.001: 5.01, 10.01: 10.1, 99.91: 100, 100.2: 101, 1001: 1010}

told, left = [], []


async def note(request, context):
    told.append(context.time_remaining())
    return b""


async def wait(request, context):
    began, deadline = time.monotonic(), context.time_remaining()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        left.append(began + deadline - time.monotonic())
        raise


async def main():
    server = grpc.aio.server()
    methods = {"Note": grpc.unary_unary_rpc_method_handler(note), "Wait": grpc.unary_unary_rpc_method_handler(wait)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await channel.unary_unary("/s/Note")(b"")  # connected from here on
        told.clear()
        for timeout in TOLD:
            await channel.unary_unary("/s/Note")(b"", timeout=timeout)
        for (timeout, expected), seconds in zip(TOLD.items(), told):
            print(f"{timeout:g} -> {expected:g}")
            assert timeout < seconds <= expected, f"the server was told {seconds}"
        try:
            await channel.unary_unary("/s/Wait")(b"", timeout=10.01)
        except grpc.RpcError as error:
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await asyncio.sleep(0.5)
    await server.stop(0)
    print(f"of a call of 10.01 s, the server saw a cancellation with {left[0]:.2f} s left")
    assert left[0] > 0, "the server's deadline is no longer later than the caller's"


asyncio.run(main())
PYTHON
"$folder/venv/bin/python" "$folder/timeouts.py"
