"""What is done to a fleet: one fault after the other, each at a random moment, each undone before the next."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runner.errors import UnavailableError
from tests.faults.chaos.slack_side import SlackSide
from tests.faults.fleet import PATIENCE_S, Fleet, wait_until

WRITES = ("submit", "claim", "renew", "append", "finish", "requeue")


@dataclass(frozen=True)
class Done:
    """A fault that was done."""

    kind: str
    at: float
    """Seconds since 1970; the first moment from which recovery was possible."""
    hit: tuple[str, ...] = ()
    """Run directories of the attempts that it ended."""
    recovery_s: float | None = None
    """Where that can be seen at once."""


class Attack:
    """Draws faults and does them.

    Args:
        fleet: The victim.
        slack: Its bot.
        chance: Decides everything.
    """

    def __init__(self, fleet: Fleet, slack: SlackSide, chance: random.Random) -> None:
        self._fleet = fleet
        self._slack = slack
        self._chance = chance
        self.done: list[Done] = []
        lease_s = fleet.lease_s
        self._faults: list[tuple[float, Callable[[], Done | None]]] = [
            (8, self._kill_child),
            (8, self._kill_worker),
            (8, self._kill_valkey),
            (4, self._kill_bot),
            (4, self._deploy),
            (1, self._pause),
            (1, self._cut_off),
            (0.3, lambda: self._kill_valkey(9 * lease_s)),
            (2, self._read_only),
            (2, self._short_cut),
            (2, self._silence),
            (1, self._slow_line),
            (3, self._lose_reply),
        ]

    def strike(self) -> Done | None:
        """Do one fault, and wait until it is over."""
        weights, faults = zip(*self._faults, strict=True)
        (fault,) = self._chance.choices(faults, weights)
        done: Done | None = fault()
        if done is not None:
            self.done.append(done)
        return done

    def kill(self, what: str) -> None:
        """Kill -9 one process of a kind: `child`, `worker`, `bot` or `valkey`."""
        kills: dict[str, Callable[[], Done | None]] = {
            "child": self._kill_child,
            "worker": self._kill_worker,
            "bot": self._kill_bot,
            "valkey": self._kill_valkey,
        }
        done = None
        while done is None:  # No child may have run on the host that was drawn.
            done = kills[what]()
        self.done.append(done)

    # --- processes -----------------------------------------------------------------------------------------------

    def _kill_child(self) -> Done | None:
        name = self._a_host()
        at = time.time()
        run = self._fleet.kill_child(name)
        return None if run is None else Done("kill -9 child", at, (run,))

    def _kill_worker(self) -> Done:
        name, pid, at = self._a_worker()
        hit = self._runs_of(pid)
        self._fleet.kill(name)
        # Most are started again by their supervisor at once, some by a person who has been asleep.
        time.sleep(self._chance.choice((0.0, 0.0, 0.0, 1.5 * self._fleet.lease_s)))
        self._fleet.start(name)
        return Done("kill -9 worker", at, hit)

    def _deploy(self) -> Done:
        name, pid, at = self._a_worker()
        hit = self._runs_of(pid)
        self._fleet.terminate(name)
        self._fleet.start(name)
        return Done("TERM worker", at, hit)

    def _pause(self) -> Done:
        name, pid, at = self._a_worker()
        with self._fleet.paused(name):
            hit = self._runs_of(pid)
            time.sleep(self._fleet.lease_s * self._chance.uniform(1.2, 2.0))
        return Done("worker asleep past its lease", at, hit)

    def _kill_bot(self) -> Done:
        self._slack.kill_bot()
        at = time.time()
        self._slack.start_bot()
        self._slack.wait_connected()
        return Done("kill -9 bot", at, recovery_s=time.time() - at)

    # --- Valkey --------------------------------------------------------------------------------------------------

    def _kill_valkey(self, away_s: float | None = None) -> Done:
        self._fleet.kill_valkey()
        time.sleep(self._chance.uniform(0.0, 3.0) if away_s is None else away_s)
        self._fleet.revive_valkey()
        return Done("kill -9 Valkey", time.time(), recovery_s=self._until_news())

    def _read_only(self) -> Done:
        with self._fleet.read_only():
            time.sleep(self._chance.uniform(1.0, 5.0))
        return Done("read-only replica", time.time(), recovery_s=self._until_news())

    def _until_news(self) -> float | None:
        """Seconds until an attempt has been heard of again; None where none runs."""
        began, before = time.time(), self._news()
        while time.time() < began + PATIENCE_S:
            if self._news() != before:
                return time.time() - began
            if not self._fleet.open_attempts():
                return None
            time.sleep(0.02)
        raise AssertionError("nobody came back after Valkey did")

    def _news(self) -> Any:
        try:
            return self._fleet.store.client.hget("qlora:counters", "news")
        except (UnavailableError, OSError):
            return None

    # --- lines ---------------------------------------------------------------------------------------------------

    def _cut_off(self) -> Done:
        name, pid, at = self._a_worker()
        with self._fleet.cut_off(name):
            hit = self._runs_of(pid)
            time.sleep(self._fleet.lease_s * self._chance.uniform(1.2, 2.0))
        return Done("network cut for longer than the lease", at, hit)

    def _short_cut(self) -> Done:
        line, at = self._a_line(), time.time()
        line.cut()
        time.sleep(self._chance.uniform(0.1, 0.3) * self._fleet.lease_s)
        line.mend()
        return Done("network cut, short", at)

    def _silence(self) -> Done:
        line, at = self._a_line(), time.time()
        line.fall_silent()
        time.sleep(self._chance.uniform(0.1, 0.3) * self._fleet.lease_s)
        line.mend()
        return Done("network silent, short", at)

    def _slow_line(self) -> Done:
        line, at = self._a_line(), time.time()
        line.slow_down(self._chance.uniform(0.05, 0.5))
        time.sleep(self._chance.uniform(1.0, 5.0))
        line.mend()
        return Done("network slow", at)

    def _lose_reply(self) -> Done | None:
        at, line = time.time(), self._a_line()
        before = line.lost_replies
        for step in self._chance.sample(WRITES, 2):
            line.lose_reply(self._fleet.request_of(step))
        time.sleep(self._chance.uniform(1.0, 4.0))
        line.lose_no_more()
        return Done("reply lost", at) if line.lost_replies > before else None

    # --- inside --------------------------------------------------------------------------------------------------

    def _a_host(self) -> str:
        return self._chance.choice(list(self._fleet.hosts))

    def _a_worker(self) -> tuple[str, int, float]:
        """A host, its worker's process id, and now: once that worker has come up, so that a fault hits it at work."""
        name = self._a_host()
        pid = self._fleet.hosts[name].pid
        wait_until(lambda: self._fleet.is_up(name) or self._fleet.died(), f"worker {name} is up")
        return name, pid, time.time()

    def _a_line(self) -> Any:
        lines = [host.line for host in self._fleet.hosts.values()]
        return self._chance.choice([*lines, self._slack.line, self._fleet.line])

    def _runs_of(self, worker: int) -> tuple[str, ...]:
        return tuple(entry["run"] for entry in self._fleet.open_attempts() if entry["worker"] == worker)
