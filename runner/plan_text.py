"""A plan as a terminal shows it. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
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
        for name, value in _facts(plan, plan.preflight):
            facts.add_row(Text(name, style="bold"), Text(printable(value)))
        parts += ["", facts, "", _memory(plan.preflight, plan.memory)]
    parts.append("")
    parts += [_check(check.name, check.message, check.hint, passed=check.passed) for check in plan.checks]
    verdict = ("It fits.", "bold green") if plan.fits else ("It does not fit.", "bold red")
    return Group(*parts, "", Text(*verdict))


def size_text(size: int) -> str:
    """Bytes as people say them. Pure."""
    return f"{size / _GB:.2f} GB" if size >= _GB else f"{size / _MB:.0f} MB"


def _facts(plan: Plan, found: Preflight) -> Iterator[tuple[str, str]]:
    first, *lines = describe_event(found.data)
    yield "data", first.removeprefix("Data: ")
    yield from (("", line.strip()) for line in lines)
    tokens = sum(share.total_tokens for share in found.data.shares)
    yield (
        "training",
        (f"{found.total_steps:,} steps, {tokens:,} tokens an epoch, {found.trainable_parameters:,} parameters trained"),
    )
    if plan.time is None:
        yield "time", "not measured"
        return
    origin = _ORIGINS[plan.time.origin].format(steps=plan.time.steps_measured)
    in_loop = f"{duration_text(plan.time.training_s)} of it training"
    yield "time", f"{duration_text(plan.time.duration_s)}, {in_loop} ({origin})"


def _memory(found: Preflight, memory: PlanMemory | None) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("memory")
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


def _check(name: str, message: str, hint: str | None, *, passed: bool) -> Text:
    mark = ("✓ ", "green") if passed else ("✗ ", "red")
    line = Text.assemble(mark, (f"{name}: ", "bold"), printable(message))
    if hint:
        line.append(f"\n  {printable(hint)}", style="dim")
    return line
