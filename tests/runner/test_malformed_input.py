"""Whatever stands in a file or behind a key: a sentence with file and line, what to do, and never a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runner.__main__ import main

PROJECT = """\
name = "p"
base_model = "m"
output_directory = "o"
[[traits]]
trait_type = "t"
[[traits.datasets]]
dataset_id = 1
"""
CATALOG = '[1]\nname = "d"\npath = "d.jsonl"\n'
ROW = b'{"prompt": "a", "completion": "b"}\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A projects folder with one good project, `p`."""
    monkeypatch.setenv("QLORA_PROJECTS_DIR", str(tmp_path))
    (tmp_path / "p.toml").write_text(PROJECT)
    (tmp_path / "datasets.toml").write_text(CATALOG)
    (tmp_path / "d.jsonl").write_bytes(ROW)
    return tmp_path


Check = Callable[..., str]


@pytest.fixture
def check(folder: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """What `check` says about the project once a file holds something else."""

    def check(file: str = "p.toml", content: str | bytes | None = None, *overrides: str) -> str:
        if content is not None:
            (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
        assert main(["check", "p", *overrides]) == 2
        return capsys.readouterr().err

    return check


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("", "p.toml: traits: is missing", id="empty"),
        pytest.param(PROJECT.encode("utf-16"), "p.toml:1: not UTF-8 text", id="UTF-16"),
        pytest.param(
            PROJECT.replace('"t"', '"é"').encode("latin-1"),
            "p.toml:5: not UTF-8 text (invalid continuation byte at byte 76); save the file as UTF-8",
            id="Latin-1",
        ),
        pytest.param(PROJECT + "\0", "p.toml:8:1: not valid TOML", id="NUL"),
        pytest.param(
            PROJECT + "[lora]\nr = 1\nr = 2\n", "p.toml:10:6: not valid TOML: cannot overwrite a value in `r = 2`"
        ),
        pytest.param(PROJECT.replace('"m"', "llama"), "in `base_model = llama`; text stands in quotes", id="bare word"),
        pytest.param(PROJECT + "[lora]\nr: 8\n", "p.toml:9:2: not valid TOML: expected '='", id="colon"),
        pytest.param(
            PROJECT.replace('"m"', "“m”"), "p.toml:2:14: not valid TOML: invalid value in `base_model = “m”`; write"
        ),
        pytest.param(PROJECT.replace("name =", "name\u00a0="), "there is a no-break space in it", id="no-break space"),
        pytest.param(
            f"{PROJECT}[lora]\nr = {'9' * 5000}\n",
            "p.toml:9: not valid TOML: holds a number with too many digits",
            id="5000 digits",
        ),
        pytest.param(
            PROJECT + "[lora]\nr = 2024-01-01\n", "p.toml:9: lora.r: must be a whole number, found 2024-01-01"
        ),
        pytest.param(f"r = 8\nlearning_rate = 1\n{PROJECT}", "p.toml:1: r: unknown key here; it belongs in [lora]"),
        pytest.param(
            PROJECT + '[lora]\n"a\\nb" = 1\n', 'p.toml:9: lora."a\\nb": unknown key; remove it', id="line break"
        ),
        pytest.param(
            PROJECT + "[training]\nlr_scheduler_kwargs = { a = { b = 1 } }\n",
            "lr_scheduler_kwargs.a: must be a whole number or a number or text in quotes, found a table",
            id="table in a table",
        ),
    ],
)
def test_a_project_file_that_cannot_be_meant_is_answered_with_place_and_remedy(
    check: Check, content: str | bytes, words: str
) -> None:
    assert words in check("p.toml", content)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(
            ROW.decode().encode("utf-16"), "d.jsonl:1: row 1: is not UTF-8 text (byte 1); save the file as UTF-8"
        ),
        pytest.param(
            b'{\n  "prompt": "a"\n}\n', "d.jsonl:1: row 1: begins an object that goes on over several lines; write one"
        ),
        pytest.param(
            b'{"prompt": ' + b"9" * 5000 + b', "completion": "c"}', "row 1: holds a number with too many digits"
        ),
        pytest.param(b"{'prompt': 'a'}", "is not JSON: expecting property name enclosed in double quotes", id="Python"),
        pytest.param(ROW + b"\0\n", "d.jsonl:2: row 2: is not JSON", id="NUL"),
    ],
)
def test_a_data_file_that_cannot_be_meant_is_answered_with_row_and_remedy(
    check: Check, content: bytes, words: str
) -> None:
    assert words in check("d.jsonl", content)


@pytest.mark.parametrize(
    ("name", "target", "words"),
    [
        ("p.toml", "p.toml", "p.toml: the file cannot be read (Too many levels of symbolic links)"),
        ("p.toml", "/dev/zero", "p.toml: is not a regular file"),
        ("datasets.toml", "datasets.toml", "datasets.toml: the file cannot be read (Too many levels"),
        ("d.jsonl", "d.jsonl", "datasets.toml:3: 1.path: the data file d.jsonl is a link that leads in a circle"),
        ("d.jsonl", "/dev/zero", "datasets.toml:3: 1.path: the data file d.jsonl is a link that leaves"),
    ],
)
def test_a_link_that_leads_nowhere_or_to_a_device_is_a_problem(
    check: Check, folder: Path, name: str, target: str, words: str
) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(target)

    assert words in check()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (f"max_steps={'9' * 5000}", "override: training.max_steps: must be a whole number"),
        ("training.r=8", "override: training.r: is not a setting; did you mean 'lora.r'?"),
        ("optim=adam", "did you mean 'adamw_torch'?"),
        ("max_steps=1e400", "override: training.max_steps: must be a whole number, found inf"),
        ("max_steps=10\nr=5", "override: training.max_steps: must be a whole number"),
        ("r=", 'override: lora.r: must be a whole number, found ""'),
    ],
)
def test_an_override_that_cannot_be_meant_is_blamed_itself(check: Check, override: str, words: str) -> None:
    assert words in check("p.toml", None, override)
