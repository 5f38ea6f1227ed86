"""From raw text to a served encoder, on Ray.

Importing this package loads nothing heavy: each name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headway.api.compression import export, prune, quantize, static
    from headway.api.verbs import finetune, pretrain, run, serve, sweep
    from headway.client import Client
    from headway.config.base import ConfigError
    from headway.engine.model.attention import multi_head_attention

__version__ = "0.1.0"

__all__ = [
    "Client",
    "ConfigError",
    "__version__",
    "export",
    "finetune",
    "multi_head_attention",
    "pretrain",
    "prune",
    "quantize",
    "run",
    "serve",
    "static",
    "sweep",
]

_HOMES = {
    "Client": "headway.client",
    "ConfigError": "headway.config.base",
    "export": "headway.api.compression",
    "finetune": "headway.api.verbs",
    "multi_head_attention": "headway.engine.model.attention",
    "pretrain": "headway.api.verbs",
    "prune": "headway.api.compression",
    "quantize": "headway.api.compression",
    "run": "headway.api.verbs",
    "serve": "headway.api.verbs",
    "static": "headway.api.compression",
    "sweep": "headway.api.verbs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'headway' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
