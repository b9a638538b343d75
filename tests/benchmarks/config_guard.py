"""What the config guard costs: one guarded read of `model.config`, and a training loop under the guard.

Guarded and unguarded are measured in turn in one process, so that the ratios hold on a machine of any speed. Two
unguarded loops in turn tell how much of a loop's ratio is noise; the guard's share of a step, which is its reads times
what one read costs more, has none of it, and is what the limit is for. Run it with `make bench`.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import timeit
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from runner.training.loading import config_guard
from runner.training.loading.config_guard import ConfigGuard

READS = 50_000
READ_ROUNDS = 15
STEPS = 3
STEP_ROUNDS = 60
SHARE_LIMIT = 0.01
"""What the guard may take of a training step."""

Guarding = Callable[[], AbstractContextManager[Any]]


def small_model() -> Any:
    """A Llama so small that the guard's share of a step is larger than it will ever be in a real job."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=512,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            pad_token_id=0,
            tie_word_embeddings=False,
        )
    )


def in_turn(measure: Callable[[], float], guards: tuple[Guarding, Guarding], rounds: int) -> tuple[float, float, float]:
    """Medians of what `measure` gives under each of two guards, and of second over first, round by round."""
    taken: list[tuple[float, float]] = []
    for number in range(rounds):
        pair = [0.0, 0.0]
        for which in (0, 1) if number % 2 else (1, 0):
            with guards[which]():
                pair[which] = measure()
        taken.append((pair[0], pair[1]))
    first, second = zip(*taken, strict=True)
    return statistics.median(first), statistics.median(second), statistics.median(two / one for one, two in taken)


def read_ns() -> tuple[float, float]:
    """Nanoseconds of one read of `model.config`, without and with a guard."""
    model = small_model()
    plain, guarded, _ = in_turn(
        lambda: timeit.timeit("model.config", globals={"model": model}, number=READS) / READS * 1e9,
        (nullcontext, ConfigGuard),
        READ_ROUNDS,
    )
    return plain, guarded


class Loop:
    """A training loop of a LoRA on the small model."""

    def __init__(self) -> None:
        self.model = get_peft_model(small_model(), LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        self.optimizer = torch.optim.AdamW([one for one in self.model.parameters() if one.requires_grad])
        self.tokens = torch.randint(1, 512, (4, 64))

    def step(self) -> None:
        """One forward and backward pass and one optimizer step."""
        self.model(input_ids=self.tokens, labels=self.tokens).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step_ms(self) -> float:
        """Milliseconds of one step, the mean of a few."""
        started = time.perf_counter()
        for _ in range(STEPS):
            self.step()
        return (time.perf_counter() - started) / STEPS * 1e3

    def reads(self) -> int:
        """Guarded reads in one step, wrappers' and inner models' included."""
        count = 0

        def on_call(frame: FrameType, event: str, _argument: object) -> None:
            nonlocal count
            count += event == "call" and frame.f_code.co_filename == config_guard.__file__

        with ConfigGuard():
            self.step()
            sys.setprofile(on_call)
            try:
                self.step()
            finally:
                sys.setprofile(None)
        return count


def main() -> int:
    """Print the figures as one JSON object; exit status 1 when the guard's share is above its limit."""
    plain_ns, guarded_ns = read_ns()
    loop = Loop()
    reads = loop.reads()
    plain_ms, guarded_ms, ratio = in_turn(loop.step_ms, (nullcontext, ConfigGuard), STEP_ROUNDS)
    _, _, noise = in_turn(loop.step_ms, (nullcontext, nullcontext), STEP_ROUNDS)
    share = reads * (guarded_ns - plain_ns) / 1e6 / plain_ms
    figures = {
        "plain_read_ns": round(plain_ns),
        "guarded_read_ns": round(guarded_ns),
        "guarded_reads_a_step": reads,
        "plain_step_ms": round(plain_ms, 2),
        "guarded_step_ms": round(guarded_ms, 2),
        "guarded_to_plain_ratio": round(ratio, 4),
        "plain_to_plain_ratio": round(noise, 4),
        "guard_share_of_a_step": round(share, 6),
        "share_limit": SHARE_LIMIT,
    }
    print(json.dumps(figures, indent=2))  # noqa: T201 - a benchmark prints
    return int(share > SHARE_LIMIT)


if __name__ == "__main__":
    sys.exit(main())
