"""Who may call a server: a TOML file with one table a caller.

    [search]
    token = "..."                         # 16 to 4096 printable ASCII characters without spaces
    models = ["distilbert-384-squad"]     # by default every model

Servers of several models can share the file. Of a token only the SHA-256 digest is kept, and no error repeats one,
neither of the file nor of a call.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from distilqa.errors import PermissionDenied, SettingsError, Unauthenticated
from distilqa.rpc import LONGEST_TOKEN

if TYPE_CHECKING:
    from distilqa.server.settings import ServerSettings

_TOKEN = re.compile(f"[!-~]{{16,{LONGEST_TOKEN}}}")


@dataclass(frozen=True, slots=True)
class Caller:
    """One who may call. ``models`` are the names of the models to use; None is every model."""

    name: str
    digest: bytes
    models: frozenset[str] | None

    def require(self, model: str) -> None:
        """Raises PermissionDenied if the caller may not use the model."""
        if self.models is not None and model not in self.models:
            raise PermissionDenied(f"caller {self.name!r} may not use the model {model!r}")


class Callers:
    """All who may call. Raises ValueError if there are none, or two with one token."""

    def __init__(self, callers: Iterable[Caller]) -> None:
        self._callers = tuple(callers)
        if not self._callers:
            raise ValueError("has no callers")
        names: dict[bytes, str] = {}
        for caller in self._callers:
            if (other := names.setdefault(caller.digest, caller.name)) != caller.name:
                raise ValueError(f"caller {caller.name!r}: token: is that of {other!r} too")

    @classmethod
    def load(cls, path: Path, setting: str = "credentials") -> Self:
        """Read a file that a setting names. Raises SettingsError, naming both, the caller and the problem."""
        try:
            with path.open("rb") as file:
                return cls(_caller(name, table) for name, table in tomllib.load(file).items())
        except OSError as error:
            raise SettingsError(f"{setting}: {path}: {error.strerror}") from error
        except RecursionError as error:
            raise SettingsError(f"{setting}: {path}: is nested too deeply") from error
        except ValueError as error:  # it is not UTF-8, not TOML, or says something else than it should
            raise SettingsError(f"{setting}: {path}: {error}") from error

    def may_use(self, model: str) -> bool:
        """Whether there is a caller who may use a model."""
        return any(caller.models is None or model in caller.models for caller in self._callers)

    def identify(self, authorization: str | None) -> Caller:
        """The caller, by the ``Bearer TOKEN`` (RFC 6750) that came with a call. Raises Unauthenticated."""
        if authorization is None:
            raise Unauthenticated("credentials are missing: this server wants 'authorization: Bearer TOKEN'")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("the authorization is not of the scheme Bearer")
        digest = _digest(token)
        # Each is compared, also after one fits, so that the time tells nothing.
        found = [caller for caller in self._callers if hmac.compare_digest(caller.digest, digest)]
        if not found:
            raise Unauthenticated("the token is not one that is known here")
        (caller,) = found
        return caller


def load_callers(settings: ServerSettings) -> Callers | None:
    """Those whom the settings name, None for everybody. Raises SettingsError."""
    return None if settings.credentials is None else Callers.load(settings.credentials, settings.source("credentials"))


def _caller(name: str, table: object) -> Caller:
    """One table of the file. Raises ValueError, naming the caller."""
    if not isinstance(table, dict):
        raise ValueError(f"caller {name!r}: is not a table")
    if unknown := sorted(table.keys() - {"token", "models"}):
        raise ValueError(f"caller {name!r}: {unknown[0]!r}: is unknown; there are token and models")
    token, models = table.get("token"), table.get("models")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        raise ValueError(
            f"caller {name!r}: token: must be a string of 16 to {LONGEST_TOKEN} printable ASCII characters without"
            " spaces"
        )
    if models is not None and not _are_names(models):
        raise ValueError(f"caller {name!r}: models: must be a list of one name or more")
    return Caller(name, _digest(token), None if models is None else frozenset(models))


def _are_names(models: object) -> bool:
    return isinstance(models, list) and bool(models) and all(isinstance(model, str) and model for model in models)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
