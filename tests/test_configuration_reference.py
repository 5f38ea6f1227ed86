"""docs/configuration.md is what docs/write_configuration.py makes of the settings as they are."""

from __future__ import annotations

import runpy
from pathlib import Path

from headway.config.pipeline import STEP_CONFIGS

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_up_to_date():
    page = runpy.run_path(str(DOCS / "write_configuration.py"))["page"]()
    written = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert written == page, "run: python docs/write_configuration.py"


def test_the_page_has_a_row_for_every_setting_of_every_step():
    rows = (DOCS / "configuration.md").read_text(encoding="utf-8")
    missing = [
        f"{verb}.{name}"
        for verb, config in STEP_CONFIGS.items()
        for name in config.model_fields
        if f"\n| `{name}` |" not in rows
    ]
    assert not missing
