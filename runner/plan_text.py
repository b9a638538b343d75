"""A plan as a terminal shows it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from runner.console import describe_event, duration_text, printable
from runner.plan import Origin, Plan, PlanMemory, Preflight
from runner.reports import Rung

_GB = 1_000_000_000
_MB = 1_000_000
_RUNG_NAMES: dict[Rung, str] = {"4bit": "4-bit", "8bit": "8-bit", "none": "unquantized"}
_ORIGINS: dict[Origin, str] = {
    "measured": "measured in {steps} steps here",
    "history": "as an earlier run of the same shape here",
    "estimated": "estimated",
}


def plan_text(plan: Plan) -> RenderableType:
    """Lay a plan out: what runs, how long, in what memory, and every check."""
    title = Text.assemble((plan.project, "bold"), f" on {printable(plan.host)}")
    parts: list[RenderableType] = [title]
    if plan.preflight is not None:
        title.append(f" · {printable(plan.preflight.device)}")
        facts = Table.grid(padding=(0, 2))
        facts.add_column(no_wrap=True)
        facts.add_column(overflow="fold")
        for name, value in _facts(plan, plan.preflight):
            facts.add_row(Text(name, style="bold"), Text(printable(value)))
        parts += ["", facts, "", _memory(plan.preflight, plan.memory)]
    checks = Table.grid(padding=(0, 1))
    checks.add_column(no_wrap=True)
    checks.add_column(overflow="fold")
    for check in plan.checks:
        mark = Text("✓", "green") if check.passed else Text("✗", "red")
        checks.add_row(mark, _check(check.name, check.message, check.hint))
    return _WithoutTrailingSpaces(Group(*parts, "", checks, "", _verdict(plan)))


class _WithoutTrailingSpaces:
    """What rich pads to a table's width ends with its last letter, so that a file of it can be compared and pasted."""

    def __init__(self, content: RenderableType) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for line in console.render_lines(self._content, options, pad=False):
            while line and not line[-1].text.strip():
                line.pop()
            if line:
                last = line.pop()
                yield from (*line, Segment(last.text.rstrip(), last.style))
            yield Segment.line()


def _verdict(plan: Plan) -> Text:
    if not plan.fits:
        return Text("It does not fit." if plan.preflight is not None else "It cannot begin.", "bold red")
    if plan.memory is not None and plan.memory.fitting is not None:
        rows = plan.memory.fitting.per_device_train_batch_size
        return Text(f"It fits with per_device_train_batch_size = {rows}.", "bold yellow")
    return Text("It fits.", "bold green")


def size_text(size: int) -> str:
    """Bytes as people say them. Pure."""
    if size < _MB:
        return f"{size / 1000:.0f} kB"
    return f"{size / _GB:.2f} GB" if size >= _GB else f"{size / _MB:.0f} MB"


def _facts(plan: Plan, found: Preflight) -> Iterator[tuple[str, str]]:
    first, *lines = describe_event(found.data)
    yield "data", first.removeprefix("Data: ")
    yield from (("", line.strip()) for line in lines)
    tokens = sum(share.total_tokens for share in found.data.shares)
    steps = f"{found.total_steps:,} steps of {_step_rows(found)}"
    yield "training", f"{steps}, {tokens:,} tokens an epoch, {found.trainable_parameters:,} parameters trained"
    if plan.time is None:
        yield "time", "not measured"
        return
    origin = _ORIGINS[plan.time.origin].format(steps=plan.time.steps_measured)
    in_loop = f"{duration_text(plan.time.training_s)} of it training"
    yield "time", f"{duration_text(plan.time.duration_s)}, {in_loop} ({origin})"


def _step_rows(found: Preflight) -> str:
    rows = f"{found.per_device_train_batch_size} rows"
    if found.gradient_accumulation_steps > 1:
        rows += f" {found.gradient_accumulation_steps} times"
    return f"{rows} on each of {found.gpus} devices" if found.gpus > 1 else rows


def _memory(found: Preflight, memory: PlanMemory | None) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("memory of each device" if found.gpus > 1 else "memory")
    for column in ("at load", "loaded", "in training"):
        table.add_column(column, justify="right")
    table.add_column("")
    for rung in found.rungs:
        known = memory is not None and memory.rung == rung.rung and memory.origin != "estimated"
        table.add_row(
            _RUNG_NAMES[rung.rung],
            size_text(rung.load_peak_bytes),
            size_text(rung.steady_bytes),
            "unknown" if rung.training_bytes is None else size_text(rung.training_bytes),
            f"measured: {size_text(memory.peak_bytes)}" if known and memory is not None else "estimated",
        )
    return table


def _check(name: str, message: str, hint: str | None) -> Text:
    line = Text.assemble((f"{name}: ", "bold"), printable(message))
    if hint:
        line.append(f"\n{printable(hint)}", style="dim")
    return line
