"""Running out of memory, for real: a limit on the child's memory, and allocations that fail."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from runner.errors import TrainingError
from runner.event_lines import parse_event
from runner.events import BatchHalved, ChildEvent, MetricsLogged, RunFailed, RunSucceeded, TrainingStarted
from runner.hyperparameters import Training
from runner.job_events import AnyEvent
from runner.spec import RunSpec
from runner.training.data.mix import mix_data
from runner.training.loading.protected_load import protected_load
from runner.training.loop.batch_halving import NothingFitsError, as_before, halve, train_within_memory
from runner.training.loop.callbacks import Checkpoints, Progress
from runner.training.loop.checkpoints import Checkpoint, describe_run, newest_checkpoint
from runner.training.loop.lora import add_lora
from runner.training.loop.trainer import AdapterTrainer, build_trainer
from tests.training.too_little_memory import too_little_memory

MakeSpec = Callable[..., RunSpec]
SCRIPT = Path(__file__).parents[1] / "limited_child.py"
HELD_OUT = {"held_out_percentage": 0.0}


@pytest.mark.parametrize(
    ("rows", "batches", "smaller"),
    [
        (8, 1, [(4, 2), (2, 4), (1, 8)]),
        (6, 1, [(3, 2), (1, 6)]),
        (5, 1, [(1, 5)]),
        (10, 1, [(5, 2), (2, 5), (1, 10)]),
        (3, 4, [(1, 12)]),
        (1, 8, []),
    ],
)
def test_a_batch_is_halved_so_that_a_step_keeps_its_rows(
    rows: int, batches: int, smaller: list[tuple[int, int]]
) -> None:
    training: Training | None = Training(per_device_train_batch_size=rows, gradient_accumulation_steps=batches)
    found = []
    while training is not None and (training := halve(training)) is not None:
        found.append((training.per_device_train_batch_size, training.gradient_accumulation_steps))

    assert found == smaller


@pytest.mark.parametrize(("trained_with", "goes_on_with"), [(2, (2, 4)), (8, (4, 2)), (4, (4, 2))])
def test_a_resumed_run_does_not_try_again_what_did_not_fit(
    tmp_path: Path, trained_with: int, goes_on_with: tuple[int, int]
) -> None:
    (tmp_path / "trainer_state.json").write_text(json.dumps({"train_batch_size": trained_with}))
    asked = Training(per_device_train_batch_size=4, gradient_accumulation_steps=2)

    training = as_before(asked, Checkpoint(tmp_path, 3))

    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == goes_on_with
    assert as_before(asked, None) == asked


@pytest.mark.parametrize(("trained_with", "left_to_try", "goes_on_with"), [(None, 2, 2), (8, 1, 1), (2, 4, 2)])
def test_ranks_that_are_started_anew_do_not_try_again_what_did_not_fit(
    tmp_path: Path, trained_with: int | None, left_to_try: int, goes_on_with: int
) -> None:
    (tmp_path / "trainer_state.json").write_text(json.dumps({"train_batch_size": trained_with}))
    checkpoint = Checkpoint(tmp_path, 3) if trained_with is not None else None

    training = as_before(Training(per_device_train_batch_size=8), checkpoint, left_to_try)

    assert training.per_device_train_batch_size == goes_on_with
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 8


# --- allocations that fail -------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A run of a library user, on the base model as it is."""

    events: list[ChildEvent] = field(default_factory=list)
    fitted: Training | None = None

    def losses(self) -> list[tuple[int, float]]:
        return [(event.step, event.loss) for event in self.events if isinstance(event, MetricsLogged)]

    def halvings(self) -> list[tuple[int, int, int]]:
        halved = [event for event in self.events if isinstance(event, BatchHalved)]
        return [(event.step, event.per_device_train_batch_size, event.resumed_from_step) for event in halved]


