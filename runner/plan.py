"""What a run would take, as a record: figures, where they come from, and whether it would fit. Pure."""

from __future__ import annotations

from typing import Literal

from runner.events import DataMixed
from runner.reports import Record, Rung

Origin = Literal["measured", "history", "estimated"]
"""By a trial on this host, by an earlier run of the same shape here, or by arithmetic alone."""
CheckName = Literal["base model", "data", "adapter", "disk", "trial", "memory"]


class FittingBatch(Record):
    """A batch that fits into memory where the project's does not; a step has the same rows."""

    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    training_bytes: int
    """At the worst moment of training."""


class RungNeeds(Record):
    """Memory that the process takes on one rung, by arithmetic, before anything is loaded."""

    rung: Rung
    load_peak_bytes: int
    """At the worst moment of loading."""
    steady_bytes: int
    """Once loaded."""
    training_bytes: int | None
    """At the worst moment of training, with adapter, optimizer and activations of a batch of the longest rows; None
    where only a trial can tell."""
    fitting: FittingBatch | None = None
    """The largest half, quarter and so on of the batch that fits; None where the whole does, or nothing."""


class Preflight(Record):
    """What can be known about a run without its weights; made by `runner.training.preflight`."""

    device: str
    available_bytes: int | None
    """What the device has free for each process: GPU memory, or its share of the host's. None where nobody knows."""
    base_model: str
    """Folder of the base model, or its hub id and commit."""
    revision: str | None
    """Commit of a hub model, None for a local folder."""
    fetch_bytes: int
    """Weights that the run would have to download first."""
    cache_dir: str
    """Where downloads go."""
    gpus: int
    """Processes that train together, each with the whole model; every figure of memory is one process'."""
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    halves_batch: bool
    """Whether memory that runs out can be caught, so that the run halves its batch by itself. On a CPU it is the kernel
    that ends a process, unless a limit of the process' own is met first; and several processes do not halve theirs."""
    data: DataMixed
    template_undecided: bool = False
    """Whether the base model's own chat template may yet be put aside: that takes a look at its embeddings, which are
    not on this host. The figures are those of its own template."""
    total_steps: int
    """Optimizer steps."""
    trainable_parameters: int
    rungs: tuple[RungNeeds, ...]
    """Those of the project's ladder that the base model's files permit, in its order."""


class PlanTime(Record):
    """How long it would take."""

    origin: Origin
    duration_s: float
    """Seconds of the whole attempt, as its summary will say."""
    training_s: float
    """Of these, in the training loop."""
    total_steps: int
    """Optimizer steps, as the trainer itself has counted them."""
    steps_measured: int | None = None
    """Steps of the trial, None where there was none."""


class PlanMemory(Record):
    """How much memory it would take."""

    origin: Origin
    rung: Rung
    """The rung that held in a trial or an earlier run, else the first of the ladder."""
    peak_bytes: int
    """Most that the process would hold: its resident set on a CPU, PyTorch's allocations on a GPU."""
    available_bytes: int | None
    fitting: FittingBatch | None = None
    """A smaller batch that fits: by a trial, whose peak `peak_bytes` then is, or by arithmetic; None where the
    project's own fits, or none does."""

    @property
    def fits(self) -> bool:
        """Whether the project's own batch does, or what a trial has found; so does memory that nobody knows of."""
        return self.available_bytes is None or self.peak_bytes <= self.available_bytes


class PlanCheck(Record):
    """One thing that must be so for the run to succeed."""

    name: CheckName
    passed: bool
    message: str
    hint: str | None = None


class Plan(Record):
    """What a run would take on this host."""

    project: str
    host: str
    preflight: Preflight | None = None
    """None when the base model or the data cannot be read; the checks say why."""
    time: PlanTime | None = None
    """None when nothing was measured."""
    memory: PlanMemory | None = None
    checks: tuple[PlanCheck, ...]

    @property
    def fits(self) -> bool:
        """Whether every check has passed."""
        return all(check.passed for check in self.checks)
