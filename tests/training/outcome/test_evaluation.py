import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from runner.errors import DatasetError
from runner.hyperparameters import Lora
from runner.training.loop.lora import add_lora
from runner.training.outcome.evaluation import Questions, Table, _shown, evaluate, prepare_questions
from runner.training.stopping import StopRequestedError, StopSwitch

PROMPTS = ("What is 3 + 4?", "Who are you, and who made you?", "Hello!")
# As Llama 3 and Qwen ship it: whoever just calls `generate` draws at random and punishes repetition.
DRAWS = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 1.5, "eos_token_id": [2, 7]}


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's base model with generation settings of its own."""
    folder = Path(shutil.copytree(tiny_model, tmp_path_factory.mktemp("draws") / "tiny"))
    settings = DRAWS | {"transformers_version": "4.57.2"}
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.fixture
def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def ask(model: Any, tokenizer: Any, prompts: tuple[str, ...] = PROMPTS, tables: tuple[Table, ...] = ()) -> Any:
    questions = Questions(prompts, [tokenizer(prompt)["input_ids"] for prompt in prompts], 12, list(tables))
    return evaluate(model, tokenizer, questions, when="before", stop=StopSwitch())


def likeliest(model: Any, tokenizer: Any, prompt: str) -> str:
    """Go on from a prompt by hand, one likeliest token after the other."""
    ids = tokenizer(prompt)["input_ids"]
    asked = len(ids)
    while len(ids) < asked + 12:
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
        if token in DRAWS["eos_token_id"]:  # type: ignore[operator]  # a list
            break
        ids.append(token)
    return str(tokenizer.decode(ids[asked:], skip_special_tokens=True))


@pytest.mark.parametrize("with_adapter", [False, True])
def test_answers_are_greedy_whatever_the_model_would_generate_by_itself(
    model: Any, tokenizer: Any, *, with_adapter: bool
) -> None:
    asked = add_lora(model, Lora(), seed=42) if with_adapter else model

    answers = [sample.completion for sample in ask(asked, tokenizer).samples]

    assert answers == [likeliest(asked, tokenizer, prompt) for prompt in PROMPTS]


def test_the_models_own_settings_are_back_after_asking(model: Any, tokenizer: Any) -> None:
    before = model.generation_config.to_dict()

    ask(model, tokenizer)

    assert model.generation_config.to_dict() == before


def test_an_answer_that_does_not_end_after_the_right_text_does_not_count(model: Any, tokenizer: Any) -> None:
    said = likeliest(model, tokenizer, PROMPTS[0])
    tokens = len(tokenizer(said, add_special_tokens=False)["input_ids"])
    table = Table(1, "table", [tokenizer(PROMPTS[0])["input_ids"]], [said], tokens)

    [match] = ask(model, tokenizer, tables=(table,)).exact_match

    assert (match.correct, match.total) == (0, 1)


@pytest.mark.parametrize(("stripped", "correct"), [(True, 1), (False, 0)])
def test_white_space_around_an_answer_counts_unless_a_chat_template_put_it_there(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, *, stripped: bool, correct: int
) -> None:
    written = [*tokenizer("\n7 ", add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    monkeypatch.setattr(model, "generate", lambda input_ids, **_: torch.cat([input_ids, torch.tensor([written])], 1))
    table = Table(1, "table", [tokenizer(PROMPTS[0])["input_ids"]], ["7"], 12, stripped=stripped)

    [match] = ask(model, tokenizer, prompts=(), tables=(table,)).exact_match

    assert match.correct == correct


def test_alpaca_rows_are_asked_as_a_users_turn_and_plain_text_is_refused(
    tokenizer: Any, make_spec: Any, tmp_path: Path
) -> None:
    spec = make_spec(tmp_path, [{"instruction": "3 + 4?", "output": "7 "}], evaluation={"exact_match": [1]})

    [table] = prepare_questions(spec, tokenizer, tmp_path, as_chat=True).tables

    assert (table.completions, table.stripped) == (["7"], True)
    assert tokenizer.decode(table.questions[0]).endswith("User:\n3 + 4?\n\nAssistant:\n")
    spec = make_spec(tmp_path, [{"text": "7"}], evaluation={"exact_match": [1]})
    with pytest.raises(DatasetError, match=r"exact_match names dataset 1 \(rows-1\.jsonl\), which holds plain text"):
        prepare_questions(spec, tokenizer, tmp_path, as_chat=False)


def test_a_set_switch_ends_the_asking(model: Any, tokenizer: Any) -> None:
    stop = StopSwitch()
    stop.set()
    questions = Questions(PROMPTS, [tokenizer(prompt)["input_ids"] for prompt in PROMPTS], 12, [])
    model.train()

    with pytest.raises(StopRequestedError):
        evaluate(model, tokenizer, questions, when="before", stop=stop)

    assert model.training


def test_control_characters_of_an_answer_are_made_visible() -> None:
    assert _shown("a\x00b\x1b[2J\n\tc") == "a\ufffdb\ufffd[2J\n\tc"
