"""`push ADAPTER owner/name [--public]`: upload an adapter or a merged model to a model hub, private by default.

Exit status: 0 uploaded, 1 the hub refuses or cannot be reached, 2 no such adapter, or the repository is public.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from runner.console import printable
from runner.hub import push_folder
from runner.manifest import MANIFEST, find_adapter, read_manifest
from runner.settings import load_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "folder",
        metavar="ADAPTER",
        help="an adapter's folder or manifest.json, a run directory, a job's id, or the folder of a merged model",
    )
    parser.add_argument("repository", metavar="owner/name", help="the repository on the hub; made if it is not there")
    parser.add_argument("--public", action="store_true", help="let everybody read it")


def run(arguments: argparse.Namespace) -> int:
    """Upload and say where it is."""
    folder = Path(arguments.folder).absolute()
    if not ((folder / "config.json").is_file() and (folder / MANIFEST).is_file()):
        folder = find_adapter(arguments.folder, load_settings().output_root)
    manifest = read_manifest(folder)
    what = "adapter" if (folder / "adapter_config.json").is_file() else "merged model"
    message = f"{manifest.spec.project.name}: {what}, trained {manifest.created_at:%Y-%m-%d}"
    pushed = push_folder(folder, arguments.repository, public=arguments.public, message=message)
    print(f"{printable(pushed.url)} ({'private' if pushed.private else 'public'})")
    return 0
