"""The page at `/`: it needs nothing from elsewhere, and a real browser shows what the server answers."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from waiting import PATIENCE

FILES = Path(__file__).parents[3] / "platform/headway/serving/http/page/files"


def test_the_page_and_its_files_are_served(live):
    with httpx.Client(base_url=live, trust_env=False) as client:
        page = client.get("/")
        assert page.status_code == 200 and "text/html" in page.headers["content-type"]
        parts = re.findall(r'(?:href|src)="(/[^"]+)"', page.text)
        assert sorted(parts) == ["/page/app.js", "/page/style.css"]
        for path in parts:
            assert client.get(path).content == (FILES / Path(path).name).read_bytes()


def test_every_operation_and_field_is_described_without_a_script(live):
    with httpx.Client(base_url=live, trust_env=False) as client:
        page, openapi = client.get("/docs"), client.get("/openapi.json").json()
        assert page.status_code == 200 and "text/html" in page.headers["content-type"]
        assert re.findall(r"https?://|<script", page.text) == []
        for link in re.findall(r'href="(/[^"]*)"', page.text):
            assert client.get(link).status_code == 200
    for path, methods in openapi["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in page.text
    for name, schema in openapi["components"]["schemas"].items():
        if name.endswith(("Request", "Response")) and name != "ErrorResponse":
            assert all(f"<code>{field}</code>" in page.text for field in schema["properties"]), name


def test_nothing_comes_from_elsewhere():
    for file in FILES.iterdir():
        links = set(re.findall(r"https?://[^\s\"'`)]+", file.read_text(encoding="utf-8")))
        assert links <= {"http://www.w3.org/2000/svg"}, file.name


def test_the_script_finds_every_part_of_the_page():
    html, script = ((FILES / name).read_text(encoding="utf-8") for name in ("index.html", "app.js"))
    ids = set(re.findall(r'id="([^"]+)"', html))
    assert set(re.findall(r'\$\("([^"]+)"\)', script)) <= ids
    assert set(re.findall(r'"#([a-z-]+) ', script)) <= ids


@pytest.mark.drill
def test_a_browser_draws_the_heads_and_the_classes(live, tmp_path):
    browser = next(
        (path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None
    )
    assert browser, "this drill needs chromium: apt-get install chromium"
    command = [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,1600"]
    command += [f"--user-data-dir={tmp_path}", "--virtual-time-budget=8000", "--dump-dom", live]
    page = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    assert "answered in" in page and "version 7" in page
    assert page.count("<canvas") == 2 * 4
    assert 'aria-label="layer 2, head 4"' in page
    assert page.count("<line ") > 10
    assert len(re.findall(r'data-from="\d+" tabindex', page)) > 5
