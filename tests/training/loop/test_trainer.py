from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.version import Version
from transformers import AutoConfig, AutoModelForCausalLM, TrainerCallback, TrainerControl, TrainerState

from runner.errors import TargetModulesError, TrainingError
from runner.events import CheckpointSaved, ChildEvent, MetricsLogged, TrainingStarted
from runner.hyperparameters import Lora, Training
from runner.resuming import RunFacts, read_facts
from runner.spec import RunSpec
from runner.training.data.mix import Mix, mix_data
from runner.training.loading.probe import probe
from runner.training.loading.protected_load import LoadedModel, protected_load
from runner.training.loop import trainer as trainer_module
from runner.training.loop.arguments import resolve_settings, training_arguments
from runner.training.loop.callbacks import Checkpoints, Progress, StopAtStep
from runner.training.loop.lora import add_lora
from runner.training.loop.trainer import AdapterTrainer, build_trainer
from runner.training.loop.watchdog import Watchdog
from runner.training.outcome.evaluation import evaluate, prepare_questions
from runner.training.stopping import StopSwitch

MakeSpec = Callable[..., RunSpec]
Emit = Callable[[ChildEvent], None]
SHORT = {"max_steps": 4, "logging_steps": 1, "per_device_train_batch_size": 4, "learning_rate": 2e-3}
FACTS = RunFacts(spec={}, rung="none", revision=None, base_fingerprint=None, quantization={}, datasets={}, tokens="")
LORA = {"target_modules": "all-linear", "modules_to_save": ["lm_head"]}


def _ignore(_event: ChildEvent) -> None:
    pass


@contextmanager
def _trainer(
    spec: RunSpec,
    models_root: Path,
    folder: Path,
    *,
    emit: Emit = _ignore,
    callbacks: tuple[TrainerCallback, ...] = (),
    pad_is_end: bool = False,
) -> Iterator[tuple[AdapterTrainer, LoadedModel, Mix]]:
    training = spec.project.training
    with protected_load(spec, models_root=models_root, emit=_ignore) as loaded:
        if pad_is_end:
            loaded.tokenizer.pad_token = loaded.tokenizer.eos_token
        mix = mix_data(spec, loaded.tokenizer, folder)
        model = add_lora(loaded.model, spec.project.lora, training.seed)
        trainer = build_trainer(
            model,
            loaded.tokenizer,
            mix,
            training,
            output_dir=folder / "checkpoints",
            compute_dtype=loaded.receipt.compute_dtype,
            callbacks=[Progress(emit, settings=(), trainable_parameters=1), *callbacks],
        )
        yield trainer, loaded, mix


@pytest.fixture(scope="module")
def bare_model(tiny_model: Path) -> Any:
    """The demo's base model without weights, for what only looks at its modules."""
    config = AutoConfig.from_pretrained(tiny_model)
    return AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # transformers leaves it bare


def _losses(trainer: AdapterTrainer) -> list[float]:
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


class _EvaluateInBetween(TrainerCallback):
    """Asks the model after every second step, as samples in mid-training would."""

    def __init__(self, ask: Callable[[Any], None]) -> None:
        self._ask = ask

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002  # the trainer's
        if state.global_step % 2 == 0:
            kwargs["model"].train()
            self._ask(kwargs["model"])
            assert kwargs["model"].training


