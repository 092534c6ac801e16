"""Credentials and TLS through real sockets: who is let in, who is refused and how, and what the clients make of it."""

from __future__ import annotations

import datetime
import logging
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from tests.integration.servers import CLI, held_server, serving

from distilqa import (
    AsyncClient,
    Client,
    InferenceFailed,
    InvalidRequest,
    PermissionDenied,
    SettingsError,
    Unauthenticated,
    Unavailable,
)
from distilqa.errors import BindError
from distilqa.server.settings import ServerSettings
from distilqa.server.single_process import SingleProcess
from distilqa_protos.v1 import question_answering_pb2 as pb

QUESTION = "What does the fox jump over?"
PASSAGE = "The quick brown fox jumps over the lazy dog."
SERVICE = "distilqa.v1.QuestionAnswering"

TOKEN = "correct-horse-battery"
ELSEWHERE = "a-token-for-another-model"
CALLERS = f"""
[search]
token = "{TOKEN}"
models = ["distilbert-384-squad"]

[elsewhere]
token = "{ELSEWHERE}"
models = ["another"]
"""

Metadata = tuple[tuple[str, str], ...]


def bearer(token: str) -> Metadata:
    return (("authorization", f"Bearer {token}"),)


class Files:
    """A file of callers, an authority, and certificates that it signs."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._authority = folder, trustme.CA()
        self.callers = self._write("callers.toml", CALLERS.encode())
        self.roots = self._write("roots.pem", self._authority.cert_pem.bytes())
        self.certificate, self.key = self.issue("server", "localhost", "127.0.0.1")

    def issue(self, name: str, *hosts: str, **options: Any) -> tuple[Path, Path]:
        """A certificate for hosts, and its key."""
        issued = self._authority.issue_cert(*hosts, **options)
        chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
        return self._write(f"{name}.pem", chain), self._write(f"{name}.key", issued.private_key_pem.bytes())

    def lock(self, name: str) -> None:
        """The server's key behind a password."""
        key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
        self._write(name, key.private_bytes(*form, serialization.BestAvailableEncryption(b"password")))

    def odd(self) -> tuple[Path, Path]:
        """A certificate on a curve that OpenSSL knows and BoringSSL, which is gRPC's, does not; and its key."""
        key = ec.generate_private_key(ec.SECP256K1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "odd")])
        now = datetime.datetime.now(datetime.UTC)
        builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now)
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        certificate = self._write("odd.pem", builder.sign(key, hashes.SHA256()).public_bytes(form[0]))
        return certificate, self._write("odd.key", key.private_bytes(*form))

    def _write(self, name: str, content: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(content)
        return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def guarded(bundle: Path, files: Files) -> Iterator[str]:
    """The address of a server that wants credentials."""
    with serving([*CLI, "serve", str(bundle), "--credentials", str(files.callers)]) as (_, address):
        yield address


@pytest.fixture(scope="module")
def encrypted(bundle: Path, files: Files) -> Iterator[str]:
    """The address of a server that wants credentials and TLS."""
    tls = ["--tls-certificate", str(files.certificate), "--tls-key", str(files.key)]
    with serving([*CLI, "serve", str(bundle), "--credentials", str(files.callers), *tls]) as (_, address):
        yield address


def status_of(call: Any) -> tuple[grpc.StatusCode, str | None]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


# What a caller sends who is not let in, and what it is told.
REFUSED: list[tuple[Metadata, grpc.StatusCode, str]] = [
    (
        (),
        grpc.StatusCode.UNAUTHENTICATED,
        "credentials are missing: this server wants 'authorization: Bearer TOKEN'",
    ),
    (
        (("authorization", TOKEN),),
        grpc.StatusCode.UNAUTHENTICATED,
        "the authorization is not of the scheme Bearer",
    ),
    (
        (("authorization", f"Basic {TOKEN}"),),
        grpc.StatusCode.UNAUTHENTICATED,
        "the authorization is not of the scheme Bearer",
    ),
    (
        bearer("correct-horse-batterz"),
        grpc.StatusCode.UNAUTHENTICATED,
        "the token is not one that is known here",
    ),
    (
        bearer(TOKEN) + bearer(TOKEN),
        grpc.StatusCode.UNAUTHENTICATED,
        "the token is not one that is known here",
    ),
    (
        bearer(ELSEWHERE),
        grpc.StatusCode.PERMISSION_DENIED,
        "caller 'elsewhere' may not use the model 'distilbert-384-squad'",
    ),
]
REFUSED_IDS = ["nothing", "no scheme", "another scheme", "wrong token", "two", "another model"]


@pytest.mark.parametrize(("metadata", "code", "details"), REFUSED, ids=REFUSED_IDS)
@pytest.mark.parametrize("method", ["Answer", "GetModel", "Novelty"])
def test_refused_before_anything_is_done(
    guarded: str, method: str, metadata: Metadata, code: grpc.StatusCode, details: str
) -> None:
    """Bytes that are no request, and methods that are not there, are not looked at."""
    with grpc.insecure_channel(guarded) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE}/{method}")
        for raw in (b"\x07\x07", b"x" * 1_000_000):
            assert status_of(lambda raw=raw: call(raw, metadata=metadata, timeout=30)) == (code, details)


