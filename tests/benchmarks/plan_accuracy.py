"""How near a plan comes to the demo's real run: seconds of the whole attempt, and the most memory that it held.

Run it with `make bench`. The plan has to measure, because its output root is empty; the run follows on this machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from runner.plan import Plan
from runner.settings import load_settings

ACCEPTED = 0.2
"""Largest share that a plan may be off."""


def runner(*words: str, output_root: Path) -> str:
    """Standard output of `python -m runner …` with an output root of its own."""
    environment = dict(os.environ) | {"QLORA_OUTPUT_ROOT": str(output_root)}
    command = [sys.executable, "-m", "runner", *words]
    return subprocess.run(command, stdout=subprocess.PIPE, env=environment, text=True, check=True).stdout


def main() -> int:
    """Measure, print, and exit 1 when the plan is off by more than a fifth."""
    load_settings().state_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=load_settings().state_dir) as folder:
        root = Path(folder)
        runner("demo-model", output_root=root)
        plan = Plan.model_validate_json(runner("plan", "demo", "--json", output_root=root))
        summary = json.loads(runner("train", "demo", "--json", output_root=root).splitlines()[-1])["summary"]
    if plan.time is None or plan.memory is None or plan.time.origin != "measured":
        raise RuntimeError("the plan measured nothing")
    time = plan.time.duration_s / summary["duration_s"]
    memory = plan.memory.peak_bytes / summary["peak_bytes"]
    print(  # noqa: T201 - a benchmark prints
        f"plan of the demo: {plan.time.duration_s:.1f} s planned / {summary['duration_s']:.1f} s run = {time:.2f}, "
        f"{plan.memory.peak_bytes / 1e6:.0f} MB planned / {summary['peak_bytes'] / 1e6:.0f} MB held = {memory:.2f}"
    )
    return int(not all(abs(ratio - 1) <= ACCEPTED for ratio in (time, memory)))


if __name__ == "__main__":
    sys.exit(main())
