"""What mergekit made of small tensors, as `make_golden.py` stored it."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file

from singalaut.merge.methods import METHODS, Chosen

GOLDEN = Path(__file__).parent / "golden"


def golden_tensors() -> dict:
    """Tensors by name."""
    return load_file(GOLDEN / "tensors.safetensors")


def golden_cases(kind: str) -> list[dict]:
    return json.loads((GOLDEN / "cases.json").read_text())[kind]


def golden_parameters() -> dict[str, dict]:
    return json.loads((GOLDEN / "parameters.json").read_text())


def chosen(method: str, num_models: int, given: dict) -> Chosen:
    """Parameters as mergekit's calls have them, defaults filled in."""
    known = METHODS[method]
    models = [dict(known.of_models) for _ in range(num_models)]
    shared = dict(known.shared)
    for name, value in given.items():
        if name in known.of_models:
            for i, model in enumerate(models):
                model[name] = value[i] if isinstance(value, list) else value
        else:
            shared[name] = value
    return Chosen(models, shared)


def arguments(golden, case: dict):
    """Models, base and parameters of a stored case."""
    method, shape = case["method"], case.get("shape", "matrix")
    labels = {"nuslerp": "a b", "passthrough": "a"}.get(method, "a b c").split()
    if method == "slerp":  # mergekit calls the first of the two the base
        labels = ["base", "a"]
    models = [golden[f"{shape}.{label}"] for label in labels]
    uses_base = case.get("base", True) and METHODS[method].base != "unused"
    base = golden[f"{shape}.base"] if uses_base else None
    return models, base, chosen(method, len(models), case["parameters"])
