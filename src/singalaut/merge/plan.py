"""What a merge will write: every output tensor, where it comes from, in which order, how merged.

Everything that can be wrong with the models and settings is found here, before anything is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

from singalaut.errors import CheckpointError, RecipeError
from singalaut.merge.config import MergeConfig, MergeInput, Slice
from singalaut.merge.methods import METHODS, Chosen
from singalaut.merge.parameters import choose
from singalaut.model.config import Gemma3Config
from singalaut.model.hf import hf_name, parameter_shapes

EMBEDDING = "embedding.weight"
LAYER = re.compile(r"^((?:vision\.tower\.)?layers)\.(\d+)\.(.*)$")
# what may differ between models whose vocabularies are made one
OF_VOCABULARIES = ("vocab_size", "bos_id", "pad_id")


@dataclass(frozen=True)
class Given:
    """A model of the recipe: its place there, its files, its shape."""

    label: str
    settings: MergeInput
    folder: Path
    adapter: Path | None
    shape: Gemma3Config

    @property
    def key(self) -> tuple[Path, Path | None]:
        """Equal for entries that are the same weights."""
        return self.folder, self.adapter


@dataclass(frozen=True)
class Piece:
    """One output tensor: the parameter of each model that goes into it, and the parameters."""

    name: str
    place: str
    shape: tuple[int, ...]
    models: tuple[tuple[Given, str], ...]
    base: tuple[Given, str] | None
    method: str
    chosen: Chosen


def gather_inputs(
    config: MergeConfig,
    folders: Mapping[str, Path],
    adapters: Mapping[str, Path],
    shapes: Mapping[Path, Gemma3Config],
) -> dict[str, Given]:
    """The models by the label of their place in the settings, the base's too."""
    found = {
        label: Given(label, model, folders[label], adapters.get(f"{label}.adapter"), shape)
        for label, model in config.all_inputs().items()
        for shape in [shapes[folders[label]]]
    }
    if config.base is not None:
        folder = folders["base"]
        settings = MergeInput.model_validate({"from": config.base})
        found["base"] = Given("base", settings, folder, None, shapes[folder])
    return found


def check_inputs(config: MergeConfig) -> None:
    """Raises RecipeError for too few or too many models, a base that lacks or is not used."""
    method = METHODS[config.method]
    if bool(config.models) == bool(config.slices):
        raise RecipeError(
            "a merge needs either `models` or `slices`",
            where=config.name,
            hint='list the models to merge, as in `models = [{ from = "base", weight = 0.5 }]`',
        )
    if method.base == "needed" and config.base is None:
        raise RecipeError(
            f"`{config.method}` needs a base: the model that the others were tuned from",
            where=f"{config.name}.base",
            hint='name a stage or a starting model, as in `base = "base"`',
        )
    if method.base == "unused" and config.base is not None:
        raise RecipeError(
            f"`{config.method}` does not use a base",
            where=f"{config.name}.base",
            hint="leave it out, or list that model among the others",
        )
    fewest, most = method.models
    groups = [("models", config.models)] if config.models else []
    groups += [(f"slices[{i}].sources", s.sources) for i, s in enumerate(config.slices)]
    for place, models in groups:
        others = [m for m in models if not (config.slices and _is_base(m, config))]
        if len(others) < fewest or (most is not None and len(others) > most):
            wanted = f"{fewest}" if most == fewest else f"{fewest} or more"
            noun = "model" if wanted == "1" else "models"
            beside = " beside the base" if method.base == "needed" else ""
            raise RecipeError(
                f"`{config.method}` merges {wanted} {noun}{beside}, found {len(others)}",
                where=f"{config.name}.{place}",
            )
    if config.models and (ranged := [m for m in config.models if m.layers is not None]):
        raise RecipeError(
            f"`layers` of `{ranged[0].source}` has a meaning only in `slices`",
            where=f"{config.name}.models",
        )


def common_shape(config: MergeConfig, given: Mapping[str, Given]) -> Gemma3Config:
    """The shape of the output. Raises CheckpointError at the first difference between models."""
    entries = list(given.values())
    first = entries[0].shape
    free = {"eos_ids", *(OF_VOCABULARIES if config.tokenizer else ())}
    free |= {"num_layers"} if config.slices else set()
    for entry in entries[1:]:
        for field in (field.name for field in fields(first) if field.name not in free):
            value, wanted = getattr(entry.shape, field), getattr(first, field)
            if value != wanted:
                raise _different(entry, field, value, wanted)
    eos = tuple(dict.fromkeys(i for entry in entries for i in entry.shape.eos_ids))
    if config.slices:
        first = replace(first, num_layers=sum(length for _, length in _lengths(config)))
    return replace(first, eos_ids=eos)


def _different(entry: Given, field: str, value: object, wanted: object) -> CheckpointError:
    hint = "only models of one architecture and size can be merged"
    if field == "vocab_size":
        hint = 'name the vocabulary to use, `tokenizer = "union"` or the name of a model'
    if field == "vision":
        value, wanted = ("absent" if v is None else "there" for v in (value, wanted))
        if value != wanted:
            hint = "merge text models with text models, models that see with models that see"
    return CheckpointError(
        f"`{field}` is {value} here and {wanted} in the first model", where=entry.folder, hint=hint
    )


