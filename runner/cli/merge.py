"""`merge ADAPTER [--output DIR] [--json]`: an adapter merged into its base model's 16-bit weights, in its own folder.

Exit status: 0 merged, 1 failed, 2 no such adapter, another base model, or the folder is there already.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from runner.console import printable
from runner.manifest import find_adapter
from runner.merging import MergeReport, choose_output, merge
from runner.plan_text import size_text
from runner.reports import RUNG_WORDS
from runner.settings import load_settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "adapter", metavar="ADAPTER", help="an adapter's folder or manifest.json, a run directory, or a job's id"
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="the folder to write; default: merged, beside the adapter"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Merge and say how far the result is from what was trained."""
    settings = load_settings()
    adapter = find_adapter(arguments.adapter, settings.output_root)
    output = choose_output(adapter, arguments.output)
    with Console(stderr=True).status(f"Merging {printable(str(adapter))} …"):
        report = merge(adapter, output, settings)
    print(report.model_dump_json(indent=2) if arguments.json else "\n".join([*_lines(report), f"Model: {output}"]))
    return 0


def _lines(report: MergeReport) -> list[str]:
    merged = f"Merged into {printable(report.base_model)} in {report.dtype}: {size_text(report.size_bytes)}"
    rounding = (
        f"  logits differ by {report.rounding_difference:.3g} from the adapter on the 16-bit base model "
        f"(the adapter itself changes them by {report.adapter_difference:.3g})"
    )
    lines = [merged, rounding]
    if report.trained_difference is not None:
        lines.append(
            f"  and by {report.trained_difference:.3g} from the model as trained with {RUNG_WORDS[report.rung]}; "
            f"the same token is most likely at {report.same_tokens} of {report.positions} positions"
        )
    return lines
