"""The hyperparameters of a project file, under the names of PEFT, TRL, transformers and bitsandbytes. Pure.

Every field is handed on as it is: `[lora]` to `runner.training.loop.lora`, `[training]` to
`runner.training.loop.arguments`, `[quantization]` to the ladder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator
from typing_extensions import override

from runner.optimizers import Optimizer, optimizer_contradictions
from runner.reports import Rung
from runner.schedules import Schedule, schedule_contradictions
from runner.strict import Contradiction, Names, Spec


def _is_not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("must be at least 1, or -1 to go by num_train_epochs")
    return value


class Quantization(Spec):
    """How the base model is held in memory."""

    ladder: Annotated[tuple[Rung, ...], Field(min_length=1, strict=False)] = ("4bit", "8bit", "none")
    """Rungs to try, in this order; `["4bit"]` forbids falling back."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = True
    """Also quantize the quantization constants: about 0.4 bits a parameter less."""
    bnb_4bit_compute_dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """What every rung computes in; `auto` is bfloat16 where the hardware has it, else float16 on a GPU and float32 on
    a CPU. Stands for `bf16` and `fp16` too."""
    llm_int8_threshold: Annotated[float, Field(ge=0)] = 6.0
    """Outlier threshold of LLM.int8."""

    @field_validator("ladder")
    @classmethod
    def _each_rung_once(cls, ladder: tuple[Rung, ...]) -> tuple[Rung, ...]:
        if len(set(ladder)) != len(ladder):
            raise ValueError("names a rung twice")
        return ladder


def _is_a_pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"must be a valid pattern ({error})") from error
    return value


_Pattern = Annotated[str, Field(min_length=1), AfterValidator(_is_a_pattern)]


