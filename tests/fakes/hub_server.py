"""A server that speaks the part of the HuggingFace Hub's protocol that a download needs.

    GET  /api/models/<repo>/revision/<revision>      what a repository holds at a commit, with sizes
    HEAD /<repo>/resolve/<revision>/<file>           commit, ETag and size of a file
    GET  /<repo>/resolve/<revision>/<file>           its content, ranges included

Refusals carry `X-Error-Code`, as the hub's do.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_API = re.compile(r"/api/models/(?P<repo>[^/?]+/[^/?]+)(?:/revision/(?P<revision>[^/?]+))?")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>[^?]+)")
TOKEN = "hf_of_the_registry"


@dataclass(frozen=True, kw_only=True)
class HubRepo:
    """One repository: revisions by branch, tag or commit, each a set of files."""

    revisions: Mapping[str, Mapping[str, bytes]]
    commits: Mapping[str, str]
    """Branch or tag -> commit."""
    is_gated: bool = False
    is_private: bool = False


@dataclass
class Hub:
    """What the server holds, and what was asked of it."""

    repos: dict[str, HubRepo] = field(default_factory=dict)
    is_broken: bool = False
    requests: list[str] = field(default_factory=list)
    url: str = ""

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
        match = _API.match(self.path) or _FILE.match(self.path)
        if self.hub.is_broken or match is None:
            self._send(500 if self.hub.is_broken else 404, b"", {}, has_body=has_body)
            return
        fields = match.groupdict()
        repo = self.hub.repos.get(fields["repo"])
        is_known_client = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if repo is None or (repo.is_private and not is_known_client):
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"}, has_body=has_body)
            return
        # What a gated repository holds may be seen by everybody, its files not.
        if repo.is_gated and "file" in fields and not is_known_client:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"}, has_body=has_body)
            return
        asked = fields["revision"] or "main"
        commit = repo.commits.get(asked, asked)
        files = repo.revisions.get(commit)
        if files is None:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"}, has_body=has_body)
            return
        if "file" not in fields:
            self._send_info(fields["repo"], commit, files, has_body=has_body)
        elif fields["file"] in files:
            self._send_file(commit, files[fields["file"]], has_body=has_body)
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, has_body=has_body)

    def _send_info(self, repo: str, commit: str, files: Mapping[str, bytes], *, has_body: bool) -> None:
        siblings = [
            {"rfilename": name, "size": len(data), "blobId": hashlib.sha256(data).hexdigest()[:40]}
            for name, data in files.items()
        ]
        info = {"id": repo, "modelId": repo, "sha": commit, "private": False, "tags": [], "siblings": siblings}
        headers = {"Content-Type": "application/json"}
        self._send(200, json.dumps(info).encode(), headers, has_body=has_body)

    def _send_file(self, commit: str, data: bytes, *, has_body: bool) -> None:
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if start is not None:
            first = int(start[1])
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            self._send(206, data[first:], headers, has_body=has_body)
            return
        self._send(200, data, headers, has_body=has_body)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], *, has_body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if has_body:
            self.wfile.write(body)


@contextmanager
def hub_server() -> Generator[Hub]:
    """A running hub for the time of a block."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
