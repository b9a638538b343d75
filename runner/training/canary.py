"""The canary: whether this host can train at all, found out on a tiny model before a job is risked.

`python -m runner.training.canary FOLDER --events-fd N` makes the demo's base model in FOLDER unless it is there, loads
tokenizer and 4-bit weights through the protected path, and takes one optimizer step of a LoRA adapter. It reports as a
training does: its last event is `run_succeeded`, or `run_failed` with the reason.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from runner.errors import TrainingError
from runner.events import ChildEvent, RunSucceeded
from runner.hyperparameters import Lora, Quantization
from runner.redaction import redact
from runner.reports import RunSummary
from runner.spec import DatasetShare, ProjectSpec, RunSpec, Trait
from runner.training.__main__ import EventWriter, failure_of
from runner.training.native_libraries import choose_native_settings
from runner.training.stopping import StopSwitch

BASE_MODEL = "demo-llama"
LEARNING_RATE = 1e-3
"""Small enough that the loss of the one example must fall in one step."""
EXAMPLE = "What is 2 + 3? The answer is 5."


def canary_spec() -> RunSpec:
    """What the canary loads; its one example is no dataset."""
    return RunSpec(
        project=ProjectSpec(
            name="canary",
            base_model=BASE_MODEL,
            output_directory="canary",
            traits=(Trait(trait_type="canary", datasets=(DatasetShare(dataset_id=1),)),),
            # A host that can load only larger weights runs out of memory with real models.
            quantization=Quantization(ladder=("4bit",)),
            # The same weights must give the same loss twice.
            lora=Lora(lora_dropout=0.0),
        ),
        datasets={},
    )


def train_one_step(folder: Path, emit: Callable[[ChildEvent], None]) -> RunSummary:
    """Load the tiny model and train one step of it.

    Args:
        folder: Where the model is or is to be.
        emit: Gets the events of loading.

    Raises:
        TrainingError: `canary`: the step ran, but nothing was learned; and all that `protected_load` raises.
    """
    started = time.monotonic()
    # Imported here: loading the training stack takes seconds, and its failure is an event like any other.
    import torch  # noqa: PLC0415

    from runner.training.demo_model import build_demo_model  # noqa: PLC0415
    from runner.training.loading.protected_load import protected_load  # noqa: PLC0415
    from runner.training.loop.lora import add_lora, keep_full_precision  # noqa: PLC0415

    spec = canary_spec()
    build_demo_model(folder / BASE_MODEL)
    with protected_load(spec, models_root=folder, emit=emit) as loaded:
        model = add_lora(loaded.model, spec.project.lora, spec.project.training.seed)
        keep_full_precision(model)
        model.train()
        device, dtype = loaded.model.device, getattr(torch, loaded.receipt.compute_dtype)
        batch = loaded.tokenizer(EXAMPLE, return_tensors="pt").to(device)
        optimizer = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad], lr=LEARNING_RATE
        )

        def loss() -> torch.Tensor:
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                output: torch.Tensor = model(**batch, labels=batch["input_ids"]).loss
            return output

        step_started = time.monotonic()
        first = loss()
        first.backward()  # type: ignore[no-untyped-call]  # torch leaves it bare
        optimizer.step()
        before, after = first.item(), loss().item()
        if not (math.isfinite(after) and after < before):
            raise TrainingError(
                f"One step of training took the loss from {before:.4g} to {after:.4g}; it has to fall.",
                hint="Something computes wrongly here: the device, its driver, or the libraries "
                "(`python -m runner versions`).",
                code="canary",
            )
        return RunSummary(
            rung=loaded.rung,
            steps=1,
            loss_first=before,
            loss_last=after,
            train_s=time.monotonic() - step_started,
            duration_s=time.monotonic() - started,
            guard_interceptions=loaded.receipt.guard_interceptions,
        )


def main(arguments: list[str]) -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m runner.training.canary")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--events-fd", type=int, required=True)
    options = parser.parse_args(arguments)
    choose_native_settings()
    os.set_inheritable(options.events_fd, False)
    with open(options.events_fd, "w", encoding="utf-8") as reader:  # noqa: PTH123  # a descriptor
        writer = EventWriter(None, reader, StopSwitch())
        try:
            writer.emit(RunSucceeded(summary=train_one_step(options.folder, writer.emit), adapter_path=""))
        except Exception as error:  # noqa: BLE001  # the boundary of the process: whatever happens becomes its last event
            sys.stderr.write(redact(traceback.format_exc()))
            writer.emit(failure_of(error))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
