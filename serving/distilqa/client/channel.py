"""Channels to a server, plain or encrypted, to what can be one."""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc

from distilqa.errors import InvalidRequest
from distilqa.text.request import check_text

# gRPC's own ways to name a server, which it reads itself.
_SCHEMES = ("dns:", "unix:", "unix-abstract:", "vsock:", "ipv4:", "ipv6:", "xds:")
_NOTHING = re.compile(r"[^:]*:(//[^/]*/?)?")
_HOST_AND_PORT = re.compile(r"(\[[^\[\]/\s]+\]|[^\[\]:/\s]+):([0-9]{1,5})")


def channel_to(
    target: str, options: list[tuple[str, str | int]], *, tls: bool, root_certificates: str | Path | None
) -> Callable[[Any], Any]:
    """What opens a channel of an API, `grpc` or `grpc.aio`. Raises InvalidRequest for what cannot be used."""
    _check_target(target)
    if not tls and root_certificates is None:
        return lambda api: api.insecure_channel(target, options=options)
    credentials = grpc.ssl_channel_credentials(None if root_certificates is None else _roots(root_certificates))
    return lambda api: api.secure_channel(target, credentials, options=options)


def _check_target(target: str) -> None:
    """Raise InvalidRequest for a URL, and for a host without a port, which gRPC would take for port 443."""
    check_text("target", target)
    if target.startswith(_SCHEMES):
        if _NOTHING.fullmatch(target):
            raise InvalidRequest("target", f"is {target!r}, which names no server")
        return
    found = _HOST_AND_PORT.fullmatch(target)
    if not found or int(found[2]) > 65535:
        raise InvalidRequest("target", f'is {target!r}, must be "host:port", "localhost:50051" say')


def _roots(path: str | Path) -> bytes:
    """The file's content. Raises InvalidRequest where gRPC would only fail at the first call, without saying why."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
        return Path(path).read_bytes()
    except OSError as error:
        problem = "holds no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        raise InvalidRequest("root_certificates", f"{path}: {problem}") from error
    except (TypeError, ValueError) as error:  # it is no path, or has a NUL
        raise InvalidRequest("root_certificates", f"{path!r}: {error}") from error
