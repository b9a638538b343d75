"""A small model hub on loopback: what huggingface_hub calls while it uploads, and a second server for large files.

Real hubs hand large files to a storage of another host; the second server stands for it, so that a token that went
there would be seen.
"""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


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
        name = self.path.removeprefix("/api/models/").partition("/revision")[0]
        if name not in self.hub.repositories:
            self._answer({"error": "Repository not found"}, 404)
            return
        self._answer({"id": name, "sha": "0" * 40, "private": self.hub.repositories[name], "siblings": []})

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
