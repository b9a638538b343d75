"""Builds TRL's SFTTrainer from a specification, the same on every supported stack."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import transformers
from datasets import Dataset
from packaging.version import Version
from peft.optimizers import create_loraplus_optimizer
from peft.utils import load_peft_weights, set_peft_model_state_dict
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PrinterCallback, TrainerCallback, TrainerState, set_seed
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl.data_utils import pack_dataset
from trl.trainer.sft_trainer import SFTTrainer
from typing_extensions import override

from runner.errors import TrainingError
from runner.hyperparameters import Training
from runner.training import ranks
from runner.training.data.mix import HeldOut, Mix, require_held_out
from runner.training.loop.arguments import refuse_gpu_optimizer, training_arguments
from runner.training.loop.best_checkpoint import judge, stops_early
from runner.training.loop.checkpoints import Checkpoint
from runner.training.loop.equal_shares import EqualShares, fill_up
from runner.training.loop.lean_lora import make_lora_lean
from runner.training.loop.length_groups import LengthGroups
from runner.training.loop.longest_first import LongestFirst
from runner.training.loop.lora import keep_full_precision, settle_precision
from runner.training.loop.loss import add_loss_only_forward
from runner.training.loop.skipping import epoch_kept
from runner.training.loop.watchdog import Watchdog
from runner.training.outcome.held_out import mean_loss, measure_losses
from runner.training.outcome.inference import untouched

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


_SMOOTHS_BY_STEP = Version(transformers.__version__) >= Version("5.15")
"""Whether label smoothing divides by the labels of a whole optimizer step, as the loss without it does."""


class AdapterTrainer(SFTTrainer):
    """TRL's trainer with a loss that makes no logits, and without TRL's model card (`outcome.card` writes one).

    The loss is the same; entropy and token accuracy, which TRL takes from the logits at every step, are not measured.

    Args:
        training: The project's `[training]`.
        arguments: TRL's.
    """

    held_out: Sequence[HeldOut] = ()
    """Rows to evaluate on, by trait."""
    longest_first = False
    """Whether the first steps take the longest rows, as a trial's do."""
    rows_without_loss = 0
    """Rows at the end of the data set that make the shares of several ranks equal."""

    def __init__(self, *, training: Training, **arguments: Any) -> None:
        self._training = training
        with warnings.catch_warnings():
            # TRL 1 warns that it smooths labels in a second forward pass, which this class does without.
            warnings.filterwarnings("ignore", message="`label_smoothing_factor` is deprecated", category=FutureWarning)
            super().__init__(**arguments)
        # TRL has cast what is trained of a quantized model to bfloat16, whatever that model computes in.
        settle_precision(arguments["model"])
        base: Any = arguments["model"].get_base_model()
        self._loss_only = training.loss_type == "nll" and add_loss_only_forward(base, training.label_smoothing_factor)
        if training.label_smoothing_factor and not self._loss_only and not _SMOOTHS_BY_STEP:
            # Then a batch's mean is divided by the number of batches in a step, which would else be added up.
            self.model_accepts_loss_kwargs = False

    @override
    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss; a model whose logits are not plainly those of its output layer computes its own."""
        if return_outputs or not self._loss_only:
            return super().compute_loss(  # type: ignore[no-untyped-call]  # TRL leaves it bare
                model, inputs, return_outputs, num_items_in_batch
            )
        loss = model(**inputs, use_cache=False, num_items_in_batch=num_items_in_batch, loss_only=True).loss
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # The number counts the tokens of every process, and their gradients are averaged.
            loss = loss * self.accelerator.num_processes
        if model.training:
            # Packed rows have no mask: every token is one of theirs.
            tokens = inputs.get("attention_mask", inputs["input_ids"].new_ones(inputs["input_ids"].shape)).sum()
            self._total_train_tokens += int(self.accelerator.gather_for_metrics(tokens).sum())
            self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        return loss

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write nothing; TRL would write a card at every checkpoint."""

    watchdog: Watchdog
    """Set by `build_trainer`."""
    _step_loss: Tensor | None = None
    """Of the optimizer step that is under way."""

    @override
    def training_step(self, *arguments: Any, **options: Any) -> Tensor:
        """Train on a batch, and keep its loss for the watchdog."""
        loss: Tensor = super().training_step(*arguments, **options)  # type: ignore[no-untyped-call]  # left bare
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss
        return loss

    @override
    def _maybe_log_save_evaluate(self, tr_loss: Tensor, grad_norm: Any, *arguments: Any, **options: Any) -> None:
        """Let the watchdog look first, so that a step with bad numbers is neither logged nor saved."""
        loss, self._step_loss = self._step_loss, None
        if loss is not None:  # it is None at the end of an epoch, whose last step has been looked at
            due = self.control.should_log or self.control.should_save
            if ranks.count() > 1:
                # One rank may have no row with loss in a step; what all have together is the step's loss.
                loss = self.accelerator.reduce(loss, reduction="mean")
            self.watchdog.look(self.state.global_step, loss, grad_norm, fp16=bool(self.args.fp16), wait=due)
            if self.watchdog.finding is not None:
                if ranks.count() > 1:
                    # The others may look at this step later; a failure ends them all, a stop would leave them waiting.
                    raise self.watchdog.finding
                self.control.should_log = self.control.should_save = self.control.should_training_stop = True
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, *arguments, **options)

    @property
    def _train_batch_size(self) -> int:
        """Rows at once: always the arguments'. transformers 4.57 takes the checkpoint's, though fewer may fit now."""
        return int(self.args.train_batch_size)

    @_train_batch_size.setter
    def _train_batch_size(self, _rows: int) -> None:
        """Leave it as the arguments say."""

    @override
    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int] | None:
        """Begin with the longest rows where that is asked for."""
        order = self._ordinary_sampler(train_dataset)
        if not self.longest_first or order is None:
            return order
        rows: Any = self.train_dataset
        batch = self.args.per_device_train_batch_size * ranks.count()
        step = batch * self.args.gradient_accumulation_steps
        return LongestFirst(order, list(map(len, rows["input_ids"])), batch=batch, step=step)

    def _ordinary_sampler(self, train_dataset: Dataset | None) -> Sampler[int] | None:
        """Deal rows out to several ranks as `equal_shares` says, and group them as `length_groups` does."""
        seed: Any = self.args.data_seed
        if ranks.count() == 1:
            sampler = super()._get_train_sampler(train_dataset)
            if isinstance(sampler, LengthGroupedSampler):
                return LengthGroups(sampler, seed=seed, epoch=self._epoch)
            return sampler
        filled: Any = self.train_dataset
        rows = len(filled) - self.rows_without_loss
        return EqualShares(rows, self.rows_without_loss, seed=seed, epoch=self._epoch)

    def _epoch(self) -> int:
        """Epochs done."""
        return int(self.state.epoch or 0)

    @override
    def create_optimizer(self, *arguments: Any, **options: Any) -> Any:
        """Let the second matrices of an adapter learn faster where that is asked for."""
        ratio = self._training.loraplus_lr_ratio
        if ratio is None or self.optimizer is not None:
            return super().create_optimizer(*arguments, **options)
        model: Any = self.model
        kind, settings = self.get_optimizer_cls_and_kwargs(self.args, model)
        self.optimizer = create_loraplus_optimizer(
            model, kind, loraplus_lr_ratio=ratio, loraplus_weight_decay=self.args.weight_decay, **settings
        )
        return self.optimizer

    def train_from(self, checkpoint: Checkpoint | None) -> None:
        """Train to the end, from the start or from where a checkpoint stands.

        Args:
            checkpoint: A complete one of the same job; all its steps may be done already.

        Raises:
            TrainingError: The watchdog has found that the numbers cannot be trusted.
        """
        over = checkpoint is not None and (checkpoint.is_last or stops_early(checkpoint.log_history, self._training))
        if checkpoint is None or not over:
            with epoch_kept():
                self.train(resume_from_checkpoint=str(checkpoint.path) if checkpoint else None)
            if self.watchdog.finding is not None:
                raise self.watchdog.finding
            return
        # The trainer looks whether it is done only after a step, so it would train one too many.
        set_peft_model_state_dict(self.model, load_peft_weights(str(checkpoint.path), device="cpu"))
        self.state = TrainerState.load_from_json(str(checkpoint.path / "trainer_state.json"))
        self.callback_handler.on_train_begin(self.args, self.state, self.control)

    @override
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Measure the loss on held-out rows as before and after training, and leave the training as it was.

        Every token weighs the same; the trainer would take the mean of the batches' means. Rank 0 measures for all, so
        that all come to one verdict.
        """
        model: Any = self.model
        metrics = {"eval_loss": ranks.from_first(self._held_out_loss)}
        was_training = model.training
        model.eval()  # TRL takes whatever is logged in inference mode for an evaluation's
        self.log(metrics)
        model.train(was_training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _held_out_loss(self) -> float:
        adapted: Any = self.model
        # The trainer has wrapped the forward pass of `adapted` so that logits come in float32, twice the memory.
        model, tokenizer = adapted.get_base_model(), cast("Any", self.processing_class)
        with untouched(model):
            losses = measure_losses(
                model,
                self.held_out,
                batch_size=self.args.eval_batch_size,
                pad_token_id=tokenizer.pad_token_id,
                before_batch=lambda: self.callback_handler.on_prediction_step(self.args, self.state, self.control),
            )
        return mean_loss(losses)

    def adopt_best(self) -> int | None:
        """Put the adapter of the best checkpoint into the model.

        Returns:
            The optimizer step it is of, None where no evaluation gave a number; the adapter is the last one then.

        Raises:
            TrainingError: The checkpoint is not there any more (`best-checkpoint`).
        """
        step = judge(self.state.log_history).best_step
        if step is None or step == self.state.global_step:
            return step
        path = self.state.best_model_checkpoint
        if path is None or not Path(path).is_dir():
            raise TrainingError(
                f"The checkpoint of step {step}, which has the lowest held-out loss, is not there any more: {path}.",
                hint="Start the job again, or set training.load_best_model_at_end = false.",
                code="best-checkpoint",
            )
        set_peft_model_state_dict(self.model, load_peft_weights(path, device="cpu"))
        return step


def build_trainer(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    mix: Mix,
    training: Training,
    *,
    output_dir: Path,
    compute_dtype: str,
    callbacks: Sequence[TrainerCallback],
    longest_first: bool = False,
) -> AdapterTrainer:
    """Build the trainer; nothing has been trained when it returns.

    Args:
        model: The base model with its adapter.
        tokenizer: Saved with every checkpoint.
        mix: The rows; already truncated and masked, so TRL's own preparation is skipped.
        training: The project's `[training]`.
        output_dir: Where `checkpoint-<step>` folders go.
        compute_dtype: The receipt's; autocast follows it.
        callbacks: Ours, after the trainer's own.
        longest_first: Whether the first steps take the longest rows; for a trial.

    Raises:
        TrainingError: The optimizer needs a GPU (`optimizer`).
        DatasetError: `eval_strategy` asks for an evaluation, and no row is held out.
    """
    on_cpu = model.device.type == "cpu"
    if on_cpu:
        refuse_gpu_optimizer(training)
    rows = Dataset.from_dict({"input_ids": mix.input_ids, "labels": mix.labels})
    if training.packing:
        # Best fit keeps rows whole, and the collator starts positions anew at each, so rows do not see each other.
        rows = pack_dataset(rows, training.max_length, training.packing_strategy)
    filled = fill_up(rows, training.per_device_train_batch_size * ranks.count()) if ranks.count() > 1 else rows
    trainer = AdapterTrainer(
        training=training,
        model=model,
        args=training_arguments(training, output_dir, compute_dtype, on_cpu=on_cpu),
        train_dataset=filled,
        eval_dataset=_held_out_rows(mix) if training.eval_strategy != "no" else None,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    trainer.held_out = mix.held_out
    trainer.longest_first = longest_first
    trainer.rows_without_loss = len(filled) - len(rows)
    trainer.watchdog = Watchdog(training)
    trainer.add_callback(trainer.watchdog)
    trainer.remove_callback(PrinterCallback)
    # TRL casts the adapter of a quantized model to bfloat16; the optimizer is only built when training starts.
    keep_full_precision(model)
    make_lora_lean(model)
    if ranks.count() > 1:
        _share_the_adapter_alone(model)
        # Dropout and noise of its own for each rank; until here all drew the same.
        set_seed(training.seed + ranks.rank())
    return trainer


def _share_the_adapter_alone(model: PeftModel) -> None:
    """Keep DistributedDataParallel from sending around what every rank has loaded itself and what nobody trains.

    Half of it are quantized weights, whose meaning lies in a state beside the tensor that would not travel along.
    """
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    buffers = [name for name, _ in model.named_buffers()]
    wrapped: Any = model
    wrapped._ddp_params_and_buffers_to_ignore = [*frozen, *buffers]  # noqa: SLF001  # torch's name for it


def _held_out_rows(mix: Mix) -> Dataset:
    """What the trainer wants to see before it evaluates; `AdapterTrainer.evaluate` takes the rows by trait."""
    require_held_out(mix)
    return Dataset.from_dict(
        {
            "input_ids": [row for trait in mix.held_out for row in trait.input_ids],
            "labels": [row for trait in mix.held_out for row in trait.labels],
        }
    )
