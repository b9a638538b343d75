"""Our training against a plain TRL script at Llama shapes on a GPU: tokens a second, load seconds, peak memory.

`make bench-gpu`, or `python -m tests.benchmarks.gpu_shapes [--shape …] [--sequence …] [--gradient-checkpointing] …`.
Base models with random weights are made on the spot. Both sides load them in 4 bits (NF4, double quantization), put
LoRA r 16 on all linear layers and train on the same rows, packed, each in a process of its own, in turn. Ours is the
pipeline's own way with its defaults: `protected_load`, `mix_data`, `add_lora`, `build_trainer`. The other side is
`tests/training/plain_trl.py` with TRL's defaults. Batch and gradient checkpointing are the same on both.

`load s` is from the model's folder to the model, which on our side includes tokenizer, probe and receipt. `tokens/s` is
that of the steps after the first. `peak` is PyTorch's most on a GPU, loading included, and the resident set on a CPU.
Without a GPU, `--shape tiny` shows in about a minute that this script works; its figures say nothing about a GPU.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from runner.device import describe_device
from runner.training.native_libraries import choose_native_settings
from runner.versions import PACKAGES
from tests.benchmarks.sides import import_plain_trl, in_a_fresh_process, our_trainer

SEED = 42
LEARNING_RATE = 2e-4
SIDES = ("plain TRL", "ours")
MODEL = "model"
"""What a process does that makes the base model."""
SEQUENCES = (2048, 4096)
TINY_SEQUENCES = (128, 256)
WORDS = ("what", "is", "the", "sum", "who", "are", "you", "how", "do", "start", "a", "job", "stop", "team", "model")
OUT_OF_MEMORY = "out of memory"


def make_rows(tokens: int, sequence: int) -> list[dict[str, str]]:
    """Rows of prompt and completion, `tokens` in all at least, several a sequence; the same at every call."""
    draw = random.Random(SEED)  # noqa: S311  # a repeatable draw, nothing secret
    rows: list[dict[str, str]] = []
    words = 0
    while words < tokens:  # a word is a token or more
        prompt, completion = ([draw.choice(WORDS) for _ in range(draw.randint(2, sequence // 20))] for _ in range(2))
        words += len(prompt) + len(completion)
        rows.append({"prompt": " ".join(prompt) + "?", "completion": " " + " ".join(completion)})
    return rows


def measure(side: str, folder: Path, training: dict[str, Any]) -> dict[str, Any]:
    """Train one side in this process.

    Args:
        side: One of SIDES.
        folder: Holds `models/base`.
        training: The settings that both sides share, under TRL's names.

    Returns:
        The figures; or `failed` alone, where the device has too little memory.
    """
    if side == "ours":
        choose_native_settings()  # as the training process does, before torch is imported
    from runner.errors import MemoryExhaustedError  # noqa: PLC0415  # all of this only here: the parent measures nothing
    from runner.training.accelerator import choose_device, peak_bytes  # noqa: PLC0415
    from runner.training.loading.failure_marks import is_out_of_memory  # noqa: PLC0415

    wanted = training["max_steps"] * training["per_device_train_batch_size"] * training["max_length"]
    rows = make_rows(wanted, training["max_length"])
    try:
        load_s, seconds, log_history = (_train_ours if side == "ours" else _train_plain)(folder, rows, training)
    except Exception as error:
        if isinstance(error, MemoryExhaustedError) or is_out_of_memory(error):
            return {"failed": OUT_OF_MEMORY}
        raise
    steps = [record for record in log_history if "loss" in record]
    figures = {
        "load_s": load_s,
        "tokens_per_s": (steps[-1]["num_tokens"] - steps[0]["num_tokens"]) / seconds,
        "peak_bytes": peak_bytes(choose_device()),
        "losses": [record["loss"] for record in steps],
        "grad_norms": [record["grad_norm"] for record in steps],
    }
    _require_training(figures, training["max_steps"])
    return figures


def _require_training(figures: dict[str, Any], steps: int) -> None:
    """Refuse figures of a training that trained nothing."""
    losses, norms = figures["losses"], figures["grad_norms"]
    if len(losses) != steps or not all(math.isfinite(loss) and loss > 0 for loss in losses):
        raise RuntimeError(f"{steps} finite losses above 0 were expected: {losses}")
    if not all(0 < norm < math.inf for norm in norms):
        raise RuntimeError(f"every grad_norm has to be above 0 and finite: {norms}")


def _timed_training(trainer: Any) -> float:
    """Train, and give the seconds of the steps after the first."""
    import torch  # noqa: PLC0415  # as in `measure`
    from transformers import TrainerCallback  # noqa: PLC0415

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    trainer.add_callback(Clock())
    trainer.train()
    return ends[-1] - ends[0]


Trained = tuple[float, float, list[dict[str, Any]]]
"""Seconds of loading, seconds of the steps after the first, the trainer's log."""


def _train_ours(folder: Path, rows: list[dict[str, str]], training: dict[str, Any]) -> Trained:
    with our_trainer(folder, rows, training) as (trainer, load_s):
        return load_s, _timed_training(trainer), trainer.state.log_history


