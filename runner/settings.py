"""The runner's settings: the only place here that reads the environment."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from runner.errors import UnavailableError


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of the jobs Redis keeps."""

    events: int = 1000
    """`QLORA_KEEP_EVENTS`: events of one job while it runs, a twentieth when it is over; above that, measurements are
    thinned evenly and milestones stay."""
    days: float = 90.0
    """`QLORA_KEEP_DAYS`: days after its end when a job's record and history go. Adapters and run directories stay."""


@dataclass(frozen=True, slots=True)
class ChildLimits:
    """What a worker lets its training processes do."""

    term_grace_s: float = 10.0
    """`QLORA_TERM_GRACE_S`: seconds between SIGTERM to all processes of a child that did not stop, and SIGKILL."""
    silence_s: float = 1800.0
    """`QLORA_SILENCE_S`: seconds in which a child may neither report, print, compute nor read or write."""
    busy_silence_s: float = 86400.0
    """`QLORA_BUSY_SILENCE_S`: seconds in which a child that computes, reads or writes may neither report nor print."""
    log_bytes: int = 64 << 20
    """`QLORA_LOG_MB`: size of a train.log above which its middle is left out."""
    standby_bytes: int = 2 << 30
    """`QLORA_STANDBY_MB`: the most that the standby child of a worker may hold in memory; 0 for none."""


@dataclass(frozen=True, slots=True)
class RunnerSettings:
    """Where things lie on this host and how patient we are."""

    redis_url: str | None = field(repr=False)
    """`REDIS_URL` in one of the forms of `runner.redis_address`; None where none is configured."""
    state_dir: Path
    """`QLORA_STATE_DIR`, default `.qlora`: everything that this machine writes unless told otherwise."""
    projects_dir: Path
    """`QLORA_PROJECTS_DIR`, default `projects`: project files, `datasets.toml` and local data."""
    models_root: Path
    """`QLORA_MODELS_ROOT`, default `<state>/models`: local base models, one folder each."""
    output_root: Path
    """`QLORA_OUTPUT_ROOT`, default `<state>/outputs`: run directories and adapters."""
    host: str
    """`QLORA_HOST`, default the machine's name: how reports call this host."""
    lease_s: float
    """`QLORA_LEASE_S`, default 120: seconds after which a silent attempt counts as lost."""
    stop_grace_s: float
    """`QLORA_STOP_GRACE_S`, default 60: seconds that a stopping child has for its last checkpoint."""
    retention: Retention = Retention()
    checkpoint_wait_s: float = 300.0
    """`QLORA_CHECKPOINT_WAIT_S`, default 300: seconds for which a job whose checkpoint this host does not see is left
    to the host that wrote it, before this one starts it again. Never used where hosts share the output root."""
    allow_models: tuple[str, ...] = ("*",)
    """`QLORA_ALLOW_MODELS`, default `*`: base models that jobs may train on here, as patterns, comma-separated."""
    allow_datasets: tuple[str, ...] = ("*",)
    """`QLORA_ALLOW_DATASETS`, default `*`: hub datasets that jobs may read here, likewise."""
    child: ChildLimits = ChildLimits()
    lock_dir: Path | None = None
    """`QLORA_LOCK_DIR`, default `<state>/workers`: where the workers of this host see which device is taken. Those with
    another state folder know of each other only where this is the same for all."""
    cuda_visible_devices: str | None = None
    """`CUDA_VISIBLE_DEVICES`: the GPUs of a worker that is not told which, None for all. As numbers, those of
    `nvidia-smi`."""

    min_free_disk_gib: float = 1.0
    """`QLORA_MIN_FREE_DISK_GIB`: below so much free disk under the output root a worker takes no jobs."""
    canary_retry_s: float = 300.0
    """`QLORA_CANARY_RETRY_S`: seconds after which a host whose canary failed is tried again."""

    @property
    def lock_folder(self) -> Path:
        """Where the lock files of this host's workers lie."""
        return self.lock_dir or self.state_dir / "workers"


LogFormat = Literal["auto", "json", "text"]
LEAST_EVENTS = 100
_MB = 1 << 20


def load_host(environ: Mapping[str, str] = os.environ) -> str:
    """Read `QLORA_HOST`, else the machine's name."""
    return environ.get("QLORA_HOST") or socket.gethostname()


