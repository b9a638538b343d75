"""What was measured before and after training, as replies of a job's thread. Pure."""

from __future__ import annotations

from bot.render.message import Message, compose, compose_with_table
from bot.render.text import count, escape, figure, keep_start, percent
from bot.story import Story
from runner.events import Evaluated
from runner.reports import BestStep, TraitLoss

SEEN = "†"
"""Before a sample prompt that is trained on."""


def render_baseline(event: Evaluated) -> Message | None:
    """Scores and held-out losses before training, None where nothing was measured."""
    scores = [
        f"{escape(one.dataset_name)} {one.correct} of {one.total} right ({percent(one.share)})"
        for one in event.exact_match
    ]
    scores += [f"held-out loss of {trait_name(one)} {figure(one.loss)}" for one in event.held_out]
    return compose([f"*Before training* · {' · '.join(scores)}"]) if scores else None


def render_evaluation(event: Evaluated, story: Story) -> Message:
    """The same after training beside it, and the answers to the sample prompts."""
    lines, baseline = ["*After training*"], story.baseline
    before = {one.dataset_id: one for one in baseline.exact_match} if baseline is not None else {}
    for one in event.exact_match:
        was = before.get(one.dataset_id)
        earlier = f"{was.correct} of {was.total} ({percent(was.share)}) → " if was is not None else ""
        told = f"{escape(one.dataset_name)}: {earlier}{one.correct} of {one.total} right ({percent(one.share)})"
        seen = story.mix.seen_share(one.dataset_id) if story.mix is not None else 0.0
        lines.append(f"{told} · {'trained on' if seen == 1 else f'{percent(seen)} trained on'}" if seen else told)
    lines += [_held_out(one) for one in event.held_out]
    untold = _not_held_out(story)
    if event.held_out and untold:
        lines.append(f"No rows held out of {untold}")
    lines += _better_earlier(story)
    if not event.samples:
        return compose(lines)
    old = {sample.prompt: sample.completion for sample in baseline.samples} if baseline is not None else {}
    asked = story.mix.seen_prompts if story.mix is not None else None
    rows = [("Prompt", "Before", "After")]
    for sample in event.samples:
        mark = f"{SEEN} " if sample.prompt in (asked or ()) else ""
        rows.append((mark + sample.prompt, old.get(sample.prompt, "—"), sample.completion))
    return compose_with_table(lines, rows, _seen_prompts(asked, len(event.samples)))


def _seen_prompts(seen: tuple[str, ...] | None, samples: int) -> list[str]:
    if seen is None:
        return []
    if not seen:
        return ["Sample prompts: none seen in training"]
    return [f"{SEEN} Sample prompts: {len(seen)} of {samples} seen in training, so their answers may be remembered"]


def _better_earlier(story: Story) -> list[str]:
    """Tell of a step whose adapter would have been clearly better on held-out rows than the one that was taken."""
    last, training = story.held_out, story.record.spec.project.training
    if last is None or last.best_step is None or training.load_best_model_at_end:
        return []
    best = BestStep(step=last.best_step, loss=last.best_loss, last_loss=last.loss)
    if not best.clearly_better:
        return []
    untold = _not_held_out(story)
    but = f", which may know less of {untold}: nothing is held out there" if untold else ""
    return [f"⚠️ {best.told}. `load_best_model_at_end=true` would take the adapter of that step{but}."]


def _not_held_out(story: Story) -> str:
    """Traits that no held-out loss speaks of, empty where there is none."""
    traits = story.mix.traits if story.mix is not None else ()
    return ", ".join(escape(keep_start(one.trait_type, 60)) for one in traits if not one.held_out_rows)


def trait_name(one: TraitLoss) -> str:
    """The trait's name, escaped."""
    return escape(keep_start(one.trait_type, 60))


def _held_out(one: TraitLoss) -> str:
    earlier = f"{figure(one.before)} → " if one.before is not None else ""
    on = f"{count(one.rows, 'row')}, {count(one.tokens, 'token')}"
    told = f"held-out loss of {trait_name(one)}: {earlier}{figure(one.loss)} on {on}"
    mark = "⚠️ " if one.regressed else ""
    return f"{mark}{told}{f' · {one.verdict}' if one.verdict else ''}"
