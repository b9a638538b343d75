"""Two model classes whose code does what bitsandbytes' weights do not bear; the ladder has to find that out.

Each also holds a linear layer that it uses as everybody does, so that an adapter has something to learn.
`ShapeReader` looks at the shape of a weight: a 4-bit weight is packed into one column, an 8-bit one keeps its shape.
`ValueReader` multiplies the raw values of a weight: right for an unquantized one only.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput

WIDTH = 64
VOCABULARY = 512


class StubbornConfig(PretrainedConfig):  # type: ignore[no-untyped-call]  # transformers leaves __init_subclass__ bare
    model_type = "shape-reader"
    vocab_size = VOCABULARY
    hidden_size = WIDTH
    tie_word_embeddings = False
    plain_parameters = False
    """Hold the weights in modules that nothing knows how to quantize."""


class ValueReaderConfig(StubbornConfig):  # type: ignore[no-untyped-call]  # see above
    model_type = "value-reader"


class Plain(nn.Module):
    """A linear layer that is no `nn.Linear`, as fused experts are none."""

    def __init__(self, columns: int, rows: int, *, bias: bool) -> None:
        super().__init__()
        assert not bias
        self.weight = nn.Parameter(torch.zeros(rows, columns))

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.linear(hidden, self.weight)


class _Backbone(nn.Module):
    """Everything below the output layer, where TRL looks for it."""

    def __init__(self, config: StubbornConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        layer = Plain if config.plain_parameters else nn.Linear
        self.mix = layer(WIDTH, WIDTH, bias=False)
        self.dense = layer(WIDTH, WIDTH, bias=False)
        self.mixed = MIXED[config.model_type]

    def forward(self, input_ids: Tensor, **_: Any) -> BaseModelOutput:
        hidden = self.embed_tokens(input_ids)
        hidden = hidden + self.dense(hidden)
        return BaseModelOutput(last_hidden_state=hidden + self.mixed(self, hidden))


class _Stubborn(PreTrainedModel, GenerationMixin):  # type: ignore[no-untyped-call]  # see above
    config_class = StubbornConfig
    base_model_prefix = "model"

    def __init__(self, config: StubbornConfig) -> None:
        super().__init__(config)
        self.model = _Backbone(config)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.post_init()  # type: ignore[no-untyped-call]  # see above

    def get_input_embeddings(self) -> nn.Module:
        embedding: nn.Module = self.model.embed_tokens
        return embedding

    def get_output_embeddings(self) -> nn.Module:
        head: nn.Module = self.lm_head
        return head

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **_: Any) -> CausalLMOutput:
        hidden = self.model(input_ids).last_hidden_state
        logits = self.lm_head(hidden.to(self.lm_head.weight.dtype))
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)


class ShapeReader(_Stubborn):  # type: ignore[no-untyped-call]  # see above
    """Its backbone reads a weight's shape."""


class ValueReader(_Stubborn):  # type: ignore[no-untyped-call]  # see above
    """Its backbone multiplies a weight's raw values."""

    config_class = ValueReaderConfig


def _by_shape(backbone: _Backbone, hidden: Tensor) -> Tensor:
    rows, columns = backbone.mix.weight.shape
    mixed: Tensor = backbone.mix(hidden)
    return mixed.reshape(*hidden.shape[:-1], rows) * (rows / columns)


def _by_values(backbone: _Backbone, hidden: Tensor) -> Tensor:
    return functional.linear(hidden, backbone.mix.weight)


MIXED = {StubbornConfig.model_type: _by_shape, ValueReaderConfig.model_type: _by_values}


def register() -> None:
    """Make both known to AutoModelForCausalLM."""
    for config, model in ((StubbornConfig, ShapeReader), (ValueReaderConfig, ValueReader)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)


def write_model(folder: Path, model_type: str) -> None:
    """Write config.json and weights; the tokenizer is left to the caller."""
    generator = torch.Generator().manual_seed(3)
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.mix.weight": (WIDTH, WIDTH),
        "model.dense.weight": (WIDTH, WIDTH),
        "lm_head.weight": (VOCABULARY, WIDTH),
    }
    weights = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": model_type,
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
