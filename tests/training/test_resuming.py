"""Stop and resume: exact to the last digit, and refused by name where it would not be."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runner.errors import ResumeMismatchError
from runner.events import ChildEvent, MetricsLogged
from runner.resuming import RunFacts
from runner.spec import RunSpec
from runner.training.data.mix import mix_data
from runner.training.loading.protected_load import protected_load
from runner.training.loop.callbacks import Checkpoints, Progress
from runner.training.loop.checkpoints import describe_run, mark_complete, newest_checkpoint
from runner.training.loop.lora import add_lora
from runner.training.loop.trainer import AdapterTrainer, build_trainer

MakeSpec = Callable[..., RunSpec]
TRAINING = {
    "num_train_epochs": 2.0,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "learning_rate": 5e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
    "logging_steps": 2,
    "save_steps": 3,
    "save_total_limit": 9,
}
LORA = {"lora_dropout": 0.1, "modules_to_save": ["lm_head"]}


@dataclass
class Built:
    """A run that is ready to train."""

    trainer: AdapterTrainer
    facts: RunFacts
    events: list[ChildEvent]

    def losses(self) -> list[tuple[int, float, float]]:
        """Step, loss and learning rate of every report."""
        return [(e.step, e.loss, e.learning_rate) for e in self.events if isinstance(e, MetricsLogged)]


@contextmanager
def _built(spec: RunSpec, models_root: Path, projects_dir: Path, run_dir: Path) -> Iterator[Built]:
    training = spec.project.training
    events: list[ChildEvent] = []
    with protected_load(spec, models_root=models_root, emit=lambda _: None) as loaded:
        mix = mix_data(spec, loaded.tokenizer, projects_dir)
        facts = describe_run(spec, mix, loaded.receipt.rung, None)
        trainer = build_trainer(
            add_lora(loaded.model, spec.project.lora, training.seed),
            loaded.tokenizer,
            mix,
            training,
            output_dir=run_dir / "checkpoints",
            compute_dtype=loaded.receipt.compute_dtype,
            callbacks=[
                Progress(events.append, settings=(), trainable_parameters=1),
                Checkpoints(events.append, facts=facts, keep=training.save_total_limit),
            ],
        )
        yield Built(trainer, facts, events)


@pytest.mark.parametrize(
    ("rung", "more"),
    [
        ("4bit", {"packing": True, "max_length": 40, "per_device_train_batch_size": 1, "neftune_noise_alpha": 5.0}),
        ("8bit", {"lr_scheduler_type": "linear"}),
        ("none", {"save_steps": 5}),
        ("none", {"save_steps": 5, "group_by_length": True}),
    ],
)
def test_a_run_that_was_killed_goes_on_with_the_losses_of_one_that_was_not(  # noqa: PLR0917 - fixtures
    make_spec: MakeSpec,
    models_root: Path,
    tmp_path: Path,
    addition: list[dict[str, Any]],
    rung: str,
    more: dict[str, Any],
) -> None:
    spec = make_spec(
        tmp_path / "p", addition[::5], training=TRAINING | more, lora=LORA, quantization={"ladder": [rung]}
    )
    with _built(spec, models_root, tmp_path / "p", tmp_path / "whole") as whole:
        whole.trainer.train_from(None)
    first = min((tmp_path / "whole" / "checkpoints").iterdir(), key=lambda path: int(path.name.split("-")[1]))
    shutil.copytree(first, tmp_path / "killed" / "checkpoints" / first.name)

    with _built(spec, models_root, tmp_path / "p", tmp_path / "killed") as resumed:
        checkpoint = newest_checkpoint(tmp_path / "killed", resumed.facts)
        assert checkpoint is not None
        assert 0 < checkpoint.step < whole.trainer.state.max_steps
        resumed.trainer.train_from(checkpoint)

    assert resumed.losses() == [report for report in whole.losses() if report[0] > checkpoint.step]
    assert len(resumed.losses()) > 1


def _facts(spec: RunSpec, models_root: Path, projects_dir: Path) -> RunFacts:
    with protected_load(spec, models_root=models_root, emit=lambda _: None) as loaded:
        return describe_run(spec, mix_data(spec, loaded.tokenizer, projects_dir), loaded.receipt.rung, None)


def test_what_is_learned_differs_by_data_and_rung(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-3"
    checkpoint.mkdir(parents=True)
    first = make_spec(tmp_path, addition[:4], training=TRAINING, quantization={"ladder": ["4bit"]})
    mark_complete(checkpoint, _facts(first, models_root, tmp_path))
    other = make_spec(tmp_path, addition[:5], training=TRAINING, quantization={"ladder": ["8bit"]})

    with pytest.raises(ResumeMismatchError) as caught:
        newest_checkpoint(tmp_path / "run", _facts(other, models_root, tmp_path))

    assert caught.value.message == (
        f"{checkpoint} was trained otherwise: rung: 4bit → 8bit; dataset 1: rows-1.jsonl has other content."
    )
    assert caught.value.hint is not None
    assert "start a new job" in caught.value.hint
