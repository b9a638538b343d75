import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, tokenization_utils_base

from runner.errors import TokenizerError
from runner.training.loading.base_model import BaseModel
from runner.training.loading.tokenizer import DEFECTIVE_TRANSFORMERS, load_tokenizer

pytestmark = pytest.mark.training

IS_DEFECTIVE = transformers.__version__ == DEFECTIVE_TRANSFORMERS


def base_model(folder: Path) -> BaseModel:
    return BaseModel("a model", folder, None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def large_vocabulary_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local Llama as the original report had it, without its weights: 100 001 entries, saved by 4.57.2."""
    folder = tmp_path_factory.mktemp("large")
    vocabulary = {f"w{number}": number for number in range(99_998)} | {"<s>": 99_998, "</s>": 99_999, "<unk>": 100_000}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {"model_type": "llama", "vocab_size": 100_001, "transformers_version": "4.57.2"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def changed_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the demo's tokenizer that a test may change."""
    folder = tmp_path / "changed"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(tiny_model / name, folder / name)
    return folder


def write_settings(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def test_the_demo_tokenizer_keeps_its_own_pad_token(tiny_model: Path) -> None:
    event = load_tokenizer(base_model(tiny_model)).event
    assert (event.pad_token, event.pad_choice, event.workaround) == ("<|pad|>", "existing", None)
    assert event.vocab_size == len(AutoTokenizer.from_pretrained(tiny_model))


@pytest.mark.skipif(not IS_DEFECTIVE, reason="the defect is in transformers 4.57.2 only")
def test_a_plain_load_of_a_large_local_vocabulary_meets_the_defect(large_vocabulary_model: Path) -> None:
    with pytest.raises(AttributeError, match="'dict' object has no attribute 'model_type'"):
        AutoTokenizer.from_pretrained(large_vocabulary_model)


def test_our_load_of_a_large_local_vocabulary_works_and_reports_a_workaround_where_it_took_one(
    large_vocabulary_model: Path,
) -> None:
    before = contents(large_vocabulary_model)
    loaded = load_tokenizer(base_model(large_vocabulary_model))
    assert loaded.event.vocab_size == 100_001
    assert loaded.tokenizer("w7 w99997")["input_ids"] == [7, 99_997]
    if IS_DEFECTIVE:
        assert loaded.event.workaround is not None
        assert "issues/42374" in loaded.event.workaround
    else:
        assert loaded.event.workaround is None
    assert contents(large_vocabulary_model) == before


def test_the_workaround_is_gone_after_the_load(large_vocabulary_model: Path) -> None:
    load_tokenizer(base_model(large_vocabulary_model))
    assert vars(tokenization_utils_base)["json"] is json
    if IS_DEFECTIVE:
        with pytest.raises(AttributeError, match="model_type"):
            AutoTokenizer.from_pretrained(large_vocabulary_model)


def test_the_workaround_is_gone_after_a_load_that_failed(changed_model: Path) -> None:
    (changed_model / "tokenizer.json").write_text("{")
    with pytest.raises(TokenizerError):
        load_tokenizer(base_model(changed_model))
    assert vars(tokenization_utils_base)["json"] is json


def test_a_large_vocabulary_without_a_model_type_in_its_config_loads(
    large_vocabulary_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "untyped"
    shutil.copytree(large_vocabulary_model, folder)
    (folder / "config.json").write_text(json.dumps({"transformers_version": "4.57.2"}))
    assert load_tokenizer(base_model(folder)).event.vocab_size == 100_001


@pytest.mark.skipif(IS_DEFECTIVE, reason="there the workaround is the point")
def test_other_versions_are_never_patched(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    load = AutoTokenizer.from_pretrained

    def watch(*arguments: Any, **options: Any) -> Any:
        seen.append(vars(tokenization_utils_base)["json"] is json)
        return load(*arguments, **options)

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", watch)
    load_tokenizer(base_model(tiny_model))
    assert seen == [True]


def test_without_a_pad_token_a_reserved_one_is_taken(changed_model: Path) -> None:
    write_settings(changed_model, pad_token=None)
    loaded = load_tokenizer(base_model(changed_model))
    assert (loaded.event.pad_token, loaded.event.pad_choice) == ("<|pad|>", "reserved")
    assert loaded.event.vocab_size == len(AutoTokenizer.from_pretrained(changed_model))


@pytest.mark.parametrize(
    ("tokens", "reserved", "choice", "expected"),
    [
        ({"pad_token": "word", "unk_token": "<unk>"}, ["<|finetune_right_pad_id|>"], "existing", "word"),
        (
            {"unk_token": "<unk>"},
            ["<|reserved_special_token_0|>", "<|finetune_right_pad_id|>"],
            "reserved",
            "<|finetune_right_pad_id|>",
        ),
        ({"unk_token": "<unk>"}, [], "unk", "<unk>"),
        ({}, [], "eos", "</s>"),
    ],
)
def test_the_pad_token_is_the_first_there_is_of_its_own_a_reserved_the_unknown_and_the_end_token(
    tmp_path: Path, tokens: dict[str, str], reserved: list[str], choice: str, expected: str
) -> None:
    vocabulary = {token: row for row, token in enumerate(["<s>", "</s>", "<unk>", "word", *reserved])}
    Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"} | tokens
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    loaded = load_tokenizer(base_model(tmp_path))
    assert (loaded.event.pad_choice, loaded.event.pad_token) == (choice, expected)
    # Nothing was added, so no embedding has to grow.
    assert loaded.event.vocab_size == len(vocabulary)


def test_a_tokenizer_without_any_token_to_pad_with_is_refused(tmp_path: Path) -> None:
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(TokenizerError, match="no pad, unknown or end token") as raised:
        load_tokenizer(base_model(tmp_path))
    assert raised.value.hint is not None
    assert "tokenizer_config.json" in raised.value.hint


def test_a_damaged_tokenizer_file_is_named(changed_model: Path) -> None:
    (changed_model / "tokenizer.json").write_text('{"version": "1.0", ')
    with pytest.raises(TokenizerError, match="cannot be loaded") as raised:
        load_tokenizer(base_model(changed_model))
    assert str(changed_model) in raised.value.message
    assert raised.value.code == "tokenizer"


def test_code_that_a_tokenizer_brings_along_is_never_run(changed_model: Path, tmp_path: Path) -> None:
    trap = tmp_path / "was-run"
    (changed_model / "tokenizer_code.py").write_text(f"open({str(trap)!r}, 'w')\nclass Custom: pass\n")
    write_settings(changed_model, tokenizer_class="Custom", auto_map={"AutoTokenizer": ["tokenizer_code.Custom", None]})
    with pytest.raises(TokenizerError):
        load_tokenizer(base_model(changed_model))
    assert not trap.exists()
