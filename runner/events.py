"""What happens to a job, as small immutable records: the whole vocabulary between child, supervisor, store and bot.

Every event reads as a past fact and travels as one JSON object. The training child writes the first group, one object a
line, on its own file descriptor; the store appends the second group in the same step that changes the job's state.
Imports nothing that does I/O.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter

Rung = Literal["4bit", "8bit", "none"]
"""A rung of the quantization ladder: NF4 or FP4, LLM.int8, or unquantized."""

RUNG_WORDS: dict[Rung, str] = {"4bit": "4-bit quantization", "8bit": "8-bit quantization", "none": "no quantization"}


class Phase(StrEnum):
    """The stations of an attempt, in order."""

    VERSIONS = "versions"
    TOKENIZER = "tokenizer"
    CONFIG = "config"
    MODEL = "model"
    DATA = "data"
    BASELINE = "baseline"
    TRAINING = "training"
    EVALUATION = "evaluation"
    SAVING = "saving"
    VERIFYING = "verifying"


class Record(BaseModel):
    """Immutable, strict about its keys, with attribute docstrings as field descriptions."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        protected_namespaces=(),
        # A diverged run has losses that are no numbers; as null, pydantic's default, nobody could read them back.
        ser_json_inf_nan="strings",
    )


class Event(Record):
    """What every event carries."""

    at: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    """When it happened, UTC, by the clock of the process that saw it."""


# --- written by the training child -------------------------------------------------------------------------------


class PackageVersion(Record):
    """One library, installed against tested."""

    name: str
    """Distribution name, such as `transformers`."""
    installed: str | None
    """Installed version, None when it is missing."""
    tested: str | None
    """The version in the nearest stack file, None when that stack does not name it."""
    difference: Literal["same", "patch", "minor", "major", "missing", "untested"]
    """How far installed is from tested."""


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
    notes: tuple[str, ...] = ()
    """Known-bad versions among the installed ones, each with what we do about it."""


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
    pad_choice: Literal["existing", "reserved", "unk", "eos"]
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


class FailedRung(Record):
    """A rung of the ladder that did not hold."""

    rung: Rung
    error_class: str
    reason: str
    """First line of the error, tokens redacted."""


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


class LoadReceipt(Record):
    """What was really loaded, counted on the modules and not taken from a flag."""

    rung: Rung
    """The rung that holds."""
    rung_asked: Rung
    """The first rung of the project's ladder."""
    failed: tuple[FailedRung, ...] = ()
    """Rungs above that did not hold, in the order tried."""
    linear_modules: int
    """Linear modules of the model, whatever their class, `lm_head` included."""
    quantized_modules: int
    """Of these, modules that are Linear4bit (rung 4bit) or Linear8bitLt (rung 8bit)."""
    total_parameters: int
    """Logical parameters of the base model: a 4-bit weight counts its unpacked elements."""
    quantized_parameters: int
    """Of these, parameters that are held quantized."""
    model_bytes: int
    """Bytes of all parameters and buffers as held in memory, quantization state included."""
    compute_dtype: str
    """Such as `bfloat16`."""
    device: str
    load_s: float
    """Seconds from the start of the first rung to the end of the probe of the one that holds."""
    probe_loss: float
    """Loss of the tiny forward pass."""
    probe_grad_norm: float
    """Gradient norm of the tiny backward pass at the embedding output; greater than 0."""
    config_class: str
    guard_interceptions: int = 0
    """How often something assigned a dict over a Config object and was turned away, so far."""


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


class ShareReport(Record):
    """What one dataset of one trait really contributed."""

    trait_type: str
    dataset_id: int
    dataset_name: str
    percentage: float
    rows_available: int
    rows_used: int
    trained_tokens: int
    """Tokens of these rows that carry loss, after truncation."""


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


class Resolved(Record):
    """A setting as it will be used, and who decided it."""

    name: str
    """The PEFT / TRL name."""
    value: str
    origin: Literal["default", "project", "override", "host"]


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


class CheckpointSaved(Event):
    """`checkpoint_saved`: a complete checkpoint that another attempt can resume from."""

    kind: Literal["checkpoint_saved"] = "checkpoint_saved"
    step: int
    path: str


