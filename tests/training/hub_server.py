"""A small model hub on loopback: what huggingface_hub calls to download and upload, and a second one for large files.

Real hubs hand large files to a storage of another host; the second server stands for it, so that a token that went
there would be seen.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "a" * 40
"""Of every repository that can be downloaded."""


@dataclass
class Hub:
    """What has arrived."""

    url: str = ""
    storage_url: str = ""
    repositories: dict[str, bool] = field(default_factory=dict)
    """Name to whether it is private."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Committed files of the last commit."""
    stored: dict[str, bytes] = field(default_factory=dict)
    """Large files by their SHA-256."""
    tokens: set[str | None] = field(default_factory=set)
    """Authorization headers that the hub itself got."""
    storage_tokens: set[str | None] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)
    models: dict[str, Path] = field(default_factory=dict)
    """Repositories that can be downloaded: name to the folder of their files."""
    gated: set[str] = field(default_factory=set)
    """Of these, the ones whose files nobody may read."""
    downloads: list[str] = field(default_factory=list)
    """Names of the files that were sent."""
    refuse: bool = False
    """Whether to answer every creation with 403."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Stay quiet."""

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class _Storage(_Handler):
    def do_PUT(self) -> None:
        self.hub.storage_tokens.add(self.headers.get("Authorization"))
        self.hub.stored[self.path.rpartition("/")[2]] = self._body()
        self._answer({})


class _HubHandler(_Handler):
    def do_GET(self) -> None:
        self.hub.tokens.add(self.headers.get("Authorization"))
        path = self.path.partition("?")[0].removeprefix("/api/models/")
        name, _, revision = path.partition("/revision/")
        if name in self.hub.models:
            self._describe(name, revision or "main")
            return
        listed = path.partition("/tree/")[0]
        if listed in self.hub.models:
            self._list_files(listed)
            return
        if "/resolve/" in self.path:
            self._send_file()
            return
        if name not in self.hub.repositories:
            self._refuse(404, "RepoNotFound")
            return
        self._answer({"id": name, "sha": "0" * 40, "private": self.hub.repositories[name], "siblings": []})

    def do_HEAD(self) -> None:
        self.hub.tokens.add(self.headers.get("Authorization"))
        self._send_file()

    def _describe(self, name: str, revision: str) -> None:
        if revision not in {"main", COMMIT}:
            self._refuse(404, "RevisionNotFound")
            return
        files = sorted(self.hub.models[name].iterdir())
        siblings = [{"rfilename": file.name, "size": file.stat().st_size} for file in files]
        self._answer({"id": name, "modelId": name, "sha": COMMIT, "private": False, "siblings": siblings})

    def _list_files(self, name: str) -> None:
        files = sorted(self.hub.models[name].iterdir())
        self._answer([{"type": "file", "path": file.name, "size": file.stat().st_size, "oid": ""} for file in files])

    def _send_file(self) -> None:
        name, _, rest = self.path.partition("?")[0].removeprefix("/").partition("/resolve/")
        file = self.hub.models.get(name, Path("/nowhere")) / rest.partition("/")[2]
        if name in self.hub.gated:
            self._refuse(403, "GatedRepo")
            return
        if not file.is_file():
            self._refuse(404, "EntryNotFound")
            return
        body = file.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.hub.downloads.append(file.name)
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.hub.tokens.add(self.headers.get("Authorization"))
        body = self._body()
        if self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = {True: "lfs", False: "regular"}
            self._answer(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": modes[file["path"].endswith(".safetensors")],
                            "shouldIgnore": False,
                            "oid": None,
                        }
                        for file in files
                    ]
                }
            )
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                one | {"actions": {"upload": {"href": f"{self.hub.storage_url}/large/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            self._commit(body.decode())
        else:
            self._answer({"error": f"unknown {self.path}"}, 404)

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if self.hub.refuse:
            self._answer({"error": "You don't have the rights to create a model under this namespace"}, 403)
        elif name in self.hub.repositories:
            self._answer({"error": "You already created this model repo"}, 409)
        else:
            # The first word of huggingface_hub 0.x, the second of later ones.
            self.hub.repositories[name] = asked.get("private") is True or asked.get("visibility") == "private"
            self._answer({"url": f"{self.hub.url}/{name}"})

    def _commit(self, body: str) -> None:
        for line in map(json.loads, body.splitlines()):
            match line["key"], line["value"]:
                case "header", {"summary": summary}:
                    self.hub.messages.append(summary)
                case "file", {"path": path, "content": content}:
                    self.hub.files[path] = base64.b64decode(content)
                case "lfsFile", {"path": path, "oid": oid}:
                    self.hub.files[path] = self.hub.stored[oid]
        repository = re.sub(r"^/api/models/|/commit/.*$", "", self.path)
        url = f"{self.hub.url}/{repository}/commit/{'1' * 40}"
        self._answer({"success": True, "commitUrl": url, "commitOid": "1" * 40, "hookOutput": ""})


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Serve on two free ports of loopback until the block ends."""
    hub = Hub()
    servers = [
        ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (kind,), {"hub": hub})) for kind in (_HubHandler, _Storage)
    ]
    hub.url, hub.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
        for thread in threads:
            thread.join()
