"""Our training against a plain TRL script: loop time, peak memory and losses, each side in fresh processes, in turn.

`python -m tests.benchmarks.training_parity [--pairs N] [--steps N]` trains a Llama of 26 million random parameters in
4 bits (NF4, double quantization) with LoRA r 16 on all linear layers, batch 8, on rows of prompt and completion. Ours
is the pipeline's own way with its defaults: `protected_load`, `mix_data`, `add_lora`, `build_trainer`. The other side
is `tests/training/plain_trl.py` with TRL's defaults but for what both must share: a loss every step, and no gradient
checkpointing (TRL's default is slower and smaller).

Time is that of the steps after the first, memory the process' largest resident size (VmHWM), imports included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from runner.training.native_libraries import choose_native_settings
from tests.benchmarks.sides import import_plain_trl, in_a_fresh_process, our_trainer
from tests.training.model_folders import copy_tokenizer

WORDS = (
    "what",
    "is",
    "the",
    "sum",
    "right",
    "who",
    "are",
    "you",
    "how",
    "do",
    "start",
    "a",
    "job",
    "stop",
    "team",
    "model",
)
SEED = 42
BATCH = 8
LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes")


def make_rows(count: int) -> list[dict[str, str]]:
    """Rows of 20 to 60 words of prompt and as many of completion, the same at every call."""
    draw = random.Random(SEED)  # noqa: S311  # a repeatable draw, nothing secret

    def words() -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(20, 60)))

    return [{"prompt": words() + "?", "completion": " " + words()} for _ in range(count)]


def make_model(folder: Path) -> None:
    """Write the base model: the demo's tokenizer on a larger Llama."""
    import torch  # noqa: PLC0415  # all of this only where it is needed: the parent measures nothing
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415

    from runner.training.demo_model import build_demo_model  # noqa: PLC0415

    build_demo_model(folder.parent / "tokenizer")
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    copy_tokenizer(folder.parent / "tokenizer", folder)


def measure(side: str, folder: Path, steps: int) -> dict[str, Any]:
    """Train one side in this process."""
    if side == "ours":
        choose_native_settings()  # as the training process does, before torch is imported
    import torch  # noqa: PLC0415
    from transformers import TrainerCallback  # noqa: PLC0415

    class Clock(TrainerCallback):
        """Times of the ends of steps, in seconds."""

        ends: list[float] = []  # noqa: RUF012  # one clock a process

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

    arguments: dict[str, Any] = {
        "max_steps": steps,
        "logging_steps": 1,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 2e-4,
        "seed": SEED,
    }
    rows = make_rows(BATCH * steps)
    if side == "ours":
        with our_trainer(folder, rows, arguments, [Clock()]) as (trainer, _):
            trainer.train()
    else:
        trainer = import_plain_trl().build(
            folder / "models" / "base",
            rows,
            load_in_4bit=True,
            dtype=torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32,
            arguments=arguments | {"output_dir": str(folder / "plain"), "gradient_checkpointing": False},
            lora={"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
            full_precision_adapter=side == "plain, float32 adapter",
        )
        trainer.add_callback(Clock())
        trainer.train()
    losses = [record["loss"] for record in trainer.state.log_history if "loss" in record]
    return {"seconds": Clock.ends[-1] - Clock.ends[0], "peak_mb": _peak_mb(), "losses": losses}


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _spread(values: list[float]) -> str:
    return f"min {min(values):.3f}  median {statistics.median(values):.3f}  max {max(values):.3f}"


def compare(pairs: int, steps: int) -> None:
    """Run both sides in turn and print the ratios."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    print(f"Training, ours / plain TRL: {pairs} pairs of {steps} steps · {platform.machine()}, {os.cpu_count()} cores")  # noqa: T201
    print(f"  {versions}")  # noqa: T201
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "models" / "base")
        words = (str(folder), str(steps))
        reference = in_a_fresh_process("training_parity", "plain, float32 adapter", *words)
        time_ratios, memory_ratios = [], []
        ours: dict[str, Any] = {}
        for _ in range(pairs):
            plain, ours = (in_a_fresh_process("training_parity", side, *words) for side in ("plain", "ours"))
            time_ratios.append(ours["seconds"] / plain["seconds"])
            memory_ratios.append(ours["peak_mb"] / plain["peak_mb"])
        difference = max(abs(a - b) / b for a, b in zip(ours["losses"], reference["losses"], strict=True))
    print(f"  loop time    {_spread(time_ratios)}   (last pair {ours['seconds']:.1f} s / {plain['seconds']:.1f} s)")  # noqa: T201
    print(f"  peak memory  {_spread(memory_ratios)}   (last pair {ours['peak_mb']:.0f} MB / {plain['peak_mb']:.0f} MB)")  # noqa: T201
    print(f"  largest relative difference of a step's loss, adapter in float32 on both sides: {difference:.1e}")  # noqa: T201


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--side", nargs=3, metavar=("SIDE", "FOLDER", "STEPS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side, folder, steps = arguments.side
        print(json.dumps(measure(side, Path(folder), int(steps))))  # noqa: T201
    else:
        compare(arguments.pairs, arguments.steps)


if __name__ == "__main__":
    main()
