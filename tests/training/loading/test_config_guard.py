import copy
import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTuner
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedModel,
    TrainerCallback,
    TrainingArguments,
)

from runner.training.loading.config_guard import ConfigGuard

pytestmark = [
    pytest.mark.training,
    # peft 0.21 asks transformers 5.23 by the old name.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]

GUARDED_CLASSES = (PreTrainedModel, LlamaForCausalLM, LlamaModel, PeftModel, BaseTuner)


def small_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )


def small_model(cls: Any = LlamaForCausalLM) -> Any:
    return cls(small_config())


def forward(model: Any) -> torch.Tensor:
    tokens = torch.tensor([[1, 5, 9, 2]])
    loss: torch.Tensor = model(input_ids=tokens, labels=tokens).loss
    return loss


def head_gradient(model: Any) -> Any:
    return torch.autograd.grad(forward(model), model.lm_head.weight)[0]


def with_lora(model: Any) -> Any:
    return get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))


class ConfigDictCallback(TrainerCallback):
    """What people write to log a config."""

    def on_train_begin(self, *_: Any, **kwargs: Any) -> None:
        model = kwargs["model"]
        model.config = model.config.to_dict()


@pytest.fixture(autouse=True)
def _no_trace_of_a_guard() -> Iterator[None]:
    yield
    assert [cls for cls in GUARDED_CLASSES if "config" in cls.__dict__] == []


def test_without_the_guard_a_dict_config_kills_the_first_forward_of_a_peft_model() -> None:
    model = small_model()
    model.config = model.config.to_dict()
    wrapped = with_lora(model)
    with pytest.raises(AttributeError, match="'dict' object has no attribute 'model_type'"):
        forward(wrapped)


def test_an_assigned_dict_is_turned_away_and_counted() -> None:
    with ConfigGuard(LlamaForCausalLM) as guard:
        model = small_model()
        config = model.config
        model.config = model.config.to_dict()
        assert model.config is config
        assert guard.interceptions == 1
        assert guard.origins[0].startswith(f"{__file__}:")
        assert guard.origins[0].endswith("in test_an_assigned_dict_is_turned_away_and_counted")


def test_an_assigned_config_object_is_taken() -> None:
    other = small_config()
    with ConfigGuard(LlamaForCausalLM) as guard:
        model = small_model()
        model.config = other
        assert model.config is other
        assert guard.interceptions == 0
    assert model.config is other


def test_two_models_of_a_class_keep_their_own_configs() -> None:
    with ConfigGuard(LlamaForCausalLM):
        first, second = small_model(), small_model()
        first.config.use_cache = False
        second.config = second.config.to_dict()
        assert first.config is not second.config
        assert second.config.use_cache


def test_a_dict_written_past_the_guard_is_found_when_the_config_is_read() -> None:
    with ConfigGuard(LlamaForCausalLM) as guard:
        model = small_model()
        config = model.config
        model.__dict__["config"] = config.to_dict()
        assert model.config is config
        assert guard.interceptions == 1


def test_a_dict_that_nobody_read_is_gone_after_the_guard() -> None:
    with ConfigGuard(LlamaForCausalLM):
        model = small_model()
        config = model.config
        model.__dict__["config"] = config.to_dict()
    assert model.config is config


def test_a_first_config_given_as_a_dict_becomes_an_object_by_its_model_type() -> None:
    with ConfigGuard(LlamaForCausalLM) as guard:
        model: Any = LlamaForCausalLM.__new__(LlamaForCausalLM)
        torch.nn.Module.__init__(model)
        model.config = small_config().to_dict()
        assert isinstance(model.config, LlamaConfig)
        assert model.config.hidden_size == 16
        assert guard.interceptions == 1


def test_a_hook_that_runs_while_the_weights_load_changes_nothing(tiny_model: Path) -> None:
    class HookedConfig(LlamaConfig):  # type: ignore[no-untyped-call]  # transformers leaves __init_subclass__ bare
        model_type = "hooked-llama"

    class HookedModel(LlamaForCausalLM):  # type: ignore[no-untyped-call]  # see above
        config_class = HookedConfig

        def __init__(self, config: HookedConfig) -> None:
            super().__init__(config)
            self.config = self.config.to_dict()  # type: ignore[assignment]  # the hook in question

    AutoConfig.register("hooked-llama", HookedConfig, exist_ok=True)
    AutoModelForCausalLM.register(HookedConfig, HookedModel, exist_ok=True)
    config = HookedConfig.from_dict(LlamaConfig.from_pretrained(tiny_model).to_dict())
    with pytest.raises(AttributeError, match="'dict' object has no attribute"):
        AutoModelForCausalLM.from_pretrained(tiny_model, config=copy.deepcopy(config))
    with ConfigGuard(HookedModel) as guard:
        model = AutoModelForCausalLM.from_pretrained(tiny_model, config=copy.deepcopy(config))
        assert isinstance(model.config, HookedConfig)
        assert guard.interceptions >= 1
        assert torch.isfinite(forward(model))
    assert "config" not in HookedModel.__dict__


