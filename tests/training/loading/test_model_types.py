"""docs/MODEL_TYPES.md against the aliases, and against what both stacks know."""

import re
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from runner.training.loading.model_config import ALIASES, resolve_model_type
from runner.versions import installed_versions, nearest_stack

pytestmark = pytest.mark.training

PAGE = (Path(__file__).parents[3] / "docs" / "MODEL_TYPES.md").read_text(encoding="utf-8")
NAMES = PAGE.split("\n## Names\n")[1]
ROWS = [
    (model_type, re.findall(r"`([^`]+)`", aliases), stacks)
    for model_type, aliases, stacks in re.findall(r"^\| `(\w+)` \|([^|]*)\|[^|]*\| (\w+) \|$", NAMES, re.MULTILINE)
]


def test_the_page_tells_every_alias_and_no_other() -> None:
    assert {alias: model_type for model_type, aliases, _ in ROWS for alias in aliases} == ALIASES


def test_every_row_of_the_page_is_read() -> None:
    assert len(ROWS) == len([line for line in NAMES.splitlines() if line.startswith("| `")]) > 25


@pytest.mark.parametrize(("model_type", "stacks"), [(row[0], row[2]) for row in ROWS])
def test_a_listed_model_type_is_a_language_model_on_the_stacks_that_the_page_says(model_type: str, stacks: str) -> None:
    assert stacks in {"both", "current"}
    known = model_type in CONFIG_MAPPING and model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    assert known is (stacks == "both" or nearest_stack(installed_versions()) == "current")


@pytest.mark.parametrize("alias", sorted(ALIASES))
def test_an_alias_hides_no_model_type_but_one_of_the_same_config(alias: str) -> None:
    # transformers 4.57 has code_llama as a name of its own for the very same class.
    assert alias not in CONFIG_MAPPING or CONFIG_MAPPING[alias] is CONFIG_MAPPING[ALIASES[alias]]


@pytest.mark.parametrize(
    ("written", "model_type"),
    [("Qwen2.5", "qwen2"), ("code-llama", "llama"), ("Phi-4", "phi3"), ("GPT-NeoX", "gpt_neox"), ("llama", "llama")],
)
def test_a_model_type_may_be_written_as_people_write_it(written: str, model_type: str) -> None:
    assert resolve_model_type(written) == model_type
