import logging
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.utils import logging as transformers_logging

from runner.training.noise import LINES, without_bars


@pytest.mark.parametrize("name", LINES)
def test_a_line_that_nobody_could_act_on_is_left_out_and_others_of_its_logger_are_not(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger(name).warning("%s and whatever follows", LINES[name])
    logging.getLogger(name).warning("the library cannot be used")

    assert caplog.messages == ["the library cannot be used"]


def test_progress_bars_are_back_after_loading() -> None:
    assert transformers_logging.is_progress_bar_enabled()

    with without_bars():
        assert not transformers_logging.is_progress_bar_enabled()

    assert transformers_logging.is_progress_bar_enabled()


def test_loading_in_a_fresh_process_says_nothing(models_root: Path) -> None:
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from runner.spec import DatasetEntry, ProjectSpec, RunSpec\n"
        "from runner.training.loading.protected_load import load_on_rung\n"
        "project = dict(name='t', base_model='tiny', output_directory='t',"
        " traits=[dict(trait_type='t', datasets=[dict(dataset_id=1)])])\n"
        "spec = RunSpec(project=ProjectSpec.model_validate(project), datasets={})\n"
        "for rung in ('4bit', '8bit'):\n"
        "    model = load_on_rung(spec, rung, models_root=Path(sys.argv[1]))\n"
        "    for _ in range(2):\n"
        "        model(input_ids=torch.arange(8).unsqueeze(0))\n"
    )

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(models_root)], capture_output=True, text=True, check=True
    )

    assert done.stdout + done.stderr == ""
