"""A recipe as TOML, every setting written out; reading it gives the same recipe again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from singalaut.recipe.schema import Recipe


def recipe_toml(recipe: Recipe) -> str:
    """The recipe as TOML text, defaults included; settings that are absent stay absent."""
    data = recipe.model_dump(mode="json", by_alias=True, exclude_none=True)
    model, stages = data.pop("model", None), data.pop("stage")
    blocks = [_pairs(data)] + ([] if model is None else ["[model]\n" + _pairs(model)])
    blocks += ["[[stage]]\n" + _pairs(stage) for stage in stages]
    return "\n".join(blocks)


def _pairs(table: Mapping[str, Any]) -> str:
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in table.items())


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, dict):
        pairs = ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    # JSON's strings, numbers and booleans are TOML's, but for one control character
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