def load_log_format(environ: Mapping[str, str] = os.environ) -> LogFormat:
    """Read `QLORA_LOG_FORMAT`, which is wanted before anything else: how all else is told.

    Raises:
        UnavailableError: It is none of the formats.
    """
    text = environ.get("QLORA_LOG_FORMAT") or "auto"
    for known in get_args(LogFormat):
        if text == known:
            return known  # type: ignore[no-any-return]
    raise UnavailableError(
        f"QLORA_LOG_FORMAT={text!r} is no format of logs.", hint=f"Use one of {', '.join(get_args(LogFormat))}."
    )


def _events(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not text.isdecimal() or int(text) < LEAST_EVENTS:
        raise UnavailableError(f"{name}={text!r} is not a number of events, {LEAST_EVENTS} at least.")
    return int(text)


def _number(environ: Mapping[str, str], name: str, default: float, unit: str = "seconds") -> float:
    text = environ.get(name, "")
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise UnavailableError(f"{name}={text!r} is not a number of {unit} greater than 0.", hint=f"Try {default:g}.")
    return value


def _patterns(environ: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in (environ.get(name) or "*").split(",") if part.strip())


def _standby_bytes(environ: Mapping[str, str], default: int) -> int:
    name = "QLORA_STANDBY_MB"
    return 0 if environ.get(name) == "0" else int(_number(environ, name, default / _MB, unit="megabytes") * _MB)


def keep_files_private(environ: Mapping[str, str] = os.environ) -> None:
    """Let this process, its children and the libraries in them make files that nobody else can read.

    `QLORA_UMASK`, default 077: the owner alone. 007 lets the group in, for a team whose hosts share a file system: then
    give the folder of `QLORA_OUTPUT_ROOT` the team's group and the setgid bit. Others never get in.

    Raises:
        UnavailableError: It is no such number.
    """
    text = environ.get("QLORA_UMASK") or "077"
    if not re.fullmatch(r"0?[0-7]{0,2}7", text):
        raise UnavailableError(
            f"QLORA_UMASK={text!r} lets everybody read what jobs write, or is no octal number.",
            hint="Use 077 (the owner alone), 027 (the group may read) or 007 (the group may write).",
        )
    os.umask(int(text, 8))


def load_settings(environ: Mapping[str, str] = os.environ) -> RunnerSettings:
    """Read the environment.

    Raises:
        UnavailableError: A variable holds something that cannot be meant.
    """
    defaults, limits = Retention(), ChildLimits()
    state_dir = Path(environ.get("QLORA_STATE_DIR") or ".qlora").absolute()

    def folder(name: str, default: Path) -> Path:
        return Path(environ.get(name) or default).absolute()

    return RunnerSettings(
        redis_url=environ.get("REDIS_URL") or None,
        state_dir=state_dir,
        projects_dir=folder("QLORA_PROJECTS_DIR", Path("projects")),
        models_root=folder("QLORA_MODELS_ROOT", state_dir / "models"),
        output_root=folder("QLORA_OUTPUT_ROOT", state_dir / "outputs"),
        host=load_host(environ),
        lease_s=_number(environ, "QLORA_LEASE_S", 120.0),
        stop_grace_s=_number(environ, "QLORA_STOP_GRACE_S", 60.0),
        lock_dir=Path(environ["QLORA_LOCK_DIR"]).absolute() if environ.get("QLORA_LOCK_DIR") else None,
        cuda_visible_devices=environ.get("CUDA_VISIBLE_DEVICES"),
        min_free_disk_gib=_number(environ, "QLORA_MIN_FREE_DISK_GIB", 1.0, unit="GiB"),
        canary_retry_s=_number(environ, "QLORA_CANARY_RETRY_S", 300.0),
        retention=Retention(
            events=_events(environ, "QLORA_KEEP_EVENTS", defaults.events),
            days=_number(environ, "QLORA_KEEP_DAYS", defaults.days, unit="days"),
        ),
        checkpoint_wait_s=_number(environ, "QLORA_CHECKPOINT_WAIT_S", 300.0),
        allow_models=_patterns(environ, "QLORA_ALLOW_MODELS"),
        allow_datasets=_patterns(environ, "QLORA_ALLOW_DATASETS"),
        child=ChildLimits(
            term_grace_s=_number(environ, "QLORA_TERM_GRACE_S", limits.term_grace_s),
            silence_s=_number(environ, "QLORA_SILENCE_S", limits.silence_s),
            busy_silence_s=_number(environ, "QLORA_BUSY_SILENCE_S", limits.busy_silence_s),
            standby_bytes=_standby_bytes(environ, limits.standby_bytes),
            log_bytes=int(_number(environ, "QLORA_LOG_MB", limits.log_bytes / _MB, unit="megabytes") * _MB),
        ),
    )
