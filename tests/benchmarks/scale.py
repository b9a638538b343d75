"""What many jobs and many workers cost Redis and those who wait for it.

`make bench` runs all parts at their usual sizes. A part prints its figures when it ends, which takes `memory` and
`fleet` some three minutes each. One part, or other sizes:

    python -m tests.benchmarks.scale submit claim memory idle fleet restart growth
    python -m tests.benchmarks.scale growth --finished 1000000
    python -m tests.benchmarks.scale fleet --jobs 1000

Real everywhere: Valkey with an append-only file, the store, Dramatiq's broker and its tickets, leases; `idle` starts
the worker's own process, `memory` trains the demo. Simulated: the workers of `fleet` share four processes and their
jobs train nothing (`scale_fleet`); the finished jobs of `growth` and `restart` are copies of one that went the whole
way (`scale_store.fill`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from runner.embedded_redis import EmbeddedRedis
from tests.benchmarks.scale_fleet import measure_fleet, measure_idle
from tests.benchmarks.scale_store import (
    measure_claim,
    measure_growth,
    measure_memory,
    measure_restart,
    measure_submit,
)

PARTS: dict[str, Callable[[argparse.Namespace, str, Path], dict[str, Any]]] = {
    "submit": lambda sizes, url, _: measure_submit(url, jobs=sizes.jobs, users=sizes.users),
    "claim": lambda sizes, url, _: measure_claim(url, queued=sizes.queued, users=sizes.users),
    "memory": lambda sizes, url, folder: measure_memory(url, folder, metrics=sizes.metrics),
    "idle": lambda sizes, url, folder: measure_idle(url, folder, watch_s=sizes.watch_s),
    "fleet": lambda sizes, url, _: measure_fleet(url, workers=sizes.workers, jobs=sizes.jobs, users=sizes.users),
    "restart": lambda sizes, url, _: measure_restart(url, finished=sizes.jobs),
    "growth": lambda sizes, url, folder: measure_growth(url, folder, few=100, many=sizes.finished),
}
LIMITS = {"submit_p99_ms": 20.0, "claim_p99_ms": 50.0, "redis_kb_per_finished_job": 20.0, "commands_per_s": 2.0}
"""What a figure of that name may be at most, on two cores."""


def main() -> int:
    """Print a JSON object for every part; exit status 1 when a figure is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which; all when none is named")
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs of `submit`, `fleet` and `restart`")
    parser.add_argument("--users", type=int, default=1000, help="different submitters")
    parser.add_argument("--queued", type=int, default=1000, help="jobs queued in `claim`")
    parser.add_argument("--workers", type=int, default=200, help="workers of `fleet`")
    parser.add_argument("--metrics", type=int, default=3000, help="logged steps of each job in `memory`")
    parser.add_argument("--finished", type=int, default=100_000, help="finished jobs of `growth`")
    parser.add_argument("--watch-s", type=float, default=60.0, help="how long `idle` counts commands")
    sizes = parser.parse_args()
    above = []
    for name in sizes.parts or PARTS:
        # Some take minutes, and what kills them meanwhile should not look like a part that says nothing.
        print(f"measuring {name} …", file=sys.stderr, flush=True)  # noqa: T201 - a benchmark prints
        with tempfile.TemporaryDirectory() as folder, EmbeddedRedis(Path(folder)) as server:
            figures = PARTS[name](sizes, server.url, Path(folder))
        heading = {"part": name, "date": f"{datetime.now(UTC):%Y-%m-%d}", "cores": os.cpu_count()}
        print(json.dumps(heading | figures, indent=2), flush=True)  # noqa: T201 - a benchmark prints
        above += [f"{key} {figures[key]} > {most}" for key, most in LIMITS.items() if figures.get(key, 0) > most]
    for text in above:
        print(f"above its limit: {text}", file=sys.stderr)  # noqa: T201 - as above
    return int(bool(above))


if __name__ == "__main__":
    sys.exit(main())
