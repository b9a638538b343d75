"""Bad input ends an attempt before a weight is read, and all of it is told at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from runner.errors import ModelAccessError, TargetModulesError, TrainingError
from runner.events import ChildEvent, DataMixed, PhaseStarted
from runner.spec import DatasetEntry, RunSpec
from runner.training.data.encoding import PLAIN_CHAT_TEMPLATE
from runner.training.pipeline import train
from runner.training.preparation import Prepared, prepare

pytestmark = pytest.mark.timeout(120)

MakeSpec = Callable[..., RunSpec]

MARKED = (
    "{% for message in messages %}{{ '<|begin|>' + message['role'] + '\n' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|begin|>assistant\n' }}{% endif %}"
)
STRICT = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{{ message['content'] + '<|end|>' }}{% endfor %}"
)


def talk(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": f"{role} {number}"} for number, role in enumerate(roles)]}


GOOD = [talk("user", "assistant")] * 3


@pytest.fixture
def own_root(tmp_path: Path, tiny_model: Path) -> Path:
    """A models root with a copy of the demo's model, to be changed."""
    shutil.copytree(tiny_model, tmp_path / "models" / "tiny")
    return tmp_path / "models"


def give_template(model: Path, template: str) -> None:
    path = model / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))


def prepared(spec: RunSpec, root: Path, folder: Path) -> tuple[Prepared, list[DataMixed]]:
    events: list[ChildEvent] = []
    result = prepare(spec, models_root=root, projects_dir=folder, emit=events.append)
    return result, [event for event in events if isinstance(event, DataMixed)]


def refusal(spec: RunSpec, root: Path, folder: Path) -> TrainingError:
    with pytest.raises(TrainingError) as caught:
        prepare(spec, models_root=root, projects_dir=folder, emit=lambda _: None)
    return caught.value


def test_all_that_is_wrong_with_data_and_settings_is_told_before_the_weights_are_read(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    long = [{"prompt": "What is that? " * 20, "completion": "A model"}]
    spec = make_spec(
        tmp_path / "p", addition[:4], long, training={"max_length": 16}, lora={"target_modules": ["q_prj"]}
    )
    folder = tmp_path / "p" / "folder"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": ""}\n')
    read = spec.model_copy(update={"datasets": spec.datasets | {1: DatasetEntry(name="folder", path="folder")}})
    events: list[ChildEvent] = []

    messages = []
    for one in (read, spec):
        with pytest.raises(TargetModulesError) as caught:
            train(one, tmp_path / "run", events.append, models_root=models_root, projects_dir=tmp_path / "p")
        messages.append(caught.value.message)

    folder_words = "The folder folder, split 'train': row 2: 'completion' is empty"
    assert f"'q_prj', which the base model does not have. {folder_words}" in messages[0]
    assert "'q_prj', which the base model does not have. rows-2.jsonl: every prompt is longer than" in messages[1]
    assert "model" not in [event.phase for event in events if isinstance(event, PhaseStarted)]


def test_bad_rows_of_several_datasets_are_told_together(make_spec: MakeSpec, models_root: Path, tmp_path: Path) -> None:
    bad = {"prompt": "a", "completion": 7}

    error = refusal(make_spec(tmp_path, [bad], [bad]), models_root, tmp_path)

    assert "rows-1.jsonl: row 1 (line 1): 'completion' must be text" in error.message
    assert "rows-2.jsonl: row 1 (line 1): 'completion' must be text" in error.message
    assert error.hint == "Mend it, or start with another dataset_id."


def test_what_cannot_be_reached_is_told_together(make_spec: MakeSpec, models_root: Path, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, [], [], base_model="acme/none")
    hub = {number: DatasetEntry(name=f"{number}", hub=f"acme/{number}") for number in (1, 2)}

    error = refusal(spec.model_copy(update={"datasets": hub}), models_root, tmp_path)

    assert (type(error), error.code) == (ModelAccessError, "model-offline")
    for name in ("base model 'acme/none'", "hub dataset 'acme/1'", "hub dataset 'acme/2'"):
        assert name in error.message


def test_rows_that_the_chat_template_refuses_are_named(make_spec: MakeSpec, own_root: Path, tmp_path: Path) -> None:
    give_template(own_root / "tiny", STRICT)
    rows = [*GOOD, talk("user", "user", "assistant"), talk("assistant", "user", "assistant")]

    error = refusal(make_spec(tmp_path, rows), own_root, tmp_path)

    words = "Conversation roles must alternate user/assistant/user/assistant/..."
    assert error.message == (f"rows-1.jsonl: the base model's chat template refuses row 4: {words}; row 5: {words}.")
    assert error.hint is not None
    assert 'training.chat_template = "plain"' in error.hint
    assert prepare(
        make_spec(tmp_path, rows, training={"chat_template": "plain"}),
        models_root=own_root,
        projects_dir=tmp_path,
        emit=lambda _: None,
    ).mix.event.rows == len(rows)  # fmt: skip


@pytest.mark.parametrize(
    ("training", "message", "setting"),
    [
        (
            {"optim": "sgd", "optim_args": "momentum=big"},
            "training.optim_args = 'momentum=big' does not suit optim = 'sgd': ",
            "training.optim_args",
        ),
        (
            {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1}},
            "training.lr_scheduler_kwargs = {'lr_end': 1} does not suit lr_scheduler_type = 'polynomial': ",
            "training.lr_scheduler_kwargs",
        ),
        ({"tf32": True}, "training.tf32 = true needs an Ampere or newer GPU", "Remove it"),
        ({"attn_implementation": "flash_attention_2"}, "needs the package flash-attn", "sdpa"),
        ({"eval_strategy": "steps"}, "none of the rows is held out", "held_out_percentage"),
    ],
)
def test_a_setting_that_a_library_would_refuse_later_is_refused_now(  # noqa: PLR0917 - fixtures
    make_spec: MakeSpec,
    models_root: Path,
    tmp_path: Path,
    training: dict[str, Any],
    message: str,
    setting: str,
) -> None:
    evaluation = {"held_out_percentage": 5.0}

    error = refusal(make_spec(tmp_path, GOOD, training=training, evaluation=evaluation), models_root, tmp_path)

    assert message in error.message
    assert setting in (error.hint or "")


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        ({"exclude_modules": ["nope"]}, "lora.exclude_modules names 'nope'"),
        ({"rank_pattern": {"nope": 4}}, "lora.rank_pattern names 'nope'"),
        ({"target_modules": ["q_proj"], "layers_to_transform": [99]}, "layers_to_transform"),
        ({"target_modules": ["mlp"]}, "Target module LlamaMLP is not supported"),
    ],
)
def test_what_the_adapter_cannot_be_put_on_is_refused_by_name(
    make_spec: MakeSpec, models_root: Path, tmp_path: Path, lora: dict[str, Any], words: str
) -> None:
    error = refusal(make_spec(tmp_path, GOOD, lora=lora), models_root, tmp_path)

    assert error.code == "target-modules"
    assert words in error.message


