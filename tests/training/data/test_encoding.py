from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from runner.errors import DatasetError, TokenizerError
from runner.training.data.encoding import (
    PLAIN_CHAT_TEMPLATE,
    EncodedRow,
    encode_answered,
    encode_question,
    encode_rows,
)

MARKED_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
THINKING_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ 'hm. ' }}{% endif %}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
TALK = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Good morning"},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A model"},
]


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


def _trained_text(tokenizer: Any, row: EncodedRow) -> str:
    return str(tokenizer.decode([token for token, on in zip(row.input_ids, row.trained, strict=True) if on]))


def test_only_the_completion_and_its_end_are_trained(tokenizer: Any) -> None:
    [row] = encode_rows(tokenizer, "prompt_completion", [{"prompt": "What is 3 + 4?", "completion": "7"}])

    assert tokenizer.decode(row.input_ids) == "What is 3 + 4?7<|end|>"
    assert _trained_text(tokenizer, row) == "7<|end|>"


def test_an_end_that_the_row_already_has_is_not_doubled(tokenizer: Any) -> None:
    [row] = encode_rows(tokenizer, "prompt_completion", [{"prompt": "What is 3 + 4?", "completion": "7<|end|>"}])

    assert row.input_ids.count(tokenizer.eos_token_id) == 1


def test_a_merge_across_the_border_leaves_the_prompt_as_a_question_would_have_it(tokenizer: Any) -> None:
    prompt, completion = "What is t", "he sum"
    merged = tokenizer(prompt + completion)["input_ids"]
    question = encode_question(tokenizer, prompt, as_chat=False)
    assert merged[: len(question)] != question, "the texts must merge for this test to mean something"

    [row] = encode_rows(tokenizer, "prompt_completion", [{"prompt": prompt, "completion": completion}])

    assert row.input_ids[: len(question)] == question
    assert _trained_text(tokenizer, row) == "he sum<|end|>"


def test_every_token_of_a_text_is_trained(tokenizer: Any) -> None:
    [row] = encode_rows(tokenizer, "text", [{"text": "Thank you"}])

    assert _trained_text(tokenizer, row) == "Thank you<|end|>"


def test_a_begin_token_stays_and_an_end_token_that_the_tokenizer_adds_goes(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin|> $A <|end|>", special_tokens=[("<|begin|>", 1), ("<|end|>", 2)]
    )

    [row] = encode_rows(tokenizer, "prompt_completion", [{"prompt": "What", "completion": " is that?"}])

    assert tokenizer.decode(row.input_ids) == "<|begin|>What is that?<|end|>"
    assert _trained_text(tokenizer, row) == " is that?<|end|>"


@pytest.mark.parametrize(
    ("template", "trained"),
    [
        pytest.param(PLAIN_CHAT_TEMPLATE, "Good morning<|end|>A model<|end|>", id="plain"),
        pytest.param(MARKED_TEMPLATE, "Good morning<|end|>A model<|end|>", id="marked"),
        pytest.param(THINKING_TEMPLATE, "Good morning<|end|>hm. A model<|end|>", id="earlier turns render differently"),
    ],
)
def test_only_the_assistants_turns_of_a_conversation_are_trained(tokenizer: Any, template: str, trained: str) -> None:
    tokenizer.chat_template = template

    [row] = encode_rows(tokenizer, "messages", [{"messages": TALK}])

    assert _trained_text(tokenizer, row) == trained


def test_a_template_without_an_end_of_turn_gets_a_trained_end(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"

    [row] = encode_rows(tokenizer, "messages", [{"messages": TALK[:2]}])

    # The blank before the answer is part of the answer's first token.
    assert _trained_text(tokenizer, row) == " Good morning<|end|>"


def test_what_follows_the_last_answer_is_left_out(tokenizer: Any) -> None:
    tokenizer.chat_template = MARKED_TEMPLATE

    [row] = encode_rows(tokenizer, "messages", [{"messages": TALK[:3]}])

    assert tokenizer.decode(row.input_ids) == "<user>Hello\n<assistant>Good morning<|end|>"


def test_a_conversation_that_begins_with_an_answer_is_trained_on_it(tokenizer: Any) -> None:
    tokenizer.chat_template = MARKED_TEMPLATE

    [row] = encode_rows(tokenizer, "messages", [{"messages": TALK[1:]}])

    assert _trained_text(tokenizer, row) == "Good morning<|end|>A model<|end|>"
    with pytest.raises(DatasetError, match="row 1: it begins with its only answer, so there is nothing to ask"):
        encode_answered(tokenizer, "messages", [{"messages": TALK[1:2]}])


def test_a_template_that_mixes_up_its_turns_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for message in messages | reverse %}{{ message['content'] }}{% endfor %}"

    with pytest.raises(DatasetError, match="cannot be split into turns"):
        encode_rows(tokenizer, "messages", [{"messages": TALK}])


def test_a_question_is_encoded_as_the_prompt_of_a_row(tokenizer: Any) -> None:
    tokenizer.chat_template = MARKED_TEMPLATE
    [row] = encode_rows(tokenizer, "messages", [{"messages": TALK[:2]}])

    question = encode_question(tokenizer, "Hello", as_chat=True)

    assert row.input_ids[: len(question)] == question
    assert row.trained[: len(question) + 1] == [False] * len(question) + [True]


def test_a_tokenizer_without_an_end_token_is_refused(tokenizer: Any) -> None:
    tokenizer.eos_token = None

    with pytest.raises(TokenizerError, match="no end token"):
        encode_rows(tokenizer, "text", [{"text": "Thank you"}])


@pytest.mark.parametrize("template", [None, MARKED_TEMPLATE])
def test_the_last_answer_of_a_conversation_is_asked_for_as_it_is_trained(tokenizer: Any, template: str | None) -> None:
    tokenizer.chat_template = template

    [question], [answer] = encode_answered(tokenizer, "messages", [{"messages": TALK}])
    [trained] = encode_rows(tokenizer, "messages", [{"messages": TALK}])

    assert answer == "A model"
    assert trained.input_ids[: len(question)] == question
    assert tokenizer.decode(trained.input_ids[len(question) :]).rstrip() == "A model<|end|>"
    assert all(trained.trained[len(question) :])