def _train(spec: RunSpec, models_root: Path, projects_dir: Path, run_dir: Path, *, fails: Any = None) -> Run:
    run = Run()
    training = spec.project.training
    with protected_load(spec, models_root=models_root, emit=lambda _: None) as loaded:
        mix = mix_data(spec, loaded.tokenizer, projects_dir)
        facts = describe_run(spec, mix, loaded.receipt.rung, None)
        model = add_lora(loaded.model, spec.project.lora, training.seed)

        def build(fitting: Training) -> AdapterTrainer:
            return build_trainer(
                model,
                loaded.tokenizer,
                mix,
                fitting,
                output_dir=run_dir / "checkpoints",
                compute_dtype=loaded.receipt.compute_dtype,
                callbacks=[
                    Progress(run.events.append, settings=(), trainable_parameters=1),
                    Checkpoints(run.events.append, facts=facts, keep=2),
                ],
            )

        def go() -> None:
            _, run.fitted = train_within_memory(
                build,
                model,
                training,
                None,
                newest=lambda: newest_checkpoint(run_dir, facts),
                emit=run.events.append,
            )

        if fails is None:
            go()
        else:
            with too_little_memory(model, lambda rows: fails(rows) and model.training):
                go()
    return run


def _after(passes: int, most_rows: int) -> Callable[[int], bool]:
    """From so many forward passes on, no more rows than this fit."""
    seen = 0

    def fails(rows: int) -> bool:
        nonlocal seen
        seen += 1
        return seen > passes and rows > most_rows

    return fails


@pytest.fixture
def halving_spec(make_spec: MakeSpec, tmp_path: Path, addition: list[dict[str, Any]]) -> Callable[..., RunSpec]:
    """Four steps with everything that draws random numbers."""

    def make(**training: Any) -> RunSpec:
        settings = {"max_steps": 4, "per_device_train_batch_size": 6, "learning_rate": 5e-3, "logging_steps": 1}
        return make_spec(
            tmp_path / "p",
            addition[:20],
            training=settings | {"neftune_noise_alpha": 5.0, "save_steps": 100} | training,
            lora={"lora_dropout": 0.1, "modules_to_save": ["lm_head"]},
            # Then the adapter is trained in the very tensors that it begins in.
            quantization={"ladder": ["4bit"], "bnb_4bit_compute_dtype": "float32"},
            evaluation=HELD_OUT,
        )

    return make


def test_a_run_that_begins_again_has_the_losses_of_one_that_had_the_smaller_batch_from_the_start(
    halving_spec: Callable[..., RunSpec], models_root: Path, tmp_path: Path
) -> None:
    small = halving_spec(per_device_train_batch_size=3, gradient_accumulation_steps=2)
    expected = _train(small, models_root, tmp_path / "p", tmp_path / "small")

    run = _train(halving_spec(), models_root, tmp_path / "p", tmp_path / "halved", fails=_after(2, 3))

    assert run.halvings() == [(3, 3, 0)]
    assert run.losses()[2:] == expected.losses()
    assert run.fitted == small.project.training


def test_a_run_that_has_a_checkpoint_goes_on_from_it(
    halving_spec: Callable[..., RunSpec], models_root: Path, tmp_path: Path
) -> None:
    spec = halving_spec(save_steps=2)

    run = _train(spec, models_root, tmp_path / "p", tmp_path / "run", fails=_after(3, 1))

    assert run.halvings() == [(4, 3, 2), (3, 1, 2)]
    starts = [event.resumed_from_step for event in run.events if isinstance(event, TrainingStarted)]
    assert starts == [0, 2, 2]
    assert [step for step, _ in run.losses()] == [1, 2, 3, 3, 4]
    found = newest_checkpoint_of(tmp_path / "run")
    assert (found.step, found.batch_size) == (4, 1)


def newest_checkpoint_of(run_dir: Path) -> Checkpoint:
    paths = (run_dir / "checkpoints").iterdir()
    return max((Checkpoint(path, int(path.name.split("-")[1])) for path in paths), key=lambda one: one.step)


def test_a_row_that_does_not_fit_ends_the_run(
    halving_spec: Callable[..., RunSpec], models_root: Path, tmp_path: Path
) -> None:
    with pytest.raises(NothingFitsError):
        _train(
            halving_spec(per_device_train_batch_size=2), models_root, tmp_path / "p", tmp_path / "r", fails=_after(0, 0)
        )


