"""The guard beyond a plain model: the configs of parts, classes with a config of their own, threads that meet."""

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, LlavaConfig, PretrainedConfig

from runner.training.loading.config_guard import ConfigGuard

pytestmark = pytest.mark.training


def small_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )


def small_model(cls: Any = LlamaForCausalLM) -> Any:
    return cls(small_config())


def test_a_sub_config_assigned_as_a_dict_is_turned_back() -> None:
    llava: Any = LlavaConfig(text_config=small_config())
    with ConfigGuard(LlamaForCausalLM) as guard:
        model = small_model()
        model.config = llava
        text = llava.text_config
        model.config.text_config = text.to_dict()
        assert model.config.text_config is text
        assert model.config.get_text_config() is text
        assert guard.interceptions == 1


def test_a_raw_sub_config_of_a_custom_class_becomes_an_object() -> None:
    class RawConfig(PretrainedConfig):  # type: ignore[no-untyped-call]  # transformers leaves it bare
        model_type = "raw-text-config"

        def __init__(self, text_config: dict[str, Any] | None = None, **kwargs: Any) -> None:
            self.text_config = text_config
            super().__init__(**kwargs)

    with ConfigGuard(LlamaForCausalLM) as guard:
        model = small_model()
        model.config = RawConfig(text_config=small_config().to_dict())
        assert isinstance(model.config.get_text_config(), LlamaConfig)
        model.config = RawConfig(text_config={"vocab_size": 7})
        assert model.config.get_text_config().vocab_size == 7
        assert guard.interceptions == 2


def test_what_somebody_else_put_on_the_class_meanwhile_stays_there() -> None:
    class Busy(LlamaForCausalLM):  # type: ignore[no-untyped-call]  # see above
        pass

    with ConfigGuard(Busy):
        Busy.config = "somebody's"  # type: ignore[assignment]  # what nobody should do
    assert Busy.__dict__["config"] == "somebody's"


def test_a_part_that_only_its_class_declares_is_turned_back_too() -> None:
    class SpeakingConfig(PretrainedConfig):  # type: ignore[no-untyped-call]  # see above
        model_type = "speaking"
        sub_configs = {"speech_config": LlamaConfig}  # noqa: RUF012  (as transformers has it)

        def __init__(self, **kwargs: Any) -> None:
            self.speech_config = small_config()
            super().__init__(**kwargs)

    with ConfigGuard() as guard:
        model = small_model()
        model.config = SpeakingConfig()
        speech = model.config.speech_config
        model.config.speech_config = speech.to_dict()
        assert model.config.speech_config is speech
        assert guard.interceptions == 1


def test_a_class_whose_own_config_hides_the_guard_is_found_by_cover() -> None:
    class Hiding(LlamaForCausalLM):  # type: ignore[no-untyped-call]  # see above
        config = None  # type: ignore[assignment]  # what nobody should do

    with ConfigGuard() as guard:
        whole = small_model()
        whole.part = model = small_model(Hiding)
        assert not guard.is_guarding(model)
        guard.cover(whole)
        config = model.config
        model.config = config.to_dict()
        assert model.config is config
        assert guard.interceptions == 1
    assert Hiding.__dict__["config"] is None


# --- threads --------------------------------------------------------------------------------------------------------


def together(act: Callable[[], Any]) -> list[Any]:
    """What four threads get that do the same at the same time."""
    started = threading.Barrier(4)

    def run() -> Any:
        started.wait()
        return act()

    with ThreadPoolExecutor(4) as pool:
        return [done.result() for done in [pool.submit(run) for _ in range(4)]]


class SlowConfig(LlamaConfig):  # type: ignore[no-untyped-call]  # see above
    """Takes so long to build that threads which build it at the same time do meet there."""

    model_type = "slow-llama"

    def __init__(self, **kwargs: Any) -> None:
        time.sleep(0.05)
        super().__init__(**kwargs)


def test_threads_that_all_assign_a_models_first_dict_see_one_object() -> None:
    AutoConfig.register("slow-llama", SlowConfig, exist_ok=True)
    values = small_config().to_dict() | {"model_type": "slow-llama"}
    with ConfigGuard() as guard:
        model: Any = LlamaForCausalLM.__new__(LlamaForCausalLM)
        torch.nn.Module.__init__(model)

        def assign_and_read() -> Any:
            model.config = values
            return model.config

        seen = together(assign_and_read)
        assert guard.interceptions == 4
    assert {id(config) for config in seen} == {id(model.config)}


def test_threads_that_all_come_upon_a_part_left_a_dict_see_one_object() -> None:
    AutoConfig.register("slow-llama", SlowConfig, exist_ok=True)
    config: Any = PretrainedConfig()
    config.text_config = small_config().to_dict() | {"model_type": "slow-llama"}
    with ConfigGuard() as guard:
        model = small_model()
        model.__dict__["config"] = config
        seen = together(lambda: model.config.text_config)
        assert guard.interceptions == 1
    assert {id(part) for part in seen} == {id(config.text_config)}


def test_guards_that_come_and_go_in_threads_never_leave_another_one_unguarded() -> None:
    model = small_model()

    def come_and_go() -> bool:
        guarding = True
        for _ in range(500):
            with ConfigGuard(LlamaForCausalLM) as guard:
                guarding &= guard.is_guarding(model)
        return guarding

    before = sys.getswitchinterval()
    # Threads take turns as often as the interpreter can.
    sys.setswitchinterval(1e-6)
    try:
        assert all(together(come_and_go))
    finally:
        sys.setswitchinterval(before)
    assert "config" not in LlamaForCausalLM.__dict__
