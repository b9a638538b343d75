"""What happens in an attempt, as small immutable records; `runner.job_events` adds what happens to its job.

Every event reads as a past fact and travels as one JSON object. These are written by the training child, one object a
line, on its own file descriptor. No I/O.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, Field

from runner.reports import (
    RUNG_WORDS,
    DefectReport,
    ExactMatch,
    FailedRung,
    LoadReceipt,
    PackageVersion,
    PadChoice,
    Phase,
    Record,
    Resolved,
    Rung,
    RunSummary,
    Sample,
    ShareReport,
    TraitLoss,
    TraitMix,
)


class Event(Record):
    """What every event carries."""

    at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    """When it happened, UTC, by the clock of the process that saw it."""


class VersionsReported(Event):
    """`versions_reported`: what is installed, compared with the nearest stack we test."""

    kind: Literal["versions_reported"] = "versions_reported"
    stack: str
    """Name of the nearest stack file, such as `current`."""
    packages: tuple[PackageVersion, ...]
    """transformers, bitsandbytes, peft, torch, accelerate, datasets, trl, in this order."""
    python: str
    """Version of the interpreter."""
    device: str
    """What trains: `cpu (2 threads)`, or the GPU's name and memory."""
    defects: tuple[DefectReport, ...] = ()
    """What is known against the installed versions, each with what we do about it."""


class PhaseStarted(Event):
    """`phase_started`: the attempt has reached its next station."""

    kind: Literal["phase_started"] = "phase_started"
    phase: Phase


class TokenizerLoaded(Event):
    """`tokenizer_loaded`: outside the ladder, because no quantization rung can cure a tokenizer."""

    kind: Literal["tokenizer_loaded"] = "tokenizer_loaded"
    tokenizer_class: str
    vocab_size: int
    """Entries, added tokens included."""
    pad_token: str
    pad_choice: PadChoice
    """Where the pad token came from; `eos` is safe here because masking is by position."""
    workaround: str | None = None
    """The upstream defect that was worked around, None when none was met."""


class ConfigLoaded(Event):
    """`config_loaded`: the model's configuration as an object, before any weight is read."""

    kind: Literal["config_loaded"] = "config_loaded"
    model_type: str
    source: Literal["config.json", "project"]
    """Who decided the model type: the model's own file, or the project where that file says nothing."""
    config_class: str
    architecture: str | None = None
    """First entry of `architectures`, None when the file names none."""
    revision: str | None = None
    """Commit of the hub snapshot, None for a local folder."""


class RungFailed(Event):
    """`rung_failed`: a rung did not load or did not survive its tiny forward and backward pass."""

    kind: Literal["rung_failed"] = "rung_failed"
    failed: FailedRung
    next_rung: Rung | None
    """The rung tried next, None when none is left or the error may not fall."""

    @property
    def announcement(self) -> str:
        """The warning in the words of the original report."""
        reason = self.failed.reason
        match (self.failed.rung, self.next_rung):
            case ("4bit", "8bit"):
                return f"⚠️ 4-bit quantization failed with {reason}, trying 8-bit quantization..."
            case ("8bit", "none"):
                return f"⚠️ 8-bit quantization also failed, trying without quantization... ({reason})"
            case (rung, None):
                return f"⚠️ {RUNG_WORDS[rung]} failed with {reason}"
            case (rung, following):
                return f"⚠️ {RUNG_WORDS[rung]} failed with {reason}, trying {RUNG_WORDS[following]}..."


class ModelLoaded(Event):
    """`model_loaded`: a rung holds: loaded, probed forward and backward, counted."""

    kind: Literal["model_loaded"] = "model_loaded"
    receipt: LoadReceipt

    @property
    def announcement(self) -> str:
        """The success line in the words of the original report."""
        match self.receipt.rung:
            case "none":
                return "✅ Model loaded without quantization, config protected"
            case rung:
                return f"✅ Model loaded with {RUNG_WORDS[rung]}, config protected"


class DataMixed(Event):
    """`data_mixed`: the rows that will be trained on."""

    kind: Literal["data_mixed"] = "data_mixed"
    shares: tuple[ShareReport, ...]
    rows: int
    longest_tokens: int
    """Tokens of the longest row, before truncation."""
    truncated_rows: int
    """Rows cut at `max_length`."""
    dropped_rows: int = 0
    """Rows left out because `max_length` leaves nothing of their answer."""
    duplicate_rows: int = 0
    """Rows trained on that are token for token another row trained on."""
    repeated_rows: int = 0
    """Rows of which one trait more than the first makes use, so that they are trained on once for each."""
    leaked_rows: int = 0
    """Rows that were to be held out but stand, token for token, in training too; not in any held-out loss."""
    seen_prompts: tuple[str, ...] | None = None
    """Those of `evaluation.prompts` that a row trained on asks too; None in an event of an earlier version."""
    warnings: tuple[str, ...] = ()
    """What is wrong with the rows and what to do about it, a sentence or two each."""

    def seen_share(self, dataset_id: int) -> float:
        """Share of a dataset's rows that is trained on, 0 to 1.

        Every trait draws the same rows of a dataset first, so the largest share holds the others.
        """
        shares = (one.rows_used / one.rows_available for one in self.shares if one.dataset_id == dataset_id)
        return max(shares, default=0.0)

    @property
    def traits(self) -> tuple[TraitMix, ...]:
        """Rows and tokens by trait, in the project's order."""
        return TraitMix.of_each(self.shares)


