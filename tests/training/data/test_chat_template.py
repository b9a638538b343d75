"""An instruct template is used where its marks mean something to the base model, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from runner.spec import RunSpec
from runner.training.data.chat_template import input_embedding, settle_chat_template
from runner.training.data.encoding import PLAIN_CHAT_TEMPLATE
from runner.training.data.mix import mix_data

MARKED = (
    "{% for message in messages %}{{ '<|start_of_turn|>' + message['role'] + '\n' + message['content'] + '<|turn|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_of_turn|>assistant\n' }}{% endif %}"
)
TALKS = [
    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": f"Good morning, {number}"}]}
    for number in range(4)
]


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    """Brings an instruct template, whose two marks are tokens of their own."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    # In place of tokens that the vocabulary has anyway, as a model of a reserved vocabulary does.
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|start_of_turn|>", "<|turn|>"]})
    tokenizer.chat_template = MARKED
    return tokenizer


@pytest.fixture
def embedding() -> Any:
    """(vocabulary, width): every token's is another, as after pretraining."""
    return torch.randn(514, 16, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)


def test_a_template_whose_marks_were_trained_is_kept(tokenizer: Any, embedding: Any) -> None:
    assert settle_chat_template(tokenizer, embedding, "auto") is None
    assert tokenizer.chat_template == MARKED


def _nothing(embedding: Any, first: int, _second: int) -> None:
    embedding[first] = 0


def _next_to_nothing(embedding: Any, first: int, _second: int) -> None:
    embedding[first] = 1e-23


def _alike(embedding: Any, first: int, second: int) -> None:
    embedding[first] = embedding[second]


@pytest.mark.parametrize("spoil", [_nothing, _next_to_nothing, _alike])
def test_a_template_whose_marks_were_never_trained_gives_way_to_the_plain_one_and_it_is_said(
    tokenizer: Any, embedding: Any, spoil: Callable[[Any, int, int], None]
) -> None:
    first, second = tokenizer.convert_tokens_to_ids(["<|turn|>", "<|start_of_turn|>"])
    spoil(embedding, first, second)

    note = settle_chat_template(tokenizer, embedding, "auto")

    assert tokenizer.chat_template == PLAIN_CHAT_TEMPLATE
    assert note is not None
    assert "never trained on" in note
    assert "<|turn|>" in note
    assert 'training.chat_template = "own"' in note


def test_marks_that_the_vocabulary_lacks_are_found_without_a_model(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = MARKED

    note = settle_chat_template(tokenizer, None, "auto")

    assert tokenizer.chat_template == PLAIN_CHAT_TEMPLATE
    assert note is not None
    assert "no token <|start_of_turn|>, <|turn|>" in note


def test_a_project_may_insist_on_either(tokenizer: Any, embedding: Any) -> None:
    embedding.zero_()

    assert settle_chat_template(tokenizer, embedding, "own") is None
    assert tokenizer.chat_template == MARKED
    assert settle_chat_template(tokenizer, torch.ones_like(embedding), "plain") is None
    assert tokenizer.chat_template == PLAIN_CHAT_TEMPLATE


def test_a_model_without_a_template_gets_the_plain_one_without_a_word(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)

    assert settle_chat_template(tokenizer, None, "own") is None
    assert tokenizer.chat_template == PLAIN_CHAT_TEMPLATE


def test_the_mix_tells_of_it_and_leaves_vocabulary_and_embedding_as_they_are(
    tiny_model: Path, make_spec: Callable[..., RunSpec], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    template = MARKED.replace("<|start_of_turn|>", "<|begin|>").replace("<|turn|>", "<|end|>")
    tokenizer.chat_template = template
    embedding = input_embedding(model)
    mix_data(make_spec(tmp_path, TALKS), tokenizer, tmp_path, embedding=embedding)
    assert tokenizer.chat_template == template
    before = (len(tokenizer), embedding.shape)
    embedding[tokenizer.convert_tokens_to_ids("<|begin|>")] = 0

    mix = mix_data(make_spec(tmp_path, TALKS), tokenizer, tmp_path, embedding=embedding)

    assert tokenizer.chat_template == PLAIN_CHAT_TEMPLATE
    assert "<|begin|>" in mix.event.warnings[0]
    assert (len(tokenizer), input_embedding(model).shape) == before


@pytest.mark.parametrize("whole", [False, True])
def test_loss_is_on_answers_alone_unless_the_project_asks_for_all(
    tiny_model: Path, make_spec: Callable[..., RunSpec], tmp_path: Path, *, whole: bool
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = [{"prompt": "What is 3 + 4?", "completion": "7"}]
    training = {"completion_only_loss": not whole, "assistant_only_loss": not whole}

    mix = mix_data(make_spec(tmp_path, rows, TALKS, training=training), tokenizer, tmp_path)

    asked = [labels[1] != -100 for labels in mix.labels]
    assert asked == [whole] * 5
