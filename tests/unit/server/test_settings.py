"""The server's settings: where each comes from, and that a bad one is named as it was given."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from distilqa.errors import SettingsError
from distilqa.server.settings import ENV_PREFIX, ServerSettings, flag, load_settings


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(ENV_PREFIX):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def problem_of(flags: dict[str, Any]) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(flags)
    return str(caught.value)


def test_defaults() -> None:
    assert load_settings({"bundle": "somewhere"}).model_dump() == {
        "bundle": Path("somewhere"),
        "variant": None,
        "unverified": "refuse",
        "host": "127.0.0.1",
        "port": 50051,
        "credentials": None,
        "tls_certificate": None,
        "tls_key": None,
        "threads": None,
        "processes": 1,
        "objective_ms": 20.0,
        "max_requests": 128,
        "max_bytes": 64 << 20,
        "max_request_bytes": 256 << 10,
        "max_passages": 256,
        "max_windows": 256,
        "max_queued_windows": 512,
        "stream_requests": 16,
        "message_s": 20.0,
        "stream_idle_s": 300.0,
        "max_connections": 1024,
        "max_connection_calls": 4096,
        "connection_idle_s": 600.0,
        "connection_age_s": None,
        "drain_s": 30.0,
        "log_format": "console",
        "log_level": "info",
    }


# A good value of each setting, as the shell gives it, and what it becomes.
GOOD: dict[str, tuple[str, Any]] = {
    "bundle": ("elsewhere", Path("elsewhere")),
    "variant": ("cpu-fp32", "cpu-fp32"),
    "unverified": ("allow", "allow"),
    "host": ("::", "::"),
    "port": ("0", 0),
    "credentials": ("callers.toml", Path("callers.toml")),
    "tls_certificate": ("certificate.pem", Path("certificate.pem")),
    "tls_key": ("key.pem", Path("key.pem")),
    "threads": ("1", 1),
    "processes": ("4", 4),
    "objective_ms": ("0.5", 0.5),
    "max_requests": ("1", 1),
    "max_bytes": (str(256 << 10), 256 << 10),
    "max_request_bytes": (str(64 << 20), 64 << 20),
    "max_passages": ("1", 1),
    "max_windows": ("1", 1),
    "max_queued_windows": ("256", 256),
    "stream_requests": ("1", 1),
    "message_s": ("0.5", 0.5),
    "stream_idle_s": ("60", 60.0),
    "max_connections": ("100", 100),
    "max_connection_calls": ("8", 8),
    "connection_idle_s": ("30", 30.0),
    "connection_age_s": ("3600", 3600.0),
    "drain_s": ("0", 0.0),
    "log_format": ("json", "json"),
    "log_level": ("debug", "debug"),
}


# What a setting does not go without.
WITH = {"tls_certificate": {"tls_key": "key.pem"}, "tls_key": {"tls_certificate": "certificate.pem"}}


def test_every_setting_is_tried_here() -> None:
    assert set(GOOD) == set(ServerSettings.model_fields)


def given(monkeypatch: pytest.MonkeyPatch, by: str, settings: dict[str, str]) -> dict[str, Any]:
    """Give settings by flags, in the environment, or in a file, and a bundle; returns the flags."""
    bundle = {} if "bundle" in settings else {"bundle": "somewhere"}
    if by == "flag":
        return bundle | settings
    if by == "environment":
        for name, text in settings.items():
            monkeypatch.setenv(ENV_PREFIX + name.upper(), text)
        return bundle
    Path("server.toml").write_text("".join(f"{name} = '{text}'\n" for name, text in settings.items()))
    return bundle | {"config": "server.toml"}


def typed(by: str, name: str) -> str:
    """What a setting is called that was `given`."""
    return {"flag": flag(name), "environment": ENV_PREFIX + name.upper(), "file": f"server.toml: {name}"}[by]


BY = pytest.mark.parametrize("by", ["flag", "environment", "file"])


@BY
@pytest.mark.parametrize("name", GOOD)
def test_each_source(monkeypatch: pytest.MonkeyPatch, name: str, by: str) -> None:
    text, value = GOOD[name]
    settings = load_settings(given(monkeypatch, by, {name: text}) | WITH.get(name, {}))
    assert getattr(settings, name) == value
    assert settings.source(name) == typed(by, name)


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("max_requests = 64", "max_requests", 64),
        ("drain_s = 2", "drain_s", 2.0),
        ("drain_s = inf", "drain_s", float("inf")),
        ("drain_s = 0.5", "drain_s", 0.5),
    ],
)
def test_numbers_in_the_file(line: str, name: str, value: float) -> None:
    Path("server.toml").write_text(line)
    assert getattr(load_settings({"bundle": "somewhere", "config": "server.toml"}), name) == value


def test_the_stronger_source_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("server.toml").write_text("bundle = 'b'\nport = 1\nthreads = 2\nmax_passages = 3\n")
    monkeypatch.setenv("DISTILQA_CONFIG", "server.toml")
    monkeypatch.setenv("DISTILQA_PORT", "4")
    monkeypatch.setenv("DISTILQA_THREADS", "5")
    settings = load_settings({"bundle": None, "port": "6", "threads": None, "host": None})
    assert (settings.port, settings.threads, settings.max_passages) == (6, 5, 3)
    names = ("bundle", "port", "threads", "max_passages", "host")
    assert [settings.source(name) for name in names] == [
        "server.toml: bundle",
        "--port",
        "DISTILQA_THREADS",
        "server.toml: max_passages",
        "host",
    ]


def test_a_weaker_source_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("server.toml").write_text("port = []")
    monkeypatch.setenv("DISTILQA_CONFIG", "nowhere.toml")
    assert load_settings({"bundle": "somewhere", "port": "1", "config": "server.toml"}).port == 1


def test_no_file_is_looked_for() -> None:
    for name in ("server.toml", "distilqa.toml", "config.toml", ".env"):
        Path(name).write_text("port = 1\nDISTILQA_PORT = 1\n")
    assert load_settings({"bundle": "somewhere"}).port == 50051


def test_paths_in_the_file_start_at_the_current_directory() -> None:
    Path("etc").mkdir()
    Path("etc/server.toml").write_text("credentials = 'callers.toml'")
    settings = load_settings({"bundle": "somewhere", "config": "etc/server.toml"})
    assert settings.credentials == Path("callers.toml")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "--config: server.toml: No such file or directory"),
        (b"port = \xff", "--config: server.toml: is not UTF-8 at byte 7"),
        (b"port", "--config: server.toml: is not TOML: "),
        (b"port = " + b"[" * 10_000, "--config: server.toml: is nested too deeply"),
        (b"port = 1\nport = 1", "--config: server.toml: is not TOML: "),
        (b"port = [1]", "server.toml: port: Input should be a valid integer (got an array)"),
        (b"port" + b".a" * 2000 + b" = 1", "server.toml: port: Input should be a valid integer (got a table)"),
        (b"port = 2024-01-01", "server.toml: port: Input should be a valid integer (got 2024-01-01)"),
        (b"port = true", "server.toml: port: Input should not be a boolean (got True)"),
        (b"threads = 2.5", "server.toml: threads: Input should be a valid integer (got 2.5)"),
        (b"host = 1", "server.toml: host: Input should be a valid string (got 1)"),
        (b"tls_key = 1", "server.toml: tls_key: Input should be a path (got 1)"),
        (b'tls_key = "a\\u0000"', "server.toml: tls_key: Input should be without null characters (got 'a\\x00')"),
        (b"log_level = 'loud'", "server.toml: log_level: Input should be 'debug', 'info', 'warning' or 'error' (got "),
        (b"max-requests = 1", "server.toml: max-requests: is unknown; max_requests is a setting"),
        (b"config = 'other.toml'", "server.toml: config: is unknown "),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used(content: bytes | None, problem: str) -> None:
    if content is not None:
        Path("server.toml").write_bytes(content)
    assert problem_of({"bundle": "somewhere", "config": "server.toml"}).startswith(problem)


def test_a_file_of_tokens_is_not_shown() -> None:
    Path("callers.toml").write_text('[search]\ntoken = "a-secret-of-the-caller"\n')
    problem = problem_of({"bundle": "somewhere", "config": "callers.toml"})
    assert problem == "callers.toml: search: is unknown (--print-settings shows what there is)"


def test_the_file_is_named_as_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILQA_CONFIG", "./.")
    assert problem_of({"bundle": "somewhere"}) == "DISTILQA_CONFIG: ./.: Is a directory"
    monkeypatch.setenv("DISTILQA_CONFIG", "")
    assert problem_of({"bundle": "somewhere"}) == "DISTILQA_CONFIG: Input should not be empty"


NEVER = ", so that some requests would never get in"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"max_bytes": "999", "max_request_bytes": "1000"},
            "{max_bytes} (999) is less than {max_request_bytes} (1000)",
        ),
        ({"max_bytes": "262143"}, "{max_bytes} (262143) is less than max_request_bytes (262144, default)"),
        ({"max_queued_windows": "255"}, "{max_queued_windows} (255) is less than max_windows (256, default)"),
        ({"max_windows": "513"}, "max_queued_windows (512, default) is less than {max_windows} (513)"),
        (
            {"max_bytes": "1", "max_windows": "513"},
            "{max_bytes} (1) is less than max_request_bytes (262144, default)" + NEVER + "; "
            "max_queued_windows (512, default) is less than {max_windows} (513)",
        ),
    ],
)
@BY
def test_requests_that_would_never_get_in(
    monkeypatch: pytest.MonkeyPatch, by: str, settings: dict[str, str], problem: str
) -> None:
    told = problem_of(given(monkeypatch, by, settings))
    assert told == problem.format(**{name: typed(by, name) for name in settings}) + NEVER


def test_a_misspelt_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILQA_MAX_REQEUSTS", "3")
    assert problem_of({"bundle": "b"}) == "DISTILQA_MAX_REQEUSTS: is unknown; DISTILQA_MAX_REQUESTS is a setting"


@pytest.mark.parametrize(
    "name",
    ["DISTILQA_TOKEN", "DISTILQA_VERSION", "DISTILQA_SERVICE_HOST", "DISTILQA_SERVICE_PORT",
     "DISTILQA_SERVICE_PORT_GRPC", "DISTILQA_PORT_50051_TCP", "DISTILQA_PORT_50051_TCP_PORT", "MAX_REQEUSTS"],
)  # fmt: skip
def test_variables_of_others_are_none_of_ours(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "tcp://10.0.0.1:50051")
    assert load_settings({"bundle": "b"}).port == 50051


def test_a_misspelt_key_is_told_what_was_meant(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text("max_reqeusts = 3\nnovel = 1\n")
    problem = problem_of({"bundle": "b", "config": str(tmp_path / "server.toml")})
    assert "server.toml: max_reqeusts: is unknown; max_requests is a setting; " in problem
    assert problem.endswith("server.toml: novel: is unknown (--print-settings shows what there is)")


@pytest.mark.parametrize("name", ["max_windows", "max_passages", "stream_requests"])
def test_limits_that_no_message_can_carry(name: str) -> None:
    problem = problem_of({"bundle": "somewhere", name: str(2**32)})
    assert problem.startswith(f"{flag(name)}: Input should be less than or equal to 4294967295 ")


@BY
@pytest.mark.parametrize(("name", "other"), [("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")])
def test_a_certificate_goes_with_its_key(monkeypatch: pytest.MonkeyPatch, name: str, other: str, by: str) -> None:
    problem = problem_of(given(monkeypatch, by, {name: "file.pem"}))
    wanted = typed(by, other).removeprefix("server.toml: ")
    assert problem == f"{typed(by, name)}: goes with {wanted}, which is not given"


def test_smallest_request() -> None:
    assert load_settings({"bundle": "somewhere", "max_request_bytes": "1"}).max_request_bytes == 1


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
        ("port", "9" * 5000),
        ("bundle", ""),
        ("host", ""),
        ("credentials", ""),
        ("threads", "0"),
        ("threads", "2.5"),
        ("max_requests", "0"),
        ("max_bytes", "0"),
        ("max_request_bytes", "0"),
        ("max_request_bytes", str((1 << 30) + 1)),
        ("max_passages", "0"),
        ("max_windows", "0"),
        ("max_queued_windows", "0"),
        ("stream_requests", "0"),
        ("log_format", "xml"),
        ("log_level", "INFO"),
        ("drain_s", "-0.1"),
        ("drain_s", "nan"),
        ("drain_s", "soon"),
    ],
)
@BY
def test_bad_value_is_named(monkeypatch: pytest.MonkeyPatch, name: str, bad: str, by: str) -> None:
    problem = problem_of(given(monkeypatch, by, {name: bad}))
    assert problem.startswith(f"{typed(by, name)}: Input should ")
    assert problem.endswith(f" (got {bad!r})")


@pytest.mark.parametrize(
    ("name", "bad", "problem"),
    [
        ("port", "99999", "--port: Input should be less than or equal to 65535 (got '99999')"),
        ("port", "http", "--port: Input should be a valid integer (got 'http')"),
        ("port", "\udce9", "--port: Input should be valid Unicode (got '\\udce9')"),
        ("drain_s", "soon", "--drain-s: Input should be a valid number (got 'soon')"),
        ("log_format", "xml", "--log-format: Input should be 'console' or 'json' (got 'xml')"),
        ("bundle", "", "BUNDLE: Input should not be empty (got '')"),
    ],
)
def test_words_of_an_error(name: str, bad: str, problem: str) -> None:
    assert problem_of({"bundle": "somewhere", name: bad}) == problem


def test_a_port_from_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILQA_PORT", "tcp://10.0.0.1:50051")
    assert problem_of({"bundle": "somewhere"}) == (
        "DISTILQA_PORT: Input should be a valid integer (got 'tcp://10.0.0.1:50051'); Kubernetes sets it so beside a"
        " service named distilqa: pass --port, or set enableServiceLinks: false in the pod"
    )
    assert load_settings({"bundle": "somewhere", "port": "1"}).port == 1
    assert "Kubernetes" not in problem_of({"bundle": "somewhere", "port": "tcp://10.0.0.1:50051"})
    monkeypatch.setenv("DISTILQA_PORT", "http")
    assert "Kubernetes" not in problem_of({"bundle": "somewhere"})


def test_every_bad_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("server.toml").write_text("novelty = 1")
    monkeypatch.setenv("DISTILQA_THREADS", "y")
    problem = problem_of({"bundle": "somewhere", "port": "x", "config": "server.toml"})
    for source in ("--port", "DISTILQA_THREADS", "server.toml: novelty"):
        assert f"{source}: " in problem


def test_missing_bundle() -> None:
    problem = problem_of({"bundle": None})
    assert problem == (
        "BUNDLE: is missing; pass it, set DISTILQA_BUNDLE, or set bundle in the TOML file that --config names (--help"
        " shows all settings)"
    )


def test_unknown_flag() -> None:
    assert problem_of({"bundle": "somewhere", "novelty": "1"}).startswith("--novelty: ")


def test_as_toml(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sources in it are those of the first time; the second time it is the source of all that it sets."""
    Path("server.toml").write_text("drain_s = inf\nmax_windows = 1\n")
    monkeypatch.setenv("DISTILQA_MAX_BYTES", "1000000")
    first = load_settings({"bundle": "somewhere", "config": "server.toml"})
    lines = first.to_toml().splitlines()
    assert len(lines) == len(ServerSettings.model_fields)
    assert {
        'bundle = "somewhere"  # BUNDLE',
        "# threads =  # default",
        "port = 50051  # default",
        "max_bytes = 1000000  # DISTILQA_MAX_BYTES",
        "max_windows = 1  # server.toml: max_windows",
        "drain_s = inf  # server.toml: drain_s",
        'log_format = "console"  # default',
    } <= set(lines)
    monkeypatch.delenv("DISTILQA_MAX_BYTES")
    Path("again.toml").write_text(first.to_toml())
    again = load_settings({"config": "again.toml"})
    assert again.model_dump() == first.model_dump()
    assert again.source("port") == "again.toml: port"


@pytest.mark.parametrize("path", ['a "b" \\ c#', "é🦊", "a\nport = 1", "\x7f\t\x01", '"""'])
def test_as_toml_whatever_the_paths(path: str) -> None:
    """In ASCII, as stdout may have another encoding than a TOML file."""
    Path(path).write_text("port = 2")
    text = load_settings({"bundle": path, "config": path}).to_toml()
    assert text.isascii()
    content = tomllib.loads(text)
    assert (content["bundle"], content["port"]) == (path, 2)


def test_settings_are_frozen() -> None:
    settings = load_settings({"bundle": "somewhere"})
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]
    assert settings.port == 50051


def test_sources_of_settings_that_nobody_typed() -> None:
    settings = ServerSettings(bundle=Path("somewhere"))
    assert settings.source("bundle") == "bundle"
    assert 'bundle = "somewhere"  # default' in settings.to_toml()


def test_sources_are_no_settings() -> None:
    settings = load_settings({"bundle": "somewhere", "port": "1"})
    assert set(settings.model_dump()) == set(ServerSettings.model_fields)
    assert "--port" not in repr(settings)
