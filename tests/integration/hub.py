"""A small stand-in of the Hugging Face hub on loopback: what huggingface_hub asks for when it fetches a checkpoint."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

_INFO = re.compile(r"/api/models/(?P<id>.+?)(/revision/(?P<revision>[^/]+))?")
_FILE = re.compile(r"/(?P<id>.+)/resolve/(?P<revision>[^/]+)/(?P<name>[^/]+)")


@dataclass(frozen=True)
class Repository:
    """What is served under ``id``: the files of a folder, as one commit that ``main`` and the tags name."""

    id: str
    folder: Path
    commit: str
    tags: tuple[str, ...] = ()

    def has(self, revision: str | None) -> bool:
        return revision in (None, "main", self.commit, *self.tags)


@dataclass
class Hub:
    """A running stand-in, and every request it got, as ``METHOD /path``."""

    url: str
    requests: list[str] = field(default_factory=list)


@contextmanager
def serve(*repositories: Repository) -> Iterator[Hub]:
    """Serve repositories on a free port until the block ends."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        hub = Hub(f"http://127.0.0.1:{server.server_port}")
        handler = type("Handler", (_Handler,), {"hub": hub, "repositories": {r.id: r for r in repositories}})
        server.RequestHandlerClass = handler
        thread = threading.Thread(target=server.serve_forever, name="hub", daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    repositories: dict[str, Repository]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        asked = _INFO.fullmatch(path) or _FILE.fullmatch(path)
        repository = self.repositories.get(asked["id"]) if asked else None
        if asked is None or repository is None:
            self._refuse("RepoNotFound", "Repository not found")
        elif not repository.has(asked["revision"]):
            self._refuse("RevisionNotFound", f"Invalid rev id: {asked['revision']}")
        elif asked.re is _INFO:
            self._describe(repository)
        elif not (repository.folder / asked["name"]).is_file():
            self._refuse("EntryNotFound", "Entry not found")
        else:
            self._send(repository, repository.folder / asked["name"])

    do_HEAD = do_GET  # noqa: N815

    def _describe(self, repository: Repository) -> None:
        files = [{"rfilename": path.name} for path in sorted(repository.folder.iterdir())]
        self._reply(json.dumps({"id": repository.id, "sha": repository.commit, "siblings": files}).encode())

    def _send(self, repository: Repository, path: Path) -> None:
        content = path.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        self._reply(content, {"ETag": f'"{etag}"', "X-Repo-Commit": repository.commit})

    def _refuse(self, code: str, message: str) -> None:
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self._reply(json.dumps({"error": message}).encode(), headers, HTTPStatus.NOT_FOUND)

    def _reply(self, content: bytes, headers: dict[str, str] | None = None, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the requests are in `Hub.requests`."""
