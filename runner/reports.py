"""What events and job records are made of: the ladder's rungs, and the figures that an attempt reports. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Rung = Literal["4bit", "8bit", "none"]
"""A rung of the quantization ladder: NF4 or FP4, LLM.int8, or unquantized."""

RUNG_WORDS: dict[Rung, str] = {"4bit": "4-bit quantization", "8bit": "8-bit quantization", "none": "no quantization"}


PadChoice = Literal["existing", "reserved", "unk", "eos"]
"""Where a pad token came from: the tokenizer's own, a reserved one, the unknown token, or the end token."""

CLEARLY = 0.05
"""Share by which a held-out loss must be lower for its step to be worth naming."""

ESCAPED_SHARE_LIMIT = 0.1
"""From this share of escaped parameters on, a quantized model is warned about."""


class Phase(StrEnum):
    """The stations of an attempt, in order."""

    VERSIONS = "versions"
    TOKENIZER = "tokenizer"
    CONFIG = "config"
    DATA = "data"
    MODEL = "model"
    BASELINE = "baseline"
    TRAINING = "training"
    EVALUATION = "evaluation"
    SAVING = "saving"
    VERIFYING = "verifying"


class Record(BaseModel):
    """Immutable, strict about its keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        protected_namespaces=(),
        defer_build=True,  # a process builds only what it uses: half of the bot's import time
        # A diverged run has losses that are no numbers; as null, pydantic's default, nobody could read them back.
        ser_json_inf_nan="strings",
    )


Difference = Literal["same", "patch", "minor", "major", "missing", "untested"]
"""How far an installed version is from a tested one; untested where a stack does not name the library."""

Severity = Literal["informative", "worked-around", "cannot-work"]


class TestedVersion(Record):
    """What one of our stacks has of a library."""

    stack: str
    tested: str | None
    difference: Difference


class PackageVersion(Record):
    """One library, installed against tested."""

    name: str
    """Distribution name, such as `transformers`."""
    installed: str | None
    """Installed version, None when it is missing."""
    tested: str | None
    """The version in the nearest stack file, None when that stack does not name it."""
    difference: Difference
    """How far installed is from tested."""
    stacks: tuple[TestedVersion, ...]
    """The same against every stack, the nearest first."""


class DefectReport(Record):
    """Something known against the installed versions."""

    code: str
    """Kebab-case, for machines."""
    severity: Severity
    affected: str
    """The versions that have it, such as `transformers ≥ 5.0.0 with peft < 0.18.0`."""
    cause: str
    remedy: str
    """What we do about it."""
    url: str = Field(pattern=r"^https://[\w./#-]+$")
    """Where upstream has it written down."""


class FailedRung(Record):
    """A rung of the ladder that did not hold."""

    rung: Rung
    error_class: str
    reason: str
    """First line of the error, tokens redacted."""
    failure_class: str = "unknown"
    """Its line in the table of failures (`runner.training.loading.failures`), such as `weight-shape`."""
    meaning: str = ""
    """What that line tells people."""
    held_bytes: int | None = None
    """Bytes that were still held once the rung was given up, above what was held before it: about nothing. None where
    nobody knows."""

    def is_told_by(self, other: FailedRung) -> bool:
        """Whether another record tells the same to people: the bytes differ from try to try."""
        return (self.rung, self.error_class, self.reason) == (other.rung, other.error_class, other.reason)


class UnquantizedPart(Record):
    """Weights of one name, over all layers, that a quantized model holds in floating point."""

    name: str
    """Such as `model.layers.*.mlp.experts.gate_up_proj`, or the kind where there is no one name."""
    kind: Literal["embeddings", "output layer", "norms and biases", "escaped"]
    """Why: `escaped` weights should have been quantized, and no version of the libraries does it."""
    tensors: int
    parameters: int


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
    unquantized: tuple[UnquantizedPart, ...] = ()
    """What a quantized model still holds in floating point, largest first; empty on the unquantized rung."""
    stored_quantization: str | None = None
    """How the base model's files are quantized already, such as `bitsandbytes, 4-bit`; None where they are not."""
    model_bytes: int
    """Bytes of all parameters and buffers as held in memory, quantization state included."""
    load_peak_bytes: int | None = None
    """Most that loading and probing this rung took, above what the process held before; None where nobody knows."""
    steady_bytes: int | None = None
    """What it still took once loaded and probed."""
    memory_method: str = ""
    """How both were measured."""
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
    config_left_out: tuple[str, ...] = ()
    """Keys of config.json that transformers cannot read as they stand; whoever loads the model leaves them out, too."""
    revision: str | None = None
    """Commit of the hub snapshot, None for a local folder."""
    tokenizer_class: str | None = None
    pad_token: str | None = None
    pad_choice: PadChoice | None = None
    """Where the pad token came from."""
    guard_interceptions: int = 0
    """How often something assigned a dict over a Config object and was turned away, so far."""
    processes: int = 1
    """Ranks that train together, each holding the whole model; every other figure is of one of them."""

    @property
    def quantized_share(self) -> float:
        """Of all parameters, those that are held quantized, 0 to 1."""
        return self.quantized_parameters / self.total_parameters if self.total_parameters else 0.0

    @property
    def escaped_parameters(self) -> int:
        """Parameters that should have been quantized and are not."""
        return sum(part.parameters for part in self.unquantized if part.kind == "escaped")

    @property
    def escaped_share(self) -> float:
        """Of all parameters that should be quantized, those that are not, 0 to 1."""
        meant = self.quantized_parameters + self.escaped_parameters
        return self.escaped_parameters / meant if meant else 0.0

    @property
    def warning(self) -> str | None:
        """Where so much escaped quantization that memory is not what people expect of the rung: which and how much."""
        if self.escaped_share <= ESCAPED_SHARE_LIMIT:
            return None
        names = [part.name for part in self.unquantized if part.kind == "escaped"]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""  # noqa: PLR2004  # as many as are listed
        return (
            f"{self.escaped_share:.0%} of the parameters that {RUNG_WORDS[self.rung]} is meant for stay unquantized: "
            f"{', '.join(names[:3])}{more}. The model needs more memory than this rung promises."
        )


