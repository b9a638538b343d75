"""The base of all that people write into files: immutable, unknown keys refused, no silent conversions. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple, Self

from pydantic import ConfigDict, Field, ValidationInfo, model_validator

from runner.reports import Record

Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]
"""TOML knows arrays only; they become tuples so that a spec stays immutable."""


class Contradiction(NamedTuple):
    """Settings of a table, each fine by itself, that do not go together."""

    message: str
    """What is wrong and what would be right; continues the sentence `training.warmup_steps: …`."""
    keys: tuple[str, ...]
    """Those settings, in dotted form below the table; the first is where it is shown."""


class ContradictionsError(ValueError):
    """All contradictions of a table; pydantic carries it to `runner.spec_problems`."""

    def __init__(self, found: Sequence[Contradiction]) -> None:
        super().__init__("; ".join(f"{one.keys[0]}: {one.message}" for one in found))
        self.found = tuple(found)


class Spec(Record):
    """Immutable, unknown keys refused, no silent conversions (`"3"` is not 3)."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    def contradictions(self) -> Iterator[Contradiction]:
        """Yield the settings that do not go together; a table overrides this where it has such."""
        yield from ()

    @model_validator(mode="after")
    def _agrees_with_itself(self, info: ValidationInfo) -> Self:
        # What is read from JSON was stored by us after it had passed: a rule of a newer version must not make it
        # unreadable.
        if info.mode == "python" and (found := list(self.contradictions())):
            raise ContradictionsError(found)
        return self

    def __hash__(self) -> int:
        """By content: tables such as `rank_pattern` have no hash of their own."""
        return hash((type(self), self.model_dump_json()))
