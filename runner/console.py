"""What happens to a run, told on a terminal: events become lines, progress becomes a bar."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from runner.events import (
    AdapterSaved,
    AdapterVerified,
    BatchHalved,
    CheckpointChosen,
    CheckpointSaved,
    ChildEvent,
    ConfigLoaded,
    DataMixed,
    Evaluated,
    LossEvaluated,
    MetricsLogged,
    ModelLoaded,
    PhaseStarted,
    RunFailed,
    RungFailed,
    RunInterrupted,
    RunSucceeded,
    TokenizerLoaded,
    TrainingStarted,
    VersionsReported,
)
from runner.main_settings import main_settings
from runner.spec import RunSpec
from runner.versions import format_versions

_MB = 1_000_000
_MINUTE_S = 60


def describe_settings(spec: RunSpec) -> str:
    """Tell in one line what was asked for, and what of it somebody changed at the start. Pure."""
    told = [f"{one.name} {one.value}{' (override)' if one.origin == 'override' else ''}" for one in main_settings(spec)]
    return f"Settings: {', '.join(told)}"


def describe_event(event: ChildEvent, seen: Collection[str] = ()) -> list[str]:  # noqa: C901, PLR0911, PLR0912 - one case an event
    """Tell an event in lines of plain text; some need none. Pure.

    Args:
        event: Of a run.
        seen: The run's prompts that a row trained on asks too.
    """
    match event:
        case VersionsReported():
            return format_versions(event).splitlines()
        case TokenizerLoaded():
            line = f"Tokenizer: {event.tokenizer_class}, {event.vocab_size} entries, pad token {event.pad_token}"
            return [line, *([f"  {event.workaround}"] if event.workaround else [])]
        case ConfigLoaded():
            revision = f", revision {event.revision}" if event.revision else ""
            return [f"Config: model_type {event.model_type} (from {event.source}), {event.config_class}{revision}"]
        case RungFailed():
            return _rung_failed(event)
        case BatchHalved():
            return [event.announcement]
        case ModelLoaded():
            return [event.announcement, *_receipt(event)]
        case DataMixed():
            return _mix(event)
        case TrainingStarted():
            resumed = f", going on from step {event.resumed_from_step}" if event.resumed_from_step else ""
            return [
                f"Training: {event.total_steps} steps, {event.trainable_parameters:,} trainable parameters{resumed}"
            ]
        case MetricsLogged():
            return [f"  {progress_text(event)}"]
        case LossEvaluated():
            return [f"  {_held_out_so_far(event)}"]
        case CheckpointChosen():
            return [f"Checkpoint: of step {event.step}, the newest is of step {event.newest_step}"]
        case CheckpointSaved():
            return [f"Checkpoint at step {event.step}"]
        case Evaluated():
            return _answers(event, seen)
        case AdapterSaved():
            return [f"Adapter saved: {size_text(event.size_bytes)}"]
        case AdapterVerified():
            return [f"Adapter verified in a fresh process ({event.duration_s:.1f} s)", f"  {_logits(event)}"]
        case RunSucceeded(summary=summary):
            loss = f"training loss {summary.loss_first:.4g} → {summary.loss_last:.4g}"
            held = f", {summary.peak_bytes / _MB:,.0f} MB of memory at most" if summary.peak_bytes is not None else ""
            early = f" of {summary.stopped_early_of}, stopped early," if summary.stopped_early_of is not None else ""
            taken = f", adapter of step {summary.adapter_step}" if summary.adapter_step is not None else ""
            if taken and summary.best is not None:
                taken += f" (held-out loss {summary.best.loss:.4g})"
            over = summary.overfitted
            return [
                f"✅ {summary.steps} steps{early} in {duration_text(summary.duration_s)}, {loss}{taken}{held}",
                *([f"⚠️ {over.told}"] if over is not None else []),
            ]
        case RunFailed():
            return [f"❌ {event.message}", *([event.hint] if event.hint else [])]
        case RunInterrupted():
            return [f"Stopped at step {event.step}" + ("" if event.checkpoint else ", without a checkpoint")]
        case PhaseStarted():
            return []


def _logits(event: AdapterVerified) -> str:
    differ = f"differ from the trained model's by at most {event.max_difference:.4g}"
    if not event.max_difference:
        differ = "are exactly the trained model's"
    return f"its logits {differ}; they differ from the base model's by {event.base_difference:.4g}"


def _held_out_so_far(event: LossEvaluated) -> str:
    best = "the best so far"
    if event.best_step != event.step:
        best = f"best {event.best_loss:.3f} at step {event.best_step}" if event.best_step is not None else "no number"
    stops = "; it has not become better for long enough, training stops" if event.stops else ""
    return f"step {event.step}/{event.total_steps}  held-out loss {event.loss:.3f}, {best}{stops}"


def progress_text(event: MetricsLogged) -> str:
    """One line of progress. Pure."""
    return (
        f"step {event.step}/{event.total_steps}  loss {event.loss:.3f}  {event.tokens_per_s:,.0f} tokens/s"
        f"  {duration_text(event.eta_s)} left"
    )


def size_text(size: int) -> str:
    """Bytes to a tenth of a megabyte, or of a kilobyte where that would say nothing. Pure."""
    return f"{size / 1000:.1f} kB" if size < _MB / 10 else f"{size / _MB:.1f} MB"


def duration_text(seconds: float) -> str:
    """Seconds as people say them: `8 s`, `4 min 10 s`, `2 h 5 min`. Pure."""
    minutes, rest = divmod(round(seconds), _MINUTE_S)
    hours, minutes = divmod(minutes, _MINUTE_S)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose columns are as wide as what stands in them. Pure."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def printable(text: str) -> str:
    """Text whose control characters cannot move a terminal's cursor or repaint its screen. Pure."""
    return "".join(character if character.isprintable() else "�" for character in text)


