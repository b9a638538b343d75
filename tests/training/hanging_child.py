"""The training child with a second step that never ends: `python hanging_child.py python|native RUN_DIR …`."""

from __future__ import annotations

import ctypes
import sys
import threading
from typing import Any

from runner.training import __main__ as child


def main(kind: str, arguments: list[str]) -> int:
    """Run the child as it is, with a forward pass that hangs."""
    from torch import nn  # noqa: PLC0415  # after the child has set the environment it is read from
    from torch.nn.modules.module import register_module_forward_pre_hook  # noqa: PLC0415

    def hang(module: nn.Module, _arguments: Any) -> None:
        if type(module).__name__ == "PeftModelForCausalLM" and module.training:
            if kind == "native":
                ctypes.PyDLL(None).pause()  # keeps the interpreter's lock
            threading.Event().wait()

    register_module_forward_pre_hook(hang)
    return child.main(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
