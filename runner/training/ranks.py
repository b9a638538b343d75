"""What the ranks of an attempt agree on. With one process there is nothing to agree on, and every function is trivial.

Rank 0 decides, writes and reports; the others follow. A rank that fails says so and ends, and the launcher
(`runner.training.launcher`) ends the others: nobody has to be told, and nobody may go on alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar, cast

import torch
from torch import distributed

from runner.errors import TrainingError
from runner.training.launcher import RANK_LOST

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others' gradients; a checkpoint on a slow disk falls into it."""
_PATIENCE = timedelta(days=30)
"""How long a rank waits for a decision: rank 0 may download a model or answer a long table. The launcher ends it when
rank 0 is gone."""


class OtherRankError(Exception):
    """What this rank could do, another one could not."""


class RankLostError(TrainingError):
    """Another rank ends, and says itself why."""

    code = RANK_LOST


class _Agreement:
    """The group that decisions go through, beside the one that gradients go through: another timeout, always gloo."""

    group: distributed.ProcessGroup | None = None


def rank() -> int:
    """Number of this process, 0 for the one that decides."""
    return distributed.get_rank() if _Agreement.group is not None else 0


def count() -> int:
    """How many processes train together, one a device."""
    return distributed.get_world_size() if _Agreement.group is not None else 1


def is_first() -> bool:
    """Whether this process decides, writes and reports."""
    return rank() == 0


def join(rendezvous_fd: int) -> None:
    """Meet the other ranks, whose number and address the environment holds in torchrun's names.

    Args:
        rendezvous_fd: The socket that rank 0 listens on, bound already.

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
        "nccl" if on_gpus else "gloo", store=store, rank=number, world_size=world, timeout=COLLECTIVE_TIMEOUT
    )
    _Agreement.group = distributed.new_group(backend="gloo", timeout=_PATIENCE)


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
    distributed.all_gather_object(values, value, group=_Agreement.group)
    return cast("list[T]", values)


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
