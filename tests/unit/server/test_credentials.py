"""Who may call: what a file of callers may hold, whom a header stands for, and that no token is ever repeated."""

from __future__ import annotations

import hmac
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from distilqa.errors import PermissionDenied, SettingsError, Unauthenticated
from distilqa.server.credentials import Callers

TOKEN = "correct-horse-battery"
OTHER = "!#$%&'()*+,-./:~"
MODEL = "distilbert-384-squad"
FILE = f"""
[search]
token = "{TOKEN}"

["help desk"]  # whose token is as short as one may be
token = "{OTHER}"
models = ["another", "{MODEL}"]
"""


def load(folder: Path, content: str | bytes) -> Callers:
    path = folder / "callers.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return Callers.load(path)


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Callers:
    return load(tmp_path_factory.mktemp("callers"), FILE)


@pytest.mark.parametrize(
    ("authorization", "name"),
    [
        (f"Bearer {TOKEN}", "search"),
        (f"bearer {TOKEN}", "search"),
        (f"BEARER {TOKEN}", "search"),
        (f"Bearer {OTHER}", "help desk"),
    ],
)
def test_known_callers(callers: Callers, authorization: str, name: str) -> None:
    caller = callers.identify(authorization)
    caller.require(MODEL)
    assert caller.name == name


def test_a_caller_of_other_models(callers: Callers) -> None:
    other = callers.identify(f"Bearer {OTHER}")
    other.require("another")
    assert other.name == "help desk"
    with pytest.raises(PermissionDenied) as caught:
        other.require("third")
    assert str(caught.value) == "caller 'help desk' may not use the model 'third'"
    callers.identify(f"Bearer {TOKEN}").require("third")


def test_who_may_use_a_model(callers: Callers, tmp_path: Path) -> None:
    assert callers.may_use("third")
    others = load(tmp_path, FILE.replace("[search]", '[search]\nmodels = ["second"]'))
    assert [model for model in (MODEL, "another", "second", "third") if not others.may_use(model)] == ["third"]


