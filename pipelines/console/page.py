"""The console: one page with its style and scripts inside."""

from __future__ import annotations

from importlib.resources import files

PARTS = ("page.css", "base.js", "mark.js", "find.js", "jobs.js", "review.js")


def page_html() -> str:
    """The web page; it loads nothing from anywhere."""
    folder = files("pipelines.console")
    page = folder.joinpath("page.html").read_text(encoding="utf-8")
    for name in PARTS:
        page = page.replace(f"/* {name} */", folder.joinpath(name).read_text(encoding="utf-8"))
    return page
