"""Learning rates of real runs are those of a plain transformers schedule with the same arguments."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from transformers import get_scheduler

from runner.schedules import WITHOUT_WARMUP, Schedule
from runner.training.loop.trainer import AdapterTrainer

Train = Callable[..., AdapterTrainer]
STEPS, WARMUP, RATE = 10, 3, 1e-3
ARGUMENTS: dict[Schedule, dict[str, int | float | str]] = {
    "linear": {},
    "cosine": {"num_cycles": 1.5},
    "cosine_with_restarts": {"num_cycles": 2},
    "cosine_with_min_lr": {"min_lr": 2e-4},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1, "warmup_lr_rate": 0.3},
    "polynomial": {"lr_end": 1e-5, "power": 2},
    "constant": {},
    "constant_with_warmup": {},
    "inverse_sqrt": {"timescale": 5},
    "warmup_stable_decay": {"num_decay_steps": 4, "min_lr_ratio": 0.1, "decay_type": "linear"},
    "reduce_lr_on_plateau": {"factor": 0.5, "patience": 1},
}


def _logged(trainer: AdapterTrainer, key: str) -> list[float]:
    return [record[key] for record in trainer.state.log_history if key in record]


def _optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)


@pytest.mark.parametrize("kind", [one for one in get_args(Schedule) if one != "reduce_lr_on_plateau"])
def test_the_rates_of_a_run_are_those_of_the_plain_schedule(train_smallest: Train, kind: Schedule) -> None:
    warmup = 0 if kind in WITHOUT_WARMUP else WARMUP
    optimizer = _optimizer()
    plain = get_scheduler(kind, optimizer, warmup, STEPS, ARGUMENTS[kind])
    expected = []
    for _ in range(STEPS):
        expected.append(plain.get_last_lr()[0])
        optimizer.step()
        plain.step()

    trainer = train_smallest(
        lr_scheduler_type=kind, lr_scheduler_kwargs=ARGUMENTS[kind], warmup_steps=warmup, learning_rate=RATE
    )

    assert _logged(trainer, "learning_rate") == pytest.approx(expected, rel=1e-12)
    assert (len(set(expected)) > 1) == (kind != "constant")


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_a_rate_that_goes_by_the_held_out_loss_falls_as_the_plain_schedule_says(
    train_smallest: Train, strategy: str
) -> None:
    kind, arguments = "reduce_lr_on_plateau", ARGUMENTS["reduce_lr_on_plateau"]
    # So low that no loss gets better by as much as the schedule wants.
    low = 1e-6
    trainer = train_smallest(
        lr_scheduler_type=kind, lr_scheduler_kwargs=arguments, learning_rate=low, eval_strategy=strategy, eval_steps=1
    )

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=low)
    plain: Any = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    expected = []
    losses = {record["step"]: record["eval_loss"] for record in trainer.state.log_history if "eval_loss" in record}
    for step in range(1, STEPS + 1):
        expected.append(optimizer.param_groups[0]["lr"])
        if step in losses:
            plain.step(losses[step])
    assert len(losses) == (STEPS if strategy == "steps" else 4)
    assert _logged(trainer, "learning_rate") == pytest.approx(expected, rel=1e-12)
    assert expected[-1] < low