def test_the_decoder_inside_is_guarded_too() -> None:
    with ConfigGuard(LlamaForCausalLM):
        model = small_model()
        model.model.config = model.model.config.to_dict()
        assert isinstance(model.model.config, LlamaConfig)
        assert torch.isfinite(forward(model))


@pytest.mark.parametrize("layer", ["peft", "tuner", "base"])
def test_no_layer_of_a_peft_model_takes_a_dict(layer: str) -> None:
    with ConfigGuard(LlamaForCausalLM) as guard:
        base = small_model()
        config = base.config
        wrapped = with_lora(base)
        target = {"peft": wrapped, "tuner": wrapped.base_model, "base": base}[layer]
        target.config = target.config.to_dict()
        assert wrapped.config is config
        assert wrapped.base_model.config is config
        assert base.config is config
        assert guard.interceptions == 1
        assert torch.isfinite(forward(wrapped))
    assert wrapped.config is config
    assert "config" not in wrapped.__dict__
    assert "config" not in wrapped.base_model.__dict__


def test_a_trainer_callback_that_assigns_a_dict_does_not_disturb_training(tmp_path: Path) -> None:
    from transformers import Trainer  # noqa: PLC0415  (a heavy import that one test needs)

    rows: Any = [{"input_ids": torch.tensor([1, 5, 9, 2]), "labels": torch.tensor([1, 5, 9, 2])}] * 4
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, report_to=[], use_cpu=True, save_strategy="no", disable_tqdm=True
    )
    with ConfigGuard(LlamaForCausalLM) as guard:
        base = small_model()
        config = base.config
        model = with_lora(base)
        trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[ConfigDictCallback()])
        trainer.train()
        assert guard.interceptions == 1
        assert any("on_train_begin" in origin for origin in guard.origins)
        model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    assert base.config is config
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_an_exception_leaves_no_trace_of_the_guard() -> None:
    def fail_inside(guard: ConfigGuard) -> None:
        with guard:
            raise RuntimeError("in mid-training")

    before = {cls: dict(cls.__dict__) for cls in GUARDED_CLASSES}
    with pytest.raises(RuntimeError, match="in mid-training"):
        fail_inside(ConfigGuard(LlamaForCausalLM))
    assert {cls: dict(cls.__dict__) for cls in GUARDED_CLASSES} == before


def test_after_the_guard_the_model_has_an_ordinary_config_attribute() -> None:
    with ConfigGuard(LlamaForCausalLM) as guard:
        model = small_model()
        guard.cover(model)
        assert guard.is_guarding(model)
        assert guard.is_guarding(model.model)
    assert not guard.is_guarding(model)
    assert isinstance(model.__dict__["config"], LlamaConfig)
    model.config = {"a": 1}
    assert model.config == {"a": 1}


def test_a_class_that_had_a_config_attribute_gets_it_back() -> None:
    class WithDefault(LlamaForCausalLM):  # type: ignore[no-untyped-call]  # see above
        config = "a default"  # type: ignore[assignment]  # what nobody should do

    with ConfigGuard(WithDefault) as guard:
        model = small_model(WithDefault)
        model.config = model.config.to_dict()
        assert isinstance(model.config, LlamaConfig)
        assert guard.interceptions == 1
    assert WithDefault.__dict__["config"] == "a default"


def test_the_class_looks_as_if_it_had_no_config_attribute_while_guarded() -> None:
    with ConfigGuard(LlamaForCausalLM):
        assert not hasattr(LlamaForCausalLM, "config")


def test_deleting_the_config_works_as_for_any_attribute() -> None:
    with ConfigGuard(LlamaForCausalLM):
        model = small_model()
        del model.config
        assert not hasattr(model, "config")
        with pytest.raises(AttributeError):
            del model.config


