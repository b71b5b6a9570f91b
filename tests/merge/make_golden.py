"""Writes what mergekit makes of small tensors and settings: the reference of the merge tests.

Run with a Python that has mergekit (0.1.5), from the root of the repository:

    python tests/merge/make_golden.py

`golden/tensors.safetensors` holds inputs and outputs, `golden/cases.json` the method and parameters
of each output, `golden/parameters.json` the parameters that mergekit resolves for each tensor name.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "golden"
DRAWS = 400

CASES = [
    ("linear", {"weight": [0.2, 0.5, 0.9]}, None),
    ("linear", {"weight": [0.2, 0.5, -0.4], "normalize": False}, None),
    ("slerp", {"t": 0.3}, 0),
    ("slerp", {"t": 0.75}, 0),
    ("nuslerp", {"weight": [0.3, 0.9]}, None),
    ("nuslerp", {"weight": [0.3, 0.9]}, 0),
    ("nuslerp", {"weight": [0.4, 0.6], "nuslerp_flatten": False}, None),
    ("nuslerp", {"weight": [0.4, 0.6], "nuslerp_flatten": False, "nuslerp_row_wise": True}, 0),
    ("karcher", {}, None),
    ("karcher", {"max_iter": 3, "tol": 1e-4}, None),
    ("model_stock", {}, 0),
    ("model_stock", {"filter_wise": True}, 0),
    ("sce", {}, 0),
    ("sce", {"select_topk": 0.4}, 0),
    ("task_arithmetic", {"weight": [0.7, 0.4, 0.3]}, 0),
    ("task_arithmetic", {"weight": [0.7, 0.4, 0.3], "lambda": 0.5, "normalize": True}, 0),
    ("ties", {"weight": [0.7, 0.4, 0.5], "density": [0.3, 0.6, 1.0]}, 0),
    ("ties", {"weight": [1.0, 1.0, 1.0], "density": [0.5, 0.5, 0.5], "lambda": 1.3}, 0),
    ("ties", {"weight": [0.5, 0.4, 0.1], "density": [0.2, 0.2, 0.0], "normalize": False}, 0),
    ("ties", {"weight": [0.5, 0.4, 0.1], "density": [0.2, 0.4, 0.6], "rescale": True}, 0),
    (
        "breadcrumbs",
        {"weight": [0.7, 0.4, 0.5], "density": [0.5, 0.7, 0.9], "gamma": [0.1, 0.05, 0.2]},
        0,
    ),
    (
        "breadcrumbs_ties",
        {"weight": [0.6, 0.4, 0.5], "density": [0.4, 0.8, 0.6], "gamma": [0.1, 0.1, 0.02]},
        0,
    ),
    ("dare_linear", {"weight": [0.6, 0.4, 0.5], "density": [1.0, 1.0, 1.0]}, 0),
    ("dare_ties", {"weight": [0.6, 0.4, 0.5], "density": [1.0, 1.0, 1.0]}, 0),
    ("della", {"weight": [0.6, 0.4, 0.5], "density": [1.0, 1.0, 1.0]}, 0),
    ("della_linear", {"weight": [0.6, 0.4, 0.5], "density": [1.0, 1.0, 1.0]}, 0),
    ("passthrough", {"scale": [0.5]}, None),
]
RANDOM = [
    ("dare_linear", {"weight": [0.6, 0.4, 0.5], "density": [0.3, 0.6, 0.8]}, 0),
    ("dare_linear", {"weight": [0.6, 0.4, 0.5], "density": [0.3, 0.6, 0.8], "rescale": False}, 0),
    ("dare_ties", {"weight": [0.6, 0.4, 0.5], "density": [0.3, 0.6, 0.8]}, 0),
    (
        "della",
        {"weight": [0.6, 0.4, 0.5], "density": [0.3, 0.6, 0.8], "epsilon": [0.1, 0.2, 0.15]},
        0,
    ),
    (
        "della_linear",
        {"weight": [0.6, 0.4, 0.5], "density": [0.3, 0.6, 0.8], "epsilon": [0.1, 0.2, 0.15]},
        0,
    ),
]
CONFIGS = {
    "gradients": {
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            {"model": "a", "parameters": {"density": [1, 0.7, 0.1], "weight": 0.8}},
            {
                "model": "b",
                "parameters": {
                    "density": 0.5,
                    "weight": [
                        {"filter": "mlp", "value": 0.5},
                        {"filter": "self_attn.q", "value": [0.1, 0.9]},
                        {"value": 0.25},
                    ],
                },
            },
        ],
        "parameters": {"normalize": False, "lambda": [0.5, 1.0, 0.2, 0.3]},
    },
    "slerp": {
        "merge_method": "slerp",
        "base_model": "a",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {
            "t": [
                {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
                {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
                {"value": 0.5},
            ]
        },
    },
    "slices": {
        "merge_method": "linear",
        "slices": [
            {
                "sources": [
                    {"model": "a", "layer_range": [0, 3], "parameters": {"weight": [0.1, 0.9]}},
                    {"model": "b", "layer_range": [3, 6], "parameters": {"weight": 0.4}},
                ]
            },
            {
                "sources": [
                    {"model": "b", "layer_range": [3, 6], "parameters": {"weight": 1.0}},
                    {"model": "a", "layer_range": [0, 3]},
                ],
                "parameters": {"weight": [0.5, 0.7]},
            },
        ],
        "parameters": {"weight": 0.3},
    },
}


def inputs(shape: tuple[int, ...], seed: int, coarse: bool) -> list[torch.Tensor]:
    """A base and three models near it; `coarse` ones lie on a grid, so that many entries tie."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    models = [base + 0.3 * torch.randn(shape, generator=generator) for _ in range(3)]
    if not coarse:
        return [base, *models]
    return [(tensor * 8).round() / 8 for tensor in (base, *models)]


