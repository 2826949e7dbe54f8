"""The reference pages, from the code: the command line, recipes' keys, the HTTP API, the methods and their settings."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any, get_args, get_origin

import typer
from pydantic import BaseModel

from fss_models import registry
from jobs.cli import PANELS, make_app
from pipelines.config.recipe import Recipe

PAPERS = {  # where each method was published: venue, arXiv id
    "sansa": ("SANSA, NeurIPS 2025", "2505.21795"),
    "fssam": ("FSSAM, ICML 2025", "2505.14100"),
    "fcp": ("FCP, AAAI 2025", "2501.00752"),
    "vrp_sam": ("VRP-SAM, CVPR 2024", "2402.17726"),
    "bam": ("BAM, CVPR 2022", "2203.07615"),
    "hdmnet": ("HDMNet, CVPR 2023", "2303.14652"),
    "insid3": ("INSID3, CVPR 2026", "2603.28480"),
    "gf_sam": ("GF-SAM, NeurIPS 2024", "2410.06964"),
    "matcher": ("Matcher, ICLR 2024", "2305.13310"),
    "pfenet": ("PFENet, TPAMI 2020", "2008.01449"),
    "ssp": ("SSP, ECCV 2022", "2207.11549"),
    "cyctr": ("CyCTR, NeurIPS 2021", "2106.02320"),
    "sam2_frozen": ("SAM 2 as it is", "2408.00714"),
    "sam3": ("FSS-SAM3, 2026", "2604.05433"),
}


def pages() -> dict[str, str]:
    """Name of each generated page below docs/, and its Markdown."""
    return {
        "reference/cli.md": cli_page(),
        "reference/recipes.md": recipe_page(),
        "reference/http.md": http_page(),
        "reference/methods.md": methods_page(),
    }


# ---- the command line ---------------------------------------------------------------------------------------------


def cli_page() -> str:
    """All commands by panel, with their arguments and options."""
    root: Any = typer.main.get_command(make_app())
    parts = [
        "# Command line",
        "Most commands take a recipe (`--recipe NAME or FILE`), changes to it (`--set KEY=VALUE`), a "
        "workspace (`--out`) and `--json`. `fss --install-completion` adds completion to your shell. A mistake ends "
        "with exit status 2 and one line; Ctrl-C with 130.",
    ]
    for panel, names in PANELS.items():
        parts.append(f"## {panel}")
        for name in names:
            parts += _command(root.commands[name], f"fss {name}")
    return "\n\n".join(parts) + "\n"


def _command(command: Any, path: str) -> Iterator[str]:
    if hasattr(command, "commands"):
        for name, child in command.commands.items():
            yield from _command(child, f"{path} {name}")
        return
    yield f"### {path}"
    yield _sentence(inspect.cleandoc(command.help or command.callback.__doc__ or ""))
    rows = [(_names(p), _sentence(p.help or ""), _default(p)) for p in command.params if p.name != "help"]
    yield table(("option", "meaning", "default"), rows)


def _names(parameter: Any) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    return ", ".join(f"`{n}`" for n in names)


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or value is False or value in ("", ()) or callable(value):
        return ""
    return f"`{getattr(value, 'value', value)}`"


def _sentence(text: str) -> str:
    return (
        re.sub(r"(?<!`)(--[a-z][a-z-]*)", r"`\1`", text.replace("\n", " "))
        if "`" not in text
        else text.replace("\n", " ")
    )


# ---- recipes ------------------------------------------------------------------------------------------------------


def recipe_page() -> str:
    """Every key of a recipe, with its meaning and default."""
    parts = [
        "# Recipes",
        "A recipe is a YAML file, or one that ships (`fss sweep run --recipe NAME`). `--set a.b=value` "
        "changes a key, `extends: NAME` starts from another recipe. Unknown keys are refused. Lists are addressed by "
        "number: `--set methods.0.preset=tiny`. `mixture.N.data` has the keys of `data`.",
    ]
    seen: set[type[BaseModel]] = set()
    for place, model in sections(Recipe):
        if model in seen:
            continue  # a mixture's data are the same sections as data
        seen.add(model)
        rows = [(f"`{key}`", meaning, default) for key, meaning, default in keys(model)]
        parts += [
            f"## {place or 'top level'}",
            " ".join(inspect.cleandoc(model.__doc__ or "").split()),
            table(("key", "meaning", "default"), rows),
        ]
    return "\n\n".join(parts) + "\n"


def sections(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted place, model) of a section and those below it."""
    yield place, model
    for name, info in model.model_fields.items():
        inner, many = _inner(info.annotation)
        if inner:
            dotted = f"{place}.{name}" if place else name
            yield from sections(
                inner, f"{dotted}.N" if many == "list" else f"{dotted}.KEY" if many == "dict" else dotted
            )


def _inner(kind: Any) -> tuple[type[BaseModel] | None, str]:
    origin = get_origin(kind)
    for arg in get_args(kind) if origin in (list, tuple, dict) else ():
        if inspect.isclass(arg) and issubclass(arg, BaseModel):
            return arg, "dict" if origin is dict else "list"
    return (kind, "") if inspect.isclass(kind) and issubclass(kind, BaseModel) else (None, "")


