from __future__ import annotations

import doctest
import json
import re
import sqlite3
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

from runner.errors import OVERRIDE, SpecError, UsageError
from runner.layout import Layout
from runner.projects import list_projects, load_project, project_names
from runner.rows import read_rows
from runner.spec import DatasetEntry, DatasetShare, ProjectSpec, Trait

PROJECTS = Path(__file__).parents[2] / "projects"

STAYS_INSIDE = "must be a relative path inside the output root, without '..', '~' or a leading '/'"
CATALOG = """\
[1]
name = "sums"
path = "data/sums.jsonl"

[2]
name = "chats"
path = "data/chats.jsonl"
"""
PROJECT = """\
name = "good"
base_model = "tiny"
output_directory = "good"

[[traits]]
trait_type = "sums"
[[traits.datasets]]
dataset_id = 1
percentage = 50

[training]
max_steps = 5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A projects folder with one good project."""
    root = tmp_path / "projects"
    (root / "data").mkdir(parents=True)
    (root / "datasets.toml").write_text(CATALOG)
    (root / "good.toml").write_text(PROJECT)
    (root / "data" / "sums.jsonl").write_text('{"prompt": "1 + 1?", "completion": "2"}\n')
    (root / "data" / "chats.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}\n'
    )
    return root


Problems = Callable[..., list[str]]


@pytest.fixture
def problems(folder: Path) -> Problems:
    """The problems of the project, after replacing each left text of it by the right one."""

    def problems(*changes: tuple[str, str], overrides: Mapping[str, str] | None = None) -> list[str]:
        text = PROJECT
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (folder / "good.toml").write_text(text)
        with pytest.raises(SpecError) as caught:
            load_project(folder, "good", overrides)
        return [str(problem) for problem in caught.value.problems]

    return problems


# --- what ships ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", project_names(PROJECTS))
def test_every_shipped_project_is_valid(name: str) -> None:
    spec = load_project(PROJECTS, name)
    assert spec.project.name == name
    assert spec.project.description


def test_the_shipped_projects_are_the_demo_and_three_to_start_from() -> None:
    assert project_names(PROJECTS) == ["code-review", "demo", "sql-analyst", "support-bot"]


def test_every_shipped_data_file_is_in_the_catalog_and_no_row_stands_twice() -> None:
    used = [
        entry.source for name in project_names(PROJECTS) for entry in load_project(PROJECTS, name).datasets.values()
    ]
    assert sorted(set(used)) == sorted(f"data/{path.name}" for path in (PROJECTS / "data").iterdir())
    for path in (PROJECTS / "data").iterdir():
        rows = [json.dumps(row) for row in read_rows(path).rows]
        assert len(set(rows)) == len(rows) >= 25


def test_the_addition_table_is_complete_and_right() -> None:
    rows = read_rows(PROJECTS / "data" / "addition.jsonl").rows
    expected = {f"What is {a} + {b}?": str(a + b) for a in range(10) for b in range(10)}
    assert {row["prompt"]: row["completion"] for row in rows} == expected


@pytest.mark.parametrize("name", ["sql-questions", "sql-followups"])
def test_every_shipped_query_runs_on_the_tables_it_is_asked_about(name: str) -> None:
    for row in read_rows(PROJECTS / "data" / f"{name}.jsonl").rows:
        database = sqlite3.connect(":memory:")
        for table in re.findall(r"^\w+\(.*\)$", row["messages"][0]["content"], re.MULTILINE):
            database.execute(f"create table {table}")
        answers = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        for answer in answers:
            for query in re.findall(r"^SELECT.*?;", answer, re.DOTALL | re.MULTILINE):
                database.execute(query)
        database.close()


