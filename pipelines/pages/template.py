"""Templates of pages with a common frame and style. Text is escaped, and a missing variable raises an error."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from importlib.resources import files

import jinja2
from markupsafe import Markup


def page_template(package: str, name: str, **filters: Callable[..., object]) -> jinja2.Template:
    """The template `name` of a package, which begins with `{% extends "frame.html" %}`.

    The variable `made` in it is the time of this call, as text.
    """
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
        loader=jinja2.DictLoader({"frame.html": _text("pipelines.pages", "frame.html"), name: _text(package, name)}))
    environment.filters.update(filters)
    environment.globals.update(style=Markup(_text("pipelines.pages", "style.css")),
                               made=datetime.datetime.now().astimezone().strftime("%d %B %Y, %H:%M %Z"))
    return environment.get_template(name)


def _text(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")