class Sample(Record):
    """One prompt and what the model answered, greedily."""

    prompt: str
    completion: str


class ExactMatch(Record):
    """How many completions of one dataset's prompts are right to the letter."""

    dataset_id: int
    dataset_name: str
    correct: int
    total: int

    @property
    def share(self) -> float:
        """Correct of total, 0 to 1."""
        return self.correct / self.total if self.total else 0.0


class Evaluated(Event):
    """`evaluated`: answers and scores, before training and after it."""

    kind: Literal["evaluated"] = "evaluated"
    when: Literal["before", "after"]
    samples: tuple[Sample, ...] = ()
    exact_match: tuple[ExactMatch, ...] = ()


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


class RunSummary(Record):
    """The outcome of an attempt that trained to its end."""

    rung: Rung
    steps: int
    loss_first: float
    loss_last: float
    train_s: float
    """Seconds in the training loop of this attempt."""
    duration_s: float
    """Seconds of this attempt from the start of the child."""
    guard_interceptions: int
    """Dict assignments over a Config object that were turned away, in the whole run."""


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


# --- written by the store, together with a change of state ---------------------------------------------------------


class JobQueued(Event):
    """`job_queued`: accepted; `position` is 1 for the next to run."""

    kind: Literal["job_queued"] = "job_queued"
    position: int
    pool: str


class JobClaimed(Event):
    """`job_claimed`: a worker has taken it."""

    kind: Literal["job_claimed"] = "job_claimed"
    worker: str
    host: str
    device: str
    attempt: int
    """1 for the first."""


class JobRequeued(Event):
    """`job_requeued`: its attempt ended through no fault of its own; it is back in its place."""

    kind: Literal["job_requeued"] = "job_requeued"
    reason: Literal["host-lost", "worker-stopped"]
    host: str


class StopRequested(Event):
    """`stop_requested`: somebody asked a running job to stop."""

    kind: Literal["stop_requested"] = "stop_requested"
    by: str


class JobSucceeded(Event):
    """`job_succeeded`: the adapter is published."""

    kind: Literal["job_succeeded"] = "job_succeeded"
    summary: RunSummary
    adapter_path: str
    """The published folder on the host."""


class JobFailed(Event):
    """`job_failed`: over, without an adapter."""

    kind: Literal["job_failed"] = "job_failed"
    code: str
    message: str
    hint: str | None = None


class JobCancelled(Event):
    """`job_cancelled`: over, because somebody asked for it."""

    kind: Literal["job_cancelled"] = "job_cancelled"
    by: str
    step: int | None = None
    """Optimizer steps done, None when it never ran."""
    checkpoint: str | None = None
    """The last complete checkpoint on the host."""


ChildEvent = (
    VersionsReported | PhaseStarted | TokenizerLoaded | ConfigLoaded | RungFailed | ModelLoaded | DataMixed
    | TrainingStarted | MetricsLogged | CheckpointSaved | Evaluated | AdapterSaved | AdapterVerified
    | RunSucceeded | RunFailed | RunInterrupted
)  # fmt: skip
"""What a training child may write."""

FinalEvent = JobSucceeded | JobFailed | JobCancelled
"""The last event of a job; exactly one of them ends it."""

AnyEvent = ChildEvent | JobQueued | JobClaimed | JobRequeued | StopRequested | FinalEvent

_ANY_EVENT: TypeAdapter[AnyEvent] = TypeAdapter(Annotated[AnyEvent, Field(discriminator="kind")])


class StoredEvent(Record):
    """An event in a job's history."""

    seq: int
    """1, 2, 3 … without a gap within one job."""
    attempt: int
    """The attempt it belongs to, 0 before the first claim."""
    event: Annotated[AnyEvent, Field(discriminator="kind")]


def parse_event(line: str | bytes) -> AnyEvent:
    """Read one JSON object as an event.

    Raises:
        pydantic.ValidationError: It is not JSON, of no known kind, or has wrong fields.
    """
    return _ANY_EVENT.validate_json(line)
