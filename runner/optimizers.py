"""The optimizers of transformers that a project can name: which suits a host, and what each leaves out. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from runner.strict import Contradiction
from runner.suggestions import did_you_mean

Optimizer = Literal[
    "auto",
    "adamw_torch_fused",
    "adamw_torch",
    "adamw_8bit",
    "adamw_bnb_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "adafactor",
    "sgd",
    "rmsprop",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "adagrad",
]
"""transformers' names, of those that need no further package and no list of modules."""
TAKEN: dict[str, frozenset[str]] = {
    "ademamix": frozenset({"beta1", "beta2", "beta3", "alpha", "eps", "t_alpha", "t_beta3"}),
    "sgd": frozenset({"momentum", "dampening", "nesterov"}),
    "rmsprop": frozenset({"momentum", "alpha", "eps", "centered"}),
    "adagrad": frozenset({"lr_decay", "eps"}),
}
"""What optimizers take in `optim_args`, by the family's name; every other leaves them out without a word."""
_ARGUMENT = r"\s*\w+\s*=\s*[^\s=,]+\s*"
_ARGUMENTS = re.compile(f"{_ARGUMENT}(,{_ARGUMENT})*")
_BETAS, _EPSILON = ("adam_beta1", "adam_beta2"), "adam_epsilon"


def choose_optimizer(asked: Optimizer, *, on_cpu: bool) -> Optimizer:
    """Take what was asked for, and for `auto` what suits the host.

    Pages of optimizer state move to the host's memory when a GPU's runs short; on a CPU there is nothing to move.
    """
    if asked != "auto":
        return asked
    return "adamw_torch_fused" if on_cpu else "paged_adamw_8bit"


def family_of(optim: str) -> str:
    """The algorithm behind a name, whatever it holds its state in: `ademamix` for `paged_ademamix_8bit`."""
    # What this one is given, transformers hands on as text, which it does not take.
    return "rmsprop_bnb" if optim.startswith("rmsprop_bnb") else optim.removeprefix("paged_").partition("_")[0]


def argument_names(optim_args: str) -> list[str]:
    """The names in `name=value, …`."""
    return [one.partition("=")[0].strip() for one in optim_args.split(",")]


def optimizer_contradictions(optim: Optimizer, optim_args: str | None, changed: set[str]) -> Iterator[Contradiction]:
    """Find what an optimizer would leave out without a word.

    Args:
        optim: `training.optim`.
        optim_args: `training.optim_args`.
        changed: Names of the settings that differ from their defaults.
    """
    family = family_of(optim)
    taken = TAKEN.get(family, frozenset())
    if optim_args is not None and not _ARGUMENTS.fullmatch(optim_args):
        yield Contradiction("must be name=value, with commas between several", ("optim_args",))
        return
    for name in argument_names(optim_args) if optim_args is not None else ():
        if name == "weight_decay":
            yield Contradiction("names weight_decay; set training.weight_decay itself", ("optim_args", "optim"))
        elif name not in taken:
            takes = ", ".join(sorted(taken)) or "none"
            yield Contradiction(
                f"names {name!r}, but of optim_args optim = {optim!r} takes {takes}{did_you_mean(name, taken)}",
                ("optim_args", "optim"),
            )
    if family in {"sgd", "rmsprop", "rmsprop_bnb", "adagrad", "adafactor"}:
        left_out = [*_BETAS, _EPSILON]
    else:
        left_out = [_EPSILON] if family == "lion" else []
    for name in left_out:
        if name in changed:
            yield Contradiction(f"is left out by optim = {optim!r}; remove it", (name, "optim"))
