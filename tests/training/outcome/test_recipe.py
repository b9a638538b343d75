"""Parts of the recipe that a small run does not show."""

from __future__ import annotations

from runner.spec import Evaluation
from runner.training.outcome.recipe import _asking


def test_an_adapter_trained_on_conversations_is_asked_as_a_user_through_its_template() -> None:
    evaluation = Evaluation(prompts=('Say "hi"',))

    assert _asking(evaluation, as_chat=True).splitlines()[:3] == [
        'prompt = "Say \\"hi\\""',
        (
            'text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], tokenize=False, '
            "add_generation_prompt=True)"
        ),
        'inputs = tokenizer(text, add_special_tokens=False, return_token_type_ids=False, return_tensors="pt")',
    ]