@pytest.mark.parametrize("rung", ["4bit", "8bit", "none"])
def test_evaluations_and_probes_in_mid_training_leave_the_loss_curve_as_it_is(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, addition: list[dict[str, Any]], rung: str
) -> None:
    evaluation = {"prompts": ["What is 3 + 4?"], "exact_match": [1], "max_new_tokens": 4}
    # Dropout draws random numbers at every step, so a disturbed generator shows at once.
    spec = make_spec(
        tmp_path,
        addition[:20],
        training=SHORT,
        lora=LORA | {"lora_dropout": 0.1},
        evaluation=evaluation,
        quantization={"ladder": [rung]},
    )
    with _trainer(spec, models_root, tmp_path) as (trainer, _, _):
        trainer.train()
        undisturbed = _losses(trainer)

    asked, asked_more = [], []
    with _trainer(spec, models_root, tmp_path) as (trainer, loaded, _):
        questions = prepare_questions(spec, loaded.tokenizer, tmp_path, as_chat=False)

        def ask(model: Any) -> None:
            asked.append(evaluate(model, loaded.tokenizer, questions, when="after", stop=StopSwitch()))
            asked_more.append(probe(model, getattr(torch, loaded.receipt.compute_dtype)))

        ask(trainer.accelerator.unwrap_model(trainer.model))
        trainer.add_callback(_EvaluateInBetween(ask))
        trainer.train()
        disturbed = _losses(trainer)

    assert len(asked) == len(asked_more) == 3
    assert asked[0].exact_match[0].total == 20
    assert disturbed == undisturbed
    assert len(undisturbed) == 4


def test_the_end_is_trained_where_the_pad_token_is_the_end_token(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path
) -> None:
    rows = [
        {"prompt": "What is 3 + 4?", "completion": "7"},
        {"prompt": "Who are you, and who made you?", "completion": "A"},
    ]
    spec = make_spec(tmp_path, rows, training=SHORT, quantization={"ladder": ["none"]})

    with _trainer(spec, models_root, tmp_path, pad_is_end=True) as (trainer, loaded, _):
        batch = next(iter(trainer.get_train_dataloader()))

    end = loaded.tokenizer.eos_token_id
    shown = batch["attention_mask"].bool()
    assert not shown.all(), "rows of two lengths must be padded for this test to mean something"
    assert (batch["input_ids"][~shown] == end).all()
    assert (batch["labels"][~shown] == -100).all()
    last = shown.sum(dim=1) - 1
    assert (batch["labels"][torch.arange(len(last)), last] == end).all()
    assert ((batch["labels"] != -100).sum(dim=1) == 2).all()


