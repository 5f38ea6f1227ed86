"""The page at `/`: one HTML file, one script, one style sheet; nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

_FOLDER = Path(__file__).parent / "files"


def add_page(app: FastAPI) -> None:
    """Show the page at `/`, and its files under `/page`."""

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_FOLDER / "index.html", headers={"cache-control": "no-cache"})

    app.mount("/page", StaticFiles(directory=_FOLDER), name="page")