def test_what_is_no_lack_of_memory_is_not_tried_again(
    halving_spec: Callable[..., RunSpec], models_root: Path, tmp_path: Path
) -> None:
    def fails(_rows: int) -> bool:
        raise TrainingError("something else")

    with pytest.raises(TrainingError, match="something else"):
        _train(halving_spec(), models_root, tmp_path / "p", tmp_path / "r", fails=fails)


# --- a limit on the child --------------------------------------------------------------------------------------------


def _limited(spec: RunSpec, share: float, run_dir: Path, **folders: Path) -> list[AnyEvent]:
    run_dir.mkdir(parents=True)
    (run_dir / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
    environment = dict(os.environ) | {name: str(path) for name, path in folders.items()}
    # A freed tensor goes back to the kernel at once, so that the kernel's account is that of the tensors.
    environment |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, str(SCRIPT), str(run_dir), str(share)]
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        command,
        env=environment | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    events = [parse_event(line) for line in done.stdout.splitlines()]
    assert events, done.stderr
    return events


def _long_rows(make_spec: MakeSpec, projects_dir: Path, *, tokens: int, rows: int, **training: Any) -> RunSpec:
    text = [{"text": f"{number} " + "the job of the model " * tokens} for number in range(8)]
    return make_spec(
        projects_dir,
        text,
        training={
            "max_steps": 1,
            "per_device_train_batch_size": rows,
            "max_length": tokens,
            "logging_steps": 1,
            "save_steps": 100,
            **training,
        },
        quantization={"ladder": ["4bit"]},
        evaluation=HELD_OUT,
    )


@pytest.mark.timeout(300)
def test_a_child_with_too_little_memory_halves_its_batch_and_says_so(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path
) -> None:
    spec = _long_rows(make_spec, tmp_path / "p", tokens=384, rows=4)
    small = _long_rows(make_spec, tmp_path / "p", tokens=384, rows=2, gradient_accumulation_steps=2)
    expected = _train(small, models_root, tmp_path / "p", tmp_path / "small")

    # Between the half that two rows take and the whole that four take.
    events = _limited(spec, 0.75, tmp_path / "run", QLORA_MODELS_ROOT=models_root, QLORA_PROJECTS_DIR=tmp_path / "p")

    end = events[-1]
    assert isinstance(end, RunSucceeded), end
    [halved] = [event for event in events if isinstance(event, BatchHalved)]
    assert halved.announcement == (
        "⚠️ per_device_train_batch_size 4 ran out of memory at step 1, trying 2 with gradient_accumulation_steps 2... "
        "(still 4 rows a step)"
    )
    losses = [(event.step, event.loss) for event in events if isinstance(event, MetricsLogged)]
    assert losses == expected.losses()
    last_start = [event for event in events if isinstance(event, TrainingStarted)][-1]
    told = {setting.name: (setting.value, setting.origin) for setting in last_start.settings}
    assert told["per_device_train_batch_size"] == ("2", "host")
    assert told["gradient_accumulation_steps"] == ("2", "host")
    adapter = Path(end.adapter_path)
    summary = json.loads((adapter / "manifest.json").read_text())["metrics"]["summary"]
    assert (summary["per_device_train_batch_size"], summary["gradient_accumulation_steps"]) == (2, 2)
    assert "A step was 2 rows 2 times: 4 rows at once did not fit into memory." in (adapter / "README.md").read_text()


@pytest.mark.timeout(300)
def test_a_child_that_cannot_hold_one_row_says_what_would_fit(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path
) -> None:
    spec = _long_rows(make_spec, tmp_path / "p", tokens=1024, rows=1)

    end = _limited(spec, 0.5, tmp_path / "run", QLORA_MODELS_ROOT=models_root, QLORA_PROJECTS_DIR=tmp_path / "p")[-1]

    assert isinstance(end, RunFailed)
    assert end.code == "out-of-memory"
    assert end.message.startswith("Not even one row of 1024 tokens at a time fits into memory: a step takes about ")
    assert end.hint is not None
    assert "training.gradient_checkpointing = true (about " in end.hint or "training.max_length = " in end.hint
