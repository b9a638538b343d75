"""The base of all that people write into files: immutable, unknown keys refused, no silent conversions. Pure."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from runner.reports import Record

Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]
"""TOML knows arrays only; they become tuples so that a spec stays immutable."""


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

    def __hash__(self) -> int:
        """By content: tables such as `rank_pattern` have no hash of their own."""
        return hash((type(self), self.model_dump_json()))
