"""The console: one web page that contains its style and scripts."""

from __future__ import annotations

from importlib.resources import files

PARTS = ("page.css", "base.js", "mark.js", "find.js", "jobs.js", "review.js")


def page_html() -> str:
    """The HTML page. It loads no further files."""
    folder = files("pipelines.console")
    page = folder.joinpath("page.html").read_text(encoding="utf-8")
    for name in PARTS:
        page = page.replace(f"/* {name} */", folder.joinpath(name).read_text(encoding="utf-8"))
    return page
