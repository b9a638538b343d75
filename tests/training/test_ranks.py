"""Attempts of two real processes on a CPU: one story, one process's losses, one end."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from runner.errors import TrainingError
from runner.event_lines import parse_event
from runner.events import (
    CheckpointSaved,
    LossEvaluated,
    MetricsLogged,
    ModelLoaded,
    RunFailed,
    RungFailed,
    RunInterrupted,
    RunSucceeded,
    TrainingStarted,
    VersionsReported,
)
from runner.job_events import AnyEvent
from runner.spec import RunSpec
from runner.training import ranks
from runner.training.data.mix import mix_data
from runner.training.loading.failures import classify
from runner.training.loading.protected_load import protected_load
from runner.training.loop.callbacks import Progress, StopAtStep
from runner.training.loop.checkpoints import Checkpoint, complete_checkpoints
from runner.training.loop.lora import add_lora
from runner.training.loop.trainer import build_trainer
from runner.training.preflight import count_steps
from runner.training.stopping import StopSwitch

pytestmark = [pytest.mark.training, pytest.mark.timeout(180)]

MakeSpec = Callable[..., RunSpec]
StartChild = Callable[..., subprocess.Popen[str]]

STEPS = {"learning_rate": 5e-3, "logging_steps": 1, "save_steps": 1000}
# 20 rows, 3 a rank and 6 a step: no epoch comes out even, neither in rows nor in batches.
BATCH = {"per_device_train_batch_size": 3}
SAME_BATCH = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
IN_4_BITS: dict[str, Any] = {"ladder": ("4bit",), "max_steps": -1, "num_train_epochs": 1.5, "save_steps": 4}
UNQUANTIZED: dict[str, Any] = {"ladder": ("none",), "max_steps": 5000, "eval_strategy": "steps", "eval_steps": 2}

BROKEN_KERNEL = """
import os, sys
if os.environ.get("RANK") == "1" and "runner.training" in sys.orig_argv:
    from bitsandbytes.nn import Linear4bit
    def forward(self, x):
        raise RuntimeError("no kernel image is available on this device")
    Linear4bit.forward = forward
"""


@pytest.fixture(scope="module")
def two_of(child_spec: RunSpec) -> Callable[..., RunSpec]:
    """The specification of `finished_child` without dropout, for two processes or for one."""

    def change(*, gpus: int, ladder: tuple[str, ...], **training: Any) -> RunSpec:
        project = child_spec.project.model_dump(mode="json")
        project["lora"]["lora_dropout"] = 0.0
        project["training"] |= STEPS | (BATCH if gpus == 2 else SAME_BATCH) | training
        project["quantization"]["ladder"] = list(ladder)
        project["compute"]["gpus"] = gpus
        return child_spec.model_copy(update={"project": type(child_spec.project).model_validate(project)})

    return change


@pytest.fixture(scope="module")
def losses_of_one(
    two_of: Callable[..., RunSpec],
    models_root: Path,
    child_projects_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., list[float]]:
    """Train in this process with the batch of two, and give the losses of the first steps or of a checkpoint's next.

    With `evaluations=True` those on held-out rows instead.
    """

    def train(
        steps: int, checkpoint: Checkpoint | None = None, *, evaluations: bool = False, **changes: Any
    ) -> list[float]:
        spec = two_of(gpus=1, **changes)
        stop = StopSwitch()
        losses: list[float] = []

        def emit(event: AnyEvent) -> None:
            if isinstance(event, MetricsLogged):
                losses.append(event.loss)
                if len(losses) == steps - 1:
                    stop.set()

        with protected_load(spec, models_root=models_root, emit=lambda _: None) as loaded:
            mix = mix_data(spec, loaded.tokenizer, child_projects_dir)
            trainer = build_trainer(
                add_lora(loaded.model, spec.project.lora, spec.project.training.seed),
                loaded.tokenizer,
                mix,
                spec.project.training,
                output_dir=tmp_path_factory.mktemp("one"),
                compute_dtype=loaded.receipt.compute_dtype,
                callbacks=[Progress(emit, settings=(), trainable_parameters=1), StopAtStep(stop)],
            )
            trainer.train_from(checkpoint)
        history = trainer.state.log_history
        return [record["eval_loss"] for record in history if "eval_loss" in record] if evaluations else losses

    return train


@dataclass(frozen=True)
class Run:
    """An attempt of two processes that has ended."""

    run_dir: Path
    events: list[AnyEvent]
    status: int
    log: str
    processes: list[psutil.Process]
    """Launcher, ranks and theirs, as seen in the middle of the training."""

    def only(self, kind: Any) -> Any:
        [event] = [event for event in self.events if isinstance(event, kind)]
        return event

    def losses(self) -> list[float]:
        return [event.loss for event in self.events if isinstance(event, MetricsLogged)]


def follow(child: subprocess.Popen[str], run_dir: Path, at_step: dict[int, Callable[[], None]]) -> Run:
    """Read a child's events to their end, and do something at certain steps of it."""
    events, processes = [], []
    assert child.stdout is not None
    first = None
    for line in child.stdout:
        event = parse_event(line)
        events.append(event)
        if isinstance(event, MetricsLogged):
            first = first or event.step
            if event.step - first + 1 in at_step:
                launcher = psutil.Process(child.pid)
                processes = [launcher, *launcher.children(recursive=True)]
                at_step[event.step - first + 1]()
    _, log = child.communicate()
    return Run(run_dir, events, child.returncode, log, processes)


