"""Random requests from an OpenAPI document: valid and invalid instances of its schemas."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**400, 1.5, -0.0, 1e308, float("nan"), float("inf"), "", " ",
    "0", "a" * 5000, "\x00", "\n", "../../etc/passwd", "\ud800", "\u202e", "\U0001f600", "0" * 16, [], [[]], [None], {},
    {"": None}, {"a": {"b": [1]}}, "data:image/png;base64,AAAA", "AAAA", "//8=", [[[[[[[[]]]]]]]]]
PLACES = ["0", "1", "2", "-1", "x", "%00", "1e9", "9" * 30, "a%2Fb", "%F0%9F%98%80", "..%2f.."]


@dataclass(frozen=True)
class Call:
    """One random request."""

    verb: str
    path: str
    template: str
    query: dict[str, str]
    body: bytes | None


class Fuzzer:
    """Draws requests; `known` are values that exist in the service: field or parameter -> candidates."""

    def __init__(self, document: Schema, seed: int, known: dict[str, list[Any]]) -> None:
        self.document, self.known, self.random = document, known, random.Random(seed)
        self.calls = [(verb, path) for path, verbs in document["paths"].items() for verb in verbs]

    def draw(self) -> Call:
        """One random request; most have a mistake in one or two places."""
        verb, template = self.random.choice(self.calls)
        call = self.document["paths"][template][verb]
        path, query = template, {}
        for parameter in call.get("parameters", []):
            value = self._parameter(parameter)
            if parameter["in"] == "path":
                path = path.replace(f"{{{parameter['name']}}}", value)
            elif self.random.random() < 0.7:
                query[parameter["name"]] = value
        return Call(verb.upper(), path, template, query, self._body(call))

    def _parameter(self, parameter: Schema) -> str:
        if parameter["name"] in self.known and self.random.random() < 0.7:
            return str(self.random.choice(self.known[parameter["name"]]))
        if "enum" in parameter["schema"] and self.random.random() < 0.7:
            return str(self.random.choice(parameter["schema"]["enum"]))
        return self.random.choice(PLACES)

    def _body(self, call: Schema) -> bytes | None:
        if "requestBody" not in call:
            return None
        value = self.instance(call["requestBody"]["content"]["application/json"]["schema"])
        for _ in range(self.random.choice([0, 0, 0, 1, 1, 2])):
            value = self.spoil(value)
        data = json.dumps(value).encode()
        kind = self.random.random()
        if kind < 0.03:
            return data[: self.random.randrange(len(data) + 1)]
        if kind < 0.05:
            return b"[" * self.random.choice([900, 960, 990, 5000]) + b"]" * 990
        return data

    def instance(self, schema: Schema, name: str = "") -> Any:
        """A value that fits the schema."""
        if "$ref" in schema:
            last = schema["$ref"].rpartition("/")[2]
            return self.instance(self.document["components"]["schemas"][last], name if last != "Photo" else "photo")
        if name in self.known and schema.get("type") != "array" and self.random.random() < 0.8:
            return self.random.choice(self.known[name])
        if "enum" in schema or "const" in schema:
            return self.random.choice(schema.get("enum", [schema.get("const")]))
        if "anyOf" in schema:
            return self.instance(self.random.choice(schema["anyOf"]), name)
        return {"object": self._object, "array": self._array, "string": self._string, "integer": self._whole,
                "number": self._number, "boolean": lambda *_: self.random.random() < 0.5,
                "null": lambda *_: None}[schema["type"]](schema, name)

    def spoil(self, value: Any) -> Any:
        """The value with one part, at a random depth, replaced by an odd one."""
        if isinstance(value, dict) and value and self.random.random() < 0.85:
            key = self.random.choice(list(value))
            way = self.random.random()
            if way < 0.1:
                return {k: v for k, v in value.items() if k != key}
            if way < 0.2:
                return {**value, self.random.choice(["treshold", "", "\ud800", "mask", "bulk", "x" * 300]): 1}
            return {**value, key: self.spoil(value[key])}
        if isinstance(value, list) and value and self.random.random() < 0.85:
            i = self.random.randrange(len(value))
            return [*value[:i], self.spoil(value[i]), *value[i + 1:]]
        return self.random.choice(ODD)

    def _object(self, schema: Schema, _: str) -> Any:
        names = set(schema.get("required", []))
        alternatives = [set(one["required"]) for one in schema.get("oneOf", [])]
        chosen = self.random.choice(alternatives) if alternatives else set()
        others = set().union(*alternatives) - chosen if alternatives else set()
        properties = schema.get("properties", {})
        names |= chosen | {k for k in properties if k not in others and self.random.random() < 0.3}
        return {k: self.instance(properties[k], k) for k in properties if k in names}

    def _array(self, schema: Schema, name: str) -> Any:
        low = schema.get("minItems", 0)
        count = self.random.randint(low, min(schema.get("maxItems", low + 3), low + 3))
        return [self.instance(schema.get("items", {"type": "number"}), name) for _ in range(count)]

    def _string(self, schema: Schema, _: str) -> str:
        least = max(1, schema.get("minLength", 0))
        return "".join(self.random.choice("abz059 -/é") for _ in range(self.random.randint(least, 12)))

    def _whole(self, schema: Schema, _: str) -> int:
        return self.random.randint(schema.get("minimum", -3), min(schema.get("maximum", 300), 300))

    def _number(self, schema: Schema, _: str) -> float:
        low = schema.get("minimum", schema.get("exclusiveMinimum", -5))
        high = schema.get("maximum", schema.get("exclusiveMaximum", 150))
        return round(self.random.uniform(low, high), 3) or 0.5
