"""The pages at `/` and `/docs`: HTML, one script and one style sheet, with nothing from other hosts."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse
from starlette.staticfiles import StaticFiles

from headway.serving.http.page.reference import reference_page

_FOLDER = Path(__file__).parent / "files"


def add_page(app: FastAPI) -> None:
    """Add the page at `/`, its files under `/page`, and the description of all operations at `/docs`."""

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_FOLDER / "index.html", headers={"cache-control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    async def reference() -> HTMLResponse:
        return HTMLResponse(reference_page(app.openapi()))

    app.mount("/page", StaticFiles(directory=_FOLDER), name="page")