@pytest.fixture(scope="module")
def pair(two_of: Callable[..., RunSpec], start_child: StartChild, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A whole run in 4 bits. Read-only."""
    run_dir = tmp_path_factory.mktemp("pair") / "attempt-1"
    return follow(start_child(two_of(gpus=2, **IN_4_BITS), run_dir), run_dir, {1: lambda: None})


def test_two_processes_tell_one_story_to_a_verified_adapter(pair: Run, finished_child: Any) -> None:
    assert pair.status == 0, pair.log
    kinds = [event.kind for event in pair.events if not isinstance(event, CheckpointSaved)]
    assert kinds == [event.kind for event in finished_child.events if not isinstance(event, CheckpointSaved)]
    assert isinstance(pair.events[-1], RunSucceeded)
    lines = (pair.run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert [parse_event(line) for line in lines] == pair.events


def test_the_receipt_and_the_versions_say_how_many_processes_there_are(pair: Run) -> None:
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    asked = os.environ.get("OMP_NUM_THREADS", threads)

    assert pair.only(ModelLoaded).receipt.processes == 2
    assert json.loads((pair.run_dir / "receipt.json").read_text())["processes"] == 2
    if not torch.cuda.is_available():
        assert pair.only(VersionsReported).device.startswith(f"2 x cpu ({asked} thread")


def test_two_processes_in_4_bits_have_the_losses_of_one_with_the_same_batch(
    pair: Run, losses_of_one: Callable[..., list[float]]
) -> None:
    alone = losses_of_one(6, **IN_4_BITS)

    assert pair.losses() == pytest.approx(alone, rel=1e-5)


def test_the_tokens_of_all_ranks_are_counted(pair: Run, finished_child: Any) -> None:
    def tokens(run_dir: Path, step: int) -> float:
        [folder] = run_dir.glob(f"checkpoints/checkpoint-{step}")
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
        return float(next(record["num_tokens"] for record in history if record["step"] == 3))

    # The same six rows a step; both have seen 18 of the epoch's 20 after the third.
    assert tokens(pair.run_dir, 4) == tokens(finished_child.run_dir, 6)


def test_the_card_says_how_many_processes_trained(pair: Run) -> None:
    card = (Path(pair.only(RunSucceeded).adapter_path) / "README.md").read_text(encoding="utf-8")

    assert "computing in" in card
    assert ", by 2 processes)." in card


def test_a_plan_counts_the_steps_of_all_ranks_together(
    pair: Run, two_of: Callable[..., RunSpec], models_root: Path, child_projects_dir: Path
) -> None:
    spec = two_of(gpus=2, **IN_4_BITS)
    with protected_load(spec, models_root=models_root, emit=lambda _: None) as loaded:
        mix = mix_data(spec, loaded.tokenizer, child_projects_dir)

    assert count_steps(mix, spec.project.training, spec.project.compute.gpus) == pair.only(TrainingStarted).total_steps


def test_a_checkpoint_is_complete_when_every_rank_has_written_its_part(pair: Run) -> None:
    first, last = [Path(event.path) for event in pair.events if isinstance(event, CheckpointSaved)]

    assert (first.name, last.name) == ("checkpoint-4", "checkpoint-6")
    for name in ("rng_state_0.pth", "rng_state_1.pth"):
        assert (first / name).stat().st_mtime_ns <= (first / "complete").stat().st_mtime_ns


@pytest.fixture(scope="module")
def stopped_and_killed(
    two_of: Callable[..., RunSpec], start_child: StartChild, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Run]:
    """A run whose rank 1 has no kernel for 4 bits, stopped in its second epoch; gone on with until rank 1 is killed."""
    folder = tmp_path_factory.mktemp("stopped")
    (folder / "sitecustomize.py").write_text(BROKEN_KERNEL)
    spec = two_of(gpus=2, **(UNQUANTIZED | {"ladder": ("4bit", "none")}))

    def attempt(number: int, at_step: int, act: Callable[[psutil.Process], None]) -> Run:
        run_dir = folder / f"attempt-{number}"
        child = start_child(spec, run_dir, PYTHONPATH=str(folder))
        return follow(child, run_dir, {at_step: lambda: act(psutil.Process(child.pid))})

    def kill_rank_1(launcher: psutil.Process) -> None:
        [rank_1] = [process for process in launcher.children() if "--rank 1" in " ".join(process.cmdline())]
        rank_1.send_signal(signal.SIGKILL)

    return attempt(1, 5, lambda launcher: launcher.send_signal(signal.SIGTERM)), attempt(2, 2, kill_rank_1)


def test_a_rung_that_one_rank_does_not_bear_is_left_by_all_and_announced_once(
    stopped_and_killed: tuple[Run, Run],
) -> None:
    stopped, _ = stopped_and_killed

    failed = stopped.only(RungFailed)
    assert (failed.failed.rung, failed.next_rung) == ("4bit", "none")
    assert failed.failed.reason == "rank 1 failed with RuntimeError: no kernel image is available on this device"
    receipt = stopped.only(ModelLoaded).receipt
    assert (receipt.rung, receipt.quantized_modules) == ("none", 0)
    assert "[rank 1] RuntimeError: no kernel image" in stopped.log


def test_sigterm_ends_all_ranks_at_one_step_with_a_checkpoint(stopped_and_killed: tuple[Run, Run]) -> None:
    stopped, _ = stopped_and_killed
    end, saved = stopped.events[-1], stopped.events[-2]

    assert stopped.status == 3, stopped.log
    assert isinstance(end, RunInterrupted)
    assert isinstance(saved, CheckpointSaved)
    assert (end.step, end.checkpoint) == (saved.step, saved.path)
    assert end.step == len(stopped.losses())


def test_a_killed_rank_ends_the_attempt_with_one_failure_that_names_it(stopped_and_killed: tuple[Run, Run]) -> None:
    _, killed = stopped_and_killed
    end = killed.only(RunFailed)

    assert killed.status == 1
    assert killed.events[-1] == end
    assert end.code == "child-died"
    assert "rank 1 ended with SIGKILL" in end.message


def test_no_process_outlives_its_attempt(pair: Run, stopped_and_killed: tuple[Run, Run]) -> None:
    for run in (pair, *stopped_and_killed):
        assert len(run.processes) >= 3
        _, alive = psutil.wait_procs(run.processes, timeout=10)
        assert alive == []


def test_held_out_rows_have_the_loss_of_one_process_while_training_goes_on(
    stopped_and_killed: tuple[Run, Run], losses_of_one: Callable[..., list[float]]
) -> None:
    stopped, _ = stopped_and_killed
    together = [event.loss for event in stopped.events if isinstance(event, LossEvaluated)]

    alone = losses_of_one(len(stopped.losses()), evaluations=True, **UNQUANTIZED)

    assert len(together) >= 2
    assert together == pytest.approx(alone[: len(together)], rel=1e-4)


def test_one_process_goes_on_from_a_checkpoint_of_two(
    stopped_and_killed: tuple[Run, Run], losses_of_one: Callable[..., list[float]]
) -> None:
    stopped, resumed = stopped_and_killed
    [checkpoint] = complete_checkpoints(stopped.run_dir)

    alone = losses_of_one(2, checkpoint=checkpoint, **UNQUANTIZED)

    assert alone == pytest.approx(resumed.losses()[:2], rel=1e-4)


def test_two_unquantized_processes_stopped_and_resumed_have_the_losses_of_one(
    stopped_and_killed: tuple[Run, Run], losses_of_one: Callable[..., list[float]]
) -> None:
    stopped, resumed = stopped_and_killed
    together = stopped.losses() + resumed.losses()

    assert resumed.only(TrainingStarted).resumed_from_step == len(stopped.losses())
    alone = losses_of_one(len(together), **UNQUANTIZED)
    # In bfloat16 the sum of two ranks' gradients rounds otherwise, and every step adds to that.
    assert together == pytest.approx(alone, rel=1e-4)


def test_a_host_with_too_few_gpus_is_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)

    ranks.require_gpus(2)
    with pytest.raises(TrainingError) as caught:
        ranks.require_gpus(4)

    assert caught.value.code == "too-few-gpus"
    assert "asks for 4 GPUs" in caught.value.message
    assert "this host has 2" in caught.value.message


def test_ranks_that_read_different_rows_do_not_train_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "gather", lambda value: [value, "others"])

    with pytest.raises(TrainingError) as caught:
        ranks.require_same("mine", "rows")

    assert caught.value.code == "ranks-differ"


def test_one_process_agrees_with_itself() -> None:
    assert (ranks.rank(), ranks.count(), ranks.is_first()) == (0, 1, True)
    assert ranks.from_first(lambda: "decided") == "decided"
    assert ranks.gather("mine") == ["mine"]
    with pytest.raises(KeyError), ranks.together(classify):
        raise KeyError


def test_a_rank_that_gets_no_rows_of_its_own_does_not_end_a_run_of_few_rows(
    two_of: Callable[..., RunSpec],
    start_child: StartChild,
    losses_of_one: Callable[..., list[float]],
    tmp_path: Path,
) -> None:
    whole = {"ladder": ("none",), "max_steps": 4, "per_device_train_batch_size": 20}

    run = follow(start_child(two_of(gpus=2, **whole), tmp_path / "attempt-1"), tmp_path / "attempt-1", {})

    assert run.status == 0, run.log
    assert run.losses() == pytest.approx(losses_of_one(4, **whole), rel=1e-5)