def test_the_shipped_code_does_what_its_examples_say(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = 0
    for row in read_rows(PROJECTS / "data" / "reviewed-code.jsonl").rows:
        module = ModuleType("row")
        monkeypatch.setitem(sys.modules, "row", module)  # dataclasses look their module up
        exec(row["text"], vars(module))  # noqa: S102  # our own rows are what is tested
        result = doctest.testmod(module)
        assert result.failed == 0, row["text"]
        tried += result.attempted
    assert tried > 25


def test_the_readme_tells_every_key_with_its_default() -> None:
    table = (PROJECTS / "README.md").read_text().split("## Every key")[1]
    shown = dict(re.findall(r"^\| `([\w.]+)` \| (.*?) \|", table, re.MULTILINE))
    expected: dict[str, object] = {}
    for name, field in ProjectSpec.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            expected |= {
                key: inner.get_default(call_default_factory=True) for key, inner in section.model_fields.items()
            }
        else:
            expected[name] = "required" if field.is_required() else field.default
    expected |= {f"traits.{key}": "required" for key in Trait.model_fields}
    expected |= {f"traits.datasets.{key}": field.default for key, field in DatasetShare.model_fields.items()}
    expected["traits.datasets.dataset_id"] = "required"

    def in_toml(value: object) -> str:
        if value is None or value == "required":
            return str(value or "none").lower()
        return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"

    assert shown == {key: in_toml(value) for key, value in expected.items()}


# --- one good project ------------------------------------------------------------------------------------------------


def test_a_good_project_is_resolved_with_its_data_and_what_it_states(folder: Path) -> None:
    spec = load_project(folder, "good", {"max_steps": "9"})
    assert spec.project.training.max_steps == 9
    assert spec.datasets == {1: DatasetEntry(name="sums", path="data/sums.jsonl")}
    assert spec.overrides == {"training.max_steps": "9"}
    assert spec.stated == ("name", "base_model", "output_directory", "traits", "training.max_steps")


@pytest.mark.parametrize(
    ("prefix", "line_end"), [(b"", b"\n"), (b"\xef\xbb\xbf", b"\n"), (b"", b"\r\n"), (b"\xef\xbb\xbf", b"\r\n")]
)
def test_what_editors_on_windows_write_is_fine_and_keeps_its_lines(
    folder: Path, prefix: bytes, line_end: bytes
) -> None:
    def write(text: str) -> None:
        (folder / "good.toml").write_bytes(prefix + text.encode().replace(b"\n", line_end))

    write(PROJECT)
    assert load_project(folder, "good").project.training.max_steps == 5
    write(PROJECT.replace("max_steps = 5", "max_steps = 'x'"))
    with pytest.raises(SpecError) as caught:
        load_project(folder, "good")
    assert caught.value.problems[0].line == 12


def test_a_project_may_be_written_with_dotted_keys_and_inline_tables(folder: Path) -> None:
    (folder / "good.toml").write_text(
        'name = "good"\nbase_model = "tiny"\noutput_directory = "good"\ntraining.max_steps = 5\n'
        'traits = [{ trait_type = "sums", datasets = [{ dataset_id = 1, percentage = 50 }] }]\n'
    )
    assert load_project(folder, "good").project == load_project_from(folder, PROJECT)


def load_project_from(folder: Path, text: str) -> ProjectSpec:
    (folder / "good.toml").write_text(text)
    return load_project(folder, "good").project


# --- names -----------------------------------------------------------------------------------------------------------


def test_an_unknown_project_lists_what_is_there_and_guesses(folder: Path) -> None:
    (folder / "other.toml").write_text("")
    with pytest.raises(UsageError) as caught:
        load_project(folder, "god")
    assert caught.value.code == "unknown-project"
    assert str(caught.value) == "There is no project 'god'. Did you mean 'good'? The projects are: good, other."


@pytest.mark.parametrize("name", ["datasets", "policy", "../projects/good", "good.toml", "", "/etc/passwd", "a\0b"])
def test_only_a_name_from_the_folder_is_opened(folder: Path, name: str) -> None:
    (folder / "policy.toml").write_text("")
    with pytest.raises(UsageError):
        load_project(folder, name)


def test_a_folder_without_projects_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="There is no project file in"):
        load_project(tmp_path / "nowhere", "good")


def test_what_editors_leave_behind_is_no_project(folder: Path) -> None:
    (folder / "._good.toml").write_bytes(b"\0")
    (folder / "good.toml~").write_text("")
    assert project_names(folder) == ["good"]


def test_the_list_shows_the_broken_ones_with_their_problems(folder: Path) -> None:
    (folder / "broken.toml").write_text("name = ")
    broken, good = list_projects(folder)
    assert (broken.name, broken.spec) == ("broken", None)
    assert [problem.line for problem in broken.error.problems] == [1] if broken.error else False
    assert good.spec is not None
    assert good.error is None


