"""Whatever lists the operations agrees with their table: routes, descriptions, client, page, comparisons."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from headway.client import Client
from headway.inference.description import Ability
from headway.serving.http.app import build_app
from headway.serving.http.operations import OPERATIONS
from headway.serving.metrics import Metrics
from unready import nothing_missing

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "platform/headway/serving/http/page/files/app.js"
NAMES = [operation.name for operation in OPERATIONS]


@pytest.fixture(scope="module")
def openapi():
    return build_app({}, Metrics(), 1.0, nothing_missing).openapi()


@pytest.mark.parametrize("operation", OPERATIONS, ids=NAMES)
def test_the_openapi_description_is_that_of_the_table(openapi, operation):
    posted = openapi["paths"][f"/v1/{operation.name}"]["post"]
    assert posted["description"] == operation.description
    body = posted["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    answer = posted["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    assert body.endswith(f"/{operation.request.__name__}")
    assert answer.endswith(f"/{operation.response.__name__}")


def test_nothing_else_takes_a_post(openapi):
    posts = {path for path, methods in openapi["paths"].items() if "post" in methods}
    assert posts == {f"/v1/{name}" for name in NAMES}


def test_every_ability_of_a_model_is_an_operation():
    assert set(get_args(Ability)) == set(NAMES)


def test_the_client_has_a_method_for_every_operation_but_that_of_the_page():
    missing = [name for name in NAMES if not hasattr(Client, name.replace("-", "_"))]
    assert missing == ["attention"]


def test_the_page_shows_every_operation_but_embeddings():
    shown = re.search(r"const VIEWS = \{(.*?)\};", SCRIPT.read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None
    names = re.findall(r'^\s*"?([a-z-]+)"?:', shown[1], re.MULTILINE)
    assert sorted(names) == sorted(set(NAMES) - {"embeddings"})
    html = SCRIPT.with_name("index.html").read_text(encoding="utf-8")
    assert re.findall(r'<section id="([a-z-]+)"', html) == names


def test_the_documentation_names_every_operation():
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    assert re.findall(r"`POST /v1/([a-z-]+)`", text) and set(
        re.findall(r"`POST /v1/([a-z-]+)`", text)
    ) == set(NAMES)


def test_versions_are_compared_on_every_operation_but_attention():
    assert [operation.name for operation in OPERATIONS if operation.comparison is None] == ["attention"]
