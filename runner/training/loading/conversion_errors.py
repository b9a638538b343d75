"""Lets an error in the middle of loading out as it is, so that it can be told what it means.

While it reads weights, transformers 5 catches every error of quantizing or converting a tensor, goes on with the next
tensor, and at the end raises "We encountered some issues during automatic conversion of the weights" without a cause:
a lack of memory looks like a fault of the model. Source: `log_conversion_errors` in transformers 5.23.0,
`core_model_loading.py`. 4.57 has nothing of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import Any

_MODULE = "transformers.core_model_loading"
_FUNCTION = "log_conversion_errors"


@contextmanager
def conversion_errors_raised() -> Iterator[None]:
    """Inside the block the first such error ends the loading, as itself."""
    module: Any = importlib.import_module(_MODULE) if find_spec(_MODULE) else None
    collecting = getattr(module, _FUNCTION, None)
    if collecting is None:
        yield
        return

    def raising(first_target_key: str, _loading_info: Any, *details: Any, **more: Any) -> AbstractContextManager[None]:
        # With nowhere to collect it, transformers itself raises the error.
        context: AbstractContextManager[None] = collecting(first_target_key, None, *details, **more)
        return context

    setattr(module, _FUNCTION, raising)
    try:
        yield
    finally:
        setattr(module, _FUNCTION, collecting)
