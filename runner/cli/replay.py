"""`replay ADAPTER [--run-dir DIR] [--json] [--accept-differences]`: start the run again that an adapter came from.

Exit status: 0 trained and published, 1 failed, 2 no manifest or other data or base model, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from runner.child import Spawn
from runner.cli.foreground import add_run_arguments, exit_status, run_in_foreground
from runner.console import printable
from runner.errors import UsageError
from runner.events import RunSucceeded
from runner.manifest import Difference, Manifest, find_adapter, find_differences, read_manifest
from runner.settings import load_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "manifest", metavar="ADAPTER", help="an adapter's folder or manifest.json, a run directory, or a job's id"
    )
    add_run_arguments(parser)
    parser.add_argument(
        "--accept-differences", action="store_true", help="train although data or base model are others now"
    )


def run(arguments: argparse.Namespace, spawn: Spawn | None = None) -> int:
    """Compare this host with the manifest, train the same spec, and say whether the same came out."""
    settings = load_settings()
    manifest = read_manifest(find_adapter(arguments.manifest, settings.output_root))
    differences = find_differences(manifest, settings)
    _refuse_another_run(differences, accepted=arguments.accept_differences)
    # With --json, standard output is for events.
    out = sys.stderr if arguments.json else sys.stdout
    for line in _introduction(manifest, differences):
        print(printable(line), file=out)
    words = ["replay", arguments.manifest, *(["--accept-differences"] if arguments.accept_differences else [])]
    end = run_in_foreground(manifest.spec, settings, arguments, words=words, spawn=spawn)
    if isinstance(end, RunSucceeded):
        print(_verdict(manifest, read_manifest(Path(end.adapter_path))), file=out)
    return exit_status(end)


def _refuse_another_run(differences: list[Difference], *, accepted: bool) -> None:
    """Refuse what cannot give the same adapter.

    Raises:
        UsageError: Data or base model are missing, or are others and that was not accepted (`replay-differs`).
    """
    grave = [difference for difference in differences if difference.grave]
    missing = [difference for difference in grave if difference.missing]
    if not grave or (accepted and not missing):
        return
    hint = "Bring back what the adapter was made from, or give --accept-differences to train on what is here."
    if missing:
        hint = "QLORA_PROJECTS_DIR and QLORA_MODELS_ROOT say where data and base models lie."
    lines = "".join(f"\n  {printable(str(difference))}" for difference in grave)
    raise UsageError(f"This host cannot repeat the run:{lines}", hint=hint, code="replay-differs")


def _introduction(manifest: Manifest, differences: list[Difference]) -> list[str]:
    summary = manifest.metrics.summary
    then = (
        f"Replay of {manifest.spec.project.name}, {manifest.created_at:%Y-%m-%d %H:%M} UTC: {summary.steps} steps, "
        f"loss {summary.loss_first:.4g} → {summary.loss_last:.4g}"
    )
    same = ["Data, base model, versions and git revision are the same here."]
    return [then, *([f"⚠️ {difference}" for difference in differences] or same)]


def _verdict(then: Manifest, now: Manifest) -> str:
    if then.weights_sha256 is not None and then.weights_sha256 == now.weights_sha256:
        return "The adapter's weights are the original's to the last bit."
    old, new = then.metrics.summary, now.metrics.summary
    return (
        f"The adapter's weights differ from the original's: loss {new.loss_first:.6g} → {new.loss_last:.6g} here, "
        f"{old.loss_first:.6g} → {old.loss_last:.6g} then."
    )
