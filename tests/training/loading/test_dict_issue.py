"""The demonstration that docs/MODEL_LOADING_DICT_ISSUE.md offers its readers does what the page says."""

import dict_issue  # type: ignore[import-not-found]  # found by conftest.py; mypy names it by its path
import pytest
from transformers import __version__ as transformers_version

pytestmark = [
    pytest.mark.training,
    # peft 0.21 asks transformers 5.23 by the old name.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]


def test_the_tokenizer_of_the_report_fails_on_its_transformers_alone_and_loads_here(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert dict_issue.show_tokenizer()
    alone, here = capsys.readouterr().out.splitlines()
    assert alone.endswith(dict_issue.MESSAGE) is (transformers_version == "4.57.2")
    assert "loads 100013 entries" in here


def test_a_dict_config_kills_the_first_step_without_the_guard_and_changes_nothing_with_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert dict_issue.show_config()
    without, guarded = capsys.readouterr().out.splitlines()
    assert without.endswith(dict_issue.MESSAGE)
    assert "turned away 1 dict" in guarded
