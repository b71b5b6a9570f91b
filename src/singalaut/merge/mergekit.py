"""mergekit's YAML files as settings of our merge stage; what we cannot do is named and refused.

Parameters, their gradients and filters mean the same in both, so they carry over as they are. What
mergekit says of the base among the models becomes `base`, or the first of two models for SLERP.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from singalaut.errors import RecipeError
from singalaut.merge.config import InputParameters, MethodName
from singalaut.merge.methods import METHODS

log = logging.getLogger("singalaut")
Settings = dict[str, Any]
TOP = (
    *("merge_method", "models", "slices", "base_model", "parameters", "dtype", "out_dtype"),
    *("tokenizer_source", "tokenizer"),
)
FLAGS = ("normalize", "rescale", "filter_wise", "nuslerp_flatten", "nuslerp_row_wise")
WITHOUT_EFFECT = ("int8_mask",)  # saves mergekit memory, changes no result


def read_mergekit(file: Path) -> Settings:
    """The content of a YAML file. Raises: RecipeError where it is none of mergekit's."""
    import yaml

    try:
        documents = list(yaml.safe_load_all(file.read_text("utf-8-sig")))
    except OSError as error:
        raise RecipeError(f"the file cannot be read: {error.strerror}", where=file) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"this is not YAML: {error}", where=file) from None
    if len(documents) > 1:
        raise RecipeError(
            f"mergekit's several merges in one file ({len(documents)}) are not supported here",
            where=file,
            hint="write them as stages of a recipe, each with the former as a model",
        )
    raw = documents[0] if documents else None
    if not isinstance(raw, dict) or "merge_method" not in raw:
        raise RecipeError(
            "there is no `merge_method`", where=file, hint="give a configuration of mergekit"
        )
    return raw


