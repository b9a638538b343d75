import copy
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loads import announcements, failing_load, load  # type: ignore[import-not-found]  # see conftest
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, LlamaModel

from runner.errors import (
    ConfigError,
    LadderError,
    MemoryExhaustedError,
    ModelAccessError,
    ModelFilesError,
)
from runner.events import ChildEvent, RungFailed
from runner.spec import RunSpec
from runner.training import accelerator
from runner.training.loading.probe import probe
from runner.training.loading.protected_load import load_on_rung, protected_load

pytestmark = [
    pytest.mark.training,
    # bitsandbytes 0.49 warns whenever an 8-bit module gets another input than float16.
    pytest.mark.filterwarnings("ignore:MatMul8bitLt. inputs will be cast:UserWarning"),
]

Make = Callable[..., RunSpec]


@pytest.fixture
def broken_root(tmp_path: Path, tiny_model: Path) -> Path:
    """A models root with a copy of the demo's model, `tiny`, for a test to break."""
    shutil.copytree(tiny_model, tmp_path / "models" / "tiny")
    return tmp_path / "models"


def kinds(events: list[ChildEvent]) -> list[str]:
    return [f"{event.kind} {event.phase}" if event.kind == "phase_started" else event.kind for event in events]


def test_a_good_load_tells_its_story_in_order(make: Make, models_root: Path) -> None:
    _, events = load(make(), models_root)
    assert kinds(events) == [
        "phase_started tokenizer",
        "tokenizer_loaded",
        "phase_started config",
        "config_loaded",
        "phase_started model",
        "model_loaded",
    ]
    assert announcements(events) == ["✅ Model loaded with 4-bit quantization, config protected"]


@pytest.mark.parametrize(("rung", "quantized_modules"), [("4bit", 28), ("8bit", 28), ("none", 0)])
def test_the_receipt_counts_what_is_really_there(
    make: Make, models_root: Path, rung: str, quantized_modules: int
) -> None:
    receipt, _ = load(make(quantization={"ladder": [rung]}), models_root)
    elements = {name: tensor.numel() for name, tensor in load_file(models_root / "tiny" / "model.safetensors").items()}
    assert receipt.total_parameters == sum(elements.values())
    assert (receipt.rung, receipt.rung_asked, receipt.failed) == (rung, rung, ())
    assert (receipt.linear_modules, receipt.quantized_modules) == (29, quantized_modules)
    expected = sum(count for name, count in elements.items() if "_proj" in name) if quantized_modules else 0
    assert receipt.quantized_parameters == expected
    assert receipt.probe_grad_norm > 0
    assert 0 < receipt.load_s < 60
    assert (receipt.device, receipt.config_class) == (str(accelerator.choose_device()), "LlamaConfig")


