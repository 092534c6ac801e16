"""What a server proves itself with."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

from distilqa.errors import SettingsError
from distilqa.server.settings import ServerSettings


class Certificate(NamedTuple):
    """A private key, and the chain of certificates that goes with it: PEM files' contents, as gRPC takes them."""

    key: bytes
    chain: bytes


def load_certificate(settings: ServerSettings) -> Certificate | None:
    """What the settings name, if they do. Raises SettingsError.

    Tried with `ssl` first, because gRPC takes any bytes and then fails without saying why.
    """
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None or key is None:
        return None
    by_certificate, by_key = settings.source("tls_certificate"), settings.source("tls_key")
    chain, private = _read(by_certificate, certificate), _read(by_key, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_verify_locations(certificate)
    except ssl.SSLError as error:
        raise SettingsError(f"{by_certificate}: {certificate}: holds no certificate in PEM") from error
    try:
        context.load_cert_chain(certificate, key, password="")  # without one, it would ask the terminal
    except ssl.SSLError as error:
        problem = error.reason or "it holds no key in PEM without a password"
        raise SettingsError(f"{by_key}: {key}: does not go with {certificate}: {problem}") from error
    return Certificate(private, chain)


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{setting}: {path}: {error.strerror}") from error
