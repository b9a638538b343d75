"""How the native libraries below torch behave in a training process, set before torch is imported."""

from __future__ import annotations

import os

SETTINGS = {
    # GNU OpenMP's threads wait for each other by spinning 300 000 times before they sleep. Beside other work on two
    # cores that more than doubles the time of a step, since who is waited for does not get a core. Never to spin costs
    # a third where nothing else runs. So many turns are a fraction of a millisecond: enough within an operation.
    "GOMP_SPINCOUNT": "3000",
    # oneDNN keeps the compiled code of the last 1024 shapes that it multiplied. Rows have all lengths, so a training on
    # a CPU meets new shapes at every step and keeps hundreds of megabytes of code that it hardly needs again. This many
    # hold one step of a model of any depth, whose layers have the same few shapes.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}
"""Environment variable to value; what the host's own environment says goes first."""


def choose_native_settings() -> None:
    """Set them for this process and those that it starts. Without effect once torch is imported."""
    for name, value in SETTINGS.items():
        if name == "GOMP_SPINCOUNT" and "OMP_WAIT_POLICY" in os.environ:
            continue  # It says the same in other words, and would be overruled.
        os.environ.setdefault(name, value)