@pytest.mark.parametrize(
    ("authorization", "message"),
    [
        (None, "credentials are missing: this server wants 'authorization: Bearer TOKEN'"),
        ("", "the authorization is not of the scheme Bearer"),
        (TOKEN, "the authorization is not of the scheme Bearer"),
        (f"Basic {TOKEN}", "the authorization is not of the scheme Bearer"),
        (f"Bearer{TOKEN}", "the authorization is not of the scheme Bearer"),
        ("Bearer", "the token is not one that is known here"),
        ("Bearer ", "the token is not one that is known here"),
        (f"Bearer {TOKEN[:-1]}", "the token is not one that is known here"),
        (f"Bearer {TOKEN}x", "the token is not one that is known here"),
        (f"Bearer {TOKEN.upper()}", "the token is not one that is known here"),
        (f"Bearer {TOKEN}, Bearer {TOKEN}", "the token is not one that is known here"),
        ("Bearer \udcff\0é", "the token is not one that is known here"),
    ],
)
def test_unknown_callers(callers: Callers, authorization: str | None, message: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        callers.identify(authorization)
    assert str(caught.value) == message


ANY_TEXT = st.text(st.characters(exclude_categories=()))


@given(st.one_of(ANY_TEXT, st.builds("Bearer {}".format, ANY_TEXT), st.builds("{}{}".format, ANY_TEXT, st.just(TOKEN))))
@example(f"Bearer  {TOKEN}")
@example(f"Bearer {TOKEN}\n")
def test_nothing_else_passes(callers: Callers, authorization: str) -> None:
    """Any text gets one of the fixed messages, so none of it is repeated."""
    assume(not re.fullmatch(f"bearer {re.escape(TOKEN)}", authorization, re.IGNORECASE))
    with pytest.raises(Unauthenticated) as caught:
        callers.identify(authorization)
    assert str(caught.value) in {
        "the authorization is not of the scheme Bearer",
        "the token is not one that is known here",
    }


@pytest.mark.parametrize("token", [TOKEN, OTHER, "unknown"])
def test_every_caller_is_compared(callers: Callers, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    """Digests of one length, in constant time, whoever it is."""
    compared = []

    def compare(first: bytes, second: bytes) -> bool:
        compared.append((len(first), len(second)))
        return compare_digest(first, second)

    compare_digest = hmac.compare_digest
    monkeypatch.setattr("distilqa.server.credentials.hmac.compare_digest", compare)
    try:
        callers.identify(f"Bearer {token}")
    except Unauthenticated:
        assert token == "unknown"
    assert compared == [(32, 32)] * 2


def test_no_token_is_kept(callers: Callers) -> None:
    kept = pickle.dumps(callers)
    assert b"help desk" in kept
    assert TOKEN.encode() not in kept
    assert OTHER.encode() not in kept


RULE = "must be a string of 16 to 4096 printable ASCII characters without spaces"
NAMES = "must be a list of one name or more"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", "has no callers"),
        ("# nobody\n", "has no callers"),
        (f'search = "{TOKEN}"', "caller 'search': is not a table"),
        (f'[[search]]\ntoken = "{TOKEN}"', "caller 'search': is not a table"),
        ("[search]", f"caller 'search': token: {RULE}"),
        ('[search]\nmodels = ["a"]', f"caller 'search': token: {RULE}"),
        ("[search]\ntoken = 12345678901234567890", f"caller 'search': token: {RULE}"),
        (f'[search]\ntoken = ["{TOKEN}"]', f"caller 'search': token: {RULE}"),
        (f'[search]\ntoken = "{OTHER[:-1]}"', f"caller 'search': token: {RULE}"),
        (f'[search]\ntoken = "{TOKEN} "', f"caller 'search': token: {RULE}"),
        (f'[search]\ntoken = "{TOKEN}\\n"', f"caller 'search': token: {RULE}"),
        (f'[search]\ntoken = "{TOKEN}\\u007f"', f"caller 'search': token: {RULE}"),
        (f'[search]\ntoken = "{TOKEN}é"', f"caller 'search': token: {RULE}"),
        (
            f'[search]\ntoken = "{TOKEN}"\nmodel = "a"',
            "caller 'search': 'model': is unknown; there are token and models",
        ),
        (f'[search]\ntoken = "{TOKEN}"\nmodels = "a"', f"caller 'search': models: {NAMES}"),
        (f'[search]\ntoken = "{TOKEN}"\nmodels = []', f"caller 'search': models: {NAMES}"),
        (f'[search]\ntoken = "{TOKEN}"\nmodels = ["a", 1]', f"caller 'search': models: {NAMES}"),
        (f'[search]\ntoken = "{TOKEN}"\nmodels = ["a", ""]', f"caller 'search': models: {NAMES}"),
        (
            f'[a]\ntoken = "{OTHER}"\n[b]\ntoken = "{TOKEN}"\n[c]\ntoken = "{TOKEN}"',
            "caller 'c': token: is that of 'b' too",
        ),
        (f'[search]\ntoken = "{TOKEN}', "Unterminated string (at end of document)"),
        (f"[search]\ntoken = {TOKEN}", "Invalid value (at line 2, column 9)"),
        (f"[search]\n{TOKEN}", "Expected '=' after a key in a key/value pair (at end of document)"),
        (f'[search]\ntoken = "{TOKEN}"\n[search]', "Cannot declare ('search',) twice (at line 3, column 8)"),
        (f'[search]\ntoken = "{TOKEN}\xff"'.encode("latin-1"), "'utf-8' codec can't decode byte 0xff"),
        ("[search]\ntoken = " + "9" * 5000, "Exceeds the limit (4300 digits)"),
    ],
)
def test_bad_files(tmp_path: Path, content: str | bytes, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(f"credentials: {tmp_path / 'callers.toml'}: {problem}")
    assert not re.search("correct-horse|12345678|99999|#[$]%", message)


@pytest.mark.parametrize(("name", "why"), [("missing", "No such file or directory"), (".", "Is a directory")])
def test_files_that_cannot_be_read(tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Callers.load(tmp_path / name)
    assert str(caught.value) == f"credentials: {tmp_path / name}: {why}"


def test_a_file_that_is_nested_too_deeply(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"callers\.toml: is nested too deeply"):
        load(tmp_path, "a = " + "[" * 100_000 + "]" * 100_000)