async def test_who_is_refused_chooses_no_name_in_the_log(
    bundle: Path, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    """The method is what the caller says that it is."""
    caplog.set_level(logging.INFO)
    method = f"/{SERVICE}/Answer outcome=OK caller=admin"
    async with (
        held_server(bundle, credentials=files.callers) as (server, _),
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        call: Any = channel.unary_unary(method)
        with pytest.raises(grpc.aio.AioRpcError):
            await call(b"")
    (record,) = (record for record in caplog.records if "outcome" in getattr(record, "fields", {}))
    assert record.getMessage() == "unknown method"
    assert cast(Any, record).fields["method"] == method


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_let_in(guarded: str, scheme: str) -> None:
    metadata = (("authorization", f"{scheme} {TOKEN}"),)
    with grpc.insecure_channel(guarded) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE}/GetModel")
        assert pb.GetModelResponse.FromString(call(b"", metadata=metadata)).model == "distilbert-384-squad"
        assert status_of(lambda: call(b"\x07\x07", metadata=metadata))[0] is grpc.StatusCode.INVALID_ARGUMENT
        novelty: Any = channel.unary_unary(f"/{SERVICE}/Novelty")
        assert status_of(lambda: novelty(b"", metadata=metadata))[0] is grpc.StatusCode.UNIMPLEMENTED


def test_health_is_open(guarded: str) -> None:
    with grpc.insecure_channel(guarded) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        for metadata in ((), bearer("wrong")):
            serving_now = health_pb2.HealthCheckResponse.SERVING
            assert health.Check(request, metadata=metadata).status == serving_now
            assert next(health.Watch(request, metadata=metadata, timeout=30)).status == serving_now
        like_health: Any = channel.unary_unary("/grpc.health.v1.HealthNovelty/Check")
        assert status_of(lambda: like_health(b""))[0] is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("method", [f"{SERVICE}/Answer", f"{reflection.SERVICE_NAME}/ServerReflectionInfo"])
async def test_refused_before_a_request_comes(guarded: str, method: str) -> None:
    """No caller keeps a stream open by sending nothing."""
    async with grpc.aio.insecure_channel(guarded) as channel:
        call: Any = channel.stream_stream(f"/{method}")(timeout=30)
        assert await call.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(("metadata", "code", "details"), REFUSED, ids=REFUSED_IDS)
def test_reflection_refused(guarded: str, metadata: Metadata, code: grpc.StatusCode, details: str) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(guarded) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        replies = stub.ServerReflectionInfo(iter([request]), metadata=metadata, timeout=30)
        assert status_of(lambda: next(replies)) == (code, details)


def test_reflection_let_in(guarded: str) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(guarded) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        replies = stub.ServerReflectionInfo(iter([request]), metadata=bearer(TOKEN))
        assert SERVICE in {service.name for service in next(replies).list_services_response.service}


async def test_clients_with_the_token(guarded: str) -> None:
    with Client(guarded, token=TOKEN) as client:
        assert client.answer(QUESTION, PASSAGE)[0].text == "the lazy dog"
        assert client.model().name == "distilbert-384-squad"
    async with AsyncClient(guarded, token=TOKEN) as other:
        assert (await other.answer(QUESTION, PASSAGE))[0].text == "the lazy dog"
        assert (await other.model()).name == "distilbert-384-squad"


@pytest.mark.parametrize(
    ("token", "error"), [(None, Unauthenticated), ("wrong", Unauthenticated), (ELSEWHERE, PermissionDenied)]
)
async def test_clients_without_it(guarded: str, token: str | None, error: type[Exception]) -> None:
    with Client(guarded, token=token) as client:
        for call in (lambda: client.answer(QUESTION, PASSAGE), client.model):
            with pytest.raises(error):
                call()
    async with AsyncClient(guarded, token=token) as other:
        with pytest.raises(error):
            await other.answer(QUESTION, PASSAGE)
        with pytest.raises(error):
            await other.model()


def test_a_token_where_none_is_wanted(target: str) -> None:
    with Client(target, token=TOKEN) as client:
        assert client.answer(QUESTION, PASSAGE)[0].text == "the lazy dog"


async def test_a_defect_in_checking_stays_inside(
    bundle: Path, files: Files, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> str:
        raise RuntimeError("a secret of the server")

    monkeypatch.setattr("distilqa.server.credentials.Callers.identify", fail)
    async with (
        held_server(bundle, credentials=files.callers) as (server, engine),
        AsyncClient(server.address) as client,
    ):
        with pytest.raises(InferenceFailed, match=r"^internal error$"):
            await client.answer(QUESTION, PASSAGE)
        assert engine.runs == []
    assert [record.exc_info is not None for record in caplog.records if record.levelno == logging.ERROR] == [True]


@pytest.mark.parametrize(
    ("host", "credentials", "tls", "warning"),
    [
        ("0.0.0.0", False, False, "without --credentials, whoever reaches {} may call"),
        ("0.0.0.0", False, True, "without --credentials, whoever reaches {} may call"),
        ("0.0.0.0", True, False, "without --tls-certificate, tokens travel to {} as plain text"),
        ("0.0.0.0", True, True, None),
        ("127.0.0.2", False, False, None),
        ("localhost", True, False, None),
    ],
)
async def test_an_open_server_on_the_network_is_told(
    bundle: Path,
    files: Files,
    caplog: pytest.LogCaptureFixture,
    host: str,
    credentials: bool,
    tls: bool,
    warning: str | None,
) -> None:
    settings = {"credentials": files.callers} if credentials else {}
    settings |= {"tls_certificate": files.certificate, "tls_key": files.key} if tls else {}
    async with held_server(bundle, host=host, **settings) as (server, _):
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert warnings == ([] if warning is None else [warning.format(server.address)])


@pytest.mark.parametrize("others", [CALLERS, CALLERS.replace("distilbert-384-squad", "distilbert-385-squad")])
async def test_a_model_that_nobody_may_use_is_told(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, others: str
) -> None:
    path = tmp_path / "callers.toml"
    path.write_text(others)
    async with held_server(bundle, credentials=path):
        warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    told = f"no caller in {path} may use the model 'distilbert-384-squad', which is served"
    assert warnings == ([] if others == CALLERS else [told])


async def test_tls(encrypted: str, files: Files) -> None:
    with Client(encrypted, token=TOKEN, root_certificates=files.roots) as client:
        assert client.answer(QUESTION, PASSAGE)[0].text == "the lazy dog"
    with Client(encrypted, tls=True, root_certificates=str(files.roots)) as client, pytest.raises(Unauthenticated):
        client.model()
    async with AsyncClient(encrypted, token=TOKEN, root_certificates=files.roots) as other:
        assert (await other.answer(QUESTION, PASSAGE))[0].text == "the lazy dog"


async def refused(target: str, message: str, **options: Any) -> None:
    """Both clients say that there is no such server, and why, well before their deadline."""
    with Client(target, token=TOKEN, timeout_s=60, **options) as client, pytest.raises(Unavailable, match=message):
        client.model()
    async with AsyncClient(target, token=TOKEN, timeout_s=60, **options) as other:
        with pytest.raises(Unavailable, match=message):
            await other.model()


async def test_tls_from_an_authority_that_nobody_knows(encrypted: str) -> None:
    await refused(encrypted, "CERTIFICATE_VERIFY_FAILED: unable to get local issuer certificate", tls=True)


async def test_tls_from_another_authority(encrypted: str, tmp_path: Path) -> None:
    await refused(encrypted, "CERTIFICATE_VERIFY_FAILED", root_certificates=Files(tmp_path).roots)


async def test_a_plain_client_of_a_tls_server(encrypted: str) -> None:
    await refused(encrypted, "This client does not use TLS: does the server[?]$")


@pytest.mark.parametrize("plain", [True, False])
async def test_a_cause_that_another_address_hides(encrypted: str, plain: bool) -> None:
    """As localhost may: the server is at one of its two addresses, and gRPC says of the other that nobody is there."""
    target = f"ipv4:{encrypted},127.0.0.1:1"
    options: dict[str, Any] = {} if plain else {"tls": True}
    await refused(
        target,
        "does not use TLS: does the server[?]$" if plain else r"trusted here \(root_certificates\)[?]$",
        **options,
    )


async def test_a_tls_client_of_a_plain_server(target: str, files: Files) -> None:
    await refused(target, "WRONG_VERSION_NUMBER", root_certificates=files.roots)


async def test_an_expired_certificate(bundle: Path, files: Files) -> None:
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate, key = files.issue("expired", "127.0.0.1", not_before=past, not_after=past + datetime.timedelta(days=1))
    async with (
        held_server(bundle, tls_certificate=certificate, tls_key=key) as (server, _),
        AsyncClient(server.address, root_certificates=files.roots) as client,
    ):
        with pytest.raises(Unavailable, match="certificate has expired"):
            await client.model()


async def test_a_certificate_of_another_host(bundle: Path, files: Files) -> None:
    certificate, key = files.issue("elsewhere", "elsewhere.example")
    async with (
        held_server(bundle, tls_certificate=certificate, tls_key=key) as (server, _),
        AsyncClient(server.address, root_certificates=files.roots) as client,
    ):
        with pytest.raises(Unavailable, match="Hostname Verification Check failed"):
            await client.model()


@pytest.mark.parametrize(
    "token", ["", "two words", "line\n", "line\r\nauthorization: x", "schlüssel", "\x7f", b"x", 1, "x" * 4097]
)
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_a_token_that_no_header_can_carry(client: Any, token: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client("localhost:0", token=token)
    assert caught.value.field == "token"
    assert str(caught.value) == "token: must be 1 to 4096 printable ASCII characters without spaces"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing.pem", "No such file or directory"),
        (".", "Is a directory"),
        ("server.key", "holds no certificate in PEM"),
        ("callers.toml", "holds no certificate in PEM"),
    ],
)
@pytest.mark.parametrize("client", [Client, AsyncClient])
def test_roots_that_cannot_be_used(files: Files, client: Any, name: str, problem: str) -> None:
    path = files.roots.parent / name
    with pytest.raises(InvalidRequest) as caught:
        client("localhost:0", root_certificates=path)
    assert str(caught.value) == f"root_certificates: {path}: {problem}"


NO_KEY = "tls_key: {key}: does not go with {certificate}: it holds no key in PEM without a password"


@pytest.mark.parametrize(
    ("certificate", "key", "problem"),
    [
        ("missing.pem", "server.key", "tls_certificate: {certificate}: No such file or directory"),
        (".", "server.key", "tls_certificate: {certificate}: Is a directory"),
        ("server.key", "server.key", "tls_certificate: {certificate}: holds no certificate in PEM"),
        ("callers.toml", "server.key", "tls_certificate: {certificate}: holds no certificate in PEM"),
        ("server.pem", "missing.key", "tls_key: {key}: No such file or directory"),
        ("server.pem", ".", "tls_key: {key}: Is a directory"),
        (
            "server.pem",
            "server.pem",
            NO_KEY,
        ),
        ("server.pem", "other.key", "tls_key: {key}: does not go with {certificate}: KEY_VALUES_MISMATCH"),
        (
            "server.pem",
            "locked.key",
            NO_KEY,
        ),
    ],
)
def test_certificates_that_cannot_be_served(
    bundle: Path, files: Files, certificate: str, key: str, problem: str
) -> None:
    files.issue("other", "127.0.0.1")
    files.lock("locked.key")
    paths = {"certificate": files.roots.parent / certificate, "key": files.roots.parent / key}
    with pytest.raises(SettingsError) as caught:
        SingleProcess(ServerSettings(bundle=bundle, tls_certificate=paths["certificate"], tls_key=paths["key"]))
    assert str(caught.value) == problem.format(**paths)


async def test_a_certificate_of_a_kind_that_grpc_does_not_take(bundle: Path, files: Files) -> None:
    certificate, key = files.odd()
    with pytest.raises(BindError, match="of a kind that gRPC does not take"):
        async with held_server(bundle, tls_certificate=certificate, tls_key=key):
            pass


def ask(*arguments: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``distilqa ask``, with a token in the environment."""
    environment = {name: value for name, value in os.environ.items() if name != "DISTILQA_TOKEN"}
    environment |= {} if token is None else {"DISTILQA_TOKEN": token}
    command = [*CLI, "ask", QUESTION, "--passage", "-", *arguments]
    return subprocess.run(command, input=PASSAGE, capture_output=True, text=True, timeout=120, env=environment)


def test_ask_with_the_token(encrypted: str, files: Files) -> None:
    done = ask("--target", encrypted, "--root-certificates", str(files.roots), token=TOKEN)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("the lazy dog (0.")


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "credentials are missing: this server wants 'authorization: Bearer TOKEN'"),
        ("", "credentials are missing: this server wants 'authorization: Bearer TOKEN'"),
        ("wrong", "the token is not one that is known here"),
        (ELSEWHERE, "caller 'elsewhere' may not use the model 'distilbert-384-squad'"),
    ],
)
def test_ask_without_it(guarded: str, token: str | None, message: str) -> None:
    done = ask("--target", guarded, token=token)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"distilqa: {message}\n")


def test_ask_over_tls_that_cannot_be_trusted(encrypted: str) -> None:
    done = ask("--target", encrypted, "--tls", token=TOKEN)
    assert done.returncode == 1
    assert re.fullmatch(r"distilqa: .*CERTIFICATE_VERIFY_FAILED.*\n", done.stderr)


def test_a_token_does_not_matter_to_a_bundle(bundle: Path) -> None:
    done = ask("--bundle", str(bundle), token="two words")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_server_says_how_to_ask_it(bundle: Path, files: Files) -> None:
    """And is not disturbed by the token of those who ask."""
    tls = ["--tls-certificate", str(files.certificate), "--tls-key", str(files.key)]
    command = [*CLI, "serve", str(bundle), "--credentials", str(files.callers), *tls]
    with serving(command, env=os.environ | {"DISTILQA_TOKEN": TOKEN}) as (process, address):
        process.terminate()
        assert process.stdout is not None
        shown, *hints = filter(None, process.stdout.read().splitlines())  # of which `serving` may have buffered some
    assert "| DISTILQA_TOKEN=... " in shown
    assert shown.endswith(f"--target {address} --tls")
    assert "--root-certificates FILE takes the place of --tls" in "".join(hints)
