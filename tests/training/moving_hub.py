"""A hub on loopback with one dataset whose branch is at another commit, with other rows, whenever somebody looks."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

NAME = "acme/moving"


@dataclass
class MovingHub:
    """The hub, and who has looked where the branch is."""

    rows: Callable[[int], list[dict[str, Any]]]
    """The rows after so many moves."""
    url: str = ""
    commits: list[str] = field(default_factory=list)
    """What the branch was at, look by look."""

    def environment(self, cache: str) -> dict[str, str]:
        """For a process that shall use it."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": cache,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def look(self) -> str:
        """Where the branch is now; it moves at once."""
        self.commits.append(f"{len(self.commits) + 1:040x}")
        return self.commits[-1]

    def file(self, commit: str) -> bytes:
        """`train.jsonl` at a commit."""
        return "".join(json.dumps(row) + "\n" for row in self.rows(int(commit, 16) - 1)).encode()


class _Handler(BaseHTTPRequestHandler):
    hub: MovingHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Stay quiet."""

    def do_GET(self) -> None:
        asked = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        path = unquote(self.path.split("?")[0])
        if f"/{NAME}" not in path:
            self._answer(404, b"", "", "")  # libraries look whether a local model is one of the hub's
            return
        named = next((part for part in path.split("/") if len(part) == 40), None)
        commit = named or self.hub.look()
        content = self.hub.file(commit)
        digest = hashlib.sha1(content).hexdigest()  # noqa: S324  # git's
        about = {"type": "file", "path": "train.jsonl", "size": len(content), "oid": digest}
        if "/resolve/" in path:
            found = path.endswith("/train.jsonl")
            self._answer(200 if found else 404, content if found else b"", commit, digest)
        elif "/tree/" in path:
            self._answer(200, json.dumps([about]).encode(), commit, digest)
        elif "/paths-info/" in path:
            self._answer(200, json.dumps([about] if "train.jsonl" in unquote(asked) else []).encode(), commit, digest)
        else:
            self._answer(200, json.dumps({"id": NAME, "sha": commit, "siblings": []}).encode(), commit, digest)

    do_HEAD = do_POST = do_GET  # noqa: N815  # named by http.server

    def _answer(self, status: int, body: bytes, commit: str, digest: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{digest}"')
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def moving_hub(rows: Callable[[int], list[dict[str, Any]]]) -> Iterator[MovingHub]:
    """Serve until the block ends."""
    hub = MovingHub(rows)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
