"""The linear story of one attempt, from the version report to the verified adapter.

`from runner.training.pipeline import train`: the package itself stays empty, so that naming it loads no torch.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import TrainerCallback

from runner.events import AdapterSaved, ChildEvent, Evaluated, PhaseStarted, RunFailed, RunInterrupted, RunSucceeded
from runner.hyperparameters import Training
from runner.provenance import fingerprint_base_model, git_revision
from runner.reports import LoadReceipt, Phase, RunSummary
from runner.resuming import RunFacts
from runner.run_directory import LONGEST_FIRST_MARKER
from runner.spec import RunSpec
from runner.training import ranks
from runner.training.accelerator import choose_device, describe, peak_bytes
from runner.training.attempt_files import earlier_baseline, write_receipt, write_spec
from runner.training.data.chat_template import input_embedding
from runner.training.data.mix import Mix
from runner.training.host_failures import explained_failures
from runner.training.loading.packed_rows import require_rows_apart
from runner.training.loading.protected_load import LoadedModel, load_weights
from runner.training.loop.arguments import resolve_settings
from runner.training.loop.batch_halving import NothingFitsError, as_before, train_within_memory
from runner.training.loop.best_checkpoint import Evaluations, find_best
from runner.training.loop.callbacks import Checkpoints, Progress, StopAtStep
from runner.training.loop.checkpoints import (
    CHECKPOINTS,
    Checkpoint,
    complete_checkpoints,
    describe_run,
    newest_checkpoint,
)
from runner.training.loop.lora import add_lora, settle_precision
from runner.training.loop.memory_advice import one_row_does_not_fit
from runner.training.loop.stall_watch import StallWatch
from runner.training.loop.trainer import AdapterTrainer, build_trainer
from runner.training.loop.training_estimate import TrainingEstimate
from runner.training.memory import free_bytes, release_memory
from runner.training.outcome.adapter import ADAPTER, LOSS_PLOT, plot_loss, save_adapter, write_documents
from runner.training.outcome.card import Outcome
from runner.training.outcome.evaluation import evaluate
from runner.training.outcome.held_out import compare_losses, mean_loss
from runner.training.outcome.verify import PROBE, store_probe
from runner.training.outcome.verifying_process import VerifyingProcess
from runner.training.pins import with_earlier_pins
from runner.training.preparation import prepare
from runner.training.signs_of_life import SignsOfLife
from runner.training.stopping import StopRequestedError, StopSwitch
from runner.versions import report_versions

Emit = Callable[[ChildEvent], None]
OnStall = Callable[[RunFailed], None]


@dataclass(frozen=True, slots=True)
class _Trained:
    """What is left when the model is gone from memory."""

    spec: RunSpec
    """With the commit that a hub model was loaded from."""
    receipt: LoadReceipt
    mix: Mix
    before: Evaluated
    after: Evaluated
    log_history: list[dict[str, Any]]
    steps: int
    planned_steps: int
    trainable_parameters: int
    adapter_step: int | None
    """Whose adapter was taken, None for the last."""
    train_s: float
    training: Training
    """With the batch that fitted into memory."""
    peak_bytes: int
    base_fingerprint: str | None


def train(
    spec: RunSpec,
    run_dir: Path,
    emit: Emit,
    *,
    models_root: Path,
    projects_dir: Path,
    stop: StopSwitch | None = None,
    on_stall: OnStall | None = None,
    signs: SignsOfLife | None = None,
    rows_at_once: int | None = None,
) -> RunSucceeded | RunInterrupted:
    """Train, save and verify an adapter; goes on from the newest complete checkpoint of this job's attempts.

    Args:
        spec: What to do, resolved.
        run_dir: The attempt's folder; made if missing.
        emit: Gets every event but the last, which is returned.
        models_root: Where local base models lie on this host.
        projects_dir: The folder that data paths are relative to.
        stop: Set it to end the run at its next step boundary with a checkpoint.
        on_stall: Called from another thread when training does not move for `training.step_timeout_s`; has to end the
            process. Without it nobody watches.
        signs: Of all ranks, where several processes train.
        rows_at_once: The most that ranks before this one left to try, None where memory has not run out.

    Returns:
        `run_succeeded` when `run_dir/adapter` is verified, `run_interrupted` when the switch was set before.

    Raises:
        TrainingError: The attempt cannot go on; its subclass and code say who has to act.
        BatchTooLargeError: Memory ran out in training on one of several ranks; all have to be started anew.
    """
    started = time.monotonic()
    stop = stop or StopSwitch()
    run_dir.mkdir(parents=True, exist_ok=True)
    spec = with_earlier_pins(spec, run_dir)
    write_spec(run_dir, spec)
    try:
        with VerifyingProcess(run_dir, models_root) as verifying:
            emit(PhaseStarted(phase=Phase.VERSIONS))
            times = f"{ranks.count()} x " if ranks.count() > 1 else ""
            versions = report_versions(times + describe(choose_device()))
            emit(versions)
            trained = _train(
                spec,
                run_dir,
                emit,
                models_root=models_root,
                projects_dir=projects_dir,
                stop=stop,
                verifying=verifying,
                on_stall=on_stall,
                signs=signs,
                rows_at_once=rows_at_once,
            )
            assert trained is not None  # noqa: S101  # only ranks other than the first come back without
            emit(PhaseStarted(phase=Phase.VERIFYING))
            release_memory()
            # On a CPU all ranks share the memory that the base model is loaded into once more.
            ranks.wait_for_all()
            verifying.begin()
            plot_loss(
                trained.log_history,
                run_dir / LOSS_PLOT,
                f"{trained.spec.project.name} on {trained.spec.project.base_model}",
                base_loss=mean_loss(trained.before.held_out) if trained.before.held_out else None,
                adapter_step=trained.adapter_step,
            )
            revision = git_revision(projects_dir)
            verified = verifying.result(stop)
            emit(verified)
    except StopRequestedError:
        found = complete_checkpoints(run_dir)
        return RunInterrupted(step=found[-1].step if found else 0, checkpoint=str(found[-1].path) if found else None)
    losses = [record["loss"] for record in trained.log_history if "loss" in record]
    summary = RunSummary(
        rung=trained.receipt.rung,
        steps=trained.steps,
        loss_first=losses[0],
        loss_last=losses[-1],
        adapter_step=trained.adapter_step,
        best=find_best(trained.log_history),
        stopped_early_of=trained.planned_steps if trained.steps < trained.planned_steps else None,
        train_s=trained.train_s,
        duration_s=time.monotonic() - started,
        guard_interceptions=trained.receipt.guard_interceptions,
        trainable_parameters=trained.trainable_parameters,
        per_device_train_batch_size=trained.training.per_device_train_batch_size,
        gradient_accumulation_steps=trained.training.gradient_accumulation_steps,
        peak_bytes=trained.peak_bytes,
    )
    outcome = Outcome(
        spec=trained.spec,
        versions=versions,
        receipt=trained.receipt,
        mix=trained.mix,
        before=trained.before,
        after=trained.after,
        verified=verified,
        summary=summary,
        run=f"{run_dir.absolute().parent.name}/{run_dir.name}",
        git_revision=revision,
        base_fingerprint=trained.base_fingerprint,
        settings=resolve_settings(
            trained.spec, trained.receipt.compute_dtype, trained.receipt.device, fitting=trained.training
        ),
    )
    write_documents(outcome, run_dir / ADAPTER)
    shutil.copyfile(run_dir / LOSS_PLOT, run_dir / ADAPTER / LOSS_PLOT)
    return RunSucceeded(summary=summary, adapter_path=str(run_dir / ADAPTER))


def assist(
    spec: RunSpec,
    run_dir: Path,
    *,
    models_root: Path,
    projects_dir: Path,
    on_stall: OnStall | None = None,
    signs: SignsOfLife | None = None,
    rows_at_once: int | None = None,
) -> None:
    """Do the part of a rank other than the first: load and train beside it, and write nothing. Arguments as `train`."""
    stop = StopSwitch()
    with VerifyingProcess(run_dir, models_root) as verifying:
        _train(
            spec,
            run_dir,
            lambda _: None,
            models_root=models_root,
            projects_dir=projects_dir,
            stop=stop,
            verifying=verifying,
            on_stall=on_stall,
            signs=signs,
            rows_at_once=rows_at_once,
        )
    release_memory()
    ranks.wait_for_all()


def _train(
    spec: RunSpec,
    run_dir: Path,
    emit: Emit,
    *,
    models_root: Path,
    projects_dir: Path,
    stop: StopSwitch,
    verifying: VerifyingProcess,
    on_stall: OnStall | None,
    signs: SignsOfLife | None,
    rows_at_once: int | None,
) -> _Trained | None:
    """Load, train, evaluate and save; the model is gone from memory when this returns.

    Returns:
        None for a rank other than the first, whose part ends with the training.
    """
    with explained_failures(), ExitStack() as stack:
        prepared = prepare(spec, models_root=models_root, projects_dir=projects_dir, emit=emit, stop=stop)
        spec = prepared.spec
        project, training = spec.project, spec.project.training
        write_spec(run_dir, spec)

        loaded = stack.enter_context(load_weights(spec, prepared.opened, emit=emit, stop=stop))
        tokenizer, revision, folder = loaded.tokenizer, loaded.source.revision, loaded.source.folder
        write_receipt(run_dir, loaded.receipt)
        if training.packing and training.packing_strategy != "wrapped":
            require_rows_apart(loaded.model, getattr(torch, loaded.receipt.compute_dtype))
        stop.raise_if_set()
        prepared = prepared.with_embedding(input_embedding(loaded.model), emit)
        mix, questions = prepared.mix, prepared.questions
        base_fingerprint = ranks.from_first(lambda: fingerprint_base_model(folder)) if revision is None else None
        facts = describe_run(spec, mix, loaded.receipt.rung, base_fingerprint)
        ranks.require_same(facts.tokens, "rows")
        resume = ranks.from_first(lambda: newest_checkpoint(run_dir, facts))

        begun = resume is not None or rows_at_once is not None
        asked = questions.prompts, {table.dataset_id: len(table.completions) for table in questions.tables}
        before = ranks.from_first(lambda: earlier_baseline(run_dir, loaded.receipt.rung, *asked) if begun else None)
        if before is None:
            emit(PhaseStarted(phase=Phase.BASELINE))
            before = ranks.from_first(
                lambda: evaluate(
                    loaded.model,
                    tokenizer,
                    questions,
                    when="before",
                    stop=stop,
                    held_out=mix.held_out,
                    batch_size=training.eval_batch_size,
                )
            )
            emit(before)
        stop.raise_if_set()

        emit(PhaseStarted(phase=Phase.TRAINING))
        model = add_lora(loaded.model, project.lora, training.seed)
        training_started = time.monotonic()
        with StallWatch(training.step_timeout_s, on_stall, signs) as watch:
            trainer, training = _train_adapter(
                model,
                spec,
                loaded,
                mix,
                run_dir=run_dir,
                facts=facts,
                resume=resume,
                rows_at_once=rows_at_once,
                emit=emit,
                callbacks=[StopAtStep(stop), watch],
            )
        train_s = time.monotonic() - training_started
        stop.raise_if_set()
        if not ranks.is_first():
            return None
        adapter_step = trainer.adopt_best() if training.load_best_model_at_end else None

        verifying.start()
        emit(PhaseStarted(phase=Phase.EVALUATION))
        # The trainer has wrapped the forward pass in autocast, which nobody who loads the adapter will have.
        model = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        settle_precision(model)
        after = evaluate(
            model,
            tokenizer,
            questions,
            when="after",
            stop=stop,
            held_out=mix.held_out,
            batch_size=training.eval_batch_size,
        )
        after = after.model_copy(update={"held_out": compare_losses(before.held_out, after.held_out)})
        emit(after)

        emit(PhaseStarted(phase=Phase.SAVING))
        store_probe(model, mix.input_ids, run_dir / PROBE)
        size_bytes = save_adapter(model, tokenizer, run_dir / ADAPTER, base_model=project.base_model, revision=revision)
        emit(AdapterSaved(path=str(run_dir / ADAPTER), size_bytes=size_bytes))
        receipt = loaded.receipt.model_copy(update={"guard_interceptions": loaded.guard.interceptions})
        write_receipt(run_dir, receipt)
        return _Trained(
            spec=spec,
            receipt=receipt,
            mix=mix,
            before=before,
            after=after,
            log_history=trainer.state.log_history,
            steps=trainer.state.global_step,
            planned_steps=trainer.state.max_steps,
            adapter_step=adapter_step,
            trainable_parameters=sum(one.numel() for one in model.parameters() if one.requires_grad),
            train_s=train_s,
            base_fingerprint=base_fingerprint,
            training=training,
            peak_bytes=peak_bytes(loaded.model.device),
        )


def _train_adapter(
    model: PeftModel,
    spec: RunSpec,
    loaded: LoadedModel,
    mix: Mix,
    *,
    run_dir: Path,
    facts: RunFacts,
    resume: Checkpoint | None,
    rows_at_once: int | None,
    emit: Emit,
    callbacks: Sequence[TrainerCallback],
) -> tuple[AdapterTrainer, Training]:
    """Train to the end or to a stop, in batches that fit into memory; returns the settings that did."""
    project, receipt = spec.project, loaded.receipt
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)

    def build(training: Training) -> AdapterTrainer:
        settings = resolve_settings(spec, receipt.compute_dtype, receipt.device, fitting=training)
        return build_trainer(
            model,
            loaded.tokenizer,
            mix,
            training,
            output_dir=run_dir / CHECKPOINTS,
            compute_dtype=receipt.compute_dtype,
            callbacks=[
                Progress(emit, settings=settings, trainable_parameters=trainable),
                Checkpoints(emit, facts=facts, keep=training.save_total_limit),
                *callbacks,
                *([Evaluations(emit, training)] if training.eval_strategy != "no" else []),
            ],
            longest_first=(run_dir / LONGEST_FIRST_MARKER).exists(),
        )

    try:
        begin = as_before(project.training, resume, rows_at_once)
        return train_within_memory(
            build, model, begin, resume, newest=lambda: newest_checkpoint(run_dir, facts), emit=emit
        )
    except NothingFitsError as error:
        dtype, room = getattr(torch, receipt.compute_dtype), free_bytes(model.device) or 0
        base, config = loaded.source, loaded.config
        estimate = TrainingEstimate(base, config, project, mix, compute_dtype=dtype, device=model.device)
        raise one_row_does_not_fit(estimate, project, mix, receipt.rung, room=room) from error