def test_a_template_that_was_never_trained_is_found_in_the_weight_files(
    make_spec: MakeSpec, own_root: Path, tmp_path: Path
) -> None:
    give_template(own_root / "tiny", MARKED)
    kept, _ = prepared(make_spec(tmp_path, GOOD), own_root, tmp_path)
    assert kept.opened.tokenizer.tokenizer.chat_template == MARKED
    weights = load_file(own_root / "tiny" / "model.safetensors")
    mark = AutoTokenizer.from_pretrained(own_root / "tiny").convert_tokens_to_ids("<|begin|>")
    weights["model.embed_tokens.weight"][mark] = 0
    save_file(weights, own_root / "tiny" / "model.safetensors", metadata={"format": "pt"})

    result, [mixed] = prepared(make_spec(tmp_path, GOOD), own_root, tmp_path)

    assert result.opened.tokenizer.tokenizer.chat_template == PLAIN_CHAT_TEMPLATE
    assert "<|begin|>" in mixed.warnings[0]
    assert result.template_is_settled


def test_a_template_is_looked_at_again_where_the_weights_came_later(
    make_spec: MakeSpec, own_root: Path, tmp_path: Path
) -> None:
    give_template(own_root / "tiny", MARKED)
    weights = load_file(own_root / "tiny" / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    (own_root / "tiny" / "model.safetensors").unlink()
    result, [mixed] = prepared(make_spec(tmp_path, GOOD), own_root, tmp_path)
    assert ("plain template" in " ".join(mixed.warnings), result.template_is_settled) == (False, False)
    events: list[ChildEvent] = []
    assert result.with_embedding(embedding, events.append) is result

    again = result.with_embedding(torch.zeros_like(embedding), events.append)

    [mixed] = [event for event in events if isinstance(event, DataMixed)]
    assert "A plain template is used instead" in mixed.warnings[0]
    assert again.mix.event == mixed
    assert again.opened.tokenizer.tokenizer.chat_template == PLAIN_CHAT_TEMPLATE
