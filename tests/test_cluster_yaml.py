"""`cluster.yaml` is one that Ray's own launcher takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

PATH = Path(__file__).parents[1] / "cluster.yaml"


def test_rays_launcher_accepts_it():
    validate_config(prepare_config(yaml.safe_load(PATH.read_text())))


def test_rays_launcher_would_notice_a_mistake():
    """So that the test above cannot pass by checking nothing."""
    import jsonschema

    broken = prepare_config(yaml.safe_load(PATH.read_text())) | {"max_workerz": 3}
    with pytest.raises(jsonschema.ValidationError, match="max_workerz"):
        validate_config(broken)
