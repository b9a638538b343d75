"""How the native libraries below torch behave in a training process, set before torch is imported."""

from __future__ import annotations

import os

SETTINGS = {
    # OpenMP's threads wait for each other by spinning, and beside other work on a host with two cores that made a step
    # ten times slower and more. Sleeping costs a little where nothing else runs.
    "OMP_WAIT_POLICY": "PASSIVE",
    # oneDNN keeps the compiled code of the last 1024 shapes that it multiplied. Rows have all lengths, so a training on
    # a CPU meets new shapes at every step and keeps hundreds of megabytes of code that it hardly needs again. This many
    # hold one step of a model of any depth, whose layers have the same few shapes.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
}
"""Environment variable to value; what the host's own environment says goes first."""


def choose_native_settings() -> None:
    """Set them for this process and those that it starts. Without effect once torch is imported."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
