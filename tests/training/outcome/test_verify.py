import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner.errors import AdapterError, TrainingError
from runner.spec import RunSpec
from runner.training.loading.protected_load import load_on_rung
from runner.training.loop.lora import add_lora
from runner.training.outcome.verify import PROBE, compare, store_probe, verify
from runner.training.outcome.verifying_process import VerifyingProcess
from runner.training.stopping import StopSwitch

pytestmark = pytest.mark.timeout(180)
WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture
def run_dir(finished_child: Any, tmp_path: Path) -> Path:
    """A copy of a finished run, to be tampered with."""
    return Path(shutil.copytree(finished_child.run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints")))


def _without_one(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(list(tensors.items())[1:])


def _with_one_exchanged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.flip(0) if "lm_head" in name else tensor for name, tensor in tensors.items()}


def _with_one_row_spoiled(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """So little that the logits stay within what rounding may change."""
    name = next(name for name in tensors if "lora_A" in name)
    spoiled = tensors[name].clone()
    spoiled[0] *= -1
    return {**tensors, name: spoiled}


def _with_zeros(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor * 0 if "lora_B" in name else tensor for name, tensor in tensors.items()}


def test_an_untouched_adapter_is_accepted(run_dir: Path, models_root: Path) -> None:
    verified = verify(run_dir, models_root)

    assert verified.max_difference <= 0.01 * verified.base_difference


@pytest.mark.parametrize("tamper", [_without_one, _with_one_exchanged, _with_one_row_spoiled, _with_zeros])
def test_a_tampered_adapter_is_refused(
    run_dir: Path, models_root: Path, tamper: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
) -> None:
    tensors = load_file(run_dir / WEIGHTS)
    save_file(tamper(tensors), run_dir / WEIGHTS, metadata={"format": "pt"})

    with pytest.raises(AdapterError):
        verify(run_dir, models_root)


def test_an_adapter_that_training_left_as_it_began_is_refused(run_dir: Path, models_root: Path) -> None:
    spec = RunSpec.model_validate_json((run_dir / "spec.json").read_bytes())
    model = add_lora(load_on_rung(spec, "4bit", models_root=models_root), spec.project.lora, seed=1)
    model.save_pretrained(str(run_dir / "adapter"))
    store_probe(model, [list(range(3, 30))], run_dir / PROBE)

    with pytest.raises(AdapterError, match="holds nothing"):
        verify(run_dir, models_root)


def test_half_a_file_is_refused(run_dir: Path, models_root: Path) -> None:
    (run_dir / WEIGHTS).write_bytes((run_dir / WEIGHTS).read_bytes()[:1000])

    with pytest.raises(AdapterError, match="cannot be loaded"):
        verify(run_dir, models_root)


def test_the_verifying_process_hands_its_refusal_over(run_dir: Path, models_root: Path) -> None:
    tensors = load_file(run_dir / WEIGHTS)
    save_file(_with_zeros(tensors), run_dir / WEIGHTS, metadata={"format": "pt"})

    with VerifyingProcess(run_dir, models_root) as verifying:
        verifying.begin()
        with pytest.raises(AdapterError, match="is not what was trained") as caught:
            verifying.result(StopSwitch())

    assert caught.value.hint


def test_a_verifying_process_that_dies_accepts_nothing(
    run_dir: Path, models_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))

    def judge(verifying: VerifyingProcess) -> None:
        verifying.begin()
        verifying.result(StopSwitch())

    with VerifyingProcess(run_dir, models_root) as verifying, pytest.raises(TrainingError, match="before it could say"):
        judge(verifying)


def test_an_adapter_that_changes_nothing_is_refused() -> None:
    base = torch.ones(1, 2, 3)

    with pytest.raises(AdapterError, match="holds nothing"):
        compare(base, base, base)


@pytest.mark.parametrize(
    ("reloaded", "accepted"),
    [(10.0, True), (10.15, True), (10.3, False), (float("nan"), False)],
)
def test_the_reloaded_logits_may_differ_by_rounding_only(reloaded: float, accepted: bool) -> None:
    trained, base = torch.full((1, 2, 3), 10.0), torch.full((1, 2, 3), 5.0)

    if accepted:
        difference, base_difference = compare(trained, torch.full((1, 2, 3), reloaded), base)
        assert difference == pytest.approx(reloaded - 10, abs=1e-6)
        assert base_difference == 5.0
    else:
        with pytest.raises(AdapterError, match="is not what was trained"):
            compare(trained, torch.full((1, 2, 3), reloaded), base)


def test_an_adapter_as_far_from_the_trained_model_as_the_base_is_refused_however_small_the_distance() -> None:
    trained, base = torch.full((1, 2, 3), 10.0), torch.full((1, 2, 3), 9.99)

    with pytest.raises(AdapterError, match="is not what was trained"):
        compare(trained, base, base)
