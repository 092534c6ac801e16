"""The server's settings, read once, then frozen: flags come before the environment, a TOML file, and the defaults."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from distilqa.engine.cores import MAX_THREADS
from distilqa.engine.cuda.budget import OBJECTIVE_S
from distilqa.errors import SettingsError
from distilqa.wording import nearest

ENV_PREFIX = "DISTILQA_"

# More than any machine has cores to feed one GPU with.
MAX_PROCESSES = 256

# As gRPC takes it: milliseconds of 31 bits.
LONGEST_S = 2e6

# How Kubernetes has pods find a service: for one named distilqa, DISTILQA_PORT is tcp://10.0.0.1:50051 or so.
_SERVICE_LINK = "tcp://"
_SERVICE_VARIABLE = re.compile(rf"{ENV_PREFIX}(SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_\w+)")

# Of a limit on one request and a limit on all together, the second must not be less.
_LIMITS = (("max_request_bytes", "max_bytes"), ("max_windows", "max_queued_windows"))

# What goes with what.
_PAIRS = (("tls_certificate", "tls_key"), ("tls_key", "tls_certificate"))

# Where pydantic speaks of its own parts.
_WORDS = {
    "extra_forbidden": "is unknown (--print-settings shows what there is)",
    "float_parsing": "Input should be a valid number",
    "int_from_float": "Input should be a valid integer",
    "int_parsing": "Input should be a valid integer",
    "int_parsing_size": "Input should be a valid integer",
    "path_type": "Input should be a path",
    "string_unicode": "Input should be valid Unicode",
}


class _Given(NamedTuple):
    value: Any
    source: str


class ServerSettings(BaseModel):
    """What `distilqa serve` can be told. Each field is a flag, an environment variable, and a key of the TOML file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundle: Path = Field(description="directory of the bundle to serve")
    variant: str | None = Field(None, description="variant of the bundle; by default the fastest that can be used here")
    unverified: Literal["refuse", "allow"] = Field(
        "refuse", description="whether to serve a variant for a GPU that was made without one"
    )
    host: str = Field("127.0.0.1", description="address to bind")
    port: int = Field(50051, ge=0, le=65535, description="port to bind; 0 takes a free one")
    credentials: Path | None = Field(
        None, description="TOML file of the callers to let in and their tokens; by default anybody may call"
    )
    tls_certificate: Path | None = Field(
        None,
        description="PEM file of the certificate chain, RSA or ECDSA (P-256, P-384); by default all is plain",
    )
    tls_key: Path | None = Field(None, description="PEM file of the certificate's private key, without a password")
    threads: int | None = Field(
        None, ge=1, le=MAX_THREADS, description="cores to use; by default all that this process may use"
    )
    processes: int = Field(
        1,
        ge=1,
        le=MAX_PROCESSES,
        description="processes that take calls, tokenise and decode; with several, the model has one of its own",
    )
    objective_ms: float = Field(
        1e3 * OBJECTIVE_S,
        gt=0,
        description="on a GPU, how long the model may take for a request that finds others before it, in ms: the most"
        " that runs are made as large for",
    )
    max_requests: int = Field(128, ge=1, description="requests in flight; more are refused at once")
    max_bytes: int = Field(64 << 20, ge=1, description="bytes of requests in flight; more are refused at once")
    max_request_bytes: int = Field(256 << 10, ge=1, le=1 << 30, description="bytes of one request")
    max_passages: int = Field(256, ge=1, le=2**32 - 1, description="passages of one request")
    max_windows: int = Field(
        256, ge=1, le=2**32 - 1, description="windows of the model that one request's passages may make"
    )
    max_queued_windows: int = Field(
        512,
        ge=1,
        description="windows of the model waiting to be run; a request that would bring more is refused at once",
    )
    stream_requests: int = Field(
        16,
        ge=1,
        le=2**32 - 1,
        description="requests of one AnswerStream that are worked on at a time; beyond them the server reads no"
        " further",
    )
    message_s: float = Field(20.0, gt=0, description="how long a call may take to send its message, in seconds")
    stream_idle_s: float = Field(
        300.0,
        gt=0,
        description="how long an AnswerStream may have nothing to do, or not take a reply, in seconds",
    )
    max_connections: int = Field(
        1024, ge=1, le=2**31 - 1, description="connections of one process; more are closed as they come"
    )
    max_connection_calls: int = Field(
        4096,
        ge=1,
        le=2**31 - 1,
        description="calls at a time on one connection; a client makes the next wait, or has it end as UNAVAILABLE",
    )
    connection_idle_s: float = Field(
        600.0, ge=1, le=LONGEST_S, description="how long a connection may have no call, in seconds"
    )
    connection_age_s: float | None = Field(
        None,
        ge=1,
        le=LONGEST_S,
        description="how long a connection may be used, in seconds: then clients make another, and calls in flight have"
        " drain_s seconds; by default as long as they like",
    )
    drain_s: float = Field(30.0, ge=0, description="how long a stopping server lets calls in flight finish, in seconds")
    log_format: Literal["console", "json"] = Field(
        "console", description="the log as lines for people, or as JSON for programs"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the lowest level that is logged"
    )

    _sources: Mapping[str, str] = {}

    def source(self, name: str) -> str:
        """Where a setting came from, as the user typed it: ``--port``, say. The name alone of one that is a default."""
        return self._sources.get(name, name)

    def to_toml(self) -> str:
        """All settings and their sources, as a file that `load_settings` takes again."""
        return "".join(_line(name, value, self._sources.get(name, "default")) for name, value in self)

    @field_validator("*", mode="before")
    @classmethod
    def _check_given(cls, value: object) -> object:
        """What pydantic would take for something else, or no path can hold."""
        if value == "":
            raise PydanticCustomError("empty", "Input should not be empty")
        if isinstance(value, bool):
            raise PydanticCustomError("boolean", "Input should not be a boolean")
        if isinstance(value, str) and "\0" in value:
            raise PydanticCustomError("null", "Input should be without null characters")
        return value


