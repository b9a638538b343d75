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


@pytest.mark.parametrize("name", SETTINGS)
def test_what_the_host_has_chosen_itself_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {name: "7"})

    choose_native_settings()

    assert os.environ == SETTINGS | {name: "7"}


def test_a_wait_policy_of_the_host_is_not_overruled_by_a_number_of_spins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"OMP_WAIT_POLICY": "ACTIVE"})

    choose_native_settings()

    assert "GOMP_SPINCOUNT" not in os.environ
