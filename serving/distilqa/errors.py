"""Every error that distilqa raises on purpose.

    DistilqaError
    ├── InvalidRequest      INVALID_ARGUMENT     the caller's question, passage or option; names the field
    ├── ModelNotFound       NOT_FOUND            no such model or version is served
    ├── Overloaded          RESOURCE_EXHAUSTED   no permit was free; carries when to try again
    ├── DeadlineExceeded    DEADLINE_EXCEEDED    the deadline passed, or the caller took too long
    ├── Unauthenticated     UNAUTHENTICATED      the call carries no credentials, or none that are known
    ├── PermissionDenied    PERMISSION_DENIED    the caller is known, but not allowed to use this model
    ├── Unavailable         UNAVAILABLE          not ready, draining, or out of reach
    ├── InferenceFailed     INTERNAL             the model failed on this entry
    ├── BundleError                              a bundle is missing, damaged, too new, or wrong on this machine
    │   └── VariantUnusable                      this machine computes a variant of a bundle wrongly
    ├── DatasetError                             a file of questions is not SQuAD's, or one cannot be asked
    ├── SettingsError                            a setting, or a file that it names, is not as it must be
    ├── MissingDependency                        an extra is not installed, or two that conflict are
    ├── BindError                                a server's address cannot be bound
    └── BrokenError                              a server cannot go on, because of a defect

The gRPC status of an error is the class's ``status``: the server and the clients map by it, in one place each.
Whatever else is raised is a defect, not an answer to the caller.
"""

from __future__ import annotations

from typing import ClassVar


class DistilqaError(Exception):
    """Base of all errors that distilqa raises on purpose."""

    status: ClassVar[str] = "INTERNAL"


class InvalidRequest(DistilqaError, ValueError):
    """What the caller passed cannot be answered: ``field`` is the argument or message field, ``problem`` says why."""

    status = "INVALID_ARGUMENT"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)  # what pickle makes it of again
        self.field, self.problem = field, problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


class ModelNotFound(DistilqaError):
    """No such model, version or variant is served."""

    status = "NOT_FOUND"


class Overloaded(DistilqaError):
    """The server takes no more. ``retry_after_s`` is its advice on when to try again, in seconds.

    ``limit`` is the setting of the server that says how much it takes, or "deadline"; known to the server alone.
    """

    status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after_s: float | None = None, limit: str | None = None) -> None:
        super().__init__(message)
        self.retry_after_s, self.limit = retry_after_s, limit


class DeadlineExceeded(DistilqaError):
    """The deadline passed; work that had not begun was not done. Or the caller kept the server waiting.

    ``limit`` is then the setting of the server that says how long it may; known to the server alone.
    """

    status = "DEADLINE_EXCEEDED"

    def __init__(self, message: str, limit: str | None = None) -> None:
        super().__init__(message)
        self.limit = limit


class Unauthenticated(DistilqaError):
    """The call carries no credentials, or none that are known."""

    status = "UNAUTHENTICATED"


class PermissionDenied(DistilqaError):
    """The caller is known, but not allowed to use this model."""

    status = "PERMISSION_DENIED"


class Unavailable(DistilqaError):
    """The server is not ready, is draining, or cannot be reached."""

    status = "UNAVAILABLE"


class InferenceFailed(DistilqaError):
    """The model failed on this entry."""

    status = "INTERNAL"


class BundleError(DistilqaError):
    """A bundle is missing, damaged, of a newer schema, or gives other logits on this machine than when it was made."""


class VariantUnusable(BundleError):
    """A variant is as the manifest says, and can be run, but this machine gets other numbers than it should."""


class DatasetError(DistilqaError):
    """A file of questions is not of SQuAD's format, or a question in it cannot be asked."""


class SettingsError(DistilqaError):
    """A setting, or a file that it names, is not as it must be; the message names the setting."""


class MissingDependency(DistilqaError):
    """A package is not installed, or two that conflict are; the message has the command that mends it."""


class BindError(DistilqaError):
    """The address cannot be bound."""


class BrokenError(DistilqaError):
    """A part of the server died of a defect, so that it can answer nothing any more."""
