#!/usr/bin/env bash
# grpcio 1.85.0 (and 1.80.1), Linux: the option grpc.keepalive_timeout_ms does nothing. A ping of the keepalive that is
# not acknowledged ends the connection after grpc.http2.ping_timeout_ms, 60 s by default, whatever that option says. So
# a client with a keepalive of 1 s and a timeout of 2 s notices only after a minute that its server hangs. It is the
# same for servers whose clients hang.
# Seen, for a call to a server that is stopped (SIGSTOP) 1.5 s after the call began:
#     keepalive_time_ms=1000 keepalive_timeout_ms=2000                       DEADLINE_EXCEEDED after its own 20 s
#     keepalive_time_ms=1000 keepalive_timeout_ms=2000 ping_timeout_ms=4000  UNAVAILABLE (ping timeout) after 4.6 s
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.0
cat > "$folder/server.py" <<'PYTHON'
import asyncio

import grpc


async def main():
    async def wait(raw, context):
        await asyncio.sleep(100)

    server = grpc.aio.server()
    methods = {"Wait": grpc.unary_unary_rpc_method_handler(wait)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", methods),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


asyncio.run(main())
PYTHON
cat > "$folder/client.py" <<'PYTHON'
import os
import signal
import subprocess
import sys
import time

import grpc


def end_of_call(**options):
    """How a call to a server that hangs ends, and after how many seconds."""
    with subprocess.Popen([sys.executable, sys.argv[1]], stdout=subprocess.PIPE, text=True) as server:
        try:
            port = int(server.stdout.readline())
            given = [(f"grpc.{name.replace('__', '.')}", value) for name, value in options.items()]
            with grpc.insecure_channel(f"127.0.0.1:{port}", options=given) as channel:
                call = channel.unary_unary("/s/Wait").future(b"", timeout=20)
                time.sleep(1.5)
                os.kill(server.pid, signal.SIGSTOP)
                began = time.monotonic()
                code = call.code()
                seconds = time.monotonic() - began
        finally:
            server.kill()
    print(f"{options}: {code.name} after {seconds:.1f} s", flush=True)
    return code


keepalive = {"keepalive_time_ms": 1000, "keepalive_timeout_ms": 2000}
ignored = end_of_call(**keepalive)
obeyed = end_of_call(**keepalive, http2__ping_timeout_ms=4000)
assert ignored is grpc.StatusCode.DEADLINE_EXCEEDED, "grpc.keepalive_timeout_ms is no longer ignored"
assert obeyed is grpc.StatusCode.UNAVAILABLE, "grpc.http2.ping_timeout_ms no longer ends the connection"
PYTHON
"$folder/venv/bin/python" "$folder/client.py" "$folder/server.py"
