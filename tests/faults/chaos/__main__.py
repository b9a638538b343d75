"""`python -m tests.faults.chaos [--minutes 30] [--seed N] [--report FILE]`; exit status 1 if anything is wrong."""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from runner.spec import Compute, DatasetShare, ProjectSpec, RunSpec, Trait
from tests.faults.chaos.attack import Attack
from tests.faults.chaos.load import Load
from tests.faults.chaos.report import table
from tests.faults.chaos.slack_side import SlackSide, judge_threads
from tests.faults.fleet import HERE, POOL, Fleet, running_fleet, wait_until
from tests.faults.invariants import judge
from tests.faults.line import FaultyLine, port_of

HOSTS = ["host-1", "host-2", "host-3"]
LEASE_S = 10.0
"""Short, so that many losses fit into a run; long enough that a busy machine does not lose a healthy host."""
CALM_S = 2.0
"""Longest pause between two faults."""


def main(arguments: list[str] | None = None) -> int:
    """Attack, judge, report."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long to attack, default: 30")
    parser.add_argument("--seed", type=int, help="of all that is drawn; default: another one every time")
    parser.add_argument("--report", type=Path, help="where to write the table as Markdown")
    options = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    _say(f"seed {seed}, logs and diary in {folder}")
    with ExitStack() as stack:
        fleet = stack.enter_context(running_fleet(folder, HOSTS, lease_s=LEASE_S))
        return _attack(fleet, stack, seed=seed, minutes=options.minutes, report=options.report)


def _attack(fleet: Fleet, stack: ExitStack, *, seed: int, minutes: float, report: Path | None) -> int:
    chance, others = random.Random(seed), random.Random(seed + 1)  # noqa: S311 - they draw faults, no secrets
    line = stack.enter_context(FaultyLine(port_of(fleet.server.url)))
    slack = stack.enter_context(SlackSide(fleet, line))
    load = Load(fleet, _spec(), others)
    load.start()
    slack.type_now_and_then()
    attack = Attack(fleet, slack, chance)
    ends_at = time.monotonic() + 60 * minutes
    try:
        while time.monotonic() < ends_at:
            time.sleep(chance.uniform(0.0, CALM_S))
            done = attack.strike()
            if done is not None:
                _say(f"{len(attack.done):4d} {done.kind}")
            if load.failure is not None:
                raise load.failure
            _revive(fleet, slack)
    finally:
        load.close()
        slack.stop_typing()
    wait_until(lambda: not fleet.died() and all(map(fleet.is_up, HOSTS)), "every worker is up")
    _say("no more faults; waiting for the ends")
    typed = [job for job in fleet.store.jobs(10**6) if job.spec.project.name == "typed"]
    fleet.accepted += [job.id for job in typed]
    fleet.wait_for_ends()
    slack.wait_until_told(typed)
    threads = judge_threads(slack, typed, slack.told)
    verdict = judge(fleet)
    text = table(fleet, verdict, attack.done, seed=seed, minutes=minutes, commit=_commit(), threads=threads)
    _say(text)
    for problem in verdict.all + threads:
        _say(f"WRONG: {problem}")
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(text)
    return int(bool(verdict.all or threads))


def _revive(fleet: Fleet, slack: SlackSide) -> None:
    """Start what has ended by itself, which is as wrong as anything, and go on: the table tells it."""
    for name in fleet.died():
        fleet.found_dead.append(f"the worker of {name} ended by itself")
        fleet.start(name)
    slack.revive_bot()


def _spec() -> RunSpec:
    project = ProjectSpec(
        name="chaos",
        base_model="nowhere",
        output_directory="chaos",
        traits=(Trait(trait_type="none", datasets=(DatasetShare(dataset_id=1),)),),
        compute=Compute(pool=POOL),
    )
    return RunSpec(project=project, datasets={})


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
