"""Which value a parameter has for a tensor: the one place where settings become numbers.

A setting is a number, a list of numbers spread over the layers, or a list of either with a filter
on the tensor's name. The most particular setting counts: the model's own, then the slice's, then
the stage's, then the method's default. Rules and results are those of mergekit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from singalaut.errors import RecipeError
from singalaut.merge.config import Filtered, InputParameters, MergeConfig, Slice
from singalaut.merge.methods import METHODS, Chosen, Method

ZERO = 1e-12


def resolve(setting: Any, name: str, progress: float) -> Any:
    """The value of a setting for the tensor `name`, or None where no filter fits it.

    `progress` runs from 0 in the first layer to 1 in the last; a list of n numbers has its values
    at 0, 1/(n−1), …, 1 and is linear between them. Tensors outside the layers have progress 0.
    """
    if isinstance(setting, tuple):
        if isinstance(setting[0], Filtered):
            fitting = (each for each in setting if _fits(each.filter, name))
            return next((resolve(each.value, name, progress) for each in fitting), None)
        place = progress * (len(setting) - 1)
        low = int(place)
        high = min(low + 1, len(setting) - 1)
        return (1 - (place - low)) * setting[low] + (place - low) * setting[high]
    return setting


def _fits(pattern: str, name: str) -> bool:
    return pattern in name or ("*" in pattern and fnmatchcase(name, pattern))


def choose(
    config: MergeConfig,
    models: Sequence[InputParameters],
    piece: Slice | None,
    names: Sequence[str],
    name: str,
    progress: float,
) -> Chosen:
    """The parameters of the output tensor `name`, whose inputs are called `names` in the models.

    Raises: RecipeError for a parameter that is missing, or values that no result can come from.
    """
    method = METHODS[config.method]
    shared_scopes = [config.parameters] if piece is None else [piece.parameters, config.parameters]
    shared = {
        key: _first(shared_scopes, key, name, progress, default)
        for key, default in method.shared.items()
    }
    of_models = [
        {
            key: _first([model, *shared_scopes], key, inner, progress, default)
            for key, default in method.of_models.items()
        }
        for model, inner in zip(models, names, strict=True)
    ]
    found = Chosen(of_models, shared)
    _check(config, found, name)
    return found


def _first(
    scopes: Iterable[InputParameters], key: str, name: str, progress: float, default: Any
) -> Any:
    field = "lambda_" if key == "lambda" else key
    for scope in scopes:
        setting = getattr(scope, field, None)
        if setting is not None and (value := resolve(setting, name, progress)) is not None:
            return value
    return default


def check_known(config: MergeConfig) -> None:
    """Raises RecipeError for a parameter that the method would ignore, or one that it lacks."""
    method = METHODS[config.method]
    known = {*method.of_models, *method.shared}
    scopes: dict[str, InputParameters] = {"parameters": config.parameters}
    scopes |= {f"slices[{i}].parameters": s.parameters for i, s in enumerate(config.slices)}
    for label, model in config.all_inputs().items():
        scopes[_as_written(label)] = model
    other = {"source", "adapter", "layers"}
    for place, scope in scopes.items():
        given = scope.model_dump(by_alias=True, exclude_none=True, exclude=other)
        for key in given:
            if key not in known and key != "from":
                raise RecipeError(
                    f"`{config.method}` does not know the parameter `{key}`",
                    where=f"{config.name}.{place}",
                    hint=f"it knows {_listed(method)}",
                )


def _listed(method: Method) -> str:
    return ", ".join(f"`{name}`" for name in (*method.of_models, *method.shared)) or "none"


def _as_written(label: str) -> str:
    """`slices.0.sources.1` as a user writes it: `slices[0].sources[1]`."""
    words = label.split(".")
    return "".join(
        f"[{word}]" if word.isdigit() else ("." if i else "") + word for i, word in enumerate(words)
    )


def _check(config: MergeConfig, chosen: Chosen, name: str) -> None:
    """Raises RecipeError where a parameter is missing or out of range for this tensor."""
    where = f"{config.name}, tensor `{name}`"
    for key, value in chosen.shared.items():
        if value is None:
            raise RecipeError(
                f"`{config.method}` needs the parameter `{key}`",
                where=where,
                hint=f"`parameters = {{ {key} = 0.5 }}`, with a last entry for all other tensors "
                "if it is a list of filters",
            )
    for key in ("density", "gamma", "select_topk"):
        values = [m[key] for m in chosen.models if key in m]
        values += [chosen.shared[key]] if key in chosen.shared else []
        if bad := [value for value in values if not 0 <= value <= 1]:
            raise RecipeError(f"`{key}` is {bad[0]}, it lies between 0 and 1", where=where)
    _check_epsilon(chosen.models, where)
    if needs_sum(config.method, chosen.shared) and (
        abs(sum(weights := chosen.of_models("weight"))) < ZERO
    ):
        raise RecipeError(
            f"the weights {weights} sum to zero",
            where=where,
            hint="change a weight"
            + (" or set `normalize = false`" if "normalize" in chosen.shared else ""),
        )


def needs_sum(method: str, shared: Mapping[str, Any]) -> bool:
    """Whether the method divides by the sum of the weights."""
    if method in ("nuslerp", "karcher"):
        return True
    return (
        method in ("linear", "task_arithmetic", "dare_linear", "della_linear", "breadcrumbs")
        and (shared["normalize"])
    )


def _check_epsilon(models: Sequence[Mapping[str, float]], where: str) -> None:
    for model in models:
        if "epsilon" in model and 0 < (density := model["density"]) < 1:
            low, high = density - model["epsilon"], density + model["epsilon"]
            if low <= 0 or high >= 1 or model["epsilon"] < 0:
                raise RecipeError(
                    f"density {density} ± epsilon {model['epsilon']} does not lie between 0 and 1",
                    where=where,
                    hint="lower `epsilon`",
                )