def test_the_name_inside_must_be_the_name_of_the_file(problems: Problems) -> None:
    assert problems(('name = "good"', 'name = "best"')) == [
        'good.toml:1: name: must equal the file\'s name, "good", found "best"'
    ]


# --- what can be wrong in the file -----------------------------------------------------------------------------------


def test_broken_toml_is_shown_with_line_and_column(problems: Problems) -> None:
    (problem,) = problems(("percentage = 50", "percentage = = 50"))
    assert problem.startswith("good.toml:9:14: not valid TOML: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name = '\xff'", "not UTF-8 text (invalid start byte at byte 8)"),
        (b"a = " + b"[" * 1000 + b"]" * 1000, "not valid TOML: TOML inline arrays/tables are nested more"),
    ],
)
def test_what_is_no_text_or_too_deep_is_a_problem_and_not_a_crash(folder: Path, content: bytes, message: str) -> None:
    (folder / "good.toml").write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load_project(folder, "good")
    assert message in str(caught.value.problems[0])


def test_a_folder_in_the_place_of_a_project_is_a_problem(folder: Path) -> None:
    (folder / "odd.toml").mkdir()
    with pytest.raises(SpecError) as caught:
        load_project(folder, "odd")
    assert str(caught.value.problems[0]) == "odd.toml: the file cannot be read (Is a directory)"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "max_steps = 5",
            "max_steps = 0",
            "12: training.max_steps: must be at least 1, or -1 to go by num_train_epochs",
        ),
        ("max_steps = 5", "learning_rate = 2", "12: training.learning_rate: must be at most 1, found 2"),
        ("max_steps = 5", "max_stesp = 5", "12: training.max_stesp: unknown key; did you mean 'max_steps'?"),
        ("max_steps = 5", "epochs = 5", "12: training.epochs: unknown key; did you mean 'num_train_epochs'?"),
        ("max_steps = 5", "quux = 5", "12: training.quux: unknown key; remove it"),
        ("[training]", "[trainig]", "11: trainig: unknown key; did you mean 'training'?"),
        ("percentage", "percent", "9: traits[0].datasets[0].percent: unknown key; did you mean 'percentage'?"),
        ("max_steps = 5", 'max_steps = "5"', '12: training.max_steps: must be a whole number, found "5"'),
        ("max_steps = 5", "max_steps = 5.5", "12: training.max_steps: must be a whole number, found 5.5"),
        ("max_steps = 5", "max_steps = true", "12: training.max_steps: must be a whole number, found true"),
        ("max_steps = 5", "max_steps = [5]", "12: training.max_steps: must be a whole number, found a list"),
        ("max_steps = 5", "max_steps = -2", "12: training.max_steps: must be at least -1, found -2"),
        ("max_steps = 5", "learning_rate = nan", "12: training.learning_rate: must be a finite number, found nan"),
        ("max_steps = 5", "learning_rate = 0", "12: training.learning_rate: must be greater than 0, found 0"),
        ("max_steps = 5", "packing = 1", "12: training.packing: must be true or false, found 1"),
        ("max_steps = 5", 'optim = "adam"', None),
        ("percentage = 50", "percentage = 0", "9: traits[0].datasets[0].percentage: must be greater than 0, found 0"),
        ("percentage = 50", "percentage = 101", "9: traits[0].datasets[0].percentage: must be at most 100, found 101"),
        ("percentage = 50", "percentage = 2026-11-22", None),
        ('"tiny"', '""', "2: base_model: must not be empty"),
        ('"tiny"', '"/srv/tiny"', None),
        ('"tiny"', "5", "2: base_model: must be text in quotes, found 5"),
        ('"tiny"', f'"{"x" * 201}"', "2: base_model: must have at most 200 characters, found 201"),
        ('base_model = "tiny"', "", " base_model: is missing"),
        ("dataset_id = 1\n", "", "7: traits[0].datasets[0].dataset_id: is missing"),
        ("[training]\nmax_steps = 5", "[lora]\ntarget_modules = 5", None),
        ("[training]\nmax_steps = 5", "[[training]]\nmax_steps = 5", "11: training: must be a table, found a list"),
        (
            "percentage = 50",
            "[[traits.datasets]]\ndataset_id = 1",
            "7: traits[0].datasets: names dataset 1 twice; add up the percentages instead",
        ),
        (
            'output_directory = "good"',
            'output_directory = "../good"',
            f'3: output_directory: {STAYS_INSIDE}, found "../good"',
        ),
        (
            'output_directory = "good"',
            'output_directory = "/good"',
            f'3: output_directory: {STAYS_INSIDE}, found "/good"',
        ),
    ],
)
def test_a_wrong_setting_is_named_with_line_path_and_remedy(
    problems: Problems, old: str, new: str, expected: str | None
) -> None:
    (problem,) = problems((old, new))
    if expected is None:
        assert re.fullmatch(r"good\.toml:\d+: [\w.\[\]]+: must be .+, found .+", problem)
    else:
        assert problem == f"good.toml:{expected}"


