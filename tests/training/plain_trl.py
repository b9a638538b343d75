"""A plain TRL script, as its documentation shows one: the reference that our training is compared with.

It uses nothing of ours. Tests build its trainer in their own process, benchmarks in a fresh one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer


def load(model_path: Path, *, load_in_4bit: bool, dtype: torch.dtype, load_in_8bit: bool = False) -> Any:
    """Load the model, unquantized where neither is asked for.

    Args:
        model_path: A local model.
        load_in_4bit: NF4 with double quantization.
        dtype: The model's and the computation's.
        load_in_8bit: LLM.int8.
    """
    quantization = None
    if load_in_8bit:
        quantization = BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]  # left bare
    if load_in_4bit:
        quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # transformers leaves it bare
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype, quantization_config=quantization)


def build(
    model_path: Path,
    rows: list[dict[str, str]],
    *,
    load_in_4bit: bool,
    dtype: torch.dtype,
    arguments: dict[str, Any],
    lora: dict[str, Any],
    full_precision_adapter: bool,
    load_in_8bit: bool = False,
) -> SFTTrainer:
    """Load the model, put LoRA on it and build the trainer.

    Args:
        model_path: A local model with its tokenizer.
        rows: Each with `prompt` and `completion`.
        load_in_4bit: As for `load`.
        dtype: As for `load`.
        arguments: For SFTConfig.
        lora: For LoraConfig.
        full_precision_adapter: Undo TRL's cast of a quantized model's adapter to bfloat16.
        load_in_8bit: As for `load`.
    """
    return build_on(
        load(model_path, load_in_4bit=load_in_4bit, dtype=dtype, load_in_8bit=load_in_8bit),
        model_path,
        rows,
        dtype=dtype,
        arguments=arguments,
        lora=lora,
        full_precision_adapter=full_precision_adapter,
    )


def build_on(
    model: Any,
    model_path: Path,
    rows: list[dict[str, str]],
    *,
    dtype: torch.dtype,
    arguments: dict[str, Any],
    lora: dict[str, Any],
    full_precision_adapter: bool,
) -> SFTTrainer:
    """Put LoRA on a loaded model and build the trainer; arguments as for `build`."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    config = SFTConfig(
        bf16=dtype == torch.bfloat16,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **arguments,
    )
    # Before the trainer, because it draws the adapter's start; TRL 0.25 does not seed by itself.
    set_seed(config.seed)
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **lora),
    )
    if full_precision_adapter:
        assert trainer.model is not None
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return trainer
