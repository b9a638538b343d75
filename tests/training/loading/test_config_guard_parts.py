"""The guard beyond a plain model: the configs of parts, and classes with a config of their own."""

from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, LlavaConfig, PretrainedConfig

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
        model = small_model(Hiding)
        assert not guard.is_guarding(model)
        guard.cover(model)
        config = model.config
        model.config = config.to_dict()
        assert model.config is config
        assert guard.interceptions == 1
    assert Hiding.__dict__["config"] is None
