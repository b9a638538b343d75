"""What can be wrong in a project file or an override, and how it is told."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from runner.errors import OVERRIDE, SpecError
from runner.projects import load_project

STAYS_INSIDE = "must be a relative path inside the output root, without '..', '~' or a leading '/'"
Problems = Callable[..., list[str]]


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
            "must be true or false or 'gaussian' or 'orthogonal', found \"gausian\"; did you mean 'gaussian'?",
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
    assert problems(overrides={"warmup_steps": "4", "warmup_ratio": "0.1"}) == [
        "override: training.warmup_ratio: says how long the warmup is, and so does warmup_steps; keep one of them"
    ]


def test_what_the_file_has_wrong_itself_stays_its_own_beside_an_override(problems: Problems) -> None:
    found = problems(("max_steps = 5", "warmup_steps = 4\nwarmup_ratio = 0.1"), overrides={"learning_rate": "1e-3"})
    assert [problem.partition(":")[0] for problem in found] == ["good.toml"]


def test_an_override_can_mend_what_the_file_has_wrong(folder: Path) -> None:
    (folder / "good.toml").write_text((folder / "good.toml").read_text().replace("max_steps = 5", 'max_steps = "5"'))
    assert load_project(folder, "good", {"max_steps": "7"}).project.training.max_steps == 7


# --- everything at once ----------------------------------------------------------------------------------------------


def test_all_problems_come_at_once_in_reading_order(problems: Problems, folder: Path) -> None:
    (folder / "datasets.toml").write_text(
        (folder / "datasets.toml").read_text().replace("data/sums", "data/none") + "[3]\nname = 5\npath = 'x'\n"
    )
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