class ShareReport(Record):
    """What one dataset of one trait really contributed."""

    trait_type: str
    dataset_id: int
    dataset_name: str
    percentage: float
    max_rows: int | None = None
    rows_available: int
    rows_used: int
    """Rows trained on; those that `max_length` leaves nothing of do not count."""
    trained_tokens: int
    """Tokens of these rows that carry loss, after truncation."""
    total_tokens: int = 0
    """Tokens of these rows, after truncation."""
    longest_tokens: int = 0
    """Tokens of the longest row drawn, before truncation."""
    truncated_rows: int = 0
    """Rows drawn that are longer than `max_length`."""
    dropped_rows: int = 0
    """Of these, rows of whose answer nothing is left, so that no token would carry loss."""
    endless_rows: int = 0
    """Rows trained on that lost their end token, so that they do not teach where to stop."""
    held_out_percentage: float = 0.0
    """What the project asks to hold out, in per cent."""
    held_out_rows: int = 0
    """Rows kept out of training to measure the loss on."""
    held_out_tokens: int = 0
    """Tokens of these that carry loss."""
    held_out_drawn_rows: int = 0
    """Rows drawn to be held out; those dropped and those that stand in training too are not measured."""
    held_out_truncated_rows: int = 0
    """Of these, rows longer than `max_length`."""
    held_out_dropped_rows: int = 0
    """Of those, rows of whose answer nothing is left, so that there is no loss to measure."""