@pytest.mark.parametrize(
    ("setting", "end"),
    [
        ('[training]\noptim = "adam"', "'adagrad', found \"adam\"; did you mean 'adamw_torch'?"),
        ('[training]\nlr_scheduler_type = "cosin"', "found \"cosin\"; did you mean 'cosine'?"),
        ('[training]\neval_strategy = "step"', "'no', 'steps' or 'epoch', found \"step\"; did you mean 'steps'?"),
        ('[quantization]\nbnb_4bit_compute_dtype = "bf16"', "found \"bf16\"; did you mean 'bfloat16'?"),
        ('[quantization]\nladder = ["4-bit"]', "'4bit', '8bit' or 'none', found \"4-bit\"; did you mean '4bit'?"),
        ('[lora]\nbias = "lora-only"', "found \"lora-only\"; did you mean 'lora_only'?"),
        (
            '[lora]\ninit_lora_weights = "gausian"',
            "must be true or false or 'gaussian', found \"gausian\"; did you mean 'gaussian'?",
        ),
        ('[quantization]\nbnb_4bit_quant_type = "int4"', "must be 'nf4' or 'fp4', found \"int4\""),
        ('[lora]\ntarget_modules = "("', 'unterminated subpattern at position 0) or a list in [ ], found "("'),
        (
            '[lora]\nrank_pattern = { "(" = 4 }',
            'lora.rank_pattern."(": must be a valid pattern (missing ), unterminated subpattern at position 0)',
        ),
    ],
)
def test_a_word_that_is_not_permitted_is_shown_with_those_that_are_and_the_nearest(
    problems: Problems, setting: str, end: str
) -> None:
    (problem,) = problems(("[training]\nmax_steps = 5", setting))
    assert problem.startswith("good.toml:12: ")
    assert problem.endswith(end)


def test_a_wrong_value_hides_no_contradiction(problems: Problems) -> None:
    settings = [
        'max_steps = "5"',
        "warmup_steps = 5",
        "warmup_ratio = 0.1",
        "early_stopping_patience = 1",
        "group_by_length = true",
        "[compute]",
        "gpus = 2",
    ]
    found = problems(
        ('"tiny"', "5"),
        ("max_steps = 5", "\n".join(settings)),
    )
    assert found == [
        "good.toml:2: base_model: must be text in quotes, found 5",
        'good.toml:12: training.max_steps: must be a whole number, found "5"',
        "good.toml:14: training.warmup_ratio: says how long the warmup is, and so does warmup_steps; keep one of them",
        'good.toml:15: training.early_stopping_patience: needs eval_strategy = "steps" or "epoch"',
        "good.toml:16: training.group_by_length: goes with compute.gpus = 1: several processes share rows evenly",
    ]


def test_a_wrong_value_is_not_taken_for_a_contradiction(problems: Problems) -> None:
    (problem,) = problems(("max_steps = 5", 'eval_strategy = "step"\nload_best_model_at_end = true'))
    assert "training.eval_strategy: must be" in problem


def test_a_value_that_may_be_of_two_kinds_is_one_problem(problems: Problems) -> None:
    assert problems(("[training]\nmax_steps = 5", "[lora]\ntarget_modules = 5")) == [
        "good.toml:12: lora.target_modules: must be text in quotes or a list in [ ], found 5"
    ]


