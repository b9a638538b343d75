"""Fingerprints of what a run is made from, which any host can take again to see whether it has the same. No torch."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
_WEIGHTS = "*.safetensors"
DIRTY = "-dirty"
"""After a commit as `git describe --dirty` writes it."""
_BLOCKS = 256
_BLOCK_BYTES = 1 << 16
"""A weight file is read in this many pieces of this size: 16 MiB of each, and smaller files whole."""


def fingerprint_file(path: Path) -> str:
    """SHA-256 of a whole file, in hexadecimal.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_data(path: Path, *, of_file: Callable[[Path], str] = fingerprint_file) -> str:
    """SHA-256 of a data file; of a folder over the names and contents of all its files, hidden ones left out.

    Args:
        path: The file or folder.
        of_file: SHA-256 of one file; given by whoever remembers those that he has taken.

    Raises:
        OSError: One cannot be read.
    """
    if not path.is_dir():
        return of_file(path)
    digest = hashlib.sha256()
    names = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    for name in sorted(name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts)):
        digest.update(f"{name}:{of_file(path / name)}\n".encode())
    return digest.hexdigest()


def fingerprint_base_model(folder: Path) -> str:
    """SHA-256 over a local base model: its small files whole, its weight files in samples.

    Reading weights whole would take as long as loading them. Another training changes nearly every weight, so the size
    and pieces from the whole length of each file tell two models apart.

    Args:
        folder: Files directly in it count; what lies in subfolders is never loaded.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    small = {path for pattern in _SMALL_FILES for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(small):
        digest.update(f"{path.name}:{fingerprint_file(path)}\n".encode())
    for path in sorted(folder.glob(_WEIGHTS)):
        digest.update(f"{path.name}:{_sample(path)}\n".encode())
    return digest.hexdigest()


def _sample(path: Path) -> str:
    size = path.stat().st_size
    last = max(size - _BLOCK_BYTES, 0)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for start in sorted({last * number // (_BLOCKS - 1) for number in range(_BLOCKS)}):
            file.seek(start)
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def git_revision(folder: Path) -> str | None:
    """Commit that `folder` is checked out at, None where there is no repository or no git.

    It ends with `DIRTY` where a file of the folder is not as committed, because then the commit does not say all.
    """
    git = shutil.which("git")
    if git is None:
        return None
    head, changed = (
        subprocess.run([git, "-C", str(folder), *asked], capture_output=True, text=True, check=False)
        for asked in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", "."))
    )
    if head.returncode:
        return None
    return head.stdout.strip() + (DIRTY if changed.stdout else "")
