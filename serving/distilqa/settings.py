"""The server's settings: command line first, then the environment, then the defaults; read once, then frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from distilqa.engine import MAX_THREADS
from distilqa.errors import SettingsError

ENV_PREFIX = "DISTILQA_"

# How Kubernetes has pods find a service: for one named distilqa, DISTILQA_PORT is tcp://10.0.0.1:50051 or so.
_SERVICE_LINK = "tcp://"


class ServerSettings(BaseSettings):
    """What `distilqa serve` can be told. Each field is a flag and an environment variable, ``DISTILQA_PORT`` say."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    bundle: Path = Field(description="directory of the bundle to serve")
    variant: str | None = Field(None, description="variant of the bundle; by default the fastest for this machine")
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
    max_requests: int = Field(512, ge=1, description="requests in flight; more are refused at once")
    max_bytes: int = Field(64 << 20, ge=1, description="bytes of requests in flight; more are refused at once")
    max_request_bytes: int = Field(256 << 10, ge=1, le=1 << 30, description="bytes of one request")
    max_passages: int = Field(256, ge=1, le=2**32 - 1, description="passages of one request")
    max_windows: int = Field(
        256, ge=1, le=2**32 - 1, description="windows of the model that one request's passages may make"
    )
    drain_s: float = Field(30.0, ge=0, description="how long a stopping server lets calls in flight finish, in seconds")


def load_settings(flags: dict[str, Any]) -> ServerSettings:
    """Settings from the flags that were given (None is not given) and the environment. Raises SettingsError."""
    try:
        settings = ServerSettings(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("; ".join(_problem(details) for details in error.errors())) from error
    if settings.max_bytes < settings.max_request_bytes:
        raise SettingsError("max_bytes: is less than max_request_bytes, so that some requests would never get in")
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise SettingsError("tls_certificate, tls_key: go together, and only one of them is given")
    return settings


def _problem(details: ErrorDetails) -> str:
    name = ".".join(map(str, details["loc"]))
    if details["type"] == "missing":
        return f"{name.upper()}: is missing; pass it, or set {ENV_PREFIX}{name.upper()} (--help shows all settings)"
    problem = f"{name}: {details['msg']} (got {details['input']!r})"
    if name == "port" and str(details["input"]).startswith(_SERVICE_LINK):
        problem += (
            f"; Kubernetes sets {ENV_PREFIX}PORT so beside a service named distilqa: pass --port, or set"
            " enableServiceLinks: false in the pod"
        )
    return problem
