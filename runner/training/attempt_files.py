"""The files that an attempt writes for those who come after it, and what it reads of those before it."""

from __future__ import annotations

from pathlib import Path

from runner.event_lines import parse_event
from runner.events import Evaluated
from runner.reports import LoadReceipt
from runner.spec import RunSpec
from runner.training import ranks


def write_spec(run_dir: Path, spec: RunSpec) -> None:
    """Write `spec.json`, again when more is known; the first of several processes alone does."""
    if ranks.is_first():
        (run_dir / "spec.json").write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")


def write_receipt(run_dir: Path, receipt: LoadReceipt) -> None:
    """Write `receipt.json`; the first of several processes alone does."""
    if ranks.is_first():
        (run_dir / "receipt.json").write_text(receipt.model_dump_json(indent=2) + "\n", encoding="utf-8")


def earlier_baseline(run_dir: Path) -> Evaluated | None:
    """Find what the base model answered in an earlier attempt: the same model and questions answer the same."""
    for path in sorted(run_dir.parent.glob("attempt-*/events.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            # A killed attempt may have left half a line at its end.
            if '"kind":"evaluated"' in line and line.endswith("}"):
                event = parse_event(line)
                if isinstance(event, Evaluated) and event.when == "before":
                    return event
    return None