class TraitMix(Record):
    """What all datasets of one trait contribute together."""

    trait_type: str
    rows: int
    trained_tokens: int
    token_share: float
    """Of all tokens of the mix that carry loss, 0 to 1."""
    held_out_rows: int
    held_out_truncated_rows: int = 0
    held_out_dropped_rows: int = 0

    @classmethod
    def of_each(cls, shares: Sequence[ShareReport]) -> tuple[TraitMix, ...]:
        """Add up the shares by trait, in their order."""
        total = sum(share.trained_tokens for share in shares)
        mixes = []
        for trait_type in dict.fromkeys(share.trait_type for share in shares):
            own = [share for share in shares if share.trait_type == trait_type]
            tokens = sum(share.trained_tokens for share in own)
            mixes.append(
                cls(
                    trait_type=trait_type,
                    rows=sum(share.rows_used for share in own),
                    trained_tokens=tokens,
                    token_share=tokens / total if total else 0.0,
                    held_out_rows=sum(share.held_out_rows for share in own),
                    held_out_truncated_rows=sum(share.held_out_truncated_rows for share in own),
                    held_out_dropped_rows=sum(share.held_out_dropped_rows for share in own),
                )
            )
        return tuple(mixes)


class Resolved(Record):
    """A setting as it will be used, and who decided it."""

    name: str
    """The PEFT / TRL name."""
    value: str
    origin: Literal["default", "project", "override", "host"]


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


class TraitLoss(Record):
    """The loss on the held-out rows of one trait."""

    trait_type: str
    loss: float
    """Mean cross entropy in nats over the tokens that carry loss."""
    rows: int
    tokens: int
    """Tokens that carry loss in these rows."""
    before: float | None = None
    """The same loss before training, None where it is not known or this is it."""
    regressed: bool = False
    """Whether the loss went up by more than `noise`, so that the adapter is worse at this trait than the base model."""

    @property
    def noise(self) -> float:
        """How far the loss may differ by chance, as a share of it: 10 % for one row, 1 % for a hundred."""
        return float(0.1 / self.rows**0.5)

    @property
    def verdict(self) -> str | None:
        """How it compares with the base model, None where it is plainly better and where there is no comparison."""
        if self.regressed:
            return "worse than the base model"
        unclear = self.before is not None and self.loss > self.before * (1 - self.noise)
        return "no clear change" if unclear else None


class BestStep(Record):
    """Where the loss on held-out rows was lowest while training went on."""

    step: int
    loss: float
    last_loss: float
    """The same loss at the last step."""

    @property
    def clearly_better(self) -> bool:
        """Whether that step was better than the last one by more than a few per cent."""
        return self.loss * (1 + CLEARLY) < self.last_loss

    @property
    def told(self) -> str:
        """What people need to know where it was."""
        return (
            f"Overfitted: the held-out loss was lowest at step {self.step:,}, {self.loss:.4g}, "
            f"and is {self.last_loss:.4g} at the last"
        )


class RunSummary(Record):
    """The outcome of an attempt that trained to its end."""

    rung: Rung
    steps: int
    loss_first: float
    loss_last: float
    adapter_step: int | None = None
    """The step with the lowest held-out loss, whose adapter was taken; None where that of the last step was."""
    best: BestStep | None = None
    """Where the held-out loss was lowest, None where it was not measured while training."""
    stopped_early_of: int | None = None
    """Steps that were planned, where training ended before because the held-out loss became no better."""
    train_s: float
    """Seconds in the training loop of this attempt."""
    duration_s: float
    """Seconds of this attempt from the start of the child."""
    guard_interceptions: int
    """Dict assignments over a Config object that were turned away, in the whole run."""
    trainable_parameters: int | None = None
    """Parameters that were trained, None where they were not recorded."""
    per_device_train_batch_size: int | None = None
    """Rows at once that fitted into memory at the end, None where it was not recorded."""
    gradient_accumulation_steps: int | None = None
    """Such batches a step."""
    peak_bytes: int | None = None
    """Most memory that the training process held: PyTorch's allocations on a GPU, its resident set on a CPU."""

    @property
    def overfitted(self) -> BestStep | None:
        """The step whose adapter would have been clearly better on held-out rows than the one that was taken."""
        return self.best if self.adapter_step is None and self.best is not None and self.best.clearly_better else None
