from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from runner.events import DataMixed
from runner.spec import RunSpec
from runner.training.data.mix import Mix
from runner.training.loop.training_estimate import estimate_training


def test_a_large_vocabulary_costs_a_block_of_logits_and_not_those_of_the_whole_batch(
    make_spec: Callable[..., RunSpec], tmp_path: Path, addition: list[dict[str, Any]]
) -> None:
    project = make_spec(tmp_path, addition, training={"per_device_train_batch_size": 8}).project
    rows = [[1] * 1024] * 8
    event = DataMixed(shares=(), rows=8, longest_tokens=1024, truncated_rows=0)
    mix = Mix(input_ids=rows, labels=rows, held_out=(), as_chat=False, fingerprints={}, event=event)

    def estimated(vocabulary: int) -> int:
        config = LlamaConfig(vocab_size=vocabulary, num_hidden_layers=2)
        return estimate_training(config, project, mix, 1_000_000, torch.bfloat16)

    # 8,192 tokens with 128,000 logits in float32 would be 4.2 GB.
    assert 0 < estimated(128_000) - estimated(32_000) < 1e9
