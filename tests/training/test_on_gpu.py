"""What is promised on a CPU holds on a GPU: `pytest -m gpu`, deselected by default.

Every body takes its device from the host. With `GPU_TESTS_ON=cpu` the same bodies run where there is no GPU, so that
whoever changes them sees that they are sound; of CUDA itself that says nothing.
"""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runner.event_lines import parse_event
from runner.events import (
    AdapterVerified,
    LossEvaluated,
    MetricsLogged,
    ModelLoaded,
    RungFailed,
    RunSucceeded,
    TrainingStarted,
    VersionsReported,
)
from runner.job_events import AnyEvent
from runner.spec import RunSpec
from runner.training.accelerator import choose_device, describe
from runner.training.data.mix import mix_data
from runner.training.loading.protected_load import protected_load
from runner.training.loop.lora import add_lora
from runner.training.loop.trainer import AdapterTrainer, build_trainer
from runner.training.pipeline import train

MakeSpec = Callable[..., RunSpec]
StartChild = Callable[..., subprocess.Popen[str]]

ON_CUDA = torch.cuda.is_available()
ON_CPU_BY_HAND = not ON_CUDA and os.environ.get("GPU_TESTS_ON") == "cpu"

pytestmark = [
    pytest.mark.training,
    pytest.mark.gpu,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        not ON_CUDA and not ON_CPU_BY_HAND,
        reason=f"needs a CUDA device, and torch {torch.__version__} finds none on this host",
    ),
]

TRAINING: dict[str, Any] = {
    "max_steps": 4,
    "learning_rate": 5e-3,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
}
KERNELS_DIFFER = 2e-3
"""Relative difference of losses that two orders of summation on a GPU may make in a few steps; not measured yet, far
below the several per cent of an evaluation that changes the training."""


def of_kind(events: list[AnyEvent], kind: Any) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def assert_it_learned_something(events: list[AnyEvent], steps: int) -> None:
    metrics = of_kind(events, MetricsLogged)
    assert len(metrics) == steps
    assert all(event.grad_norm is not None and 0 < event.grad_norm < math.inf for event in metrics)
    assert all(math.isfinite(event.loss) for event in metrics)


def train_in_this_process(
    spec: RunSpec, models_root: Path, folder: Path, look: Callable[[Any, AdapterTrainer], None] = lambda *_: None
) -> list[float]:
    """The losses of all steps; `look` sees the loaded model and the trainer when training is over."""
    with protected_load(spec, models_root=models_root, emit=lambda _: None) as loaded:
        trainer = build_trainer(
            add_lora(loaded.model, spec.project.lora, spec.project.training.seed),
            loaded.tokenizer,
            mix_data(spec, loaded.tokenizer, folder),
            spec.project.training,
            output_dir=folder / "checkpoints",
            compute_dtype=loaded.receipt.compute_dtype,
            callbacks=[],
        )
        trainer.train_from(None)
        look(loaded, trainer)
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


@pytest.mark.parametrize("rung", ["4bit", "8bit", "none"])
def test_the_demo_model_trains_to_a_verified_adapter_on_every_rung(
    make_spec: MakeSpec, models_root: Path, addition: list[dict[str, Any]], tmp_path: Path, rung: str
) -> None:
    spec = make_spec(tmp_path / "p", addition[:16], training=TRAINING, quantization={"ladder": [rung]})
    events: list[AnyEvent] = []

    end = train(
        spec, tmp_path / "run" / "attempt-1", events.append, models_root=models_root, projects_dir=tmp_path / "p"
    )

    [versions] = of_kind(events, VersionsReported)
    assert versions.device == describe(choose_device())
    [receipt] = [event.receipt for event in of_kind(events, ModelLoaded)]
    assert not of_kind(events, RungFailed)
    assert (receipt.rung, receipt.device) == (rung, str(choose_device()))
    assert (receipt.quantized_modules > 0) == (rung != "none")
    assert_it_learned_something(events, steps=4)
    [verified] = of_kind(events, AdapterVerified)
    assert verified.base_difference > 0
    assert isinstance(end, RunSucceeded)
    assert end.summary.rung == rung


@pytest.mark.parametrize("rung", ["4bit", "8bit", "none"])
def test_the_whole_model_lies_and_stays_on_the_device(
    make_spec: MakeSpec, models_root: Path, addition: list[dict[str, Any]], tmp_path: Path, rung: str
) -> None:
    spec = make_spec(tmp_path, addition[:16], training=TRAINING | {"max_steps": 1}, quantization={"ladder": [rung]})

    def look(loaded: Any, trainer: AdapterTrainer) -> None:
        model: Any = trainer.model
        tensors = [*loaded.model.parameters(), *loaded.model.buffers(), *model.parameters()]
        assert {tensor.device for tensor in tensors} == {choose_device()}

    train_in_this_process(spec, models_root, tmp_path, look)


