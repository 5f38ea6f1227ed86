"""Settings of published ways to pretrain, by name."""

from __future__ import annotations

from typing import Any, Literal

Recipe = Literal["modernbert"]

RECIPES: dict[str, dict[str, Any]] = {
    # Warner et al. 2024, "Smarter, Better, Faster, Longer", section 2.2 and table 3: 1,719 billion tokens in
    # rows of 1,024, then 250 and 50 billion in rows of 8,192, with as many tokens in a step. The last phase
    # is for better data. Theirs is StableAdamW, and 1 - sqrt where `wsd` decays in a straight line.
    "modernbert": {
        "model": {"preset": "modernbert-base"},
        "objective": ["mlm"],
        "masking": {"rate": 0.3},
        "optimizer": {
            "name": "adamw",
            "learning_rate": 8e-4,
            "betas": [0.9, 0.98],
            "weight_decay": 1e-5,
        },
        "schedule": {"name": "wsd", "warmup": 0.0015, "decay": 0.025},
        "batch_size": 4608,
        "batch_warmup": {"start": 768, "fraction": 0.025},
        "phases": [
            {"max_length": 1024, "fraction": 0.85},
            {"max_length": 8192, "fraction": 0.125, "batch_size": 576, "learning_rate_scale": 0.375},
            {"max_length": 8192, "fraction": 0.025, "batch_size": 576, "learning_rate_scale": 0.375},
        ],
    },
}
_GROUPS = ("model", "masking", "optimizer", "schedule", "batch_warmup")


def expand_recipe(settings: Any) -> Any:
    """Settings with those of their `recipe` filled in; settings beside it take precedence."""
    if not isinstance(settings, dict) or settings.get("recipe") not in RECIPES:
        return settings
    recipe = RECIPES[settings["recipe"]]
    filled = recipe | settings
    for name in _GROUPS:
        if isinstance(settings.get(name), dict):
            filled[name] = recipe[name] | settings[name]
    return filled