def flag(name: str) -> str:
    """What a setting is called on the command line."""
    return "BUNDLE" if name == "bundle" else f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    return ENV_PREFIX + name.upper()


def load_settings(flags: Mapping[str, Any]) -> ServerSettings:
    """Settings from the flags that were given (None is not given), the environment, and the file that ``config`` names.

    Raises SettingsError, which names each setting that is wrong as it was given.
    """
    given = _environment() | {name: _Given(value, flag(name)) for name, value in flags.items() if value is not None}
    if config := given.pop("config", None):
        given = _file(config) | given
    sources = {name: one.source for name, one in given.items()}
    try:
        settings = ServerSettings.model_validate({name: one.value for name, one in given.items()})
    except ValidationError as error:
        raise SettingsError("; ".join(_problem(details, sources) for details in error.errors())) from error
    settings._sources = sources
    if conflicts := "; ".join(_conflicts(settings)):
        raise SettingsError(conflicts)
    return settings


def _environment() -> dict[str, _Given]:
    """Raises SettingsError for a variable that is nearly one of ours: a limit that is not set would not be missed."""
    variables = {name: _variable(name) for name in ("config", *ServerSettings.model_fields)}
    others = os.environ.keys() - variables.values()
    for one in sorted(one for one in others if one.startswith(ENV_PREFIX) and not _SERVICE_VARIABLE.fullmatch(one)):
        if meant := nearest(one.removeprefix(ENV_PREFIX).lower(), variables):
            raise SettingsError(f"{one}: is unknown; {variables[meant]} is a setting")
    return {name: _Given(os.environ[one], one) for name, one in variables.items() if one in os.environ}


def _file(config: _Given) -> dict[str, _Given]:
    path, where = config.value, f"{config.source}: {config.value}"
    if not path:
        raise SettingsError(f"{config.source}: Input should not be empty")
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"{where}: {error.strerror}") from error
    except RecursionError as error:
        raise SettingsError(f"{where}: is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{where}: is not UTF-8 at byte {error.start}") from error
    except ValueError as error:
        raise SettingsError(f"{where}: is not TOML: {error}") from error
    return {name: _Given(value, f"{path}: {name}") for name, value in content.items()}


def _problem(details: ErrorDetails, sources: Mapping[str, str]) -> str:
    (name,), kind = details["loc"], details["type"]
    if kind == "missing":
        return (
            f"BUNDLE: is missing; pass it, set {ENV_PREFIX}BUNDLE, or set bundle in the TOML file that --config names"
            " (--help shows all settings)"
        )
    source = sources[str(name)]
    problem = f"{source}: {_WORDS.get(kind, details['msg'])}"
    if kind == "extra_forbidden" and (meant := nearest(str(name), ServerSettings.model_fields)):
        problem = f"{source}: is unknown; {meant} is a setting"
    if kind != "extra_forbidden":  # which may be anything, such as a token where --config names the wrong file
        problem += f" (got {_shown(details['input'])})"
    if source == f"{ENV_PREFIX}PORT" and details["input"].startswith(_SERVICE_LINK):
        problem += (
            "; Kubernetes sets it so beside a service named distilqa: pass --port, or set enableServiceLinks: false in"
            " the pod"
        )
    return problem


def _conflicts(settings: ServerSettings) -> Iterator[str]:
    """What does not go together, naming each setting by its source."""

    def limit(name: str) -> str:
        source, value = settings.source(name), getattr(settings, name)
        return f"{source} ({value}, default)" if source == name else f"{source} ({value})"

    for one, all_together in _LIMITS:
        if getattr(settings, all_together) < getattr(settings, one):
            yield f"{limit(all_together)} is less than {limit(one)}, so that some requests would never get in"
    for one, other in _PAIRS:
        if getattr(settings, one) is not None and getattr(settings, other) is None:
            source = settings.source(one)
            wanted = next(name(other) for name in (flag, _variable, str) if source.endswith(name(one)))
            yield f"{source}: goes with {wanted}, which is not given"


def _shown(value: object) -> str:
    """A value in an error; a table or an array could be long."""
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "an array"
    return repr(value) if isinstance(value, str) else str(value)


def _line(name: str, value: Path | str | float | None, source: str) -> str:
    """A setting in TOML, which has no word for None."""
    shown = value if isinstance(value, int | float) else f'"{_escaped(str(value))}"'
    setting = f"# {name} =" if value is None else f"{name} = {shown}"
    return f"{setting}  # {_escaped(source)}\n"


def _escaped(text: str) -> str:
    """ASCII as a TOML string or comment may hold it, whatever the encoding of stdout."""
    return re.sub(r"[^ !#-\[\]-~]", lambda one: f"\\U{ord(one[0]):08X}", text)