def test_fewer_bits_take_fewer_bytes(make: Make, models_root: Path) -> None:
    sizes = [
        load(make(quantization={"ladder": [rung]}), models_root)[0].model_bytes for rung in ("4bit", "8bit", "none")
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[2] / 2


def test_what_a_rung_loads_can_be_trained_and_is_frozen(make: Make, models_root: Path) -> None:
    with protected_load(make(), models_root=models_root, emit=lambda _: None) as loaded:
        assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
        assert all(parameter.grad is None for parameter in loaded.model.parameters())
        assert loaded.model.device == accelerator.choose_device()
        assert loaded.config is loaded.model.config
        assert loaded.tokenizer.pad_token is not None


@pytest.mark.parametrize("rung", ["4bit", "8bit", "none"])
def test_gradient_checkpointing_works_on_every_rung(make: Make, models_root: Path, rung: str) -> None:
    spec = make(quantization={"ladder": [rung]}, training={"gradient_checkpointing": True})
    plain, _ = load(make(quantization={"ladder": [rung]}), models_root)
    with protected_load(spec, models_root=models_root, emit=lambda _: None) as loaded:
        layer: Any = loaded.model.model.layers[0]
        assert layer._gradient_checkpointing_func.keywords == {"use_reentrant": False}
    assert loaded.receipt.probe_grad_norm == pytest.approx(plain.probe_grad_norm, rel=1e-3)


@pytest.mark.parametrize("rung", ["4bit", "8bit", "none"])
def test_a_probe_leaves_a_loaded_model_as_it_was(make: Make, models_root: Path, rung: str) -> None:
    def trace(model: Any) -> tuple[Any, ...]:
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
        modes = [module.training for module in model.modules()]
        grads = [(weight.grad, weight.requires_grad) for weight in model.parameters()]
        return hooks, modes, grads, [tuple(weight.shape) for weight in model.parameters()]

    spec = make(quantization={"ladder": [rung]})
    with protected_load(spec, models_root=models_root, emit=lambda _: None) as loaded:
        model: Any = loaded.model
        model.eval()
        before, weights = trace(model), [weight.detach().clone() for weight in model.parameters()]
        state = torch.get_rng_state()
        probe(model, getattr(torch, loaded.receipt.compute_dtype))
        assert torch.equal(torch.get_rng_state(), state)
        assert trace(model) == before
        # No 4-bit weight is repacked for inference either.
        assert all(map(torch.equal, model.parameters(), weights))


def test_evaluating_in_between_does_not_corrupt_the_gradients(make: Make, models_root: Path) -> None:
    tokens = torch.arange(8).unsqueeze(0)

    def gradient(model: Any) -> torch.Tensor:
        model.train()
        embedded = model.get_input_embeddings()(tokens).detach().requires_grad_()
        (found,) = torch.autograd.grad(model(inputs_embeds=embedded, labels=tokens).loss, embedded)
        assert isinstance(found, torch.Tensor)
        return found

    with protected_load(make(), models_root=models_root, emit=lambda _: None) as loaded:
        model: Any = loaded.model
        before = gradient(model)
        model.eval()
        with torch.no_grad():
            model(input_ids=tokens)
        assert torch.equal(gradient(model), before)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def damage_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 20) + b"{not json at all....")


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def name_missing_shard(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def keep_pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "model.safetensors is incomplete or damaged"),
        (damage_header, "model.safetensors is incomplete or damaged"),
        (drop_tensor, "lack 1 of the weights that LlamaForCausalLM needs, such as model.layers.1.mlp.up_proj.weight"),
        (name_missing_shard, "lacks model-00002-of-00002.safetensors"),
        (keep_pickle_only, "lacks model.safetensors"),
    ],
)
def test_damaged_weights_never_fall_to_another_rung(
    make: Make, broken_root: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(broken_root / "tiny")
    error, events = failing_load(make(), broken_root)
    assert isinstance(error, ModelFilesError)
    assert message in error.message
    assert not [event for event in events if isinstance(event, RungFailed)]


def test_weights_of_another_shape_than_the_config_says_are_named(make: Make, broken_root: Path) -> None:
    path = broken_root / "tiny" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 640}))
    error, events = failing_load(make(), broken_root)
    assert isinstance(error, ModelFilesError)
    assert "has shape [256, 512], but config.json asks for [256, 640]" in error.message
    assert not [event for event in events if isinstance(event, RungFailed)]


def test_a_tied_embedding_is_stored_once_and_not_missed(make: Make, broken_root: Path) -> None:
    folder = broken_root / "tiny"
    config = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tied, _ = load(make(), broken_root)
    assert tied.rung == "4bit"
    assert tied.total_parameters == sum(tensor.numel() for tensor in tensors.values())


def test_a_missing_model_says_where_it_was_looked_for(make: Make, models_root: Path) -> None:
    error, events = failing_load(make(base_model="acme/no-such-model"), models_root)
    assert isinstance(error, ModelAccessError)
    assert error.hint is not None
    assert str(models_root / "acme/no-such-model") in error.hint
    assert "acme/no-such-model" in error.message
    assert kinds(events) == ["phase_started tokenizer"]


