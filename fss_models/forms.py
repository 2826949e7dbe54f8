"""Forms: JSON that people write, checked by pydantic, with the first mistake in one line (what, where, how to mend)."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, WrapValidator, model_validator
from rapidfuzz import process

from fss_models.errors import FssError

T = TypeVar("T")
WORDS = {"string_type": "a text", "list_type": "a list", "int_type": "a whole number", "int_parsing": "a whole number",
         "float_type": "a number", "finite_number": "a number", "bool_type": "true or false",
         "model_type": "a JSON object", "model_attributes_type": "a JSON object", "dict_type": "a JSON object"}


class Form(BaseModel):
    """Base class of JSON objects that people write: unknown keys are errors, and a text is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, content: Any) -> Any:
        if isinstance(content, dict):
            check_known(content, tuple(cls.model_fields))
        return content


def check_known(row: Mapping[Any, Any], known: Sequence[str]) -> None:
    """Raises `ValueError` for a key that is not known; the message names the nearest one that is."""
    for key in row:
        if key not in known:
            near = process.extractOne(str(key), known, score_cutoff=50)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known) or 'none'}"
            raise ValueError(f"unknown key {str(key)[:60]!r} ({hint})")


def in_words(line: str) -> WrapValidator:
    """An annotation: every mistake in the value is reported as `line`."""

    def checked(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            raise ValueError(line) from error

    return WrapValidator(checked)


def read_form(kind: type[T] | TypeAdapter[T], content: Any, where: str, *, join: str = ": ") -> T:
    """The checked form of `content`. Raises `FssError` with the first mistake, at `where` and `join` and its place."""
    adapter = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
    try:
        return adapter.validate_python(content)
    except ValidationError as error:
        place, what = mistake(error.errors(include_url=False)[0], content)
        raise FssError(what, where=join.join(p for p in (where, place) if p)) from error


def mistake(error: Mapping[str, Any], content: Any) -> tuple[str, str]:
    """The place in `content` (like `supports[0].box`) and the words of one of pydantic's errors."""
    loc, kind, text = list(error["loc"]), error["type"], str(error["msg"]).removeprefix("Value error, ")
    if kind == "missing" and loc:
        return _place(loc[:-1], content), f"{loc[-1]} is missing"
    given = f"is {reprlib.repr(error['input'])}" if not isinstance(error["input"], list | dict) else ""
    if word := WORDS.get("model_type" if kind == "missing" else kind):
        return _place(loc, content), f"{given}, not {word}" if given else f"is not {word}"
    if given and text.startswith("Input should"):
        return _place(loc, content), f"{given}, but {text.removeprefix('Input ')}"
    return _place(loc, content), text[:1].lower() + text[1:].replace(" after validation", "")


def _place(loc: Sequence[int | str], content: Any) -> str:
    """`loc` in dots and brackets, without pydantic's names of the members of unions, which `content` does not have."""
    place, here = "", content
    for part in loc:
        if isinstance(part, int):
            place += f"[{part}]"
            here = here[part] if isinstance(here, list) and part < len(here) else None
        elif isinstance(here, dict) and part in here:
            place, here = f"{place}.{part}", here[part]
    return place.removeprefix(".")
