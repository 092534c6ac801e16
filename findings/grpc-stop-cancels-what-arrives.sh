#!/usr/bin/env bash
# grpcio 1.85.0 (and 1.80.1), Linux: a call that reaches a server in the moment in which stop(grace) is called ends as
# CANCELLED, however long the grace. The server had not begun it, and the connection is told to go away; but the status
# is none that clients try again, neither by themselves as for a stream that was refused, nor by a retry policy, which
# has UNAVAILABLE. So a rolling restart loses calls of busy clients. A server that ends what is new as UNAVAILABLE for a
# while before it calls stop() has those clients wait for their next try, and loses none.
# Seen, for 16 busy clients and 10 servers that stop (a run; the numbers differ):
#     stop(3): 73 CANCELLED
#     UNAVAILABLE for 0.05 s, then stop(3): 0 CANCELLED
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.0
cat > "$folder/stop.py" <<'PYTHON'
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter

import grpc

SERVERS, CLIENTS = 10, 16
RETRY = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": "s"}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 3,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)


async def serve(refuse_s):
    stopping = asyncio.Event()

    async def echo(request, context):
        if stopping.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, "stopping")
        await asyncio.sleep(0.005)
        return request

    server = grpc.aio.server()
    methods = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", methods),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await asyncio.sleep(1)
    if refuse_s:
        stopping.set()
        await asyncio.sleep(refuse_s)
    await server.stop(3)


async def ask(port, ends):
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.service_config", RETRY)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            try:
                await channel.unary_unary("/s/Echo")(b"")
            except grpc.RpcError as error:
                ends[error.code().name] += 1
                return


async def ask_all(port):
    ends = Counter()
    await asyncio.gather(*(ask(port, ends) for _ in range(CLIENTS)))
    return ends


def cancelled(refuse_s):
    ends = Counter()
    for _ in range(SERVERS):
        with subprocess.Popen([sys.executable, __file__, str(refuse_s)], stdout=subprocess.PIPE, text=True) as server:
            ends += asyncio.run(ask_all(int(server.stdout.readline())))
    assert ends.total() == SERVERS * CLIENTS, ends
    return ends["CANCELLED"]


if len(sys.argv) > 1:
    asyncio.run(serve(float(sys.argv[1])))
else:
    at_once, after_a_while = cancelled(0), cancelled(0.05)
    print(f"stop(3): {at_once} CANCELLED")
    print(f"UNAVAILABLE for 0.05 s, then stop(3): {after_a_while} CANCELLED")
    assert at_once > 0, "what arrives as the server stops is no longer cancelled"
    assert after_a_while < at_once
PYTHON
"$folder/venv/bin/python" "$folder/stop.py"