def test_packed_rows_do_not_see_each_other(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    training = SHORT | {"max_steps": 1, "max_length": 64, "per_device_train_batch_size": 4, "learning_rate": 1e-9}
    quantization = {"ladder": ["none"]}
    losses = {}
    for packing in (False, True):
        folder = tmp_path / str(packing)
        spec = make_spec(folder, addition[:4], training=training | {"packing": packing}, quantization=quantization)
        with _trainer(spec, models_root, folder) as (trainer, _, _):
            trainer.train()
            losses[packing] = _losses(trainer)[0]
            assert trainer.num_examples(trainer.get_train_dataloader()) == (1 if packing else 4)

    # All four rows are one batch either way; the difference is that of bfloat16 kernels with other shapes.
    assert losses[True] == pytest.approx(losses[False], rel=0.01)


def test_what_is_trained_is_held_in_full_precision(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    spec = make_spec(tmp_path, addition, training=SHORT, lora=LORA, quantization={"ladder": ["4bit"]})

    with _trainer(spec, models_root, tmp_path) as (trainer, _, _):
        trained = {
            name: p.dtype
            for name, p in trainer.accelerator.unwrap_model(trainer.model).named_parameters()
            if p.requires_grad
        }

    assert {name.rsplit(".", 3)[-3] for name in trained} == {"lora_A", "lora_B", "modules_to_save"}
    assert set(trained.values()) == {torch.float32}


@pytest.mark.parametrize("rung", ["4bit", "8bit"])
def test_recomputing_activations_changes_memory_and_not_the_loss(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, addition: list[dict[str, Any]], rung: str
) -> None:
    losses, passes = [], []
    for checkpointing in (False, True):
        training = SHORT | {"max_steps": 2, "gradient_checkpointing": checkpointing}
        spec = make_spec(tmp_path, addition, training=training, quantization={"ladder": [rung]})
        with _trainer(spec, models_root, tmp_path) as (trainer, loaded, _):
            layer: Any = loaded.model.get_submodule("model.layers.0.self_attn")
            ran: list[None] = []
            layer.register_forward_hook(lambda *_, ran=ran: ran.append(None))
            trainer.train()
            losses.append(_losses(trainer))
            passes.append(len(ran))

    assert passes == [2, 4]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@pytest.mark.parametrize("loss_only", [True, False])
def test_smoothed_labels_teach_the_same_however_a_step_is_divided(  # noqa: PLR0917 - fixtures
    make_spec: MakeSpec,
    models_root: Path,
    tmp_path: Path,
    addition: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    loss_only: bool,
) -> None:
    if not loss_only:
        monkeypatch.setattr(trainer_module, "add_loss_only_forward", lambda *_: False)
    losses = []
    for rows in (4, 2):
        batches = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": 4 // rows, "max_steps": 2}
        spec = make_spec(
            tmp_path,
            addition,
            training=SHORT | batches | {"label_smoothing_factor": 0.1},
            quantization={"ladder": ["none"]},
        )
        with _trainer(spec, models_root, tmp_path) as (trainer, _, _):
            trainer.train()
            losses.append(_losses(trainer))

    # Without our loss an older stack averages the means of batches of unequal length.
    assert losses[1] == pytest.approx(losses[0], rel=1e-3 if loss_only else 0.1)


def test_an_optimizer_of_bitsandbytes_trains_or_is_refused_in_words(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    spec = make_spec(tmp_path, addition[:4], training=SHORT | {"optim": "adamw_8bit"}, lora=LORA)

    if Version(version("bitsandbytes")) < Version("0.50") and not torch.cuda.is_available():
        with pytest.raises(TrainingError, match="needs a GPU"), _trainer(spec, models_root, tmp_path):
            pass
        return
    with _trainer(spec, models_root, tmp_path) as (trainer, _, _):
        trainer.train()

    assert _losses(trainer)[-1] < _losses(trainer)[0]


@pytest.mark.parametrize(("warmup_steps", "steps"), [(2.0, 2), (0.5, 10), (0.0, 0)])
def test_warmup_is_a_number_or_a_share_of_steps(tmp_path: Path, warmup_steps: float, steps: int) -> None:
    arguments = training_arguments(Training(warmup_steps=warmup_steps), tmp_path, "float32", on_cpu=True)

    assert arguments.get_warmup_steps(20) == steps


def test_progress_reports_the_start_the_first_and_the_last_step(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    events: list[ChildEvent] = []
    spec = make_spec(tmp_path, addition, training=SHORT | {"logging_steps": 3}, quantization={"ladder": ["none"]})

    with _trainer(spec, models_root, tmp_path, emit=events.append) as (trainer, _, _):
        trainer.train()

    assert isinstance(events[0], TrainingStarted)
    assert (events[0].total_steps, events[0].resumed_from_step) == (4, 0)
    metrics = [event for event in events if isinstance(event, MetricsLogged)]
    assert [event.step for event in metrics] == [1, 3, 4]
    assert metrics[-1].eta_s == 0
    assert all(event.tokens_per_s > 0 and event.grad_norm for event in metrics)


def test_checkpoints_are_complete_and_old_ones_go(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    events: list[ChildEvent] = []
    spec = make_spec(tmp_path, addition, training=SHORT | {"save_steps": 1}, quantization={"ladder": ["none"]})
    keeper = Checkpoints(events.append, facts=FACTS, keep=2)

    with _trainer(spec, models_root, tmp_path, callbacks=(keeper,)) as (trainer, _, _):
        trainer.train()

    assert [event.step for event in events if isinstance(event, CheckpointSaved)] == [1, 2, 3, 4]
    markers = sorted((tmp_path / "checkpoints").glob("checkpoint-*/complete"))
    assert [(path.parent.name, read_facts(path)) for path in markers] == [
        ("checkpoint-3", FACTS),
        ("checkpoint-4", FACTS),
    ]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_a_stop_ends_training_at_the_next_step_with_a_checkpoint(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    stop = StopSwitch()
    saved: list[ChildEvent] = []

    def stop_at_two(event: ChildEvent) -> None:
        if isinstance(event, MetricsLogged) and event.step == 2:
            stop.set()
            stop.set()

    spec = make_spec(tmp_path, addition, training=SHORT | {"max_steps": 50}, quantization={"ladder": ["none"]})
    keeper = Checkpoints(saved.append, facts=FACTS, keep=2)
    with _trainer(spec, models_root, tmp_path, emit=stop_at_two, callbacks=(keeper, StopAtStep(stop))) as (
        trainer,
        _,
        _,
    ):
        trainer.train()

    assert trainer.state.global_step == 3
    assert [event.step for event in saved if isinstance(event, CheckpointSaved)] == [3]


def test_a_step_that_the_scaler_of_float16_leaves_out_does_not_end_the_run(tmp_path: Path) -> None:
    events: list[ChildEvent] = []
    progress = Progress(events.append, settings=(), trainable_parameters=1)
    arguments = training_arguments(Training(), tmp_path, "float32", on_cpu=True)
    state, control = TrainerState(global_step=1, max_steps=2), TrainerControl()
    logs = {"loss": 2.0, "grad_norm": float("nan"), "learning_rate": 1e-3, "num_tokens": 9.0}
    progress.on_step_begin(arguments, state, control)
    watchdog = Watchdog(Training())
    loss, norm = torch.tensor(2.0), torch.tensor(float("nan"))
    with pytest.raises(TrainingError):
        watchdog.look(1, loss, norm, fp16=False, wait=True)

    arguments.fp16 = True
    watchdog.look(1, loss, norm, fp16=True, wait=True)
    progress.on_log(arguments, state, control, logs)

    assert [(event.loss, event.grad_norm) for event in events if isinstance(event, MetricsLogged)] == [(2.0, None)]
    with pytest.raises(TrainingError):
        watchdog.look(2, norm, norm, fp16=True, wait=True)


def test_one_process_trains_on_one_gpu_however_many_it_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)

    arguments = training_arguments(Training(per_device_train_batch_size=3), tmp_path, "float32", on_cpu=False)

    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 3)


def test_an_adapter_that_gets_no_gradient_ends_the_run(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    spec = make_spec(tmp_path, addition, training=SHORT, quantization={"ladder": ["none"]})

    with _trainer(spec, models_root, tmp_path) as (trainer, _, _):
        for name, parameter in trainer.accelerator.unwrap_model(trainer.model).named_parameters():
            if "lora_A" in name:
                parameter.data.zero_()
        with pytest.raises(TrainingError) as caught:
            trainer.train()

    assert caught.value.code == "no-gradient"


@pytest.mark.parametrize(
    ("lora", "message", "hint"),
    [
        ({"target_modules": ["q_proj", "W_pack"]}, "'W_pack'", "q_proj"),
        ({"target_modules": "nothing.*"}, "'nothing.*'", "all-linear"),
        ({"target_modules": ["lm_head"]}, "output layer", "modules_to_save"),
        ({"modules_to_save": ["score"]}, "'score'", "lm_head"),
    ],
)
def test_modules_that_the_model_does_not_have_are_named_with_those_it_has(
    bare_model: Any, lora: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(TargetModulesError) as caught:
        add_lora(bare_model, Lora.model_validate(lora), seed=42)

    assert message in caught.value.message
    assert caught.value.hint is not None
    assert hint in caught.value.hint


def test_every_setting_is_listed_with_who_decided_it(make_spec: MakeSpec, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, [], training={"learning_rate": 1e-3, "seed": 7}).model_copy(
        update={"stated": ("training.learning_rate", "training.seed"), "overrides": {"training.seed": "7"}}
    )

    settings = {setting.name: (setting.value, setting.origin) for setting in resolve_settings(spec, "bfloat16", "cpu")}

    assert settings["learning_rate"] == ("0.001", "project")
    assert settings["seed"] == ("7", "override")
    assert settings["r"] == ("16", "default")
    assert settings["ladder"] == ("4bit, 8bit, none", "default")
    assert settings["neftune_noise_alpha"] == ("none", "default")
    assert settings["packing"] == ("false", "default")
    assert settings["compute_dtype"] == ("bfloat16", "host")