class TrainingStarted(Event):
    """`training_started`: the trainer is built and the first step follows."""

    kind: Literal["training_started"] = "training_started"
    total_steps: int
    resumed_from_step: int = 0
    """Optimizer steps already done by an earlier attempt; 0 for a fresh start."""
    trainable_parameters: int
    settings: tuple[Resolved, ...] = ()
    """Every resolved hyperparameter with its origin."""


class MetricsLogged(Event):
    """`metrics_logged`: one logging step of the trainer."""

    kind: Literal["metrics_logged"] = "metrics_logged"
    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float | None = None
    tokens_per_s: float
    """Input tokens a second since the attempt's first step, padding excluded."""
    eta_s: float
    """Estimated seconds to the last step."""
    peak_bytes: int | None = None
    """Most memory that the process has held so far: PyTorch's allocations on a GPU, its resident set on a CPU."""


class LossEvaluated(Event):
    """`loss_evaluated`: the loss on all held-out rows while training goes on."""

    kind: Literal["loss_evaluated"] = "loss_evaluated"
    step: int
    total_steps: int
    loss: float
    """Mean over all tokens that carry loss, as in `Evaluated` over all traits together."""
    best_step: int | None
    """Step of the lowest loss so far, None while none was a number."""
    best_loss: float
    stops: bool = False
    """Whether training ends here because the loss has not become better for long enough."""


class BatchHalved(Event):
    """`batch_halved`: memory ran out in one of the processes; fewer rows at once, accumulated to as many a step."""

    kind: Literal["batch_halved"] = "batch_halved"
    step: int  # the one that did not fit, 1 for the first
    reason: str
    former_batch_size: int
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    resumed_from_step: int = 0
    """Optimizer steps of the checkpoint that training goes on from; 0 when it begins again."""
    processes: int = 1

    @property
    def announcement(self) -> str:
        """The warning, in the style of the ladder's."""
        rows = self.per_device_train_batch_size * self.gradient_accumulation_steps * self.processes
        where = f", from the checkpoint of step {self.resumed_from_step}" if self.resumed_from_step else ""
        where += f", loading again in {self.processes} processes" if self.processes > 1 else ""
        return (
            f"⚠️ per_device_train_batch_size {self.former_batch_size} ran out of memory at step {self.step}, trying "
            f"{self.per_device_train_batch_size} with gradient_accumulation_steps {self.gradient_accumulation_steps}"
            f"{where}... (still {rows} rows a step)"
        )


class CheckpointSaved(Event):
    """`checkpoint_saved`: a complete checkpoint that another attempt can resume from."""

    kind: Literal["checkpoint_saved"] = "checkpoint_saved"
    step: int
    path: str


class CheckpointChosen(Event):
    """`checkpoint_chosen`: where an attempt of a job that has checkpoints begins; told before its child starts."""

    kind: Literal["checkpoint_chosen"] = "checkpoint_chosen"
    step: int
    """Optimizer steps of the checkpoint that it goes on from, 0 where it begins again."""
    newest_step: int
    """Of the job's newest checkpoint; more than `step` where this host does not see that one."""
    newest_host: str
    """The host that wrote it."""


class Evaluated(Event):
    """`evaluated`: answers, scores and held-out losses, before training and after it."""

    kind: Literal["evaluated"] = "evaluated"
    when: Literal["before", "after"]
    samples: tuple[Sample, ...] = ()
    exact_match: tuple[ExactMatch, ...] = ()
    held_out: tuple[TraitLoss, ...] = ()
    """Loss by trait on rows that nobody trains on; a trait without such rows is missing."""

    @property
    def regressed(self) -> tuple[TraitLoss, ...]:
        """Traits that are worse than before."""
        return tuple(one for one in self.held_out if one.regressed)


class AdapterSaved(Event):
    """`adapter_saved`: written, not yet verified, not yet published."""

    kind: Literal["adapter_saved"] = "adapter_saved"
    path: str
    size_bytes: int


class AdapterVerified(Event):
    """`adapter_verified`: a fresh process loaded it onto the base and got the trained model's logits."""

    kind: Literal["adapter_verified"] = "adapter_verified"
    max_difference: float
    """Largest absolute logit difference to the trained model."""
    base_difference: float
    """Largest absolute logit difference to the base model; greater than 0."""
    duration_s: float


class RunSucceeded(Event):
    """`run_succeeded`: the child's last line; the adapter is verified and waits to be published."""

    kind: Literal["run_succeeded"] = "run_succeeded"
    summary: RunSummary
    adapter_path: str
    """The verified adapter's folder inside the run directory."""


class RunFailed(Event):
    """`run_failed`: the child's last line; a retry of the same job would fail the same way."""

    kind: Literal["run_failed"] = "run_failed"
    code: str
    message: str
    hint: str | None = None


class RunInterrupted(Event):
    """`run_interrupted`: the child's last line; it was asked to stop and left a checkpoint where there was progress."""

    kind: Literal["run_interrupted"] = "run_interrupted"
    step: int
    checkpoint: str | None


ChildEvent = (
    VersionsReported | PhaseStarted | TokenizerLoaded | ConfigLoaded | RungFailed | ModelLoaded | DataMixed
    | TrainingStarted | BatchHalved | MetricsLogged | LossEvaluated | CheckpointSaved | CheckpointChosen | Evaluated
    | AdapterSaved
    | AdapterVerified | RunSucceeded | RunFailed | RunInterrupted
)  # fmt: skip
"""What is written about a running attempt: by its training child, but for `CheckpointChosen`."""