def make_pieces(
    config: MergeConfig, given: Mapping[str, Given], shape: Gemma3Config
) -> list[Piece]:
    """Every output tensor, in the network's order. Raises: RecipeError for bad parameters."""
    layers = _layer_sources(config, given, shape)
    vision_layers = shape.vision.num_layers if shape.vision else 0
    pieces = []
    for name, size in parameter_shapes(shape).items():
        match = LAYER.match(name)
        if match and match[1] == "layers":
            piece, offset, progress, models = layers[int(match[2])]
            inner = [f"layers.{start + offset}.{match[3]}" for start in _starts(models)]
        else:
            last = name == "final_norm.weight"
            piece, _, _, models = layers[-1 if last else 0]
            inner = [name] * len(models)
            progress = _progress(int(match[2]), vision_layers) if match else 0.0
        pieces.append(_piece(config, given, shape, name, size, piece, models, inner, progress))
    return pieces


def _piece(
    config: MergeConfig,
    given: Mapping[str, Given],
    shape: Gemma3Config,
    name: str,
    size: tuple[int, ...],
    piece: Slice | None,
    models: Sequence[Given],
    inner: Sequence[str],
    progress: float,
) -> Piece:
    parts = list(zip(models, inner, strict=True))
    base = None
    if config.base is not None:
        base = (given["base"], name)
        if piece is not None:
            base = next(part for part in parts if _is_base(part[0].settings, config))
            parts = [part for part in parts if part is not base]
    place = hf_name(name, shape)
    if name == EMBEDDING and config.embeddings_from and config.embedding_rows == "all":
        source = _named(config.embeddings_from, config, given, "embeddings_from")
        taken = Chosen([{"scale": 1.0}], {})
        return Piece(name, place, size, ((source, name),), None, "passthrough", taken)
    chosen = choose(
        config,
        [entry.settings for entry, _ in parts],
        piece,
        [hf_name(each, entry.shape) for entry, each in parts],
        place,
        progress,
    )
    return Piece(name, place, size, tuple(parts), base, config.method, chosen)


def named(config: MergeConfig, given: Mapping[str, Given], setting: str) -> Given | None:
    """The model that the setting `tokenizer` or `embeddings_from` names."""
    name = getattr(config, setting)
    return None if name is None else _named(name, config, given, setting)


def _named(name: str, config: MergeConfig, given: Mapping[str, Given], setting: str) -> Given:
    for entry in given.values():
        if entry.settings.source == name:
            return entry
    names = dict.fromkeys(entry.settings.source for entry in given.values())
    raise RecipeError(
        f"`{setting}` names `{name}`, which is none of the merged models",
        where=f"{config.name}.{setting}",
        hint="it can be " + ", ".join(f"`{known}`" for known in names),
    )


def _is_base(model: MergeInput, config: MergeConfig) -> bool:
    return config.base is not None and model.source == config.base and model.adapter is None


def _progress(index: int, count: int) -> float:
    return index / (count - 1) if count > 1 else 1.0


def _starts(models: Sequence[Given]) -> list[int]:
    return [(entry.settings.layers or (0, 0))[0] for entry in models]


def _lengths(config: MergeConfig) -> list[tuple[Slice, int]]:
    """Each slice and its number of layers. Raises: RecipeError where its sources do not agree."""
    found = []
    for i, piece in enumerate(config.slices):
        where = f"{config.name}.slices[{i}]"
        ranges = []
        for source in piece.sources:
            if source.layers is None:
                raise RecipeError(
                    f"`{source.source}` has no `layers`", where=where, hint="`layers = [0, 6]`"
                )
            ranges.append(source.layers)
        counts = {stop - start for start, stop in ranges}
        if len(counts) > 1 or min(counts) < 1:
            raise RecipeError(
                "the sources of a slice need the same number of layers, found "
                + ", ".join(f"{start} … {stop}" for start, stop in ranges),
                where=where,
            )
        found.append((piece, counts.pop()))
    return found


def _layer_sources(
    config: MergeConfig, given: Mapping[str, Given], shape: Gemma3Config
) -> list[tuple[Slice | None, int, float, list[Given]]]:
    """For each output layer: its slice, its number in it, its progress, its models."""
    if not config.slices:
        models = [given[label] for label in config.all_inputs()]
        count = shape.num_layers
        return [(None, i, _progress(i, count), models) for i in range(count)]
    layers: list[tuple[Slice | None, int, float, list[Given]]] = []
    for i, (piece, count) in enumerate(_lengths(config)):
        models = [given[f"slices.{i}.sources.{j}"] for j in range(len(piece.sources))]
        where = f"{config.name}.slices[{i}]"
        if config.base is not None and not any(_is_base(m.settings, config) for m in models):
            raise RecipeError(
                f"the slice has no source `{config.base}`, the base",
                where=where,
                hint="add it with the layers that the task vectors are differences from",
            )
        for offset in range(count):
            for entry, start in zip(models, _starts(models), strict=True):
                _check_layer(entry, start + offset, len(layers), shape, where)
            layers.append((piece, offset, _progress(offset, count), models))
    return layers


def _check_layer(entry: Given, layer: int, place: int, shape: Gemma3Config, where: str) -> None:
    """A layer must exist, and attend as the layer of the output does that it becomes."""
    if not 0 <= layer < entry.shape.num_layers:
        raise RecipeError(
            f"`{entry.settings.source}` has no layer {layer}, only {entry.shape.num_layers} layers",
            where=where,
        )
    kinds = [c.is_global(i) for c, i in ((entry.shape, layer), (shape, place))]
    if kinds[0] != kinds[1]:
        words = ["global" if kind else "window" for kind in kinds]
        raise RecipeError(
            f"layer {layer} of `{entry.settings.source}` is a {words[0]} layer, layer {place} of "
            f"the output a {words[1]} layer",
            where=where,
            hint=f"Gemma 3 attends globally in every {shape.global_every}th layer; shift the "
            "ranges by multiples of that",
        )
