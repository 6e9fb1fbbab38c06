"""Attention without fused kernels, for what differentiates twice: fused attention has no second derivative."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Compute the model's attention in plain steps while open; afterwards as before."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    named = [
        (config, config._attn_implementation) for config in configs.values() if hasattr(config, "_attn_implementation")
    ]
    try:
        for config, _ in named:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, implementation in named:
            config._attn_implementation = implementation
