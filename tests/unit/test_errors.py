"""The tree of errors is what its docstring draws."""

from __future__ import annotations

import inspect
import pickle
import re
import subprocess
import sys
from importlib.metadata import version

import grpc
import pytest

import distilqa
from distilqa import errors
from distilqa.errors import DistilqaError, InvalidRequest, Overloaded

CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, DistilqaError)]
DRAWN = dict(re.findall(r"[├└]── (\w+) +([A-Z_]{3,})?", errors.__doc__ or ""))


def test_every_error_is_drawn() -> None:
    assert set(DRAWN) == {error.__name__ for error in CLASSES} - {"DistilqaError"}


@pytest.mark.parametrize("error", CLASSES)
def test_status(error: type[DistilqaError]) -> None:
    """Those without one in the drawing never come from a request: to a caller they are INTERNAL."""
    assert error.status == (DRAWN.get(error.__name__) or "INTERNAL")
    assert error.status in grpc.StatusCode.__members__


@pytest.mark.parametrize("error", CLASSES)
def test_exported(error: type[DistilqaError]) -> None:
    assert getattr(distilqa, error.__name__) is error
    assert error.__name__ in distilqa.__all__


@pytest.mark.parametrize("error", CLASSES)
def test_survives_another_process(error: type[DistilqaError]) -> None:
    """As a pool of processes sends it: with all that it knows, and its notes."""
    made = error("passages[3]", "is empty") if error is InvalidRequest else error("a message")
    made.add_note("for the log")
    if isinstance(made, Overloaded):
        made.retry_after_s, made.limit = 0.5, "max_requests"
    found = pickle.loads(pickle.dumps(made))
    assert (type(found), str(found), vars(found)) == (error, str(made), vars(made))


def test_version_is_the_package_s() -> None:
    assert distilqa.__version__ == version("distilqa")


def test_everything_exported_is_there() -> None:
    assert [name for name in distilqa.__all__ if not hasattr(distilqa, name)] == []
    assert not hasattr(distilqa, "novelty")
    assert {*distilqa.__all__, "__version__"} <= set(dir(distilqa)), "for completion"


@pytest.mark.parametrize("name", ["AsyncClient", "Client", "Model", "Outcome", "Request"])
def test_what_needs_grpc_says_so(name: str) -> None:
    code = f"import sys; sys.modules['grpc'] = None; import distilqa; distilqa.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "MissingDependency: the client's packages are not installed: pip install '.[client]'" in done.stderr


def test_invalid_request() -> None:
    error = InvalidRequest("passages[3]", "is empty")
    assert isinstance(error, ValueError)
    assert (error.field, error.problem, str(error)) == ("passages[3]", "is empty", "passages[3]: is empty")


@pytest.mark.parametrize("retry_after_s", [None, 0.5])
def test_overloaded(retry_after_s: float | None) -> None:
    error = Overloaded("full", retry_after_s)
    assert (str(error), error.retry_after_s) == ("full", retry_after_s)
