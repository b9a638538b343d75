"""Loads the store's Lua steps, which lie beside it in `lua/`, each behind what they share (`lua/shared/`)."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

import redis

from runner.event_lines import MEASUREMENTS
from runner.jobs import TRANSITIONS
from runner.store_records import SCHEMA_VERSION

_NAMES = (
    "submit", "claim", "renew", "append", "finish", "requeue", "expire", "stop", "settled",
    "position", "order", "claimable", "limits", "events", "figures", "forget", "origin", "decline", "readmit",
    "obstacle", "workers",
)  # fmt: skip
_SHARED = ("record", "history", "turns", "choice", "moves")
"""Each uses those before it."""
KEEP_BYTES = 1_000_000
"""Of one job's events while it runs, a tenth when it is over. A thousand measurements have a third of that; above it,
milestones are thinned out too."""
_TRANSITIONS = {state: dict.fromkeys(following, True) for state, following in TRANSITIONS.items()}


class IllegalMoveError(RuntimeError):
    """A move that `runner.jobs.TRANSITIONS` does not know: a bug in the caller, refused without a trace."""


def legal(status: str, answer: Any) -> Any:
    """A step's answer, where it has moved the job.

    Raises:
        IllegalMoveError: It has not, because there is no such move.
    """
    if status == "illegal":
        raise IllegalMoveError(f"A job that is {answer} cannot move there; see runner.jobs.TRANSITIONS.")
    return answer


class StoreScripts:
    """Every step that has to be atomic, callable by name.

    Args:
        client: Holds text, not bytes.
        prefix: What every key begins with.
        keep_events: Events that a job's history keeps.
    """

    def __init__(self, client: redis.Redis, prefix: str, *, keep_events: int) -> None:
        shared = "".join(_lua(f"shared/{name}") for name in _SHARED)
        self._prefix = prefix
        self._shared = {
            "transitions": _TRANSITIONS,
            "reads": SCHEMA_VERSION,
            "keep_events": keep_events,
            "keep_bytes": KEEP_BYTES,
            "measurements": MEASUREMENTS,
        }
        self._scripts = {name: client.register_script(shared + _lua(name)) for name in _NAMES}

    def run(self, name: str, **arguments: Any) -> tuple[str, Any]:
        """Carry out one step.

        Returns:
            Its status word and what comes with it, None where nothing does.
        """
        text = json.dumps(arguments | self._shared)
        status, *rest = self._scripts[name](keys=[self._prefix], args=[text])
        return status, rest[0] if rest else None


def _lua(name: str) -> str:
    return (files("runner") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