def keys(model: type[BaseModel]) -> list[tuple[str, str, str]]:
    """(key, meaning, default) of a section's own keys. The meaning is the comment beside the field or above it."""
    notes: dict[str, str] = {}
    for cls in reversed([c for c in model.__mro__ if issubclass(c, BaseModel) and c is not BaseModel]):
        notes |= _comments(inspect.getsource(cls))
    found = []
    for name, info in model.model_fields.items():
        inner, many = _inner(info.annotation)
        meaning = (
            notes.get(name)
            or info.description
            or (f"a section, see below{': a list of them' if many else ''}" if inner else "")
        )
        default = (
            ""
            if info.is_required() or inner
            else f"`{json.dumps(info.get_default(call_default_factory=True), default=str)}`"
        )
        found.append(
            (name, f"{meaning} ({_choices(info.annotation)})" if _choices(info.annotation) else meaning, default)
        )
    return found


def _choices(kind: Any) -> str:
    values = [v for v in get_args(kind) if isinstance(v, str)]
    return ", ".join(f"`{v}`" for v in values)


def _comments(source: str) -> dict[str, str]:
    """Field name -> the comment behind it, or the lines of comment above it."""
    found, above = {}, []
    for line in source.split("\n"):
        text = line.strip()
        if text.startswith("#"):
            above.append(text.lstrip("# "))
        elif match := re.match(r"(\w+): .*?(?:  # (.*))?$", text):
            found[match[1]] = match[2] or " ".join(above)
            above = []
        elif not line.startswith("     "):
            above = []
    return {k: v for k, v in found.items() if v}


# ---- methods ------------------------------------------------------------------------------------------------------


def methods_page() -> str:
    """Every method: paper, presets, marks, settings."""
    parts = [
        "# Methods",
        "`methods: [{name: NAME, preset: PRESET, config: {...}}]` in a recipe. Where a paper and its released "
        "code differ, a setting decides.",
    ]
    for name in registry.list_methods():
        cls, settings = registry.method_class(name), registry.method_config(name)
        title, arxiv = PAPERS.get(name, ("", ""))
        facts = [
            ("paper", f"{title}, arXiv {arxiv}" if arxiv else "-"),
            ("trains", "yes" if cls.trains else "nothing"),
            ("marks it reads", ", ".join(sorted(k.name.lower() for k in cls.prompt_kinds))),
            ("instances", ", ".join(f"`{s}`" for s in sorted(cls.instance_sources))),
            ("negative examples", cls.negatives(settings())),
            ("presets", ", ".join(f"`{p}`" for p in cls.presets)),
        ]
        rows = [(f"`{f.name}`", "" if f.default is MISSING else f"`{f.default!r}`") for f in fields(settings)]
        about = inspect.cleandoc(settings.__doc__ or "")
        parts += [
            f"## {name}",
            " ".join(inspect.cleandoc(cls.__doc__ or "").split()),
            table(("", ""), facts),
            f"```text\n{about}\n```",
            table(("setting", "default"), rows) if rows else "It has no settings.",
        ]
    return "\n\n".join(parts) + "\n"


# ---- the HTTP API -------------------------------------------------------------------------------------------------


def http_page() -> str:
    """Every request of the service, from its OpenAPI document."""
    from pipelines.console.service import api_document

    document = api_document()
    parts = [
        "# HTTP API",
        document["info"]["description"],
        "A service shows this page at `/docs`, and the document at `/openapi.json`. With FSS_TOKEN set, send "
        "`Authorization: Bearer TOKEN`.",
    ]
    for path, verbs in document["paths"].items():
        for verb, call in verbs.items():
            parts += [f"## {verb.upper()} {path}", call.get("description", "")]
            parts += [f"Body: {_schema_link(call['requestBody']['content'])}"] if "requestBody" in call else []
            rows = [(f"`{s}`", about["description"], _schema_link(about.get("content", {})))
                    for s, about in call["responses"].items()]
            parts.append(table(("status", "meaning", "answer"), rows))
    parts.append("## Schemas")
    for name, schema in document["components"]["schemas"].items():
        rows = [(f"`{key}`", _kind(one), one.get("description", ""), "yes" if key in schema.get("required", []) else "")
                for key, one in schema.get("properties", {}).items()]
        about = [schema["description"]] if "description" in schema else []
        parts += [f"### {name}", *about, table(("field", "type", "meaning", "required"), rows)] if rows else []
    return "\n\n".join(p for p in parts if p) + "\n"


def _schema_link(content: dict[str, Any]) -> str:
    names = [str(c.get("schema", {}).get("$ref", "")).rpartition("/")[2] or f"`{kind}`" for kind, c in content.items()]
    return ", ".join(n if n.startswith("`") else f"[{n}](#{n.lower()})" for n in names)


def _kind(schema: dict[str, Any]) -> str:
    """The type of a field in short: a name, a list of names, or alternatives."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_kind(o) for o in options))
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    return ", ".join(map(str, values)) or str(schema.get("type", "any"))


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; a line of text without rows."""
    if not rows:
        return "It takes no options."
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)
