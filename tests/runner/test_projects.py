from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runner.errors import SpecError, UsageError
from runner.layout import Layout
from runner.projects import list_projects, load_project, project_names
from runner.spec import DatasetEntry, ProjectSpec

PROJECTS = Path(__file__).parents[2] / "projects"

Problems = Callable[..., list[str]]


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
    good = (folder / "good.toml").read_text()

    def write(text: str) -> None:
        (folder / "good.toml").write_bytes(prefix + text.encode().replace(b"\n", line_end))

    write(good)
    assert load_project(folder, "good").project.training.max_steps == 5
    write(good.replace("max_steps = 5", "max_steps = 'x'"))
    with pytest.raises(SpecError) as caught:
        load_project(folder, "good")
    assert caught.value.problems[0].line == 12


def test_a_project_may_be_written_with_dotted_keys_and_inline_tables(folder: Path) -> None:
    good = (folder / "good.toml").read_text()
    (folder / "good.toml").write_text(
        'name = "good"\nbase_model = "tiny"\noutput_directory = "good"\ntraining.max_steps = 5\n'
        'traits = [{ trait_type = "sums", datasets = [{ dataset_id = 1, percentage = 50 }] }]\n'
    )
    assert load_project(folder, "good").project == load_project_from(folder, good)


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
    catalog = (
        (folder / "datasets.toml")
        .read_text()
        .replace('path = "data/sums.jsonl"', 'hub = "acme/sums"\nrevision = "v1"\ncolumns.prompt = "question"')
    )
    (folder / "datasets.toml").write_text(catalog.replace("data/chats.jsonl", "data"))
    (folder / "good.toml").write_text(
        (folder / "good.toml").read_text().replace("[training]", "[[traits.datasets]]\ndataset_id = 2\n\n[training]")
    )
    spec = load_project(folder, "good")
    assert spec.unchecked == (1, 2)
    assert spec.datasets[1].layout == Layout(columns=(("prompt", "question"),))
    assert [entry.source for entry in spec.datasets.values()] == ["hub dataset acme/sums", "data"]


def test_a_mapped_column_that_is_not_there_is_shown_with_those_that_are(problems: Problems, folder: Path) -> None:
    rows = 'question,answer\n"1 + 1,\nor 2?",2\n'
    (folder / "data" / "sums.csv").write_text(rows)
    (folder / "datasets.toml").write_text(
        (folder / "datasets.toml").read_text().replace('sums.jsonl"', 'sums.csv"\ncolumns.prompt = "questoin"')
    )
    row, near = "data/sums.csv:2: row 1", "did you mean 'question'?"
    assert problems() == [f"{row}: has no column 'questoin' for prompt; found 'question', 'answer'; {near}"]


def test_an_entry_that_nobody_names_troubles_nobody(folder: Path) -> None:
    (folder / "datasets.toml").write_text((folder / "datasets.toml").read_text() + "[3]\npath = 5\n")
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
