"""The one message of a thread that training progress is edited into. Pure."""

from __future__ import annotations

from bot.render.message import Message, compose
from bot.render.text import bar, duration, figure, number, percent
from bot.story import Story
from runner.events import LossEvaluated, MetricsLogged


def render_progress(story: Story) -> Message:
    """Step, bar, loss, speed and time left, as of the last metrics.

    Args:
        story: A story that has come as far as `training_started`.

    Raises:
        ValueError: It has not.
    """
    if story.training is None:
        raise ValueError("there is no progress before training_started")
    done, total = story.step or 0, story.training.total_steps
    resumed = story.training.resumed_from_step
    head = f"*Training* · step {number(done)} of {number(total)}"
    if resumed:
        head += f" · resumed from step {number(resumed)}"
    if story.metrics is not None:
        told = describe_metrics(story.metrics)
    else:
        told = f"{number(story.training.trainable_parameters)} trainable parameters"
    held_out = [describe_held_out(story.held_out)] if story.held_out is not None else []
    return compose([head, f"`{bar(done, total)}` {percent(done / total if total else 0.0)}", told, *held_out])


def describe_held_out(evaluated: LossEvaluated) -> str:
    """The loss on held-out rows, the best so far, and whether it ends training."""
    told = f"held-out loss {figure(evaluated.loss)} at step {number(evaluated.step)}"
    if evaluated.best_step == evaluated.step:
        told += ", the best so far"
    elif evaluated.best_step is not None:
        told += f" · best {figure(evaluated.best_loss)} at step {number(evaluated.best_step)}"
    return f"{told} · no better for long enough, training stops early" if evaluated.stops else told


def describe_metrics(metrics: MetricsLogged) -> str:
    """Loss, speed and time left in one line."""
    told = f"loss {figure(metrics.loss)} · {number(round(metrics.tokens_per_s))} tokens/s"
    left = metrics.eta_s > 0 and metrics.step < metrics.total_steps
    return f"{told} · about {duration(metrics.eta_s)} left" if left else told
