"""All of a run that needs no weights: access, tokenizer, configuration, settings, data.

Bad input shows here, before gigabytes are downloaded or loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import TrainingError, joined, noted
from runner.events import ChildEvent, PhaseStarted
from runner.reports import Phase
from runner.spec import RunSpec
from runner.training import ranks
from runner.training.accelerator import choose_device
from runner.training.access import reach_sources
from runner.training.data.chat_template import has_untrained_marks, stored_embedding
from runner.training.data.mix import Mix, mix_data, require_held_out
from runner.training.loading.empty_model import build_empty_model
from runner.training.loading.protected_load import OpenedModel, open_base_model
from runner.training.loop.arguments import settle_optimizer
from runner.training.loop.rehearsal import rehearse
from runner.training.outcome.evaluation import Questions, prepare_questions
from runner.training.stopping import StopSwitch

if TYPE_CHECKING:
    from torch import Tensor

Emit = Callable[[ChildEvent], None]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run begins with."""

    spec: RunSpec
    """Optimizer and commits settled."""
    opened: OpenedModel
    mix: Mix
    questions: Questions
    projects_dir: Path
    trainable_parameters: int
    template_is_settled: bool
    """Whether the chat template was held against the base model's embedding, where that matters."""

    def with_embedding(self, embedding: Tensor, emit: Emit) -> Prepared:
        """Look at the chat template again where the weight files were not here before; mostly changes nothing.

        Args:
            embedding: (vocabulary, width), the loaded model's.
            emit: Gets `data_mixed` once more where a plain template has to take the place of the model's own.
        """
        choice = self.spec.project.training.chat_template
        tokenizer = self.opened.tokenizer.tokenizer
        if self.template_is_settled or not has_untrained_marks(tokenizer, embedding, choice):
            return self
        mix, questions = _mix(self.spec, self.opened, self.projects_dir, embedding)
        emit(mix.event)
        return replace(self, mix=mix, questions=questions, template_is_settled=True)


def prepare(
    spec: RunSpec, *, models_root: Path, projects_dir: Path, emit: Emit, stop: StopSwitch | None = None
) -> Prepared:
    """Do everything that comes before the weights.

    Emits `phase_started` and `tokenizer_loaded`, `config_loaded`, `data_mixed`.

    Args:
        spec: The attempt's specification.
        models_root: Where local base models lie on this host.
        projects_dir: The folder that data paths are relative to.
        emit: Gets every event.
        stop: Set it to end before the data are read.

    Raises:
        TrainingError: Something is wrong with model, settings or data; its subclass and code say what, its message all
            of it.
        StopRequestedError: The switch was set.
    """
    device = choose_device()
    emit(PhaseStarted(phase=Phase.TOKENIZER))
    unpinned = settle_optimizer(spec, device.type)
    # One rank asks and downloads, and all of them read the same commits.
    source, spec = ranks.from_first(lambda: reach_sources(unpinned, models_root))
    opened = open_base_model(source, spec.project.model_type, emit)
    empty = build_empty_model(opened.config.config, source)
    tokenizer = opened.tokenizer.tokenizer
    own_template = spec.project.training.chat_template == "auto" and tokenizer.chat_template is not None
    embedding = stored_embedding(source, empty) if own_template else None

    emit(PhaseStarted(phase=Phase.DATA))
    if stop is not None:
        stop.raise_if_set()
    refused: list[TrainingError] = []
    trainable = 0
    with noted(refused):
        model = rehearse(spec, empty, device)
        trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    with noted(refused):
        mix, questions = _mix(spec, opened, projects_dir, embedding)
    if refused:
        raise joined(refused) from refused[0]
    emit(mix.event)
    return Prepared(
        spec=spec,
        opened=opened,
        mix=mix,
        questions=questions,
        projects_dir=projects_dir,
        trainable_parameters=trainable,
        template_is_settled=embedding is not None or not own_template or not mix.has_messages,
    )


def _mix(spec: RunSpec, opened: OpenedModel, projects_dir: Path, embedding: Tensor | None) -> tuple[Mix, Questions]:
    tokenizer = opened.tokenizer.tokenizer
    mix = mix_data(spec, tokenizer, projects_dir, embedding=embedding)
    if spec.project.training.eval_strategy != "no":
        require_held_out(mix)
    return mix, prepare_questions(spec, tokenizer, projects_dir, as_chat=mix.as_chat)