class TerminalStory:
    """Prints events as they come, with one bar for the training; a context manager that cleans up the bar.

    Args:
        console: Where to print. On something that is no terminal the bar becomes plain lines.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[facts]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._seen: tuple[str, ...] = ()

    def show(self, event: ChildEvent) -> None:
        """Print an event, or move the bar."""
        if isinstance(event, TrainingStarted):
            self._task = self._progress.add_task(
                "training", total=event.total_steps, completed=event.resumed_from_step, facts=""
            )
        elif isinstance(event, MetricsLogged) and self._console.is_terminal:
            if self._task is not None:
                facts = f"loss {event.loss:.3f}  {duration_text(event.eta_s)} left"
                self._progress.update(self._task, completed=event.step, facts=facts)
            return
        elif isinstance(event, PhaseStarted) and self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        elif isinstance(event, DataMixed):
            self._seen = event.seen_prompts or ()
        for line in describe_event(event, self._seen):
            self.say(line)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        for part in line.splitlines():
            self._console.print(printable(part), markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _rung_failed(event: RungFailed) -> list[str]:
    failed = event.failed
    known = f" ({failed.failure_class}): {failed.meaning}" if failed.failure_class != "unknown" else ""
    return [event.announcement, f"  {failed.error_class}{known}"]


def _receipt(event: ModelLoaded) -> list[str]:
    receipt = event.receipt
    held = f"{size_text(receipt.model_bytes)}, {receipt.compute_dtype} on {receipt.device}, {receipt.load_s:.1f} s"
    each = f", in each of {receipt.processes} processes" if receipt.processes > 1 else ""
    share = f"{100 * receipt.quantized_share:.0f} % of the parameters"
    counted = f"{receipt.quantized_modules} of {receipt.linear_modules} linear modules quantized, {share}"
    if receipt.rung == "none":
        counted = f"{_count(receipt.linear_modules, 'linear module')}, none quantized"
    lines = [f"  {counted}, {held}{each}"]
    if receipt.load_peak_bytes is not None and receipt.steady_bytes is not None:
        peak, steady = size_text(receipt.load_peak_bytes), size_text(receipt.steady_bytes)
        lines.append(f"  loading took {peak} of memory at its peak, {steady} of it are kept")
    if receipt.stored_quantization:
        lines.append(f"  the base model's files are stored quantized: {receipt.stored_quantization}")
    return [*lines, *([f"⚠️ {receipt.warning}"] if receipt.warning else [])]


def _mix(event: DataMixed) -> list[str]:
    lines = [f"Data: {event.rows} rows, the longest of {event.longest_tokens} tokens"]
    for share in event.shares:
        most = f", at most {share.max_rows}" if share.max_rows is not None else ""
        held_out = f", {share.held_out_rows} held out" if share.held_out_rows else ""
        lines.append(
            f"  {share.trait_type} / {share.dataset_name}: {share.rows_used} of {share.rows_available} rows "
            f"({share.percentage:g} %{most}){held_out}"
        )
    tokens = [f"{trait.trait_type} {trait.trained_tokens} ({100 * trait.token_share:.0f} %)" for trait in event.traits]
    lines.append(f"  trained tokens: {', '.join(tokens)}")
    return [*lines, *(f"  ⚠️ {warning}" for warning in event.warnings)]


def _answers(event: Evaluated, seen: Collection[str]) -> list[str]:
    lines = [f"Answers {event.when} training:"] if event.samples else []
    for sample in event.samples:
        mark = "  (prompt seen in training, so the answer may be remembered)" if sample.prompt in seen else ""
        lines.append(f"  {sample.prompt!r} → {sample.completion!r}{mark if event.when == 'after' else ''}")
    lines += [
        f"Exact match {event.when} training: {match.dataset_name}: {match.correct} of {match.total}"
        f" ({100 * match.share:.0f} %)"
        for match in event.exact_match
    ]
    for one in event.held_out:
        mark = "⚠️ " if one.regressed else ""
        earlier = f"{one.before:.4g} → " if one.before is not None else ""
        lines.append(
            f"{mark}Held-out loss {event.when} training: {one.trait_type}: {earlier}{one.loss:.4g}"
            f" ({_count(one.rows, 'row')}, {_count(one.tokens, 'token')}){f', {one.verdict}' if one.verdict else ''}"
        )
    return lines
