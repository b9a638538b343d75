"""Hyperparameters that TRL, transformers, PEFT and bitsandbytes have and no project can set, each with why. Pure.

A test holds this beside the installed libraries: what is neither settable nor named here fails it, so that a new name
upstream asks for a decision.
"""

from __future__ import annotations

_TRAINING = {
    "output_directory says where the result goes": "output_dir overwrite_output_dir",
    "every job has a folder of its own, and `retry JOB --resume` goes on where one stands": (
        "resume_from_checkpoint ignore_data_skip restore_callback_states_from_checkpoint"
    ),
    "a run always trains, and measures the held-out loss before and after": "do_train do_eval do_predict eval_on_start",
    "eval_strategy and eval_steps say when the held-out loss is measured": "eval_delay",
    "held-out rows are measured one by one, the mean over all their tokens": (
        "eval_accumulation_steps eval_do_concat_batches eval_use_gather_object batch_eval_metrics eval_packing "
        "include_for_metrics include_inputs_for_metrics prediction_loss_only"
    ),
    "the best step is always the one of the lowest held-out loss": "greater_is_better",
    "[quantization] bnb_4bit_compute_dtype says what is computed in, in evaluations too": (
        "bf16 fp16 bf16_full_eval fp16_full_eval fp16_backend fp16_opt_level half_precision_backend"
    ),
    "use_reentrant is always false: else the gradient is lost where a layer's input needs none": (
        "gradient_checkpointing_kwargs activation_checkpointing_kwargs"
    ),
    "it is set as gradient_checkpointing, the name that all versions of TRL know": "activation_checkpointing",
    "it has not been tried on a GPU here; gradient_checkpointing = true saves memory": "activation_offloading",
    "a batch that does not fit is halved anyway, and the accumulation doubled": "auto_find_batch_size",
    "it is set as per_device_train_batch_size and per_device_eval_batch_size": (
        "per_gpu_train_batch_size per_gpu_eval_batch_size"
    ),
    "it is set as optim = 'adafactor'": "adafactor",
    "it goes with GaLore and APOLLO, which need packages that are in none of the tested stacks": "optim_target_modules",
    "[compute] gpus says on how many GPUs a job trains, each with the whole model; the host arranges the rest": (
        "accelerator_config parallelism_config deepspeed fsdp fsdp_config fsdp_min_num_params "
        "fsdp_transformer_layer_cls_to_wrap ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_static_graph "
        "ddp_find_unused_parameters ddp_timeout local_rank mp_parameters ray_scope log_on_each_node save_on_each_node"
    ),
    "a step's loss is always the mean over the tokens of all GPUs": "average_tokens_across_devices",
    "the host decides what it trains on": "use_cpu no_cuda use_mps_device tpu_num_cores tpu_metrics_debug",
    "a quantized base model cannot be compiled": (
        "torch_compile torch_compile_backend torch_compile_mode torchdynamo jit_mode_eval"
    ),
    "its kernels would take the place of a loss that already makes no logits": ("use_liger_kernel liger_kernel_config"),
    "rows are read, cut and masked before TRL gets them: [[traits]], datasets.toml and max_length say how": (
        "dataset_text_field dataset_kwargs dataset_num_proc truncation_mode label_names remove_unused_columns "
        "length_column_name shuffle_dataset"
    ),
    "the chat template is the base model's own or a plain one: chat_template": "chat_template_path",
    "the tokenizer's own tokens are taken; a padding token is chosen that no row is trained on": "eos_token pad_token",
    "base_model, revision, attn_implementation and [quantization] say how the base model is loaded": (
        "model_init_kwargs use_cache"
    ),
    "code that a model brings is never run": "trust_remote_code",
    "the base model's own config.json decides": "router_aux_loss_coef",
    "packing = true packs without padding": "padding_free",
    "it is set as group_by_length, the name that all versions of transformers know": "train_sampling_strategy",
    "every row is trained in every epoch": "dataloader_drop_last",
    "rows are tokenized before training, so dataloader_num_workers is all that making batches needs": (
        "dataloader_in_order dataloader_multiprocessing_context dataloader_persistent_workers "
        "dataloader_pin_memory dataloader_prefetch_factor"
    ),
    "a checkpoint always holds all that an exact resume needs": "save_only_model save_safetensors",
    "a job that is stopped writes a checkpoint anyway": "enable_jit_checkpoint",
    "PyTorch's deterministic mode does not reach bitsandbytes' kernels; seed and data_seed fix all that is drawn": (
        "full_determinism"
    ),
    "a tracker would need its package and token on every GPU host; thread, events.jsonl and loss.png tell the same": (
        "report_to run_name project logging_dir trackio_bucket_id trackio_space_id trackio_static_space_id"
    ),
    "the thread, events.jsonl and loss.png in the run directory tell the course of a run": (
        "logging_first_step logging_strategy disable_tqdm log_level "
        "log_level_replica include_num_input_tokens_seen include_tokens_per_second"
    ),
    "the watchdog has to see every loss": "logging_nan_inf_filter",
    "it is for looking into the trainer, or for models of other kinds": (
        "past_index debug skip_memory_metrics use_legacy_prediction_loop"
    ),
    "`python -m runner push` uploads an adapter once it has been verified": (
        "push_to_hub push_to_hub_model_id push_to_hub_organization push_to_hub_token hub_model_id hub_strategy "
        "hub_token hub_private_repo hub_always_push hub_revision"
    ),
}
_LORA = {
    "it has not been tried with the ladder and a merge; target_modules reaches every linear module": (
        "target_parameters"
    ),
    "single rows have not been tried with the loss here; modules_to_save trains an embedding whole": (
        "trainable_token_indices ensure_weight_tying"
    ),
    "it is the base model's, or PEFT's own note": (
        "task_type peft_type peft_version auto_mapping base_model_name_or_path revision inference_mode fan_in_fan_out"
    ),
    "it is for starts that change or measure the base model first, which init_lora_weights does not offer": (
        "loftq_config eva_config corda_config lora_ga_config"
    ),
    "it is for adapters made from a model that was trained whole": "lora_bias",
    "the adapter would fit only a base model with other layers": "layer_replication",
    "the adapter would be silent in every prompt without those tokens": "alora_invocation_tokens",
    "it is for base models that GPTQ quantized": "use_qalora qalora_group_size",
    "it is for training with Megatron": "megatron_config megatron_core",
    "it is another method than LoRA, whose adapters cannot be merged and verified here": (
        "arrow_config kasa_config monteclora_config velora_config use_bdlora"
    ),
    "a model that trains here is wholly on its GPU": "runtime_config",
}
_QUANTIZATION = {
    "transformers' own choice is taken: the output layer stays unquantized, and the load receipt counts what does": (
        "llm_int8_skip_modules"
    ),
    "ladder says it": "load_in_4bit load_in_8bit",
    "it is for training with FSDP; here each GPU holds the whole model": "bnb_4bit_quant_storage",
    "what lies in the host's memory cannot be trained on; smaller rungs of the ladder save memory": (
        "llm_int8_enable_fp32_cpu_offload"
    ),
    "it is for training 8-bit weights themselves": "llm_int8_has_fp16_weight",
}
_OPTIM = {
    "needs a package that is in none of the tested stacks": (
        "adamw_anyprecision adamw_apex_fused adamw_torch_4bit adamw_torch_8bit adamw_torch_npu_fused adamw_torch_xla "
        "adalomo lomo grokadamw schedule_free_adamw schedule_free_radam schedule_free_sgd stable_adamw "
        "apollo_adamw apollo_adamw_layerwise galore_adafactor galore_adafactor_layerwise galore_adamw "
        "galore_adamw_8bit galore_adamw_8bit_layerwise galore_adamw_layerwise"
    ),
}
_LR_SCHEDULER_TYPE = {
    "is in transformers 5 only, and restarts the learning rate by the noise of single losses; "
    "'reduce_lr_on_plateau' goes by the held-out loss": "greedy",
}
_PACKING_STRATEGY = {
    "is 'bfd' here: rows are cut at max_length before they are packed": "bfd_split bfd-requeue",
}
_LOSS_TYPE = {"is TRL's older name for 'nll'": "chunked_nll"}
_INIT_LORA_WEIGHTS = {
    "changes the base model's weights: the adapter would fit no base model that anybody can load": (
        "pissa pissa_niter_ olora corda loftq"
    ),
    "measures the data or the weights in a pass of its own before training, which a quantized model does not bear": (
        "eva lora_ga mica"
    ),
}


