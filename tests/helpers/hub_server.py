"""A Hub on loopback: the endpoints of huggingface.co that `huggingface_hub` calls, kept in memory.

No server for this could be had from PyPI: those that exist want PostgreSQL, MinIO and LakeFS beneath them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

#: Names that are kept by LFS, as `.gitattributes` says on the Hub.
LFS = re.compile(r"\.(safetensors|png|pt|pth|bin)$")
WRITE_TOKEN = "hf_" + "MayWrite" * 4
READ_TOKEN = "hf_" + "MayRead" * 4


CUT, SILENT, DRIP, DRIPPING_HEADERS, ENDLESS = 0, -1, -2, -3, -4
#: A message that would colour a terminal, or worse.
ESCAPES = "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J"


@dataclass
class Failure:
    """What goes wrong: requests that match are answered by `status`, or as a constant above says."""

    request: str
    status: int
    times: int = 10**9
    message: str = "as asked"


@dataclass
class Repo:
    """Files by path, commit by commit; each branch and pull request names a commit."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    refs: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})

    def files(self, revision: str) -> dict[str, bytes] | None:
        """The files of a branch, pull request or commit; None if there is none."""
        return self.commits.get(self.refs.get(revision, revision))


class Hub(ThreadingHTTPServer):
    """The server; `with Hub() as hub:` runs it, and `hub.environment()` points a process at it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.failures: list[Failure] = []
        self.requests: list[str] = []
        #: Where files are kept by Xet, the Hub's storage for large files; None: by LFS.
        self.xet: Path | None = None
        #: Whether it warns, with escape sequences.
        self.escapes = False
        self.lock = threading.RLock()

    def __enter__(self) -> Hub:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *args: Any) -> None:
        self.shutdown()
        self.server_close()

    def environment(
        self, cache: Any, token: str | None = WRITE_TOKEN, offline: bool = False
    ) -> dict[str, str]:
        """Returns the environment of a process that uses this Hub, with the cache folder `cache`."""
        ours = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": str(int(self.xet is None)),
            "HF_HUB_OFFLINE": str(int(offline)),
            "HF_DATASETS_OFFLINE": str(int(offline)),
        }
        kept = {key: value for key, value in os.environ.items() if key != "HF_TOKEN"}
        return {**kept, **ours, **({"HF_TOKEN": token} if token else {})}

    def uploads(self) -> list[str]:
        """The requests that wrote something, in order."""
        return [request for request in self.requests if request.startswith("PUT ") or "/commit/" in request]

    def handle_error(self, *args: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        """Nothing is printed."""

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        query = parse_qs(urlsplit(self.path).query)
        request = f"{self.command} {path}"
        length = int(self.headers.get("Content-Length", 0))
        with self.server.lock:
            self.server.requests.append(request)
            failure = next(
                (f for f in self.server.failures if f.times and re.search(f.request, request)), None
            )
            if failure:
                failure.times -= 1
        if failure and failure.status in (CUT, SILENT):
            # After the end of a request, reading returns when the client has hung up.
            self.rfile.read(length // 2 if failure.status == CUT else length + 1)
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(length)
        if failure and failure.status < 0:
            self._never_end(failure.status)
            return
        if failure:
            self._send(failure.status, {"error": failure.message})
            return
        with self.server.lock:
            self._route(path, query, body)

    def _never_end(self, how: int) -> None:
        """Sends until the client hangs up: a byte now and then, or as much as it takes."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" if how == DRIPPING_HEADERS else b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            self.wfile.write({DRIP: b" ", DRIPPING_HEADERS: b"A: b\r\n", ENDLESS: b" " * 2**16}[how])
            if how != ENDLESS:
                # Not time.sleep, which `use_here` takes away from this whole process.
                threading.Event().wait(0.02)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _route(self, path: str, query: dict[str, list[str]], body: bytes) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif self.command == "PUT":
            oid = path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == oid
            self.server.lfs[oid] = body
            self._send(200, {})
        elif token not in (WRITE_TOKEN, READ_TOKEN, ""):
            message = "Invalid credentials in Authorization header"
            self._send(401, {"error": message}, {"X-Error-Message": message})
        elif self.command == "POST" and token != WRITE_TOKEN and "paths-info" not in path:
            message = "no right to write"
            self._send(403 if token else 401, {"error": message}, {"X-Error-Message": message})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        else:
            self._route_repo(path, query, body, token)

    def _route_repo(self, path: str, query: dict[str, list[str]], body: bytes, token: str) -> None:
        parts = re.fullmatch(
            r"(?:/api)?/(?:models/)?((?:datasets/|spaces/)?[\w.-]+/[\w-][\w.-]*?)(?:\.git)?"
            r"(?:/(revision|tree|preupload|commit|branch|paths-info|resolve|info|xet-write-token)/(.+))?",
            path,
        )
        name, action, rest = parts.groups() if parts else ("", None, None)
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not token):
            self._send(404 if token else 401, {"error": "no repository"}, {"X-Error-Code": "RepoNotFound"})
            return
        if action == "info":
            self._lfs(rest, json.loads(body))
        elif action == "xet-write-token":
            # hf_xet keeps the files by itself where the storage is a folder of this machine.
            storage = {"accessToken": "of Xet", "exp": 2**32, "casUrl": f"local://{self.server.xet}"}
            self._send(200 if self.server.xet else 404, storage)
        elif action == "branch":
            there = repo.refs.setdefault(rest, repo.refs["main"]) != repo.refs["main"] or rest == "main"
            self._send(409 if there else 200, {})
        else:
            match = re.match(r"(refs/(?:pr|convert)/\w+|[^/]+)/?(.*)", rest or "main")
            revision, inner = match.groups()
            files = repo.files(revision)
            if files is None:
                self._send(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
            elif action == "resolve":
                self._resolve(repo, revision, files.get(inner))
            elif action == "preupload":
                asked = [file["path"] for file in json.loads(body)["files"]]
                self._send(200, {"files": [_upload_mode(path, files.get(path)) for path in asked]})
            elif action == "commit":
                self._commit(name, repo, revision, "create_pr" in query, body)
            elif action in ("tree", "paths-info"):
                wanted = parse_qs(body.decode()).get("paths", []) if action == "paths-info" else files
                self._send(200, [_entry(p, files[p]) for p in files if p in wanted and p.startswith(inner)])
            else:
                siblings = [{"rfilename": path} for path in files]
                sha = repo.refs.get(revision, revision)
                self._send(200, {"id": _id(name), "sha": sha, "private": repo.private, "siblings": siblings})

    def _create(self, asked: dict[str, Any]) -> None:
        kind = {"model": "", "dataset": "datasets/", "space": "spaces/"}[asked.get("type") or "model"]
        name = f"{kind}{asked.get('organization') or 'user'}/{asked['name']}"
        private = asked.get("private") or asked.get("visibility") == "private"
        there = name in self.server.repos
        self.server.repos.setdefault(name, Repo(private=bool(private)))
        self._send(409 if there else 200, {"url": f"{self.server.endpoint}/{name}"})

    def _validate(self, content: str) -> None:
        errors = []
        try:
            front = yaml.safe_load(content.split("---")[1]) if content.startswith("---") else None
            if not isinstance(front, dict):
                errors = ["no metadata"]
            elif not isinstance(front.get("license", ""), str) or " " in front.get("license", ""):
                errors = [f"license is {front['license']!r}"]
        except yaml.YAMLError as error:
            errors = [str(error)]
        warnings = [{"message": ESCAPES}] if self.server.escapes else []
        self._send(400 if errors else 200, {"errors": [{"message": e} for e in errors], "warnings": warnings})

    def _lfs(self, action: str, asked: dict[str, Any]) -> None:
        if action.endswith("verify"):
            self._send(200 if asked["oid"] in self.server.lfs else 404, {})
            return
        objects = []
        for item in asked["objects"]:
            href = f"{self.server.endpoint}/lfs/{item['oid']}"
            verify = self.server.endpoint + self.path.replace("/batch", "/verify")
            actions = {"upload": {"href": href}, "verify": {"href": verify}}
            objects.append(item if item["oid"] in self.server.lfs else {**item, "actions": actions})
        self._send(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, repo: Repo, revision: str, create_pr: bool, body: bytes) -> None:
        files = dict(repo.files(revision) or {})
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.lfs[value["oid"]]
        sha = hashlib.sha1(body + str(len(repo.commits)).encode()).hexdigest()
        pull_request = f"refs/pr/{1 + sum(ref.startswith('refs/pr/') for ref in repo.refs)}"
        repo.commits[sha] = files
        repo.refs[pull_request if create_pr else revision] = sha
        url = f"{self.server.endpoint}/{name}"
        self._send(
            200,
            {
                "commitUrl": f"{url}/commit/{sha}",
                "commitOid": sha,
                "pullRequestUrl": f"{url}/discussions/{pull_request[-1]}" if create_pr else None,
            },
        )

    def _resolve(self, repo: Repo, revision: str, content: bytes | None) -> None:
        commit = {"X-Repo-Commit": repo.refs.get(revision, revision)}
        if content is None:
            self._send(404, {"error": "no such file"}, {**commit, "X-Error-Code": "EntryNotFound"})
        else:
            self._send(200, content, {**commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'})

    def _send(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header(
            "Content-Type", "application/octet-stream" if content is answer else "application/json"
        )
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _id(name: str) -> str:
    return re.sub(r"^(datasets|spaces)/", "", name)


def _oid(path: str, content: bytes) -> str:
    if LFS.search(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _upload_mode(path: str, content: bytes | None) -> dict[str, Any]:
    mode = "lfs" if LFS.search(path) else "regular"
    oid = None if content is None else _oid(path, content)
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _oid(path, content)}


def use_here(hub: Hub, monkeypatch: Any, default: str | None = WRITE_TOKEN) -> None:
    """Points this process at `hub`; a process of its own takes `Hub.environment` instead."""
    from huggingface_hub import close_session, constants
    from huggingface_hub.hf_api import HfApi  # which the call before has not replaced

    close_session()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr(
        "huggingface_hub.HfApi",
        lambda token, **_: HfApi(endpoint=hub.endpoint, token=token or default or False),
    )
