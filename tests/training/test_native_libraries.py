import os
import subprocess
import sys

import pytest

from runner.training.native_libraries import SETTINGS, choose_native_settings

pytestmark = pytest.mark.training

MEETS_MORE_SHAPES_THAN_ARE_KEPT = """
from runner.training.native_libraries import choose_native_settings
choose_native_settings()
import torch
weight = torch.ones(16, 16, 3, 3)
for size in [*range(10, 110), 10]:
    torch.nn.functional.conv2d(torch.ones(2, 16, size, size), weight)
"""


def test_a_training_process_keeps_the_compiled_code_of_a_few_shapes_only() -> None:
    kept = os.environ | {"ONEDNN_VERBOSE": "profile_create"}
    kept.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)

    done = subprocess.run(
        [sys.executable, "-c", MEETS_MORE_SHAPES_THAN_ARE_KEPT], env=kept, capture_output=True, text=True, check=True
    )

    compiled = [line for line in done.stdout.splitlines() if "create:cache_miss" in line and "convolution" in line]
    assert len(compiled) == 101, "the first shape was kept through a hundred others"


def test_what_the_host_has_chosen_itself_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.setenv(name, "7")

    choose_native_settings()

    assert {os.environ[name] for name in SETTINGS} == {"7"}
