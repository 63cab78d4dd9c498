"""A Hugging Face Hub on loopback: enough of its protocol for `huggingface_hub` to fetch from it and to push to it.

https://huggingface.co/docs/hub/api; git LFS batches as in https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md.
"""

import base64
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]
REPOSITORY = r"(?P<name>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    """A model: its branches, and the files of each commit."""

    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Files] = field(default_factory=dict)
    private: bool = False

    def commit(self, branch: str, files: Files) -> str:
        number = hashlib.sha1(json.dumps([branch, len(self.commits), sorted(files)]).encode()).hexdigest()
        self.commits[number] = dict(files)
        self.branches[branch] = number
        return number


class LoopbackHub:
    """The Hub.

    Attributes:
        repositories: By name.
        fetched: How often each path was sent.
        token: What writing takes.
    """

    token = "hf_test"

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.fetched: Counter[str] = Counter()
        self.uploaded: dict[str, bytes] = {}
        self.address = ""

    def add(self, name: str, files: Files, branch: str = "main") -> str:
        """Add a model, or a commit of one; the commit."""
        return self.repositories.setdefault(name, Repository()).commit(branch, files)

    @contextmanager
    def listening(self) -> Iterator["LoopbackHub"]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self}))
        self.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _route(self, method: str) -> None:
        self._body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        routes = (
            ("GET", rf"/api/models/{REPOSITORY}(/revision/(?P<revision>.+))?", self._info),
            ("GET", rf"/api/models/{REPOSITORY}/tree/(?P<revision>.+)", self._tree),
            ("GET|HEAD", rf"/{REPOSITORY}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self._file),
            ("POST", r"/api/repos/create", self._create),
            ("POST", r"/api/validate-yaml", lambda: self._json({})),
            ("POST", rf"/api/models/{REPOSITORY}/branch/(?P<branch>.+)", self._branch),
            ("POST", rf"/api/models/{REPOSITORY}/preupload/(?P<revision>.+)", self._preupload),
            ("POST", rf"/{REPOSITORY}\.git/info/lfs/objects/batch", self._batch),
            ("PUT", r"/objects/(?P<oid>\w+)", self._object),
            ("POST", rf"/api/models/{REPOSITORY}/commit/(?P<revision>.+)", self._commit),
        )
        for methods, pattern, answer in routes:
            if method in methods.split("|") and (found := re.fullmatch(pattern, path)):
                if method in ("POST", "PUT") and not path.startswith("/objects") and not self._may_write():
                    return self._json({"error": "Invalid credentials"}, 401)
                return answer(**found.groupdict())
        self._json({"error": f"no route {method} {path}"}, 404)

    def _may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **headers})

    def _send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _found(self, name: str, revision: str | None) -> tuple[str, Files] | None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._json({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
            return None
        commit = repository.branches.get(revision or "main", revision or "")
        if commit not in repository.commits:
            self._json({"error": "Invalid rev id"}, 404, **{"X-Error-Code": "RevisionNotFound"})
            return None
        return commit, repository.commits[commit]

    def _info(self, name: str, revision: str | None) -> None:
        if found := self._found(name, revision):
            commit, files = found
            self._json({"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files], "tags": []})

    def _tree(self, name: str, revision: str) -> None:
        if found := self._found(name, revision):
            self._json(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for path, content in found[1].items()
                ]
            )

    def _file(self, name: str, revision: str, path: str) -> None:
        if not (found := self._found(name, revision)):
            return
        commit, files = found
        if path not in files:
            return self._json({"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound"})
        if self.command == "GET":
            self.hub.fetched[path] += 1
        etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
        self._send(files[path], 200, {"ETag": etag, "X-Repo-Commit": commit})

    def _create(self) -> None:
        asked = json.loads(self._body)
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if name in self.hub.repositories:
            return self._json({"url": f"{self.hub.address}/{name}", "name": name}, 409)
        self.hub.add(name, {".gitattributes": b""})
        self.hub.repositories[name].private = asked.get("private") is True or asked.get("visibility") == "private"
        self._json({"url": f"{self.hub.address}/{name}", "name": name, "id": name})

    def _branch(self, name: str, branch: str) -> None:
        branches = self.hub.repositories[name].branches
        branches.setdefault(branch, branches["main"])
        self._json({})

    def _preupload(self, name: str, revision: str) -> None:
        files = json.loads(self._body)["files"]
        modes = [
            {"path": each["path"], "uploadMode": "lfs" if each["size"] > 10_000 else "regular", "shouldIgnore": False}
            for each in files
        ]
        self._json({"files": modes, "commitOid": None})

    def _batch(self, name: str) -> None:
        objects = json.loads(self._body)["objects"]
        actions = [
            {
                **each,
                "authenticated": True,
                "actions": {"upload": {"href": f"{self.hub.address}/objects/{each['oid']}"}},
            }
            for each in objects
        ]
        self._json({"transfer": "basic", "objects": actions}, 200, **{"Content-Type": "application/vnd.git-lfs+json"})

    def _object(self, oid: str) -> None:
        if hashlib.sha256(self._body).hexdigest() != oid:
            return self._json({"error": "another content"}, 422)
        self.hub.uploaded[oid] = self._body
        self._json({})

    def _commit(self, name: str, revision: str) -> None:
        repository = self.hub.repositories[name]
        files = dict(repository.commits[repository.branches[revision]])
        for line in self._body.splitlines():
            each = json.loads(line)
            value = each["value"]
            if each["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif each["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
            elif each["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(revision, files)
        self._json(
            {
                "success": True,
                "commitOid": commit,
                "commitUrl": f"{self.hub.address}/{name}/commit/{commit}",
                "hookOutput": "",
            }
        )