def _by_name(reasons: dict[str, str]) -> dict[str, str]:
    return {name: reason for reason, names in reasons.items() for name in names.split()}


REFUSED = {"quantization": _by_name(_QUANTIZATION), "lora": _by_name(_LORA), "training": _by_name(_TRAINING)}
"""Names that cannot be set, by table: name to reason."""
REFUSED_VALUES = {
    "training.optim": _by_name(_OPTIM),
    "training.lr_scheduler_type": _by_name(_LR_SCHEDULER_TYPE),
    "training.packing_strategy": _by_name(_PACKING_STRATEGY),
    "training.loss_type": _by_name(_LOSS_TYPE),
    "lora.init_lora_weights": _by_name(_INIT_LORA_WEIGHTS),
}
"""Values that a library takes and a project cannot, by setting: value to reason."""


def why_refused(name: str, table: str) -> str | None:
    """Why a hyperparameter cannot be set; None for a name that none of the libraries has.

    Args:
        name: As the library calls it.
        table: The project file's table it stands in; any of them when empty.
    """
    tables = [REFUSED.get(table, {}), *REFUSED.values()]
    return next((names[name] for names in tables if name in names), None)


def why_value_refused(setting: str, value: str) -> str | None:
    """Why a setting cannot have a value; None for one that its library does not know either.

    Args:
        setting: Dotted path.
        value: As typed; a number at its end, as in `pissa_niter_16`, makes no difference.
    """
    values = REFUSED_VALUES.get(setting, {})
    return values.get(value) or values.get(value.rstrip("0123456789"))
