"""Who may reach a server, and how: the callers that it lets in, and the certificate that it proves itself with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from distilqa.server.credentials import Callers, load_callers
from distilqa.server.settings import ServerSettings
from distilqa.server.tls import Certificate, load_certificate


@dataclass(frozen=True, slots=True)
class Access:
    """``callers`` is None where anybody may call, ``certificate`` where all is plain."""

    callers: Callers | None
    certificate: Certificate | None = field(repr=False)

    @classmethod
    def load(cls, settings: ServerSettings) -> Self:
        """What the settings name. Raises SettingsError."""
        return cls(load_callers(settings), load_certificate(settings))