class Translation:
    """A mergekit configuration as a table of settings; `models` lists the models it names."""

    def __init__(self, raw: Mapping[str, Any], where: str | Path):
        self.raw, self.where = raw, where
        self.method = self._method()
        self._known_keys(raw, TOP, "")
        base = raw.get("base_model")
        self.base = None if base is None else self._reference(base, "base_model")[0]
        entries = [*self._entries(raw.get("models"), "models")]
        for piece in raw.get("slices") or ():
            entries += self._entries(piece.get("sources"), "slices")
        found = [self._reference(entry["model"], "models")[0] for entry in entries]
        if isinstance(named := self._tokenizer(), str) and named not in ("union", "base"):
            found.append(named)
        self.models = list(dict.fromkeys([*found, *([self.base] if self.base else [])]))

    def settings(self, labels: Mapping[str, str]) -> Settings:
        """The table of the stage; `labels` has a name for each of `models`."""
        raw = self.raw
        found: Settings = {"kind": "merge", "method": self.method}
        if raw.get("models"):
            found["models"] = self._models(self._entries(raw["models"], "models"), labels)
        else:
            found["slices"] = [self._slice(piece, labels) for piece in raw.get("slices") or ()]
        if self.base and METHODS[self.method].base != "unused":
            found["base"] = labels[self.base]
        if parameters := self._parameters(raw.get("parameters"), "parameters"):
            found["parameters"] = parameters
        place = "out_dtype" if raw.get("out_dtype") else "dtype"
        if dtype := raw.get(place):
            if dtype not in ("float32", "bfloat16"):
                hint = "Gemma 3 needs bfloat16 or float32; change it in the file"
                self._refuse(f"`{place}: {dtype}`", hint)
            found["dtype"] = dtype
        if tokenizer := self._tokenizer():
            first = self.base or self.models[0]
            name = first if tokenizer == "base" else tokenizer
            found["tokenizer"] = "union" if tokenizer == "union" else labels[name]
        return found

    def _method(self) -> str:
        method = self.raw["merge_method"]
        if method not in get_args(MethodName):
            self._refuse(f"`merge_method: {method}`", "known: " + ", ".join(get_args(MethodName)))
        return str(method)

    def _models(self, entries: Sequence[Settings], labels: Mapping[str, str]) -> list[Settings]:
        """The models in the order that our method wants, the base taken out where it is one."""
        found, base = [], None
        for entry in entries:
            self._known_keys(entry, ("model", "parameters", "layer_range"), "models")
            name, adapter = self._reference(entry["model"], "models")
            is_base = name == self.base and adapter is None
            if is_base and METHODS[self.method].base != "unused" and "layer_range" not in entry:
                continue
            translated: Settings = {"from": labels[name]}
            translated |= {} if adapter is None else {"adapter": adapter}
            if "layer_range" in entry:
                translated["layers"] = list(entry["layer_range"])
            translated |= self._parameters(entry.get("parameters"), "models", of_model=True)
            if is_base and self.method == "slerp":
                base = translated
            else:
                found.append(translated)
        if self.base and base is None and METHODS[self.method].base == "unused":
            named = [self._reference(entry["model"], "models")[0] for entry in entries]
            if self.base not in named:  # mergekit counts the base among the models then
                base = {"from": labels[self.base]}
                return [base, *found] if self.method == "slerp" else [*found, base]
        return found if base is None else [base, *found]

    def _slice(self, piece: Settings, labels: Mapping[str, str]) -> Settings:
        self._known_keys(piece, ("sources", "parameters"), "slices")
        sources = self._models(self._entries(piece.get("sources"), "slices"), labels)
        parameters = self._parameters(piece.get("parameters"), "slices")
        return {"sources": sources, **({"parameters": parameters} if parameters else {})}

    def _parameters(self, raw: Any, place: str, of_model: bool = False) -> Settings:
        method = METHODS[self.method]
        known = {**method.of_models, **method.shared}
        found: Settings = {}
        for name, value in (raw or {}).items():
            if name in WITHOUT_EFFECT:
                continue
            if name not in known or (of_model and name not in InputParameters.model_fields):
                log.warning("`%s` has no effect in `%s` and is left out", name, self.method)
                continue
            if name in FLAGS:
                if not isinstance(value, bool):
                    self._refuse(f"`{place}.{name}` that is not `true` or `false`")
                found[name] = value
            else:
                found[name] = self._value(value, f"{place}.{name}")
        return found

    def _value(self, raw: Any, place: str) -> Any:
        """A number, a gradient, or either with filters; the entries of a list one by one."""
        if isinstance(raw, dict):
            raw = [raw]
        if isinstance(raw, list) and raw and all(isinstance(entry, dict) for entry in raw):
            return [
                {
                    "filter": entry.get("filter") or "*",
                    "value": self._value(entry.get("value"), place),
                }
                for entry in raw
            ]
        if isinstance(raw, list):
            return [self._number(entry, place) for entry in raw]
        return self._number(raw, place)

    def _number(self, raw: Any, place: str) -> float | int:
        if isinstance(raw, int | float) and not isinstance(raw, bool):
            return raw
        try:
            return float(raw)  # YAML reads 1e-5 as text
        except (TypeError, ValueError):
            self._refuse(f"`{place}: {raw}`, which is not a number")

    def _tokenizer(self) -> str | None:
        """`union`, `base`, or the model that has the vocabulary."""
        found = self.raw.get("tokenizer_source")
        if isinstance(table := self.raw.get("tokenizer"), dict):
            for key in ("tokens", "pad_to_multiple_of"):
                if table.get(key):
                    self._refuse(f"`tokenizer.{key}`", "`embeddings_from` takes rows from a model")
            self._known_keys(table, ("source",), "tokenizer")
            found = table.get("source", "union")
        if found is None or found in ("union", "base"):
            return found
        return self._reference(found, "tokenizer_source")[0]

    def _reference(self, raw: Any, place: str) -> tuple[str, str | None]:
        """Name of a model, and the path of an adapter on it."""
        if isinstance(raw, dict) and "path" in raw:
            self._known_keys(raw, ("path", "revision"), place)
            raw = f"{raw['path']}@{raw['revision']}" if raw.get("revision") else raw["path"]
        if isinstance(raw, dict):
            self._known_keys(raw, ("model", "lora"), place)
            model, adapter = self._reference(raw["model"], place) if "model" in raw else ("", None)
            return model, adapter or self._path(raw.get("lora"), place)
        if not isinstance(raw, str) or not raw:
            self._refuse(f"`{place}`: {raw!r} as the name of a model")
        model, _, adapter = raw.partition("+")
        return model, adapter or None

    def _path(self, raw: Any, place: str) -> str | None:
        if isinstance(raw, dict):
            self._known_keys(raw, ("path",), place)
            raw = raw.get("path")
        return raw

    def _entries(self, raw: Any, place: str) -> list[Settings]:
        if raw is None:
            return []
        if not isinstance(raw, list) or not all(isinstance(e, dict) and "model" in e for e in raw):
            self._refuse(f"`{place}` that is not a list of entries with `model`")
        return raw

    def _known_keys(self, raw: Mapping[str, Any], known: Sequence[str], place: str) -> None:
        for key, value in raw.items():
            if key not in known and value is not None:
                self._refuse(f"`{place + '.' if place else ''}{key}`")

    def _refuse(self, what: str, hint: str | None = None) -> NoReturn:
        raise RecipeError(
            f"mergekit's {what} is not supported here",
            where=self.where,
            hint=hint or "take it out of the file, or write the merge as a recipe",
        )