def main() -> None:
    from mergekit.merge_methods import get, merge_tensors
    from run_mergekit import sort_stably

    sort_stably()

    tensors: dict[str, torch.Tensor] = {}
    cases = []
    shapes = {"matrix": (12, 20), "vector": (37,), "coarse": (16, 24), "coarse_vector": (50,)}
    for number, (name, shape) in enumerate(shapes.items()):
        made = inputs(shape, number, "coarse" in name)
        for label, tensor in zip(["base", "a", "b", "c"], made, strict=True):
            tensors[f"{name}.{label}"] = tensor

    def run(method: str, parameters: dict, base: int | None, shape: str) -> torch.Tensor:
        labels = ["a", "b", "c"]
        if method in ("nuslerp", "slerp"):
            labels = labels[: 1 if method == "slerp" else 2]
        if method == "passthrough":
            labels = labels[:1]
        labels = ["base", *labels] if base is not None else labels
        given = [tensors[f"{shape}.{label}"] for label in labels]
        return merge_tensors(given, get(method), parameters=parameters, base_index=base)

    for method, parameters, base in CASES:
        for shape in shapes:
            key = f"out.{len(cases)}"
            tensors[key] = run(method, parameters, base, shape)
            case = {"out": key, "method": method, "parameters": parameters, "shape": shape}
            cases.append({**case, "base": base is not None})
    draws = []
    torch.manual_seed(0)
    for method, parameters, base in RANDOM:
        found = torch.stack([run(method, parameters, base, "matrix") for _ in range(DRAWS)])
        key = f"random.{len(draws)}"
        tensors[f"{key}.mean"], tensors[f"{key}.std"] = found.mean(0), found.std(0)
        draws.append({"out": key, "method": method, "parameters": parameters, "draws": DRAWS})
    FOLDER.mkdir(exist_ok=True)
    save_file(tensors, FOLDER / "tensors.safetensors")
    text = json.dumps({"cases": cases, "random": draws}, indent=1)
    (FOLDER / "cases.json").write_text(text + "\n")
    write_parameters()


def write_parameters() -> None:
    """What mergekit resolves for every tensor of a Gemma 3 of six layers."""
    import tempfile

    import mergekit.plan as planning
    from mergekit.architecture import get_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.merge import _model_out_config
    from mergekit.options import MergeOptions
    from transformers import Gemma3TextConfig

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        import os

        os.chdir(folder)
        config = Gemma3TextConfig(
            num_hidden_layers=6, hidden_size=32, architectures=["Gemma3ForCausalLM"]
        )
        for name in ("a", "b", "base"):
            config.save_pretrained(name)
            save_file({"lm_head.weight": torch.zeros(1)}, f"{name}/model.safetensors")
        for label, raw in CONFIGS.items():
            recorded: dict[str, dict] = {}

            def record(self, weight, weights_in, models, cfg_reader, recorded=recorded):
                from mergekit.parameter_resolver import resolve_parameters

                shared, per_model = resolve_parameters(
                    self._method.spec,
                    tensor_name=weight.name,
                    inputs={m: w.name for m, w in zip(models, weights_in, strict=True)},
                    sources=cfg_reader.parameter_sources,
                    base_model=cfg_reader.base_model,
                    t=cfg_reader.t,
                )
                recorded[weight.name] = {
                    "shared": shared,
                    "models": [
                        [str(m.model), w.name, per_model[m]]
                        for m, w in zip(models, weights_in, strict=True)
                    ],
                }

            planning.MergePlanner.plan_tensor = record
            merge = MergeConfiguration.model_validate(raw)
            options = MergeOptions()
            info = get_architecture_info(merge, options)
            planner = planning.MergePlanner(merge, info, options, _model_out_config(merge, info))
            planner.plan_in_memory()
            recorded.pop("lm_head.weight", None)
            found[label] = {"config": raw, "tensors": recorded}
    text = json.dumps(found, separators=(",", ":"))
    (FOLDER / "parameters.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