def test_an_entry_of_a_list_is_shown_at_its_own_line(problems: Problems) -> None:
    change = '[lora]\nmodules_to_save = [\n    "lm_head",\n    "",  # a slip\n]\ntarget_modules = ["q_proj", 5]'
    assert problems(("[training]\nmax_steps = 5", change)) == [
        "good.toml:14: lora.modules_to_save[1]: must not be empty",
        "good.toml:16: lora.target_modules[1]: must be text in quotes, found 5",
    ]


@pytest.mark.parametrize("name", ["traits", "training", "evaluation", "lora"])
@pytest.mark.parametrize("value", ["5", '"x"', "[1]", "[[[]]]", "{ x = 1 }", '[{ datasets = 3 }, "x"]'])
def test_a_table_of_the_wrong_kind_is_a_problem_and_not_a_crash(folder: Path, name: str, value: str) -> None:
    (folder / "good.toml").write_text(
        f'name = "good"\nbase_model = "tiny"\noutput_directory = "good"\n{name} = {value}'
    )
    with pytest.raises(SpecError) as caught:
        load_project(folder, "good")
    assert any(problem.line == 4 for problem in caught.value.problems)


# --- overrides -------------------------------------------------------------------------------------------------------


def test_a_typed_value_is_blamed_on_the_override_and_not_on_a_line(problems: Problems, folder: Path) -> None:
    (folder / "data" / "chats.jsonl").write_text('{"text": "hi"}\n')
    overrides = {"max_steps": "many", "ladder": "[4bit, 16bit]", "exact_match": "[2, 7]", "pool": "big"}
    assert problems(overrides=overrides) == [
        "override: pool: cannot be changed for one job; edit it in good.toml",
        "override: quantization.ladder[1]: must be '4bit', '8bit' or 'none', found \"16bit\"; did you mean 'none'?",
        'override: training.max_steps: must be a whole number, found "many"',
        "override: evaluation.exact_match[0]: dataset 2 holds plain text, which has no answers to compare with",
        "override: evaluation.exact_match[1]: dataset 7 is not in datasets.toml (there: 1, 2)",
    ]


def test_overrides_that_contradict_each_other_are_to_blame_themselves(problems: Problems) -> None:
    assert problems(overrides={"warmup_steps": "5", "warmup_ratio": "0.1"}) == [
        "override: training.warmup_ratio: says how long the warmup is, and so does warmup_steps; keep one of them"
    ]


def test_what_the_file_has_wrong_itself_stays_its_own_beside_an_override(problems: Problems) -> None:
    found = problems(("max_steps = 5", "warmup_steps = 5\nwarmup_ratio = 0.1"), overrides={"learning_rate": "1e-3"})
    assert [problem.partition(":")[0] for problem in found] == ["good.toml"]


def test_an_override_can_mend_what_the_file_has_wrong(folder: Path) -> None:
    (folder / "good.toml").write_text(PROJECT.replace("max_steps = 5", 'max_steps = "5"'))
    assert load_project(folder, "good", {"max_steps": "7"}).project.training.max_steps == 7


# --- catalog and data ------------------------------------------------------------------------------------------------


def test_a_dataset_that_is_not_in_the_catalog_is_shown_with_those_that_are(problems: Problems, folder: Path) -> None:
    change = ("dataset_id = 1\n", "dataset_id = 9\n")
    place = "good.toml:8: traits[0].datasets[0].dataset_id: dataset 9 is not in datasets.toml"
    assert problems(change) == [f"{place} (there: 1, 2)"]
    (folder / "datasets.toml").write_text("")
    assert problems(change) == [f"{place} (there: none yet)"]
    (folder / "datasets.toml").write_text("".join(f"[{number}]\n" for number in range(100, 200)))
    assert problems(change)[0].endswith("110, 111, …)")


