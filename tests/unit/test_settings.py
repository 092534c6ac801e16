"""The server's settings: where each comes from, and that a bad one is named."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from distilqa.errors import SettingsError
from distilqa.settings import ENV_PREFIX, ServerSettings, load_settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


def problem_of(flags: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(flags)
    return str(caught.value)


def test_defaults() -> None:
    assert load_settings({"bundle": "somewhere"}).model_dump() == {
        "bundle": Path("somewhere"),
        "variant": None,
        "host": "127.0.0.1",
        "port": 50051,
        "credentials": None,
        "tls_certificate": None,
        "tls_key": None,
        "threads": None,
        "max_requests": 512,
        "max_bytes": 64 << 20,
        "max_request_bytes": 256 << 10,
        "max_passages": 256,
        "max_windows": 256,
        "drain_s": 30.0,
    }


# A good value of each setting, as the shell gives it, and what it becomes.
GOOD: dict[str, tuple[str, Any]] = {
    "bundle": ("elsewhere", Path("elsewhere")),
    "variant": ("cpu-fp32", "cpu-fp32"),
    "host": ("::", "::"),
    "port": ("0", 0),
    "credentials": ("callers.toml", Path("callers.toml")),
    "tls_certificate": ("certificate.pem", Path("certificate.pem")),
    "tls_key": ("key.pem", Path("key.pem")),
    "threads": ("1", 1),
    "max_requests": ("1", 1),
    "max_bytes": (str(256 << 10), 256 << 10),
    "max_request_bytes": (str(64 << 20), 64 << 20),
    "max_passages": ("1", 1),
    "max_windows": ("1", 1),
    "drain_s": ("0", 0.0),
}


# What a setting does not go without.
WITH = {"tls_certificate": {"tls_key": "key.pem"}, "tls_key": {"tls_certificate": "certificate.pem"}}


def test_every_setting_is_tried_here() -> None:
    assert set(GOOD) == set(ServerSettings.model_fields)


@pytest.mark.parametrize("name", GOOD)
def test_flag(name: str) -> None:
    text, value = GOOD[name]
    assert getattr(load_settings({"bundle": "somewhere", name: text} | WITH.get(name, {})), name) == value


def test_requests_that_would_never_get_in() -> None:
    assert "max_bytes" in problem_of({"bundle": "somewhere", "max_bytes": "999", "max_request_bytes": "1000"})


@pytest.mark.parametrize("name", ["max_windows", "max_passages"])
def test_limits_that_no_message_can_carry(name: str) -> None:
    assert name in problem_of({"bundle": "somewhere", name: str(2**32)})


@pytest.mark.parametrize("name", WITH)
def test_a_certificate_goes_with_its_key(name: str) -> None:
    problem = problem_of({"bundle": "somewhere", name: "file.pem"})
    assert problem == "tls_certificate, tls_key: go together, and only one of them is given"


def test_smallest_request() -> None:
    assert load_settings({"bundle": "somewhere", "max_request_bytes": "1"}).max_request_bytes == 1


@pytest.mark.parametrize("name", GOOD)
def test_environment(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    text, value = GOOD[name]
    monkeypatch.setenv(ENV_PREFIX + name.upper(), text)
    flags = {"bundle": None if name == "bundle" else "somewhere"}
    assert getattr(load_settings(flags | WITH.get(name, {})), name) == value


def test_the_command_line_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILQA_BUNDLE", "from the environment")
    monkeypatch.setenv("DISTILQA_PORT", "1")
    monkeypatch.setenv("DISTILQA_THREADS", "2")
    settings = load_settings({"bundle": "from a flag", "port": "3", "threads": None, "host": None})
    assert (settings.bundle, settings.port, settings.threads) == (Path("from a flag"), 3, 2)
    assert settings.host == "127.0.0.1"


def test_a_flag_of_zero_is_given() -> None:
    assert load_settings({"bundle": "somewhere", "port": 0, "drain_s": 0}).port == 0


def test_other_variables_are_none_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("DISTILQA_OTHER", "1")
    monkeypatch.setenv("DISTILQA_TOKEN", "of the command that asks")
    settings = load_settings({"bundle": "somewhere"})
    assert settings.port == 50051
    assert "of the command" not in repr(settings)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("port", "-1"),
        ("port", "65536"),
        ("port", "http"),
        ("port", ""),
        ("threads", "0"),
        ("threads", "2.5"),
        ("max_requests", "0"),
        ("max_bytes", "0"),
        ("max_request_bytes", "0"),
        ("max_request_bytes", str((1 << 30) + 1)),
        ("max_passages", "0"),
        ("max_windows", "0"),
        ("drain_s", "-0.1"),
        ("drain_s", "nan"),
        ("drain_s", "soon"),
    ],
)
@pytest.mark.parametrize("by_flag", [True, False], ids=["flag", "environment"])
def test_bad_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, bad: str, by_flag: bool) -> None:
    flags = {"bundle": "somewhere"}
    if by_flag:
        flags[name] = bad
    else:
        monkeypatch.setenv(ENV_PREFIX + name.upper(), bad)
    problem = problem_of(flags)
    assert problem.startswith(f"{name}: ")
    assert f"(got {bad!r})" in problem


def test_a_port_from_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILQA_PORT", "tcp://10.0.0.1:50051")
    problem = problem_of({"bundle": "somewhere"})
    assert problem.startswith("port: ")
    assert "(got 'tcp://10.0.0.1:50051')" in problem
    assert "--port" in problem
    assert "enableServiceLinks: false" in problem
    assert load_settings({"bundle": "somewhere", "port": "1"}).port == 1
    assert "Kubernetes" not in problem_of({"bundle": "somewhere", "port": "http"})


def test_every_bad_value_is_named() -> None:
    problem = problem_of({"bundle": "somewhere", "port": "x", "threads": "y"})
    assert "port: " in problem
    assert "threads: " in problem


def test_missing_bundle() -> None:
    assert problem_of({"bundle": None}).startswith("BUNDLE: is missing; pass it, or set DISTILQA_BUNDLE ")


def test_unknown_flag() -> None:
    assert problem_of({"bundle": "somewhere", "novelty": "1"}).startswith("novelty: ")


def test_settings_are_frozen() -> None:
    settings = load_settings({"bundle": "somewhere"})
    with pytest.raises(ValidationError):
        settings.port = 1
    assert settings.port == 50051
