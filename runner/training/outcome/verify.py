"""The verifying process: loads the saved adapter as anybody would and compares its logits with the trained model's.

`python -m runner.training.outcome.verify RUN_DIR --models-root DIR [--wait]` prints one JSON object. It never imports
trl: the adapter has to work without what trained it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from runner.errors import AdapterError, QLoRAError
from runner.events import AdapterVerified
from runner.redaction import redact
from runner.reports import LoadReceipt
from runner.spec import RunSpec
from runner.training.loading.protected_load import load_on_rung
from runner.training.loop.lora import without_peft_noise
from runner.training.outcome.saved_weights import digest_weights, require_weights

if TYPE_CHECKING:
    from torch import Tensor

PROBE = "probe.safetensors"
ROWS = 4
WIDTH = 32
"""Tokens of each row that go through the model."""
POSITIONS = 8
"""Last positions of each row whose logits are stored; all of them would be gigabytes with a large vocabulary."""
TOLERANCE = 0.02
"""Largest accepted difference, as a share of the largest logit.

On a CPU both processes do the same arithmetic and differ by 0. On a GPU another algorithm may be chosen for a matrix
product and round differently: bfloat16 keeps 8 bits, 0.4 % a rounding, and a handful of them add up. An adapter that
was lost or exchanged differs by about as much as the base model does, which the second condition of `compare` catches
where training has moved the logits by less than this.
"""


def store_probe(model: Any, rows: Sequence[Sequence[int]], path: Path) -> None:
    """Write what the trained model answers to a few training rows, and the digests of its adapter's tensors.

    Args:
        model: The trained model, its precision settled; its mode is left as it was.
        rows: Token ids of training rows; the longest few are used, cut to one length so that nothing is padded.
        path: Where `input_ids` (rows, tokens) int64 and `logits` (rows, positions, vocabulary) float32 go.
    """
    chosen = sorted(rows, key=len, reverse=True)[:ROWS]
    width = min(WIDTH, len(chosen[-1]))
    input_ids = torch.tensor([list(row[:width]) for row in chosen])
    tensors = {"input_ids": input_ids, "logits": probe_logits(model, input_ids)}
    save_file(tensors, path, metadata=digest_weights(model))


def probe_logits(model: Any, input_ids: Tensor) -> Tensor:
    """Run the model in inference mode without autocast, as whoever loads the adapter does.

    Returns:
        (rows, positions, vocabulary) float32 on the CPU, the last `POSITIONS` positions.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _one_precision(model):
            logits = model(input_ids=input_ids.to(model.device)).logits
    finally:
        model.train(was_training)
    return logits[:, -POSITIONS:].float().cpu().contiguous()  # type: ignore[no-any-return]  # any model's output


@contextmanager
def _one_precision(model: Any) -> Iterator[None]:
    """Let 4-bit layers compute in float32.

    In the precision that they train in, rounding alone may tell the two processes apart, for no fault of the adapter.
    """
    layers = [module for module in model.modules() if hasattr(module, "compute_type_is_set")]
    before = [(layer.compute_dtype, layer.compute_type_is_set) for layer in layers]
    for layer in layers:
        layer.compute_dtype, layer.compute_type_is_set = torch.float32, True
    try:
        yield
    finally:
        for layer, (dtype, is_set) in zip(layers, before, strict=True):
            layer.compute_dtype, layer.compute_type_is_set = dtype, is_set


def compare(trained: Tensor, reloaded: Tensor, base: Tensor) -> tuple[float, float]:
    """Decide whether the reloaded adapter is the one that was trained.

    Args:
        trained: Logits of the trained model, (rows, positions, vocabulary) float32.
        reloaded: Logits of base model and saved adapter, same shape.
        base: Logits of the base model alone, same shape.

    Returns:
        Largest absolute difference of the reloaded to the trained logits, and of the base to the trained ones.

    Raises:
        AdapterError: It is not, or training has changed nothing.
    """
    difference = (reloaded - trained).abs().max().item()
    base_difference = (base - trained).abs().max().item()
    tolerance = TOLERANCE * trained.abs().max().item()
    if base_difference == 0:
        raise AdapterError(
            "The trained model answers exactly as its base model does, so the adapter holds nothing.",
            hint="Raise training.learning_rate or train more steps.",
        )
    # Written so that a NaN is refused, too.
    if not (difference <= tolerance and difference <= base_difference / 2):
        raise AdapterError(
            f"The saved adapter is not what was trained: its logits differ by {difference:.3g} from the trained "
            f"model's (accepted: {min(tolerance, base_difference / 2):.3g}; the base model differs by "
            f"{base_difference:.3g}).",
            hint="The run directory keeps the last checkpoint; starting the job again goes on from it.",
        )
    return difference, base_difference


def verify(run_dir: Path, models_root: Path) -> AdapterVerified:
    """Load base model and adapter, and compare with the stored probe.

    Args:
        run_dir: Holds spec.json, receipt.json, the probe and the adapter.
        models_root: Where local base models lie on this host.

    Raises:
        AdapterError: The adapter cannot be loaded or is not the one that was trained.
        TrainingError: The base model cannot be loaded again.
    """
    started = time.monotonic()
    spec = RunSpec.model_validate_json((run_dir / "spec.json").read_bytes())
    receipt = LoadReceipt.model_validate_json((run_dir / "receipt.json").read_bytes())
    probe = load_file(run_dir / PROBE)
    with safe_open(run_dir / PROBE, "pt") as stored:
        digests = dict(stored.metadata())
    model = load_on_rung(spec, receipt.rung, models_root=models_root)
    base = probe_logits(model, probe["input_ids"])
    try:
        with without_peft_noise(model), warnings.catch_warnings():
            # A tensor that is not in the file would silently keep its random start.
            warnings.filterwarnings("error", message="Found missing adapter keys")
            with_adapter = PeftModel.from_pretrained(model, str(run_dir / "adapter"))
    except Exception as error:
        raise AdapterError(
            f"The saved adapter cannot be loaded: {type(error).__name__}: {str(error).splitlines()[0]}",
            hint="The run directory keeps the last checkpoint; starting the job again goes on from it.",
        ) from error
    reloaded = probe_logits(with_adapter, probe["input_ids"])
    difference, base_difference = compare(probe["logits"], reloaded, base)
    require_weights(run_dir / "adapter", digests)
    return AdapterVerified(
        max_difference=difference, base_difference=base_difference, duration_s=time.monotonic() - started
    )


def main(arguments: list[str]) -> int:
    """Verify and print the `adapter_verified` event, or an object with code, message and hint; exit 0 or 1."""
    parser = argparse.ArgumentParser(prog="python -m runner.training.outcome.verify")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--models-root", type=Path, required=True)
    parser.add_argument("--wait", action="store_true", help="import first, then begin at a line on standard input")
    options = parser.parse_args(arguments)
    if options.wait and not sys.stdin.readline():
        return 1
    try:
        result = verify(options.run_dir, options.models_root).model_dump_json()
        status = 0
    except QLoRAError as error:
        result = json.dumps({"code": error.code, "message": redact(error.message), "hint": error.hint})
        status = 1
    sys.stdout.write(result + "\n")
    return status


if __name__ == "__main__":
    _status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # The verdict is out and its reader waits for nothing but this exit; to take the libraries down costs a second.
    os._exit(_status)