@pytest.mark.parametrize(
    ("catalog", "expected"),
    [
        (None, ["datasets.toml: the file does not exist"]),
        ("[1\n", ["datasets.toml:1:3: not valid TOML: "]),
        ("1 = 5", ["datasets.toml:1: 1: must be a table, found 5"]),
        ("[[1]]", ["datasets.toml:1: 1: must be a table, found a list"]),
        ("[1]\nnaem = 'x'", ["1: 1.name: is missing", "1: 1.path: is missing", "2: 1.naem: unknown key; did you mean"]),
        ("[1]\nname = 'x'\npath = '../x'", ["datasets.toml:3: 1.path: must be a relative path inside the projects"]),
        ("[1]\nname = 'x'\npath = 'no'", ["datasets.toml:3: 1.path: the data file no does not exist"]),
        ("[1]\nname = 'x'\npath = 'data'\nhub = 'a/b'", ["datasets.toml:3: 1.path: cannot stand beside hub"]),
        ("[1]\nname = 'x'\nhub = 'alpaca'", ["3: 1.hub: must be a hub dataset's owner/name, such as"]),
        ("[1]\nname = 'x'\npath = 'data'\nrevision = 'v1'", ["4: 1.revision: only a hub dataset has a revision"]),
        ("[1]\nname = 'x'\nhub = 'a/b'\nfile_type = 'csv'", ["4: 1.file_type: only a data file has a file_type"]),
        ("[1]\nname = 'x'\npath = 'data'\nfile_type = 'csv'", ["4: 1.file_type: data is a folder; only a file has"]),
        (
            "[1]\nname = 'x'\nsplit = 'test'\ndata_files = ['a']\npath = 'data/sums.jsonl'",
            [
                "3: 1.split: data/sums.jsonl is a file; only a folder or a hub dataset has a split",
                "4: 1.data_files: data/sums.jsonl is a file; only",
            ],
        ),
        (
            "[1]\nname = 'x'\nhub = 'a/b'\ndata_dir = '/etc'\ndata_files = ['ok', 'https://a/b']",
            ["4: 1.data_dir: must be a relative path inside the dataset", "5: 1.data_files[1]: must be a path inside"],
        ),
        (
            "[1]\nname = 'x'\nhub = 'a/b'\nformat = 'alpacca'\ncolumns = { instrcution = 'q' }",
            [
                "4: 1.format: must be 'messages', 'prompt_completion', 'alpaca', 'sharegpt' or 'text'",
                "5: 1.columns.instrcution: unknown key; did you mean 'instruction'?",
            ],
        ),
        (
            "[1]\nname = 'x'\nhub = 'a/b'\ncolumns = { prompt = 'q', text = 't' }",
            ["4: 1.columns: no format has prompt and text together"],
        ),
        (
            "[1]\nname = 'x'\nhub = 'a/b'\nformat = 'alpaca'\ncolumns = { prompt = 'q' }",
            ["5: 1.columns: alpaca rows have no prompt"],
        ),
    ],
)
def test_a_broken_catalog_is_shown_at_its_own_lines(
    problems: Problems, folder: Path, catalog: str | None, expected: list[str]
) -> None:
    (folder / "datasets.toml").unlink()
    if catalog is not None:
        (folder / "datasets.toml").write_text(catalog)
    found = problems()
    assert len(found) == len(expected)
    for problem, part in zip(found, expected, strict=True):
        assert part in problem


def test_rows_of_the_hub_and_of_a_folder_are_left_to_the_host(folder: Path) -> None:
    catalog = CATALOG.replace(
        'path = "data/sums.jsonl"', 'hub = "acme/sums"\nrevision = "v1"\ncolumns.prompt = "question"'
    )
    (folder / "datasets.toml").write_text(catalog.replace("data/chats.jsonl", "data"))
    (folder / "good.toml").write_text(
        PROJECT.replace("[training]", "[[traits.datasets]]\ndataset_id = 2\n\n[training]")
    )
    spec = load_project(folder, "good")
    assert spec.unchecked == (1, 2)
    assert spec.datasets[1].layout == Layout(columns=(("prompt", "question"),))
    assert [entry.source for entry in spec.datasets.values()] == ["hub dataset acme/sums", "data"]


def test_a_mapped_column_that_is_not_there_is_shown_with_those_that_are(problems: Problems, folder: Path) -> None:
    rows = 'question,answer\n"1 + 1,\nor 2?",2\n'
    (folder / "data" / "sums.csv").write_text(rows)
    (folder / "datasets.toml").write_text(CATALOG.replace('sums.jsonl"', 'sums.csv"\ncolumns.prompt = "questoin"'))
    row, near = "data/sums.csv:2: row 1", "did you mean 'question'?"
    assert problems() == [f"{row}: has no column 'questoin' for prompt; found 'question', 'answer'; {near}"]