def test_a_contradicting_model_type_ends_before_any_weight_is_read(make: Make, broken_root: Path) -> None:
    truncate(broken_root / "tiny")
    error, events = failing_load(make(model_type="qwen2"), broken_root)
    assert isinstance(error, ConfigError)
    assert error.code == "model-type-mismatch"
    assert kinds(events)[-1] == "phase_started config"


def test_a_model_that_generates_no_text_is_refused(make: Make, broken_root: Path) -> None:
    (broken_root / "tiny" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    error, _ = failing_load(make(), broken_root)
    assert isinstance(error, ConfigError)
    assert "generates no text" in error.message


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_goes_straight_through(
    make: Make, models_root: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(LlamaForCausalLM, "forward", interrupt)
    events: list[ChildEvent] = []
    with pytest.raises(error), protected_load(make(), models_root=models_root, emit=events.append):
        pass
    assert not [event for event in events if isinstance(event, RungFailed)]
    assert "config" not in LlamaForCausalLM.__dict__


def test_running_out_of_memory_in_the_probe_never_falls(
    make: Make, models_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(*_: Any, **__: Any) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(LlamaForCausalLM, "forward", exhaust)
    error, events = failing_load(make(), models_root)
    assert isinstance(error, MemoryExhaustedError)
    assert "With 4-bit quantization the weights take about 2." in error.message
    assert [(event.failed.rung, event.next_rung) for event in events if isinstance(event, RungFailed)] == [
        ("4bit", None)
    ]


def test_a_hook_that_turns_the_config_into_a_dict_is_counted_in_the_receipt(
    make: Make, models_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    post_init: Any = LlamaForCausalLM.post_init

    def hooked(self: Any) -> None:
        post_init(self)
        self.config = self.config.to_dict()

    monkeypatch.setattr(LlamaForCausalLM, "post_init", hooked)
    events: list[ChildEvent] = []
    with protected_load(make(), models_root=models_root, emit=events.append) as loaded:
        assert loaded.receipt.guard_interceptions == 1
        assert loaded.receipt.config_class == "LlamaConfig"
        model: Any = loaded.model
        model.config = model.config.to_dict()
        assert model.config is loaded.config
        assert loaded.guard.interceptions == 2
    assert "config" not in LlamaForCausalLM.__dict__
    assert model.config is loaded.config


def test_a_part_whose_class_hides_the_guard_behind_a_config_of_its_own_is_guarded_once_it_is_there(
    make: Make, models_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaModel, "config", None, raising=False)
    with protected_load(make(), models_root=models_root, emit=lambda _: None) as loaded:
        model: Any = loaded.model
        part = model.get_decoder()
        part.config = part.config.to_dict()
        assert part.config is loaded.config
    assert LlamaModel.__dict__["config"] is None


def test_loading_leaves_the_model_folder_as_it_was(make: Make, broken_root: Path) -> None:
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (broken_root / "tiny").iterdir()}
    load(make(), broken_root)
    assert {
        path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in (broken_root / "tiny").iterdir()
    } == before


@pytest.mark.parametrize("rung", ["4bit", "8bit", "none"])
def test_a_second_load_on_a_known_rung_computes_the_same(make: Make, models_root: Path, rung: Any) -> None:
    spec = make(quantization={"ladder": [rung]})
    tokens = torch.arange(8).unsqueeze(0)
    with protected_load(spec, models_root=models_root, emit=lambda _: None) as loaded, torch.no_grad():
        model: Any = copy.deepcopy(loaded.model)
        first = model.eval()(input_ids=tokens).logits
    again: Any = load_on_rung(spec, rung, models_root=models_root)
    with torch.no_grad():
        assert torch.equal(again.eval()(input_ids=tokens).logits, first)
    assert "config" not in type(again).__dict__


def test_a_rung_that_does_not_hold_again_is_explained(make: Make, prequantized_root: Path) -> None:
    with pytest.raises(LadderError, match="does not load with 8-bit quantization again"):
        load_on_rung(make(base_model="tiny-bnb-4bit"), "8bit", models_root=prequantized_root)
