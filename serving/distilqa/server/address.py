"""The address that a server binds."""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from distilqa.errors import BindError


def bracketed(host: str) -> str:
    """A host as it stands before a port."""
    bare = host.strip("[]")
    return f"[{bare}]" if ":" in bare else bare


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextmanager
def held_address(host: str, port: int) -> Iterator[tuple[str, int]]:
    """The address and its port, held for the front ends to share, so that no other server gets it. Raises BindError."""
    host = bracketed(host)
    with ExitStack() as held:
        try:
            found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            absent: OSError | None = None
            holding = False
            for family, name in dict.fromkeys((family, str(name)) for family, *_, (name, *_) in found):
                try:
                    own = held.enter_context(_hold(family, name, port))
                except OSError as error:
                    if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                        raise
                    absent = error  # ::1 where there is no IPv6, say, which gRPC passes over too
                else:
                    holding, port = True, own.getsockname()[1]
            if absent and not holding:
                raise absent
        except (OSError, UnicodeError) as error:
            problem = f"cannot bind {host}:{port}; is another server there, or the host not this machine's?"
            raise BindError(problem) from error
        yield f"{host}:{port}", port


def _hold(family: int, name: str, port: int) -> socket.socket:
    """A socket that has the address for others to share, but does not listen. Raises OSError if another has it."""
    with ExitStack() as on_error:
        own = on_error.enter_context(socket.socket(family, socket.SOCK_STREAM))
        try:
            own.bind((name, port))
        except OSError:  # perhaps there are connections yet of a server that has just ended
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            own.bind((name, port))
            own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # only once it is ours
        on_error.pop_all()
    return own