def test_copies_and_pickles_made_under_the_guard_work_inside_and_after_it() -> None:
    with ConfigGuard(LlamaForCausalLM) as guard:
        model = small_model()
        duplicate = copy.deepcopy(model)
        revived = pickle.loads(pickle.dumps(model))  # noqa: S301  (made in the line itself)
        for other in (duplicate, revived):
            assert other.config is not model.config
            other.config = other.config.to_dict()
            assert isinstance(other.config, LlamaConfig)
        assert guard.interceptions == 2
    assert isinstance(duplicate.config, LlamaConfig)
    assert isinstance(revived.config, LlamaConfig)


def test_a_model_saved_under_the_guard_loads_without_it(tmp_path: Path) -> None:
    with ConfigGuard(LlamaForCausalLM):
        model = small_model()
        model.config = model.config.to_dict()
        model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(forward(again), forward(model.eval()))
    assert again.config.hidden_size == 16


def test_guards_can_be_nested() -> None:
    with ConfigGuard(LlamaForCausalLM) as outer:
        model = small_model()
        with ConfigGuard(LlamaForCausalLM) as inner:
            model.config = model.config.to_dict()
            assert (outer.interceptions, inner.interceptions) == (0, 1)
        model.config = model.config.to_dict()
        assert (outer.interceptions, inner.interceptions) == (1, 1)
        assert isinstance(model.config, LlamaConfig)


def test_guards_may_end_in_the_order_they_began() -> None:
    first, second = ConfigGuard(LlamaForCausalLM), ConfigGuard(LlamaForCausalLM)
    first.__enter__()
    model = small_model()
    second.__enter__()
    first.__exit__(None, None, None)
    model.config = model.config.to_dict()
    assert isinstance(model.config, LlamaConfig)
    assert (first.is_guarding(model), second.is_guarding(model)) == (False, True)
    second.__exit__(None, None, None)
    assert (first.interceptions, second.interceptions) == (0, 1)


def test_a_guard_that_fails_at_its_end_leaves_no_trace_either() -> None:
    guard = ConfigGuard(LlamaForCausalLM)
    guard.__enter__()
    model = small_model()
    model.config.text_config = {1: "no name of a setting"}
    with pytest.raises(TypeError):
        guard.__exit__(None, None, None)


def test_a_place_that_assigns_a_dict_at_every_step_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with ConfigGuard(LlamaForCausalLM) as guard:
        model = small_model()
        for _ in range(3):
            model.config = model.config.to_dict()
    assert guard.interceptions == 3
    assert len(guard.origins) == len(caplog.messages) == 1


def test_a_model_that_is_gone_is_not_kept() -> None:
    with ConfigGuard(LlamaForCausalLM) as guard:
        model = small_model()
        before = len(guard.kept)
        copy.deepcopy(model).config  # noqa: B018  (the read is what the guard remembers)
        gc.collect()
        assert len(guard.kept) == before


def test_threads_that_read_never_see_a_dict_while_others_assign_one() -> None:
    rounds = 200
    seen: list[type] = []
    started = threading.Barrier(4)
    with ConfigGuard(LlamaForCausalLM) as guard:
        model = small_model()
        config, values = model.config, model.config.to_dict()

        def run(act: Callable[[], None]) -> None:
            started.wait()
            for _ in range(rounds):
                act()

        def read() -> None:
            if model.config is not config:
                seen.append(type(model.config))

        def assign() -> None:
            model.config = values

        def sneak() -> None:
            model.__dict__["config"] = values
            read()

        threads = [threading.Thread(target=run, args=(act,)) for act in (read, read, assign, sneak)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == []
        assert rounds <= guard.interceptions <= 2 * rounds


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_one_graph_with_the_same_numbers_and_still_guarded(backend: str) -> None:
    plain = small_model()
    torch._dynamo.reset()
    with ConfigGuard(LlamaForCausalLM) as guard:
        model = copy.deepcopy(plain)
        # With fullgraph, a single graph break is an error.
        compiled: Any = torch.compile(model, backend=backend, fullgraph=True)
        loss, gradient = forward(compiled), head_gradient(compiled)
        compiled.config = compiled.config.to_dict()
        assert isinstance(model.config, LlamaConfig)
        assert guard.interceptions == 1
        with torch.compiler.set_stance("fail_on_recompile"):
            assert torch.equal(forward(compiled), loss)
    torch.testing.assert_close((loss, gradient), (forward(plain), head_gradient(plain)))


def test_a_model_compiled_before_the_guard_came_runs_under_it_and_after_it() -> None:
    torch._dynamo.reset()
    compiled: Any = torch.compile(small_model(), backend="eager", fullgraph=True)
    before = forward(compiled)
    with ConfigGuard(LlamaForCausalLM):
        assert torch.equal(forward(compiled), before)
    assert torch.equal(forward(compiled), before)
