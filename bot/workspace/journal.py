"""The workspace's memory between two starts: an append-only file of JSON lines, and uploaded files beside it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runner.errors import UnavailableError


class Journal:
    """Remembers changes in order.

    Args:
        directory: Where `journal.jsonl` and `files/` lie; None keeps uploaded bytes in memory and nothing else.

    Raises:
        UnavailableError: Another workspace uses that folder, or it cannot be written.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._memory: dict[str, bytes] = {}
        self._descriptor: int | None = None
        if directory is None:
            return
        self.path = directory / "journal.jsonl"
        try:
            (directory / "files").mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise UnavailableError(
                f"The workspace's folder {directory} cannot be used: {error.strerror}.",
                hint="Make it writable or set QLORA_STATE_DIR.",
            ) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise UnavailableError(
                f"Another local workspace already uses {directory}.",
                hint="Stop that one first, or set QLORA_STATE_DIR to another folder.",
            ) from error

    def replay(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every remembered change, oldest first, as (kind, record).

        A last line without its end is what a crash leaves behind: it is cut off.

        Raises:
            UnavailableError: A line in the middle is not ours.
        """
        if self._descriptor is None:
            return
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.ftruncate(self._descriptor, whole)
        for number, line in enumerate(content[:whole].splitlines(), start=1):
            try:
                entry = json.loads(line)
                kind, record = entry["kind"], entry["record"]
            except (ValueError, KeyError, TypeError) as error:
                raise UnavailableError(
                    f"{self.path}:{number} is not a line of a workspace's journal.",
                    hint="Move the file away to start with an empty workspace.",
                ) from error
            yield kind, record

    def append(self, kind: str, record: dict[str, Any]) -> None:
        """Remember one change."""
        if self._descriptor is not None:
            line = json.dumps({"kind": kind, "record": record}, ensure_ascii=False, separators=(",", ":"))
            os.write(self._descriptor, line.encode() + b"\n")

    def write_file(self, file_id: str, content: bytes) -> None:
        """Keep an upload's bytes."""
        if self._directory is None:
            self._memory[file_id] = content
        else:
            (self._directory / "files" / file_id).write_bytes(content)

    def read_file(self, file_id: str) -> bytes:
        """An upload's bytes."""
        if self._directory is None:
            return self._memory[file_id]
        return (self._directory / "files" / file_id).read_bytes()

    def close(self) -> None:
        """Let another workspace use the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
