"""The server's settings: command line first, then the environment, then the defaults; read once, then frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from distilqa.engine import MAX_THREADS
from distilqa.errors import DistilqaError

ENV_PREFIX = "DISTILQA_"


class SettingsError(DistilqaError):
    """A setting has a value that it cannot have; the message names the setting."""


class ServerSettings(BaseSettings):
    """What `distilqa serve` can be told. Each field is a flag and an environment variable, ``DISTILQA_PORT`` say."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    bundle: Path = Field(description="directory of the bundle to serve")
    variant: str | None = Field(None, description="variant of the bundle; by default the fastest for this machine")
    host: str = Field("127.0.0.1", description="address to bind")
    port: int = Field(50051, ge=0, le=65535, description="port to bind; 0 takes a free one")
    threads: int | None = Field(
        None, ge=1, le=MAX_THREADS, description="cores to use; by default all that this process may use"
    )
    max_requests: int = Field(512, ge=1, description="requests in flight; more are refused at once")
    max_bytes: int = Field(64 << 20, ge=1, description="bytes of requests in flight; more are refused at once")
    max_request_bytes: int = Field(256 << 10, ge=1, le=1 << 30, description="bytes of one request")
    max_passages: int = Field(256, ge=1, description="passages of one request")
    max_windows: int = Field(256, ge=1, description="windows of the model that one request's passages may make")
    drain_s: float = Field(30.0, ge=0, description="how long a stopping server lets calls in flight finish, in seconds")


def load_settings(flags: dict[str, Any]) -> ServerSettings:
    """Settings from the flags that were given (None is not given) and the environment. Raises SettingsError."""
    try:
        settings = ServerSettings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("; ".join(_problem(details) for details in error.errors())) from error
    if settings.max_bytes < settings.max_request_bytes:
        raise SettingsError("max_bytes: is less than max_request_bytes, so that some requests would never get in")
    return settings


def _problem(details: ErrorDetails) -> str:
    name = ".".join(map(str, details["loc"]))
    if details["type"] == "missing":
        return f"{name}: is missing"
    return f"{name}: {details['msg']} (got {details['input']!r})"