def _train_plain(folder: Path, rows: list[dict[str, str]], training: dict[str, Any]) -> Trained:
    plain_trl = import_plain_trl()
    from runner.training.accelerator import choose_compute_dtype, choose_device  # noqa: PLC0415  # as in `measure`

    base, dtype = folder / "models" / "base", choose_compute_dtype(choose_device())
    started = time.perf_counter()
    model = plain_trl.load(base, load_in_4bit=True, dtype=dtype)
    load_s = time.perf_counter() - started
    trainer = plain_trl.build_on(
        model,
        base,
        rows,
        dtype=dtype,
        arguments=training | {"output_dir": str(folder / "plain")},
        lora={"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
        full_precision_adapter=False,
    )
    return load_s, _timed_training(trainer), trainer.state.log_history


def _make_model(folder: Path, shape: str) -> dict[str, Any]:
    from runner.training.accelerator import choose_device  # noqa: PLC0415  # as in `measure`
    from tests.benchmarks.llama_shapes import SHAPES, write_model  # noqa: PLC0415

    (folder / "models").mkdir()
    write_model(SHAPES[shape], folder / "models" / "base", choose_device())
    return {}


def _row(shape: str, sequence: int, side: str, figures: dict[str, Any]) -> str:
    if "failed" in figures:
        return f"| {shape} | {sequence} | {side} | {figures['failed']} | | | | |"
    losses, norms = figures["losses"], figures["grad_norms"]
    return (
        f"| {shape} | {sequence} | {side} | {figures['load_s']:.1f} | {figures['tokens_per_s']:.0f} "
        f"| {figures['peak_bytes'] / 1e9:.2f} | {losses[0]:.3f} → {losses[-1]:.3f} | {min(norms):.2g} |"
    )


def compare(shape: str, sequences: list[int], training: dict[str, Any], scratch: Path | None) -> None:
    """Make one base model, run both sides at every sequence length and print a row for each."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        in_a_fresh_process("gpu_shapes", MODEL, name, shape)
        for sequence in sequences:
            words = (name, json.dumps(training | {"max_length": sequence}))
            plain, ours = (in_a_fresh_process("gpu_shapes", side, *words) for side in SIDES)
            print(_row(shape, sequence, SIDES[0], plain))  # noqa: T201  # a benchmark prints
            print(_row(shape, sequence, SIDES[1], ours))  # noqa: T201
            if "failed" not in plain and "failed" not in ours:
                ratios = [f"{ours[name] / plain[name]:.2f}" for name in ("load_s", "tokens_per_s", "peak_bytes")]
                print(f"| {shape} | {sequence} | ours / plain | {' | '.join(ratios)} | | |", flush=True)  # noqa: T201


def main() -> int:
    """Read the command line, refuse what this host cannot measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shapes = ("llama-3.2-3b", "llama-3.1-8b")
    parser.add_argument("--shape", nargs="+", choices=("tiny", *shapes), default=list(shapes))
    parser.add_argument("--sequence", nargs="+", type=int, help="tokens; 2048 and 4096, for tiny 128 and 256")
    parser.add_argument("--batch", type=int, default=1, help="packed sequences a step")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--scratch", type=Path, help="where the models are made, up to 17 GB; removed at the end")
    parser.add_argument("--side", nargs=3, metavar=("SIDE", "FOLDER", "WHAT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side, folder, what = options.side
        figures = _make_model(Path(folder), what) if side == MODEL else measure(side, Path(folder), json.loads(what))
        print(json.dumps(figures))  # noqa: T201
        return 0
    if options.steps < 2:
        parser.error("--steps has to be 2 or more: the first step is not measured")
    import torch  # noqa: PLC0415  # as in `measure`

    if not torch.cuda.is_available() and options.shape != ["tiny"]:
        print("These shapes need a CUDA device, and there is none. --shape tiny shows that the script works.")  # noqa: T201
        return 2
    training = {
        "max_steps": options.steps,
        "per_device_train_batch_size": options.batch,
        "gradient_checkpointing": options.gradient_checkpointing,
        "packing": True,
        "logging_steps": 1,
        "learning_rate": LEARNING_RATE,
        "seed": SEED,
    }
    print(f"{datetime.now(UTC):%Y-%m-%d} · {describe_device()} · CUDA {torch.version.cuda or 'none'}")  # noqa: T201
    print(", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES))  # noqa: T201
    checkpointing = "on" if options.gradient_checkpointing else "off"
    print(f"{options.steps} steps, {options.batch} packed a step, gradient checkpointing {checkpointing}\n")  # noqa: T201
    print("| shape | sequence | | load s | tokens/s | peak GB | loss | least grad_norm |")  # noqa: T201
    print("|---|---|---|---|---|---|---|---|", flush=True)  # noqa: T201
    for shape in options.shape:
        sequences = options.sequence or list(TINY_SEQUENCES if shape == "tiny" else SEQUENCES)
        compare(shape, sequences, training, options.scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
