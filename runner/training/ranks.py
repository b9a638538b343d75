"""What the ranks of an attempt agree on. With one process there is nothing to agree on, and every function is trivial.

Rank 0 decides, writes and reports; the others follow. A rank that fails says so and ends, and the launcher
(`runner.training.launcher`) ends the others: nobody has to be told, and nobody may go on alone. One that hangs while a
model loads, or after the training, says nothing; rank 0 notices where it waits for it. In the training itself
`runner.training.loop.stall_watch` does.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar, cast

import torch
from torch import distributed

from runner.child import STALLED
from runner.errors import TrainingError
from runner.events import RunFailed
from runner.training.launcher import RANK_LOST

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others' gradients at least; a checkpoint on a slow disk falls into it."""
_PATIENCE = timedelta(days=30)
"""How long a rank waits for a decision: rank 0 may download a model or answer a long table. The launcher ends it when
rank 0 is gone."""
_TICKS = 20


class OtherRankError(Exception):
    """What this rank could do, another one could not."""


class RankLostError(TrainingError):
    """Another rank ends, and says itself why."""

    code = RANK_LOST


class _Agreement:
    """The group that decisions go through, beside the one that gradients go through: another timeout, always gloo."""

    group: distributed.ProcessGroup | None = None
    patience_s = 0.0
    on_stall: Callable[[RunFailed], None] | None = None


def rank() -> int:
    """Number of this process, 0 for the one that decides."""
    return distributed.get_rank() if _Agreement.group is not None else 0


def count() -> int:
    """How many processes train together, one a device."""
    return distributed.get_world_size() if _Agreement.group is not None else 1


def is_first() -> bool:
    """Whether this process decides, writes and reports."""
    return rank() == 0


def join(rendezvous_fd: int, *, patience_s: float = 0.0, on_stall: Callable[[RunFailed], None] | None = None) -> None:
    """Meet the other ranks, whose number and address the environment holds in torchrun's names.

    Args:
        rendezvous_fd: The socket that rank 0 listens on, bound already.
        patience_s: `training.step_timeout_s`: how long rank 0 waits for others that do the same; 0 is for ever.
        on_stall: Called on rank 0, from another thread, when they have not come; has to end the process.

    Raises:
        TrainingError: The host has fewer GPUs than the project asks for (`too-few-gpus`).
    """
    number, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        require_gpus(world)
        torch.cuda.set_device(number)
    else:
        # accelerate would call it `cpu:0`, under which transformers 4.57 does not find an optimizer's state again.
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    store = distributed.TCPStore(  # type: ignore[attr-defined]  # documented, but re-exported without saying so
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        world,
        is_master=number == 0,
        master_listen_fd=rendezvous_fd if number == 0 else None,
        timeout=COLLECTIVE_TIMEOUT,
    )
    distributed.init_process_group(
        "nccl" if on_gpus else "gloo", store=store, rank=number, world_size=world, timeout=gradient_timeout(patience_s)
    )
    _Agreement.group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
    _Agreement.patience_s, _Agreement.on_stall = patience_s, on_stall


def gradient_timeout(patience_s: float) -> timedelta:
    """How long a rank waits for the others' gradients: until the stall watch has had time to say what hangs, and where.

    Args:
        patience_s: As of `join`.
    """
    return max(COLLECTIVE_TIMEOUT, 2 * timedelta(seconds=patience_s)) if patience_s else _PATIENCE


def require_gpus(wanted: int) -> None:
    """Refuse a host with GPUs, but too few of them; on a host without any, every process trains on the CPU.

    Raises:
        TrainingError: The host has fewer (`too-few-gpus`).
    """
    found = torch.cuda.device_count()
    if found < wanted:
        raise TrainingError(
            f"The project asks for {wanted} GPUs ([compute] gpus), but this host has {found}.",
            hint=f"Set gpus = {found} in the project file, or name a pool whose hosts have {wanted}.",
            code="too-few-gpus",
        )


def from_first(action: Callable[[], T]) -> T:
    """Let rank 0 do something while the others wait, and give its result to all.

    Args:
        action: Run on rank 0 alone; its result travels pickled. What it raises ends rank 0, and with it the attempt.
    """
    if _Agreement.group is None:
        return action()
    box = [action() if is_first() else None]
    distributed.broadcast_object_list(box, src=0, group=_Agreement.group)
    return cast("T", box[0])


def gather(value: T) -> list[T]:
    """Every rank's value, in the order of their numbers."""
    if _Agreement.group is None:
        return [value]
    values: list[T | None] = [None] * count()
    with _others_awaited():
        distributed.all_gather_object(values, value, group=_Agreement.group)
    return cast("list[T]", values)


@contextmanager
def _others_awaited() -> Iterator[None]:
    """Report the attempt as stalled when the others do not come to where rank 0 waits for them.

    They may wait for rank 0 as long as it takes: it downloads, answers and measures. What all do alike takes all
    of them about as long, so rank 0 need not wait for hours.
    """
    if not is_first() or not _Agreement.patience_s or _Agreement.on_stall is None:
        yield
        return
    here = threading.Event()
    arguments = here, _Agreement.patience_s, _Agreement.on_stall
    watch = threading.Thread(target=_watch, args=arguments, name="waiting-for-ranks", daemon=True)
    watch.start()
    try:
        yield
    finally:
        here.set()
        watch.join()


def _watch(here: threading.Event, patience_s: float, on_stall: Callable[[RunFailed], None]) -> None:
    # Ticks and not the clock: processes that were themselves suspended have not been late.
    for _ in range(_TICKS):
        if here.wait(patience_s / _TICKS):
            return
    on_stall(
        RunFailed(
            code=STALLED,
            message=f"For {patience_s:g} s the other processes have not come to where rank 0 waits for them, so all "
            "were ended.",
            hint="The stacks of all of them are in train.log in the run directory. The newest checkpoint is kept. If "
            "one of them may take that much longer here, raise training.step_timeout_s.",
        )
    )


@contextmanager
def together(classify: Callable[[BaseException], TrainingError | None]) -> Iterator[None]:
    """A block that holds on all ranks or on none: where it fails on one, it fails on every one.

    Args:
        classify: Tells an error that ends the attempt from one that the caller may cure.

    Raises:
        OtherRankError: It held here, but not on another rank.
        RankLostError: Another rank's error ends the attempt.
    """
    try:
        yield
    except Exception as error:
        gather((type(error).__name__, str(error), classify(error) is not None))
        raise
    for number, failed in enumerate(gather(None)):
        if failed is not None:
            name, text, ends = failed
            kind = RankLostError if ends else OtherRankError
            raise kind(f"rank {number} failed with {name}: {text}")


def require_same(value: str, name: str) -> None:
    """Refuse to train together on what is not the same.

    Raises:
        TrainingError: The ranks' values differ (`ranks-differ`).
    """
    if len(set(gather(value))) > 1:
        raise TrainingError(
            f"The processes of this training do not have the same {name}.",
            hint="A data file that changed while the job started would explain it; start the job again.",
            code="ranks-differ",
        )


def wait_for_all() -> None:
    """Go on when every rank has come this far."""
    gather(None)
