"""The merging process: base model in 16 bits, adapter merged into it, saved, loaded again by one that knows neither.

`python -m runner.training.outcome.merge ADAPTER FOLDER [--probe FILE]` writes FOLDER and prints a
`runner.merging.MergeReport` as one JSON object, or code, message and hint.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from runner.errors import AdapterError, DiskFullError, MemoryExhaustedError, ModelFilesError, QLoRAError
from runner.manifest import Manifest, read_manifest
from runner.merging import MergeReport
from runner.redaction import redact
from runner.settings import load_settings
from runner.training.accelerator import choose_device
from runner.training.data.encoding import encode_texts
from runner.training.loading.base_model import BaseModel, locate_base_model
from runner.training.loading.config_guard import ConfigGuard
from runner.training.loading.empty_model import choose_model_class
from runner.training.loading.failures import classify
from runner.training.loading.model_config import load_model_config
from runner.training.loading.quantization_config import stored_quantization
from runner.training.loading.rung import RungLoader
from runner.training.loading.tokenizer import load_tokenizer
from runner.training.loading.weight_estimate import WeightEstimate, estimate_weights
from runner.training.loop.lora import without_peft_noise
from runner.training.memory import free_bytes
from runner.training.outcome.merged_card import render_merged_card
from runner.training.outcome.verify import TOLERANCE, probe_logits

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

_OF_THE_ADAPTER = {"README.md", "loss.png"}
"""Files of an adapter's folder that say something else about a merged model; they come along under other names."""
_TEXTS = ["The first thing to know is", "In one sentence:"]
"""Compared where no probe is left and the project asks nothing."""
_GB = 1_000_000_000


def merge(adapter: Path, folder: Path, *, probe: Path | None, models_root: Path) -> MergeReport:
    """Merge an adapter onto its base model in the 16-bit type that the base model's files are in.

    Args:
        adapter: A finished adapter with its manifest.
        folder: Written; not there yet.
        probe: What the trained model answered, as `verify.store_probe` left it.
        models_root: Where local base models lie.

    Raises:
        ModelFilesError: The base model's files are quantized, so that there is no 16-bit base (`base-quantized`).
        MemoryExhaustedError, DiskFullError: It does not fit.
        AdapterError: What came out does not answer as it should.
        TrainingError: The base model cannot be read any more.
    """
    manifest = read_manifest(adapter)
    source = locate_base_model(manifest.spec, models_root)
    config = load_model_config(source, manifest.spec.project.model_type).config
    _refuse_quantized_files(source, config)
    dtype = config.dtype if config.dtype in {torch.bfloat16, torch.float16} else torch.bfloat16
    weights = estimate_weights(source, config, "none", manifest.spec.project.quantization, dtype)
    adapter_bytes = sum(path.stat().st_size for path in adapter.glob("*.safetensors"))
    device = _roomy_device(weights, adapter_bytes)
    _check_disk(weights, folder.parent)
    source.fetch_weights()
    with ConfigGuard(choose_model_class(config, source)) as guard:
        loader = RungLoader(manifest.spec.project, source, config, guard, device, dtype)
        loader.check_weights()
        model = loader.load("none")
        model, compared = _merged(model, adapter, _probe_inputs(manifest, source, probe))
        untied = _untie_if_needed(model) and bool(config.get_text_config().tie_word_embeddings)
        model.save_pretrained(folder)
        del model
        gc.collect()
    _copy_companions(adapter, folder)
    _clean_config(folder / "config.json")
    fresh = _logits_of_a_fresh_process(folder, compared["input_ids"])
    report = MergeReport(
        base_model=manifest.spec.project.base_model,
        revision=manifest.spec.project.revision,
        rung=manifest.rung,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        untied=untied,
        size_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        **_differences(compared, fresh, load_file(probe)["logits"] if probe else None),
    )
    (folder / "README.md").write_text(render_merged_card(manifest, report), encoding="utf-8")
    return report


def _refuse_quantized_files(source: BaseModel, config: PretrainedConfig) -> None:
    stored = stored_quantization(config)
    if stored is not None:
        raise ModelFilesError(
            f"The files of the base model {source.name!r} are quantized ({stored[0]}), and an adapter is merged into "
            "16-bit weights only.",
            hint="Use the adapter as it is, or train one on the unquantized base model.",
            code="base-quantized",
        )


def _roomy_device(weights: WeightEstimate, adapter_bytes: int) -> torch.device:
    """The GPU where it has room, else the CPU.

    Raises:
        MemoryExhaustedError: Neither has.
    """
    needed = weights.load_peak_bytes + 2 * adapter_bytes
    device = choose_device()
    if device.type != "cpu" and needed <= (free_bytes(device) or 0):
        return device
    cpu = torch.device("cpu")
    free = free_bytes(cpu)
    if free is not None and needed > free:
        raise MemoryExhaustedError(
            f"The base model in 16 bits needs {needed / _GB:.1f} GB, and this host has {free / _GB:.1f} GB free.",
            hint="Merge on a host with more memory; only the adapter and the base model have to be there.",
        )
    return cpu


