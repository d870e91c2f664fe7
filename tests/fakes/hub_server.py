"""A server that speaks the part of the HuggingFace Hub's protocol that a download needs.

    GET  /api/models/<repo>/revision/<revision>      what a repository holds at a commit, with sizes and digests
    HEAD /<repo>/resolve/<revision>/<file>           commit, ETag and size of a file
    GET  /<repo>/resolve/<revision>/<file>           its content, ranges included; a large file's on another host

A data set is a repository whose name, and every path, begins with `datasets/`. Refusals carry `X-Error-Code`, as the
hub's do. Large files are all safetensors: the hub redirects to a second server, by a link with a signature, and that
one must never see a credential.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_API = re.compile(r"/api/(?:models/)?(?P<repo>(?:datasets/)?[^/?]+/[^/?]+)(?:/revision/(?P<revision>[^/?]+))?")
_FILE = re.compile(r"/(?P<repo>(?:datasets/)?[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>[^?]+)")
_STORED = re.compile(r"/stored/(?P<sha256>[0-9a-f]{64})\?signature=ok")
TOKEN = "hf_of_the_registry"
TOKEN_WITHOUT_RIGHTS = "hf_without_rights"


@dataclass(frozen=True, kw_only=True)
class HubRepo:
    """One repository: revisions by commit, each a set of files."""

    revisions: Mapping[str, Mapping[str, bytes]]
    commits: Mapping[str, str]
    """Branch or tag -> commit."""
    is_gated: bool = False
    is_private: bool = False


@dataclass
class Hub:
    """What the servers hold, how they misbehave, and what was asked of them."""

    repos: dict[str, HubRepo] = field(default_factory=dict)
    status_of_all: int | None = None
    """Answer everything with this."""
    cuts: list[int] = field(default_factory=list)
    """The next contents that are sent end after so many bytes, one after the other."""
    stalls_after: int | None = None
    """The next content stops after so many bytes, and never ends."""
    ignores_ranges: bool = False
    damages: int = 0
    """So many of the next contents arrive with a changed byte."""
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    """`Range` of every request for content that had one."""
    leaked: list[str] = field(default_factory=list)
    """Credentials that the second server saw."""
    url: str = ""
    storage_url: str = ""

    def reset(self) -> None:
        """Forget everything but the addresses."""
        vars(self).update(vars(Hub(url=self.url, storage_url=self.storage_url)))

    def add(
        self,
        repo: str,
        files: Mapping[str, bytes],
        *,
        tag: str = "main",
        is_gated: bool = False,
        is_private: bool = False,
    ) -> str:
        """Put a repository there; returns its commit."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()
        self.repos[repo] = HubRepo(
            revisions={commit: files}, commits={tag: commit, "main": commit}, is_gated=is_gated, is_private=is_private
        )
        return commit

    def content_of(self, sha256: str) -> bytes | None:
        """A stored file by its digest."""
        contents = (
            data for repo in self.repos.values() for files in repo.revisions.values() for data in files.values()
        )
        return next((data for data in contents if hashlib.sha256(data).hexdigest() == sha256), None)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(has_body=False)

    def do_GET(self) -> None:
        self._answer(has_body=True)

    def log_message(self, *_: Any) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")

    def _answer(self, *, has_body: bool) -> None:
        raise NotImplementedError

    def _refuse(self, status: int, **headers: str) -> None:
        self._send(status, b"", {name.replace("_", "-"): value for name, value in headers.items()}, has_body=False)

    def _send_content(self, data: bytes, headers: Mapping[str, str], *, has_body: bool) -> None:
        fields = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
        if has_body and self.hub.damages:
            self.hub.damages -= 1
            data = bytes([data[0] ^ 1]) + data[1:]
        asked = self.headers.get("Range", "")
        if asked:
            self.hub.ranges.append(asked)
        start = None if self.hub.ignores_ranges else re.fullmatch(r"bytes=(\d+)-", asked)
        if start is None:
            self._send(200, data, fields, has_body=has_body)
            return
        first = int(start[1])
        if first >= len(data):
            self._refuse(416)
            return
        fields["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        self._send(206, data[first:], fields, has_body=has_body)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], *, has_body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not has_body:
            return
        is_content = headers.get("Content-Type") == "application/octet-stream"
        if is_content and self.hub.cuts:
            self.wfile.write(body[: self.hub.cuts.pop(0)])
            self.close_connection = True
            return
        if is_content and self.hub.stalls_after is not None:
            self.wfile.write(body[: self.hub.stalls_after])
            self.hub.stalls_after = None
            self.connection.settimeout(60)
            self.connection.recv(1)  # until the client is gone
            self.close_connection = True
            return
        self.wfile.write(body)


class _HubHandler(_Handler):
    def _answer(self, *, has_body: bool) -> None:
        match = _API.match(self.path) or _FILE.match(self.path)
        if self.hub.status_of_all is not None:
            self._refuse(self.hub.status_of_all, Retry_After="7")
            return
        authorization = self.headers.get("Authorization")
        if authorization not in {None, f"Bearer {TOKEN}", f"Bearer {TOKEN_WITHOUT_RIGHTS}"}:
            self._refuse(401, X_Error_Message="Invalid credentials in Authorization header")
            return
        if authorization == f"Bearer {TOKEN_WITHOUT_RIGHTS}":
            self._refuse(403, X_Error_Message="This token lacks the right to read")
            return
        if match is None:
            self._refuse(404)
            return
        fields = match.groupdict()
        repo = self.hub.repos.get(fields["repo"])
        if repo is None or (repo.is_private and authorization is None):
            self._refuse(401, X_Error_Code="RepoNotFound")
            return
        # What a gated repository holds may be seen by everybody, its files not.
        if repo.is_gated and "file" in fields and authorization is None:
            self._refuse(403, X_Error_Code="GatedRepo")
            return
        asked = fields["revision"] or "main"
        commit = repo.commits.get(asked, asked)
        files = repo.revisions.get(commit)
        if files is None:
            self._refuse(404, X_Error_Code="RevisionNotFound")
        elif "file" not in fields:
            self._send_info(fields["repo"], commit, files, has_body=has_body)
        elif fields["file"] in files:
            self._send_file(fields["file"], commit, files[fields["file"]], has_body=has_body)
        else:
            self._refuse(404, X_Error_Code="EntryNotFound")

    def _send_info(self, repo: str, commit: str, files: Mapping[str, bytes], *, has_body: bool) -> None:
        siblings = [_sibling(name, data) for name, data in files.items()]
        info = {"id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [], "siblings": siblings}
        headers = {"Content-Type": "application/json"}
        self._send(200, json.dumps(info).encode(), headers, has_body=has_body)

    def _send_file(self, name: str, commit: str, data: bytes, *, has_body: bool) -> None:
        headers = {"X-Repo-Commit": commit}
        if not _is_large(name):
            self._send_content(data, {**headers, "ETag": f'"{_blob_id(data)}"'}, has_body=has_body)
            return
        sha256 = hashlib.sha256(data).hexdigest()
        headers |= {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(len(data))}
        self._send(
            302, b"", {**headers, "Location": f"{self.hub.storage_url}/stored/{sha256}?signature=ok"}, has_body=False
        )


class _StorageHandler(_Handler):
    def _answer(self, *, has_body: bool) -> None:
        if self.headers.get("Authorization"):
            self.hub.leaked.append(self.headers["Authorization"])
        match = _STORED.fullmatch(self.path)
        data = self.hub.content_of(match["sha256"]) if match else None
        if data is None:
            self._refuse(403)
            return
        self._send_content(data, {}, has_body=has_body)


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()


def _sibling(name: str, data: bytes) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": _blob_id(data)}
    if _is_large(name):
        sibling["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 130}
    return sibling


@contextmanager
def hub_server() -> Generator[Hub]:
    """A running hub for the time of a block."""
    hub = Hub()
    with ExitStack() as stack:
        hub.url = stack.enter_context(_serving(type("Handler", (_HubHandler,), {"hub": hub})))
        hub.storage_url = stack.enter_context(_serving(type("Handler", (_StorageHandler,), {"hub": hub})))
        yield hub


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Generator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
