from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.__main__ import VERBS, main
from runner.child import Spawn
from runner.event_lines import parse_event

Scripted = Callable[[str], Spawn]
PROJECTS = Path(__file__).parents[2] / "projects"


@pytest.fixture(autouse=True)
def _own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QLORA_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("QLORA_PROJECTS_DIR", str(PROJECTS))


@pytest.fixture
def broken_project(tmp_path: Path) -> Path:
    """A project with three mistakes."""
    text = (PROJECTS / "demo.toml").read_text()
    text = text.replace('name = "demo"', 'name = "broken"').replace("r = 16", 'r = "sixteen"')
    path = tmp_path / "broken.toml"
    path.write_text(text.replace("max_length = 64", "max_lenght = 64"))
    (tmp_path / "datasets.toml").write_text("")
    return path


# --- check ------------------------------------------------------------------------------------------------------


def test_checking_a_valid_project_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "demo"]) == 0

    assert capsys.readouterr().out.startswith("demo is valid.")


def test_checking_tells_which_gpus_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = (
        (PROJECTS / "demo.toml").read_text().replace("[compute]", "[compute]\ngpus = 4\nmin_gpu_memory_gib = 22.0")
    )
    for name, text in (("demo.toml", project), ("datasets.toml", (PROJECTS / "datasets.toml").read_text())):
        (tmp_path / name).write_text(text)
    shutil.copytree(PROJECTS / "data", tmp_path / "data")

    assert main(["check", str(tmp_path / "demo.toml")]) == 0

    assert re.search(r"^  pool +\S+, 4 GPUs, GPU memory of 22 GiB at least$", capsys.readouterr().out, re.MULTILINE)


def test_checking_says_which_rows_only_the_host_can_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "demo.toml").write_text((PROJECTS / "demo.toml").read_text().replace("exact_match = [1]", ""))
    (tmp_path / "datasets.toml").write_text(
        '1 = { name = "sums", hub = "acme/sums" }\n2 = { name = "words", path = "words.csv" }'
    )
    (tmp_path / "words.csv").write_text("text\nhot\n")

    assert main(["check", str(tmp_path / "demo.toml")]) == 0

    out = capsys.readouterr().out
    assert "arithmetic: 100 % of sums (hub dataset acme/sums; its rows are checked on the host)\n" in out
    assert "vocabulary: 50 % of words\n" in out


def test_a_project_may_be_named_by_its_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(PROJECTS / "demo.toml"), "--json", "lora.r=8"]) == 0

    answer = json.loads(capsys.readouterr().out)
    assert answer["valid"] is True
    assert answer["spec"]["project"]["lora"]["r"] == 8
    assert answer["spec"]["overrides"] == {"lora.r": "8"}


def test_every_problem_of_a_broken_project_is_listed(broken_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(broken_project)]) == 2

    out, err = capsys.readouterr()
    assert out == ""
    for key in ("lora.r", "max_lenght", "dataset_id"):
        assert key in err
    assert re.search(r"broken\.toml:\d+: ", err)


def test_a_broken_project_as_json(broken_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(broken_project), "--json"]) == 2

    answer = json.loads(capsys.readouterr().out)
    assert (answer["valid"], answer["code"]) == (False, "invalid-project")
    assert len(answer["problems"]) >= 3
    assert set(answer["problems"][0]) == {"message", "file", "line", "column", "path"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["check", "demoo"], "Did you mean"),
        (["check", "nowhere/demo.toml"], "no file"),
        (["check", "demo", "lora.r"], "is not key=value"),
        (["check", "demo", "lora.r=1", "lora.r=2"], "given twice"),
        (["chekc"], "Did you mean 'check'?"),
        (["worker", "--pool", "No Such Pool"], "not a pool's name"),
        (["train", "demo", "lora.r=0"], "lora.r"),
    ],
)
def test_a_wrong_command_is_explained_in_words(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert expected in err
    assert "Traceback" not in err


# --- the small verbs ----------------------------------------------------------------------------------------------


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0

    out = capsys.readouterr().out
    assert [verb for verb in VERBS if f"  {verb} " not in out] == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])

    assert end.value.code == 0
    assert f"python -m runner {verb}" in capsys.readouterr().out


def test_versions_are_a_table_or_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["versions"]) == 0
    assert "bitsandbytes" in capsys.readouterr().out

    assert main(["versions", "--json"]) == 0
    assert parse_event(capsys.readouterr().out).kind == "versions_reported"

    assert main(["versions", "--known"]) == 0
    assert "transformers 4.57.2" in capsys.readouterr().out


@pytest.mark.parametrize("words", ["schema", "check demo --json", "--help", "check --help"])
def test_a_reader_that_has_seen_enough_is_no_error(words: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)

    with os.fdopen(writing, "w") as nobody_reads:
        done = subprocess.run(
            [sys.executable, "-m", "runner", *words.split()],
            stdout=nobody_reads,
            stderr=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            text=True,
            check=False,
        )

    assert (done.returncode, done.stderr) == (141, "")


def test_a_worker_without_redis_says_what_to_start_and_no_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Port 1 refuses at once, but the client tries for about five seconds.
    monkeypatch.setenv("REDIS_URL", "redis://:secret@127.0.0.1:1/0")

    assert main(["worker", "--pool", "cpu"]) == 1

    err = capsys.readouterr().err
    assert "REDIS_URL" in err
    assert "secret" not in err
    assert "Traceback" not in err


def test_no_verb_loads_torch_and_check_needs_only_the_base_libraries() -> None:
    code = (
        "import importlib, sys\n"
        "import runner.cli.check\n"
        "assert not {'rich', 'redis', 'dramatiq'} & set(sys.modules), 'check is heavy'\n"
        f"for verb in {[verb.replace('-', '_') for verb in VERBS]!r}: importlib.import_module('runner.cli.' + verb)\n"
        "assert not {'torch', 'transformers', 'runner.training'} & set(sys.modules), 'a verb loads torch'\n"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_invalid_project_prints_no_event(broken_project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(broken_project), "--json"]) == 2

    assert capsys.readouterr().out == ""