def test_the_host_takes_the_paged_8_bit_optimizer_and_says_so(
    make_spec: MakeSpec, models_root: Path, addition: list[dict[str, Any]], tmp_path: Path
) -> None:
    spec = make_spec(tmp_path / "p", addition[:16], training=TRAINING | {"max_steps": 2})
    events: list[AnyEvent] = []

    train(spec, tmp_path / "run" / "attempt-1", events.append, models_root=models_root, projects_dir=tmp_path / "p")

    [started] = of_kind(events, TrainingStarted)
    [optim] = [setting for setting in started.settings if setting.name == "optim"]
    assert (optim.value, optim.origin) == ("paged_adamw_8bit" if ON_CUDA else "adamw_torch_fused", "host")


def test_the_optimizers_state_is_held_in_8_bits(
    make_spec: MakeSpec, models_root: Path, addition: list[dict[str, Any]], tmp_path: Path
) -> None:
    spec = make_spec(tmp_path, addition[:16], training=TRAINING | {"max_steps": 1})

    def look(_loaded: Any, trainer: AdapterTrainer) -> None:
        assert trainer.optimizer is not None
        optimizer: Any = getattr(trainer.optimizer, "optimizer", trainer.optimizer)  # accelerate wraps it
        dtypes = {
            state["state1" if ON_CUDA else "exp_avg"].dtype
            for parameter, state in optimizer.state.items()
            if parameter.numel() >= 4096  # bitsandbytes leaves smaller ones in float32
        }
        assert dtypes == {torch.uint8 if ON_CUDA else torch.float32}
        assert getattr(optimizer, "is_paged", False) == ON_CUDA

    train_in_this_process(spec, models_root, tmp_path, look)


@pytest.mark.parametrize("rung", ["4bit", "8bit", "none"])
def test_evaluations_leave_the_losses_of_training_as_they_are(
    make_spec: MakeSpec, models_root: Path, addition: list[dict[str, Any]], tmp_path: Path, rung: str
) -> None:
    def losses(name: str, dropout: float = 0.5, **more: Any) -> list[float]:
        spec = make_spec(
            tmp_path / name,
            addition[:20],
            training=TRAINING | {"attn_implementation": "eager"} | more,
            lora={"lora_dropout": dropout},
            quantization={"ladder": [rung]},
            evaluation={"held_out_percentage": 20.0},
        )
        return train_in_this_process(spec, models_root, tmp_path / name)

    without = losses("without")

    assert losses("with", eval_strategy="steps", eval_steps=1) == pytest.approx(without, rel=KERNELS_DIFFER)
    # Dropout shows up in the losses, so one that an evaluation has turned off or drawn anew would.
    assert losses("no dropout", dropout=0.0) != pytest.approx(without, rel=KERNELS_DIFFER)


def test_a_whole_run_tells_the_loss_on_held_out_rows_at_the_steps_it_was_asked_for(
    make_spec: MakeSpec, models_root: Path, addition: list[dict[str, Any]], tmp_path: Path
) -> None:
    spec = make_spec(
        tmp_path / "p",
        addition[:20],
        training=TRAINING | {"eval_strategy": "steps", "eval_steps": 2},
        evaluation={"held_out_percentage": 20.0},
    )
    events: list[AnyEvent] = []

    train(spec, tmp_path / "run" / "attempt-1", events.append, models_root=models_root, projects_dir=tmp_path / "p")

    measured = of_kind(events, LossEvaluated)
    assert [event.step for event in measured] == [2, 4]
    assert all(math.isfinite(event.loss) for event in measured)
    assert_it_learned_something(events, steps=4)


@pytest.mark.skipif(
    ON_CUDA and torch.cuda.device_count() < 2, reason=f"needs two GPUs, this host has {torch.cuda.device_count()}"
)
def test_two_gpus_train_together_with_the_losses_of_one(
    child_spec: RunSpec, start_child: StartChild, tmp_path: Path
) -> None:
    def run(gpus: int) -> list[AnyEvent]:
        project = child_spec.project.model_dump(mode="json")
        project["lora"]["lora_dropout"] = 0.0
        project["training"] |= {"max_steps": 3, "per_device_train_batch_size": 3}
        project["training"]["gradient_accumulation_steps"] = 2 // gpus
        project["compute"]["gpus"] = gpus
        spec = child_spec.model_copy(update={"project": type(child_spec.project).model_validate(project)})
        child = start_child(spec, tmp_path / str(gpus) / "attempt-1")
        output, log = child.communicate()
        assert child.returncode == 0, log
        return [parse_event(line) for line in output.splitlines()]

    together, alone = run(2), run(1)

    [versions] = of_kind(together, VersionsReported)
    assert versions.device.startswith("2 x ")
    [loaded] = of_kind(together, ModelLoaded)
    assert loaded.receipt.processes == 2
    assert_it_learned_something(together, steps=3)
    assert isinstance(together[-1], RunSucceeded)
    losses = [[event.loss for event in of_kind(events, MetricsLogged)] for events in (together, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=KERNELS_DIFFER)
