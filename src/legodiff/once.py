"""Tables that never change: made once for the arguments they depend on."""

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")
MOST = 16
"""Of each kind are kept: those that served last."""


def once(make: Callable[P, T]) -> Callable[P, T]:
    """Keeps the tensors that a function of hashable arguments makes, those used last.

    In a traced graph, or where tensors are only pretended, they are made each time.
    """
    # What sampling makes in inference mode could not serve training.
    keep: Any = lru_cache(maxsize=MOST)(torch.inference_mode(False)(make))

    @wraps(make)
    def find(*args: P.args, **options: P.kwargs) -> T:
        if torch.compiler.is_compiling() or torch._guards.detect_fake_mode() is not None:
            return make(*args, **options)
        found: T = keep(*args, **options)
        return found

    told: Any = find
    told.cache_clear, told.cache_info = keep.cache_clear, keep.cache_info
    return find
