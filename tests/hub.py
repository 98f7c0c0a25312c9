"""A hub on loopback that serves models and data sets from folders, for the real client code."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "5c0ffee5" * 5  # forty hexadecimal digits: the one commit of every repository here
_KINDS = {"models": "model", "datasets": "dataset"}


@dataclass
class Hub:
    """`with Hub() as hub:` serves at `hub.url` what `add_model` and `add_dataset` were given.

    Ids in `gated` answer 401 for their files as the real hub does; any other id is unknown (404).
    `requests` lists every "METHOD path" that came in. What is pushed lands in a folder under
    `uploads` and is served from there; without that, nothing can be pushed. With `is_full` no
    commit is taken.
    """

    gated: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    repositories: dict[tuple[str, str], Path] = field(default_factory=dict)
    uploads: Path | None = None
    is_full: bool = False

    def add_model(self, repo: str, folder: Path) -> None:
        """Serve `folder` as the model `repo`."""
        self.repositories["model", repo] = folder

    def add_dataset(self, repo: str, folder: Path) -> None:
        """Serve `folder` as the data set `repo`."""
        self.repositories["dataset", repo] = folder

    def __enter__(self) -> Hub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def ignore_errors(self) -> None:
        """Say nothing of requests that fail on this side."""
        self._server.handle_error = lambda request, address: None  # type: ignore[method-assign]

    @property
    def url(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self._server.server_port}"


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test output clean."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:  # the client is gone
            self.close_connection = True
            return None
        parts = urlsplit(self.path)
        path = unquote(parts.path).lstrip("/")
        self.hub.requests.append(f"{self.command} /{path}")
        if path == "api/repos/create" and self.hub.uploads is not None:
            return self._create(json.loads(body))
        if path == "api/repos/delete" and self.hub.uploads is not None:
            return self._delete(json.loads(body))
        if path == "api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        for (kind, repo), folder in tuple(self.hub.repositories.items()):
            place = f"datasets/{repo}" if kind == "dataset" else repo
            if match := re.fullmatch(rf"{re.escape(place)}/resolve/([^/]+)/(.+)", path):
                return self._file(repo, folder, match[1], match[2])
            prefix = f"api/{kind}s/{repo}"
            if path == prefix or path.startswith(f"{prefix}/"):
                rest = path.removeprefix(prefix).lstrip("/")
                return self._api(repo, folder, rest, parse_qs(parts.query), body)
        self._refuse(404, "RepoNotFound", "Repository not found")

    def _api(
        self, repo: str, folder: Path, rest: str, query: Mapping[str, list[str]], body: bytes
    ) -> None:
        action, _, tail = rest.partition("/")
        revision, _, inner = tail.partition("/")
        if action and revision not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if action in ("", "revision"):
            return self._json(_info(repo, folder))
        if action == "tree":
            deep = query.get("recursive", ["false"])[0].lower() in ("true", "1")
            start = folder / inner
            if not start.is_dir():
                return self._refuse(404, "EntryNotFound", f"{inner} does not exist")
            found = start.rglob("*") if deep else start.iterdir()
            return self._json([_entry(folder, path) for path in sorted(found)])
        if action == "preupload":
            names = [entry["path"] for entry in json.loads(body)["files"]]
            files = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
            return self._json({"files": files})
        if action == "commit":
            return self._commit(repo, folder, body)
        if action == "paths-info":
            names = _posted_paths(body, self.headers.get("Content-Type") or "")
            paths = [folder / name for name in names]
            return self._json([_entry(folder, path) for path in paths if path.exists()])
        return self._refuse(404, "EntryNotFound", f"no such page: {rest}")

    def _create(self, wanted: Mapping[str, Any]) -> None:
        """Make an empty repository; one of that name may be there already."""
        repo = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else ""
        if not repo:
            return self._refuse(403, "Forbidden", "You have no rights to create a repository here")
        assert self.hub.uploads is not None
        folder = self.hub.uploads / repo
        folder.mkdir(parents=True, exist_ok=True)
        self.hub.add_model(repo, folder)
        return self._json({"url": f"{self.hub.url}/{repo}", "id": repo, "name": repo})

    def _delete(self, wanted: Mapping[str, Any]) -> None:
        repo = f"{wanted['organization']}/{wanted['name']}"
        folder = self.hub.repositories.pop(("model", repo), None)
        if folder is None:
            return self._refuse(404, "RepoNotFound", "Repository not found")
        shutil.rmtree(folder)
        return self._json({})

    def _commit(self, repo: str, folder: Path, body: bytes) -> None:
        """Write the files of a commit, each of which is a line of JSON."""
        if self.hub.is_full:
            return self._refuse(403, "Forbidden", "Your storage is full")
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                path = folder / entry["value"]["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(base64.b64decode(entry["value"]["content"]))
        url = f"{self.hub.url}/{repo}/commit/{COMMIT}"
        answer = {"commitUrl": url, "commitOid": COMMIT, "hookOutput": "", "success": True}
        return self._json(answer)

    def _file(self, repo: str, folder: Path, revision: str, name: str) -> None:
        if repo in self.hub.gated:
            return self._refuse(401, "GatedRepo", f"Access to model {repo} is restricted.")
        if revision not in ("main", COMMIT):
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        path = folder / name
        if not path.is_file():
            return self._refuse(404, "EntryNotFound", f"{name} does not exist")
        data, status, headers = path.read_bytes(), 200, {}
        size = len(data)
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(match[1]), min(int(match[2] or size - 1), size - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            data, status = data[first : last + 1], 206
        headers |= {
            "ETag": f'"{_digest(path)}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        self._send(status, data, headers)

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = json.dumps({"error": message}).encode()
        self._send(status, body, {"X-Error-Code": code, "X-Error-Message": message})

    def _send(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _posted_paths(body: bytes, kind: str) -> list[str]:
    if "json" in kind:
        found = json.loads(body)["paths"]
        return [found] if isinstance(found, str) else list(found)
    return parse_qs(body.decode()).get("paths", [])


def _digest(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
    return {"type": "file", "path": name, "oid": _digest(path), "size": path.stat().st_size}


def _info(repo: str, folder: Path) -> dict[str, Any]:
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return {
        "_id": "0" * 24,
        "id": repo,
        "modelId": repo,
        "sha": COMMIT,
        "private": False,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "lastModified": "2024-01-01T00:00:00.000Z",
        "createdAt": "2024-01-01T00:00:00.000Z",
        "siblings": [{"rfilename": name} for name in files],
    }