def _check_disk(weights: WeightEstimate, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if weights.model_bytes > free:
        raise DiskFullError(
            f"The merged model takes {weights.model_bytes / _GB:.1f} GB, and {folder} has {free / _GB:.1f} GB free.",
            hint="Free space there, or name another place with --output.",
        )


def _probe_inputs(manifest: Manifest, source: BaseModel, probe: Path | None) -> Tensor:
    """Texts to compare with, (rows, tokens) int64: those of the trained model's probe, else the project's prompts."""
    if probe is not None:
        return load_file(probe)["input_ids"]
    tokenizer = load_tokenizer(source).tokenizer
    rows = encode_texts(tokenizer, manifest.spec.project.evaluation.prompts or _TEXTS)
    width = min(map(len, rows))
    return torch.tensor([row[:width] for row in rows])


def _merged(model: PreTrainedModel, adapter: Path, input_ids: Tensor) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """Merge, and keep the logits of base model, of adapter on base model, and of the merged model in memory."""
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    compared = {"input_ids": input_ids, "base": probe_logits(model, input_ids)}
    with without_peft_noise(model), warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        # Meant: what was one tensor becomes two where only one of them was trained. `_untie_if_needed` writes it down.
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*", category=UserWarning)
        with_adapter = PeftModel.from_pretrained(model, str(adapter))
        compared["adapter"] = probe_logits(with_adapter, input_ids)
        merged: Any = with_adapter.merge_and_unload(safe_merge=True)
    for name, parameter in merged.named_parameters():
        # An adapter's own modules are loaded in float32.
        parameter.data = parameter.data.to(dtypes.get(name, model.dtype))
    compared["merged"] = probe_logits(merged, input_ids)
    return merged, compared


def _untie_if_needed(model: Any) -> bool:
    """Write into the config that the embeddings are two tensors, where they are; says whether they are.

    Left tied, saving would drop one of them, and whoever loads the model would get the other twice.
    """
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if outputs is None or inputs.weight.data_ptr() == outputs.weight.data_ptr():
        return False
    # Newer PEFT sets the first of them by itself.
    for part in (model.config, model.config.get_text_config()):
        part.tie_word_embeddings = False
    return True


def _copy_companions(adapter: Path, folder: Path) -> None:
    """Bring the tokenizer, the manifest, and the adapter's own card."""
    for path in adapter.iterdir():
        if path.is_file() and not path.name.startswith("adapter_") and path.name not in _OF_THE_ADAPTER:
            shutil.copyfile(path, folder / path.name)
    shutil.copyfile(adapter / "README.md", folder / "ADAPTER.md")
    if (adapter / "loss.png").is_file():
        shutil.copyfile(adapter / "loss.png", folder / "loss.png")


def _clean_config(path: Path) -> None:
    """Leave out the folder that this host has the base model in, and who wrote the file.

    Of a local model with a large vocabulary that names a version up to 4.57.2, that very version of transformers cannot
    load the tokenizer (`runner.training.loading.tokenizer`).
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    for name in ("_name_or_path", "transformers_version"):
        values.pop(name, None)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _logits_of_a_fresh_process(folder: Path, input_ids: Tensor) -> Tensor:
    """Load the result with transformers alone.

    Raises:
        AdapterError: It cannot be loaded.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent) as exchange:
        asked, answered = Path(exchange) / "asked.safetensors", Path(exchange) / "answered.safetensors"
        save_file({"input_ids": input_ids}, asked)
        command = [sys.executable, "-m", "runner.training.outcome.plain_logits", str(folder), str(asked), str(answered)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = redact((done.stderr.strip().splitlines() or ["no word"])[-1])
            raise AdapterError(f"The merged model cannot be loaded: {last}", hint="Nothing was published.")
        return load_file(answered)["logits"]


def _differences(compared: dict[str, Tensor], fresh: Tensor, trained: Tensor | None) -> dict[str, Any]:
    """Compare and judge.

    Raises:
        AdapterError: The merged model is not what the adapter makes of the base model, or not what was saved.
    """
    adapter, scale = compared["adapter"], compared["adapter"].abs().max().item()
    worth = _largest(adapter, compared["base"])
    rounding = _largest(fresh, adapter)
    lost = _largest(fresh, compared["merged"])
    # Written so that a NaN is refused, too.
    if not (rounding <= worth / 2 and lost <= TOLERANCE * scale):
        raise AdapterError(
            f"The merged model does not answer as it should: its logits differ by {rounding:.3g} from those of the "
            f"adapter on the base model (the adapter itself changes them by {worth:.3g}), and by {lost:.3g} from "
            "what was saved.",
            hint="Nothing was published. Use the adapter as it is.",
        )
    same = None if trained is None else int((fresh.argmax(-1) == trained.argmax(-1)).sum().item())
    return {
        "positions": fresh.shape[0] * fresh.shape[1],
        "adapter_difference": worth,
        "rounding_difference": rounding,
        "trained_difference": None if trained is None else _largest(fresh, trained),
        "same_tokens": same,
    }


def _largest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max().item())


def main(arguments: list[str]) -> int:
    """Merge and print the report, or an object with code, message and hint; exit 0 or 1."""
    parser = argparse.ArgumentParser(prog="python -m runner.training.outcome.merge")
    parser.add_argument("adapter", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--probe", type=Path)
    options = parser.parse_args(arguments)
    try:
        report = merge(options.adapter, options.folder, probe=options.probe, models_root=load_settings().models_root)
        result, status = report.model_dump_json(), 0
    except Exception as error:
        found = error if isinstance(error, QLoRAError) else classify(error)
        if found is None:
            raise
        sys.stderr.write(redact(traceback.format_exc()))
        told = {"code": found.code, "message": redact(found.message), "hint": found.hint and redact(found.hint)}
        result, status = json.dumps(told), 1
    sys.stdout.write(result + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
