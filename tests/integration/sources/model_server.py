"""A real HTTP server of model files with faults on demand: a plain site, a hub and an index."""

import base64
import hashlib
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHUNK_BYTES = 16_384


@dataclass
class Faults:
    """What goes wrong; counts are used up, one per GET of a file."""

    drops: int = 0
    drop_after_bytes: int = 0
    statuses: list[int] = field(default_factory=list)
    is_deaf_to_ranges: bool = False
    wrong_range: int = 0
    extra_bytes: bytes = b""
    credentials: str = ""
    # Set: go on. Cleared: stop sending after `pause_after_bytes`.
    go_on: threading.Event = field(default_factory=threading.Event)
    pause_after_bytes: int = 0


@dataclass
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    start: int
    authorization: str


class ModelServer(ThreadingHTTPServer):
    """Files by path, and what was asked for them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.hub: dict[str, bytes] = {}
        self.hub_headers: dict[str, str] = {}
        # Repositories whose terms have to be accepted, and the tokens of those who did.
        self.gated: dict[str, set[str]] = {}
        self.pages: dict[str, str] = {}
        self.faults = Faults()
        self.asked: list[Asked] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def starts(self, path: str) -> list[int]:
        """Return at which byte each GET of a file began."""
        return [a.start for a in self.asked if a.method == "GET" and a.path == path]

    def add_wheel(self, package: str, member: str, content: bytes, version: str = "1.0") -> str:
        """Offer a wheel with one member on the index; return the wheel's SHA-256."""
        plain = package.replace("-", "_")
        metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        wheel = io.BytesIO()
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_STORED) as archive:
            info = f"{plain}-{version}.dist-info"
            archive.writestr(zipfile.ZipInfo(member), content)
            # Importing or running anything of this package would leave traces; nobody may.
            archive.writestr(
                zipfile.ZipInfo(f"{plain}/__init__.py"), "raise SystemExit('imported')"
            )
            archive.writestr(zipfile.ZipInfo(f"{info}/METADATA"), metadata)
            wheel_text = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            archive.writestr(zipfile.ZipInfo(f"{info}/WHEEL"), wheel_text)
            archive.writestr(zipfile.ZipInfo(f"{info}/RECORD"), "")
        name = f"{plain}-{version}-py3-none-any.whl"
        data = wheel.getvalue()
        sha256 = hashlib.sha256(data).hexdigest()
        self.files[f"/wheels/{name}"] = data
        self.pages[f"/wheels/{name}.metadata"] = metadata
        about = hashlib.sha256(metadata.encode()).hexdigest()
        self.pages[f"/simple/{package}/"] = (
            f'<!DOCTYPE html><html><body><a href="{self.url}/wheels/{name}#sha256={sha256}" '
            f'data-dist-info-metadata="sha256={about}">{name}</a></body></html>'
        )
        return sha256


class Handler(BaseHTTPRequestHandler):
    """Speaks just enough of a static site, of the hub and of a package index."""

    server: ModelServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._note(0)
        if not self._hub():
            self._answer(404)

    def do_GET(self) -> None:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(found[1]) if found else 0
        self._note(start)
        if self.path in self.server.pages:
            self._answer(200, self.server.pages[self.path].encode(), {"Content-Type": "text/html"})
        elif self.path in self.server.files:
            self._file(self.server.files[self.path], start)
        elif not self._hub():
            self._answer(404)

    def _note(self, start: int) -> None:
        authorization = self.headers.get("Authorization", "")
        self.server.asked.append(Asked(self.command, self.path, start, authorization))

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _gate(self, repository: str) -> int | None:
        """Return the status with which the hub refuses this caller a gated repository."""
        authorization = self.headers.get("Authorization", "")
        if repository not in self.server.gated:
            return None
        if not authorization:
            return 401
        accepted = self.server.gated[repository]
        return None if authorization.removeprefix("Bearer ") in accepted else 403

    def _hub(self) -> bool:
        """Answer as the hub does for a large file: a redirect with the digest in headers."""
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if not found:
            return self._repository()
        name = f"{found[1]}/{found[3]}"
        if (refused := self._gate(found[1])) is not None:
            self._answer(refused, headers={"X-Error-Code": "GatedRepo"})
            return True
        if name not in self.server.hub:
            self._answer(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return True
        data = self.server.hub[name]
        sha256 = hashlib.sha256(data).hexdigest()
        self.server.files.setdefault(f"/blobs/{sha256}", data)
        headers = {
            "X-Linked-Etag": f'"{sha256}"',
            "X-Linked-Size": str(len(data)),
            "X-Repo-Commit": COMMIT,
            # Another host, as the hub's content network is: the token must not go there.
            "Location": f"http://localhost:{self.server.server_port}/blobs/{sha256}",
        } | self.server.hub_headers
        self._answer(302, headers=headers)
        return True

    def _repository(self) -> bool:
        """List a repository as the hub does: SHA-256 of large files, git's digest of small ones."""
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/[^/?]+(?:\?.*)?", self.path)
        if not found:
            return False
        if (refused := self._gate(found[1])) is not None:
            self._answer(refused, headers={"X-Error-Code": "GatedRepo"})
            return True
        siblings = []
        for name, data in self.server.hub.items():
            if name.startswith(f"{found[1]}/"):
                blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
                sibling: dict[str, Any] = {
                    "rfilename": name.removeprefix(f"{found[1]}/"),
                    "size": len(data),
                    "blobId": blob.hexdigest(),
                }
                if name.endswith(".safetensors"):
                    sha256 = hashlib.sha256(data).hexdigest()
                    sibling["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 134}
                siblings.append(sibling)
        if not siblings:
            self._answer(404, headers={"X-Error-Code": "RepoNotFound"})
            return True
        body = json.dumps({"id": found[1], "sha": COMMIT, "siblings": siblings}).encode()
        self._answer(200, body, {"Content-Type": "application/json"})
        return True

    def _file(self, data: bytes, start: int) -> None:
        faults = self.server.faults
        if faults.statuses:
            self._answer(faults.statuses.pop(0))
            return
        wanted = "Basic " + base64.b64encode(faults.credentials.encode()).decode()
        if faults.credentials and self.headers.get("Authorization") != wanted:
            self._answer(401, headers={"WWW-Authenticate": 'Basic realm="index"'})
            return
        if start > len(data):
            self._answer(416)
            return
        data += faults.extra_bytes
        start = 0 if faults.is_deaf_to_ranges else start
        self.send_response(206 if start else 200)
        if start:
            first, faults.wrong_range = start + faults.wrong_range, 0
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self._send(data, start)

    def _send(self, data: bytes, start: int) -> None:
        faults = self.server.faults
        is_dropping = faults.drops > 0
        faults.drops -= is_dropping
        for at in range(start, len(data), CHUNK_BYTES):
            if is_dropping and at - start >= faults.drop_after_bytes:
                self.close_connection = True
                return
            if faults.pause_after_bytes and at >= faults.pause_after_bytes:
                faults.go_on.wait(60)
            self.wfile.write(data[at : at + CHUNK_BYTES])

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True


@contextmanager
def running() -> Iterator[ModelServer]:
    """Yield a server on a free port, stopped at the end."""
    server = ModelServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.faults.go_on.set()
        server.shutdown()
        thread.join()
        server.server_close()
