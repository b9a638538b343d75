import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from runner.training.demo_model import HIDDEN_SIZE, build_demo_model, main

pytestmark = pytest.mark.training


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_weight_of_the_demo_model_finds_its_place(tiny_model: Path) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(tiny_model, output_loading_info=True)
    model, report = loaded
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert 1_000_000 < model.num_parameters() < 10_000_000
    assert HIDDEN_SIZE % 64 == 0


def test_the_demo_model_starts_as_good_as_guessing(tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    tokens = torch.randint(3, 512, (4, 32), generator=torch.Generator().manual_seed(0))
    loss = model(input_ids=tokens, labels=tokens).loss.item()
    assert 6.0 < loss < 7.5  # ln 512 is 6.24


def test_the_same_seed_gives_the_same_files(tmp_path: Path, tiny_model: Path) -> None:
    build_demo_model(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(tiny_model)


@pytest.mark.parametrize("text", ["What is 3 + 4?", " 17", "naïve — 日本語 🙂\n\ttabs  and  spaces", "<|not special|>"])
def test_any_text_survives_the_tokenizer(tiny_model: Path, text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_prompt_and_answer_never_share_a_token(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    prompt, answer = "What is 9 + 9?", "18"
    together = tokenizer(prompt + answer)["input_ids"]
    assert together == tokenizer(prompt)["input_ids"] + tokenizer(answer)["input_ids"]


def test_the_tokenizer_names_its_special_tokens(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = json.loads((tiny_model / "config.json").read_text())
    assert tokenizer.pad_token_id == ids["pad_token_id"]
    assert tokenizer.bos_token_id == ids["bos_token_id"]
    assert tokenizer.eos_token_id == ids["eos_token_id"]
    assert len(tokenizer) <= ids["vocab_size"]


def test_building_into_a_finished_folder_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    build_demo_model(folder)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    build_demo_model(folder)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds no complete demo model"):
        build_demo_model(tmp_path / "demo")
    assert contents(tmp_path / "demo") == {"notes.txt": b"mine"}


def test_builders_at_the_same_time_leave_one_complete_model_and_no_scraps(tmp_path: Path, tiny_model: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(build_demo_model, tmp_path / "demo") for _ in range(3)]:
            future.result()
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert contents(tmp_path / "demo") == contents(tiny_model)


def test_the_command_line_wants_exactly_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: python -m runner.training.demo_model FOLDER" in capsys.readouterr().err
    assert main([str(tmp_path / "models" / "demo")]) == 0
    assert (tmp_path / "models" / "demo" / "config.json").is_file()