class Lora(Spec):
    """The adapter, in PEFT's names."""

    r: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank."""
    lora_alpha: Annotated[int, Field(ge=1)] = 32
    """Scale numerator: the update is multiplied by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    target_modules: _Pattern | Annotated[Names, Field(min_length=1)] = "all-linear"
    """`all-linear`, a list of module names, or a pattern that whole names match."""
    exclude_modules: _Pattern | Names = ()
    """Modules that `target_modules` would choose and that get no adapter: a list of names, or a pattern."""
    modules_to_save: Names = ()
    """Modules trained and saved whole beside the adapter, such as `lm_head`."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead."""
    use_dora: bool = False
    """Learn the magnitude of the weights apart from their direction (DoRA): slower, often better at low rank."""
    bias: Literal["none", "all", "lora_only"] = "none"
    init_lora_weights: bool | Literal["gaussian", "orthogonal"] = True
    """True starts with an adapter that changes nothing; so do `gaussian` and `orthogonal`, which draw its matrices
    otherwise; false starts at random, for tests of the machinery only."""
    layers_to_transform: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] = ()
    """Numbers of the layers that get an adapter; empty for all of them."""
    layers_pattern: Names = ()
    """What the model calls its list of layers, where PEFT does not find it by itself; needs `layers_to_transform`."""
    rank_pattern: dict[_Pattern, Annotated[int, Field(ge=1, le=1024)]] = Field(default_factory=dict)
    """Another `r` for modules whose names match, such as `{ "layers.0.*q_proj" = 64 }`."""
    alpha_pattern: dict[_Pattern, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Another `lora_alpha` for modules whose names match."""

    @override
    def contradictions(self) -> Iterator[Contradiction]:
        if self.layers_pattern and not self.layers_to_transform:
            yield Contradiction(
                "says where layers_to_transform counts; set that too, or remove this",
                ("layers_pattern", "layers_to_transform"),
            )
        ranks = {"r": (self.r,), "rank_pattern": tuple(self.rank_pattern.values())}
        for name, values in ranks.items():
            if self.init_lora_weights == "orthogonal" and any(value % 2 for value in values):
                yield Contradiction("must be even for init_lora_weights = 'orthogonal'", (name, "init_lora_weights"))
        # PEFT ignores the layers where names are matched as one pattern.
        if self.layers_to_transform and isinstance(self.target_modules, str):
            yield Contradiction(
                'needs target_modules as a list, such as ["q_proj", "v_proj"]',
                ("layers_to_transform", "target_modules"),
            )


class Training(Spec):
    """The optimization, in TRL's and transformers' names."""

    num_train_epochs: Annotated[float, Field(gt=0, le=10_000)] = 3.0
    max_steps: Annotated[int, Field(ge=-1), AfterValidator(_is_not_zero)] = -1
    """Optimizer steps; when positive, overrides `num_train_epochs`."""
    per_device_train_batch_size: Annotated[int, Field(ge=1)] = 8
    """Rows a device sees at once."""
    gradient_accumulation_steps: Annotated[int, Field(ge=1)] = 1
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    lr_scheduler_type: Schedule = "linear"
    lr_scheduler_kwargs: dict[str, int | float | str] = Field(default_factory=dict)
    """What the schedule itself takes, such as `{ num_cycles = 2 }` or `{ min_lr_rate = 0.1 }`."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0
    """Optimizer steps, or below 1 the share of all steps."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of all steps, as transformers before 5 names it."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    adam_epsilon: Annotated[float, Field(gt=0)] = 1e-8
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    label_smoothing_factor: Annotated[float, Field(ge=0, lt=1)] = 0.0
    loss_type: Literal["nll", "dft"] = "nll"
    """`dft` weighs each token's loss by its probability (Dynamic Fine-Tuning); held-out losses stay `nll`."""
    optim: Optimizer = "auto"
    """`auto` is paged_adamw_8bit on a GPU and adamw_torch_fused on a CPU."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] | None = None
    """LoRA+: how many times `learning_rate` the adapter's second matrices learn at, as in
    `peft.optimizers.create_loraplus_optimizer`; None for as fast as the first."""
    optim_args: Annotated[str, Field(min_length=1)] | None = None
    """What the optimizer itself takes, `name=value` with commas between; AdamW, Lion and Adafactor take nothing."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    """Tokens; longer rows are cut and counted."""
    completion_only_loss: bool = True
    """Loss on the completion alone of rows with prompt and completion; false trains on the prompt too."""
    assistant_only_loss: bool = True
    """Loss on the assistant's turns alone of messages; false trains on all turns."""
    chat_template: Literal["auto", "own", "plain"] = "auto"
    """Renders messages: the base model's own template, or a plain one; `auto` takes the plain one where there is none
    or where its marks were never trained."""
    packing: bool = False
    """Put several rows into one sequence of `max_length` tokens."""
    packing_strategy: Literal["bfd", "wrapped"] = "bfd"
    """`bfd` keeps rows whole and apart; `wrapped` cuts them where a sequence is full, and they see each other."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = None
    """The attention's kernel; None for what transformers chooses."""
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None
    """Pads batches to a multiple of so many tokens, whose shapes some GPUs multiply faster; None for none."""
    group_by_length: bool = False
    """Rows of about one length in a batch: less padding, another order."""
    dataloader_num_workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that make batches; 0 makes them in the training's own, which is fast enough for tokenized rows."""
    tf32: bool | None = None
    """Whether float32 is multiplied as TF32, on an Ampere or newer GPU; None for transformers' default."""
    torch_empty_cache_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between two returns of unused GPU memory; None for never."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a fifth slower."""
    logging_steps: Annotated[int, Field(ge=1)] = 10
    """Optimizer steps between two progress reports."""
    save_strategy: Literal["steps", "epoch", "no"] = "steps"
    """When to write a checkpoint; a run that is asked to stop writes one in any case."""
    save_steps: Annotated[int, Field(ge=1)] = 200
    """Optimizer steps between two checkpoints."""
    save_total_limit: Annotated[int, Field(ge=1)] = 2
    """Checkpoints kept."""
    eval_strategy: Literal["no", "steps", "epoch"] = "no"
    """When to measure the loss on all held-out rows while training goes on; the last step is measured too."""
    eval_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between two such measurements; None for `logging_steps`."""
    per_device_eval_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Held-out rows at once, no more than in training; None for as many."""
    load_best_model_at_end: bool = False
    """The adapter is that of the lowest held-out loss; its checkpoint is written and kept, whatever `save_steps` is."""
    metric_for_best_model: Literal["eval_loss", "loss"] = "eval_loss"
    """What is best; both names mean the held-out loss."""
    early_stopping_patience: Annotated[int, Field(ge=1)] | None = None
    """Measurements in a row without a better loss that end training."""
    early_stopping_threshold: Annotated[float, Field(ge=0)] = 0.0
    """How much lower a loss must be to count as better."""
    step_timeout_s: Annotated[float, Field(ge=0)] = 3600.0
    """Seconds without a sign of life from the training, after which the run is ended as stalled; 0 waits for ever."""
    max_loss_rise: Annotated[float, Field(ge=0)] = 2.0
    """Nats that the mean loss of 20 steps may lie above its lowest before the run, if that also doubled it, is ended as
    diverged; 0 turns this off."""
    neftune_noise_alpha: Annotated[float, Field(gt=0)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Draws the rows, the adapter's start and the order."""
    data_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = None
    """Draws the order of the rows instead of `seed`."""

    @property
    def eval_batch_size(self) -> int:
        """Held-out rows at once, before, while and after training."""
        return self.per_device_eval_batch_size or self.per_device_train_batch_size

    @override
    def contradictions(self) -> Iterator[Contradiction]:
        if self.warmup_ratio and self.warmup_steps:
            yield Contradiction(
                "says how long the warmup is, and so does warmup_steps; keep one of them",
                ("warmup_ratio", "warmup_steps"),
            )
        warmup = next((name for name in ("warmup_ratio", "warmup_steps") if getattr(self, name)), None)
        length = self.warmup_ratio or self.warmup_steps
        yield from schedule_contradictions(
            self.lr_scheduler_type, self.lr_scheduler_kwargs, warmup, length, self.max_steps
        )
        yield from optimizer_contradictions(self.optim, self.optim_args, self._changed())
        if self.eval_strategy == "no":
            needing = [name for name in ("load_best_model_at_end", "early_stopping_patience") if getattr(self, name)]
            if self.lr_scheduler_type == "reduce_lr_on_plateau":
                needing.append("lr_scheduler_type")
            for name in needing:
                yield Contradiction('needs eval_strategy = "steps" or "epoch"', (name, "eval_strategy"))
        if self.loss_type == "dft" and self.label_smoothing_factor:
            yield Contradiction("is left out by loss_type = 'dft'; remove it", ("label_smoothing_factor", "loss_type"))
        if self.packing and self.pad_to_multiple_of is not None:
            yield Contradiction("is left out by packing = true, which pads nothing", ("pad_to_multiple_of", "packing"))
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            yield Contradiction(
                "is for early_stopping_patience; set that too, or remove this",
                ("early_stopping_threshold", "early_stopping_patience"),
            )
        most = self.per_device_train_batch_size
        if self.per_device_eval_batch_size is not None and self.per_device_eval_batch_size > most:
            yield Contradiction(
                f"must be at most per_device_train_batch_size ({most}), found {self.per_device_eval_batch_size}",
                ("per_device_eval_batch_size", "per_device_train_batch_size"),
            )

    def _changed(self) -> set[str]:
        """Names of the settings that differ from their defaults."""
        fields = type(self).model_fields.items()
        return {name for name, field in fields if getattr(self, name) != field.get_default(call_default_factory=True)}
