"""The description of a registered version."""

from __future__ import annotations

from headway.runs.lineage.model_card import STORY_TAG, story_of

CARD = f"""---
library_name: transformers
tags: [{STORY_TAG}]
---

# A smaller form of `m`

## How it was made

- cut

## Rows

- three
"""


def test_a_folder_that_headway_made_smaller_tells_its_story(tmp_path):
    assert story_of(tmp_path) == ""
    (tmp_path / "README.md").write_text(CARD)
    assert story_of(tmp_path) == "## How it was made\n\n- cut\n\n## Rows\n\n- three"


def test_what_others_wrote_about_a_model_is_left_out(tmp_path):
    for text in ("# MiniLM\n\n## Usage\n", f"---\nlicense: mit\n---\n\n# {STORY_TAG}\n\n## Usage\n"):
        (tmp_path / "README.md").write_text(text)
        assert story_of(tmp_path) == ""