def test_an_entry_that_nobody_names_troubles_nobody(folder: Path) -> None:
    (folder / "datasets.toml").write_text(CATALOG + "[3]\npath = 5\n")
    load_project(folder, "good")


def test_a_bad_row_is_shown_with_file_and_row_and_many_are_counted(problems: Problems, folder: Path) -> None:
    (folder / "data" / "sums.jsonl").write_text('{"prompt": "1 + 1?", "completion": 2}\n' + "oops\n" * 9)
    assert problems() == [
        "data/sums.jsonl:1: row 1: 'completion' must be text, found 2",
        *(f"data/sums.jsonl:{row}: row {row}: is not JSON: expecting value at column 1" for row in range(2, 6)),
        "data/sums.jsonl: and 5 more rows with problems",
    ]


def test_a_data_file_named_twice_is_reported_once(problems: Problems, folder: Path) -> None:
    (folder / "data" / "sums.jsonl").unlink()
    twice = '[[traits]]\ntrait_type = "again"\n[[traits.datasets]]\ndataset_id = 1\n\n[training]'
    assert problems(("[training]", twice)) == ["datasets.toml:3: 1.path: the data file data/sums.jsonl does not exist"]


def test_a_link_that_leaves_the_projects_folder_is_refused_unread(
    problems: Problems, folder: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text("password")
    (folder / "data" / "sums.jsonl").unlink()
    (folder / "data" / "sums.jsonl").symlink_to(secret)
    assert problems() == [
        "datasets.toml:3: 1.path: the data file data/sums.jsonl is a link that leaves the projects folder"
    ]


def test_links_inside_the_projects_folder_and_to_it_are_fine(folder: Path, tmp_path: Path) -> None:
    (folder / "data").rename(folder / "data-v2")
    (folder / "data").symlink_to("data-v2")
    (tmp_path / "current").symlink_to(folder)
    load_project(tmp_path / "current", "good")


def test_exact_match_needs_answers(problems: Problems, folder: Path) -> None:
    load_project(folder, "good", {"exact_match": "[1, 2]"})
    (folder / "data" / "chats.jsonl").write_text('{"text": "hi"}\n')
    assert problems(("[training]", "[evaluation]\nexact_match = [1, 2]\n\n[training]")) == [
        "good.toml:12: evaluation.exact_match[1]: dataset 2 holds plain text, which has no answers to compare with"
    ]


# --- everything at once ----------------------------------------------------------------------------------------------


def test_all_problems_come_at_once_in_reading_order(problems: Problems, folder: Path) -> None:
    (folder / "datasets.toml").write_text(CATALOG.replace("data/sums", "data/none") + "[3]\nname = 5\npath = 'x'\n")
    (folder / "data" / "chats.jsonl").write_text("oops\n")
    datasets = "".join(f"[[traits.datasets]]\ndataset_id = {number}\n" for number in (2, 3, 4))
    found = problems(
        ('name = "good"', 'name = "bad"'),
        ('"tiny"', "5"),
        ("percentage = 50\n", f"percentage = 0\n{datasets}"),
        ("max_steps = 5", 'max_steps = "5"\nlr = 1'),
        overrides={"seed": "x", "name": "y"},
    )
    expected = [
        f"{OVERRIDE}: name: ",
        f"{OVERRIDE}: training.seed: ",
        "good.toml:1: name: ",
        "good.toml:2: base_model: ",
        "good.toml:9: traits[0].datasets[0].percentage: ",
        "good.toml:15: traits[0].datasets[3].dataset_id: dataset 4 is not in",
        "good.toml:18: training.max_steps: ",
        "good.toml:19: training.lr: ",
        "datasets.toml:3: 1.path: ",
        "datasets.toml:9: 3.name: ",
        "data/chats.jsonl:1: row 1: is not JSON",
    ]
    assert len(found) == len(expected)
    for problem, start in zip(found, expected, strict=True):
        assert problem.startswith(start)
