"""A child that trains nothing, quickly: real events, checkpoints, a stop with a checkpoint, a small adapter.

Started as `scripted_child.py RUN_DIR --events-fd N DIARY WORKER_PID`. Its spec's `max_steps` says how long it runs;
`save_steps` how often it writes a checkpoint. What really happened to it stands in the diary, whatever the runner
believes: one JSON line at its start, one at every signal, one at its end.
"""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

STEP_S = 0.03
RUN_DIR = Path(sys.argv[1])
OUT = os.fdopen(int(sys.argv[3]), "w", buffering=1)
DIARY = os.open(sys.argv[4], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
WORKER = int(sys.argv[5])
TRAINING = json.loads((RUN_DIR / "spec.json").read_text())["project"]["training"]

stopping = False


def note(what: str) -> None:
    """Write one line into the diary, whole or not at all."""
    line = {"at": time.time(), "what": what, "run": str(RUN_DIR), "worker": WORKER, "pid": os.getpid()}
    os.write(DIARY, (json.dumps(line) + "\n").encode())


def emit(kind: str, **fields: Any) -> None:
    OUT.write(json.dumps({"kind": kind, **fields}) + "\n")


def stop(_number: int, _frame: FrameType | None) -> None:
    global stopping  # noqa: PLW0603 - a signal handler has no other way
    stopping = True
    note("asked to stop")


def checkpoint(step: int) -> str:
    folder = RUN_DIR / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_text(str(step))
    (folder / "complete").touch()
    emit("checkpoint_saved", step=step, path=str(folder))
    return str(folder)


def newest_step() -> int:
    found = RUN_DIR.parent.glob("attempt-*/checkpoints/checkpoint-*/complete")
    steps = [re.fullmatch(r"checkpoint-(\d+)", marker.parent.name) for marker in found]
    return max((int(step[1]) for step in steps if step), default=0)


def main() -> None:
    total, every = TRAINING["max_steps"], TRAINING["save_steps"] or 10
    signal.signal(signal.SIGTERM, stop)
    step = newest_step()
    note("began")
    emit("phase_started", phase="training")
    emit("training_started", total_steps=total, resumed_from_step=step, trainable_parameters=1)
    while step < total:
        time.sleep(STEP_S)
        step += 1
        if step % 5 == 0:
            emit("metrics_logged", step=step, total_steps=total, epoch=step / total, loss=1.0, learning_rate=0.1,
                 tokens_per_s=9.0, eta_s=1.0)  # fmt: skip
        if stopping:
            path = checkpoint(step)
            emit("run_interrupted", step=step, checkpoint=path)
            note("interrupted")
            sys.exit(3)
        if step % every == 0:
            checkpoint(step)
    adapter = RUN_DIR / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_text(RUN_DIR.name)
    (adapter / "adapter_config.json").write_text("{}")
    emit("adapter_saved", path=str(adapter), size_bytes=9)
    summary = {"rung": "4bit", "steps": total, "loss_first": 3.0, "loss_last": 0.5, "train_s": 1.0, "duration_s": 2.0,
               "guard_interceptions": 0}  # fmt: skip
    note("succeeded")
    emit("run_succeeded", summary=summary, adapter_path=str(adapter))


main()
