"""Whole merges against mergekit, run by the Python that `MERGEKIT_PYTHON` names; skipped without.

What these check in whole models, `test_methods` and `test_parameters` check in stored results. Run

    MERGEKIT_PYTHON=.../python python -m pytest tests/merge/test_against_mergekit.py -s

to see the largest difference of every method.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from singalaut.artifact import Work
from singalaut.merge.config import MergeConfig
from singalaut.merge.mergekit import Translation, read_mergekit
from singalaut.merge.stream import run_merge
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.hf import save_model
from singalaut.model.lora import adapters, add_adapter, save_adapter
from singalaut.text.tokenizer import Tokenizer

PYTHON = os.environ.get("MERGEKIT_PYTHON")
pytestmark = pytest.mark.skipif(PYTHON is None, reason="`MERGEKIT_PYTHON` is not set")
HERE = Path(__file__).parent
EMBEDDING = "model.embed_tokens.weight"
SHARED = {"weight": 0.7, "density": 0.4}
CASES = {
    "linear": ({"weight": 0.3}, {"weight": 0.6}, {}),
    "slerp": ({}, {}, {"t": [{"filter": "mlp", "value": [0.1, 0.8]}, {"value": 0.4}]}),
    "nuslerp": ({"weight": 0.3}, {"weight": 0.6}, {}),
    "nuslerp-rows": ({"weight": 0.3}, {"weight": 0.6}, {"nuslerp_flatten": False}),
    "nuslerp-columns": (
        {"weight": 0.3},
        {"weight": 0.6},
        {"nuslerp_flatten": False, "nuslerp_row_wise": True},
    ),
    "karcher": ({}, {}, {}),
    "task_arithmetic": ({"weight": 0.5}, {"weight": 0.3}, {"lambda": 0.8}),
    "ties": (SHARED, {"weight": [0.2, 0.9], "density": [0.2, 0.7]}, {}),
    "breadcrumbs": (SHARED, {"weight": 0.4, "density": 0.6, "gamma": 0.05}, {}),
    "breadcrumbs_ties": (SHARED, {"weight": 0.4, "density": 0.6, "gamma": 0.05}, {}),
    "model_stock": ({}, {}, {}),
    "model_stock-rows": ({}, {}, {"filter_wise": True}),
    "sce": ({}, {}, {}),
    "sce-select": ({}, {}, {"select_topk": 0.3}),
    "dare_linear": (SHARED, {"weight": 0.4, "density": 0.6}, {}),
    "dare_ties": (SHARED, {"weight": 0.4, "density": 0.6}, {}),
    "della": (SHARED, {"weight": 0.4, "density": 0.6, "epsilon": 0.1}, {}),
    "della_linear": (SHARED, {"weight": 0.4, "density": 0.6, "epsilon": 0.1}, {}),
}
BASELESS = ("linear", "karcher")
RANDOM = ("dare", "della")
# sums over all entries: in float32, mergekit's are off by up to 1e-4 at the size of an embedding
SUMMED = ("slerp", "nuslerp", "karcher", "model_stock", "sce")
REAL_ROWS = 32_768  # of the real embedding, so that float64 fits into memory


@pytest.fixture(scope="session", params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def dtype(request):
    return request.param


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory, tiny_config, tiny_tokenizer, dtype):
    folder = tmp_path_factory.mktemp("tiny-models")
    base = initialise(Gemma3(tiny_config), seed=0)
    for label in ("base", "a", "b"):
        other = initialise(Gemma3(tiny_config), seed=ord(label[0]))
        for mine, theirs in zip(other.parameters(), base.parameters(), strict=True):
            mine.data = theirs + (0.0 if label == "base" else 0.1) * mine.data
        save_model(other, folder / label, dtype)
        tiny_tokenizer.save(folder / label)
    run_theirs({case: configuration(case, dtype) for case in CASES}, folder)
    return folder


@pytest.fixture(scope="session")
def real_models(tmp_path_factory, real_model, dtype):
    """The 270M and two models near it, as tuning would leave them."""
    folder = tmp_path_factory.mktemp("real-models")
    generator = torch.Generator().manual_seed(0)
    weights = {n: t.to(dtype) for n, t in load_file(real_model / "model.safetensors").items()}
    weights[EMBEDDING] = weights[EMBEDDING][:REAL_ROWS].clone()
    for label, scale in (("base", 0.0), ("a", 0.02), ("b", 0.05)):
        shutil.copytree(real_model, folder / label)
        file = folder / label / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": REAL_ROWS}))
        moved = {
            name: (
                tensor
                + scale
                * tensor.float().std().nan_to_num(0.1)
                * torch.randn(tensor.shape, generator=generator)
            ).to(dtype)
            for name, tensor in weights.items()
        }
        save_file(moved, folder / label / "model.safetensors", {"format": "pt"})
    yield folder
    shutil.rmtree(folder)


def configuration(case: str, dtype: torch.dtype) -> dict:
    method = case.partition("-")[0]
    first, second, shared = CASES[case]
    labels = ("base", "a") if method == "slerp" else ("a", "b")
    found = {
        "merge_method": method,
        "models": [
            {"model": labels[0], "parameters": first},
            {"model": labels[1], "parameters": second},
        ],
        "parameters": shared,
        "dtype": "float64" if case.startswith(SUMMED) else "float32",
        "out_dtype": str(dtype).removeprefix("torch."),
    }
    return found if method in BASELESS else {**found, "base_model": "base"}


def run_theirs(configs: dict[str, dict], folder: Path) -> None:
    """mergekit's result of each configuration, in the folder of its name."""
    files = []
    for case, config in configs.items():
        files.append(folder / f"theirs-{case}.yml")
        files[-1].write_text(yaml.safe_dump(config))
    command = [PYTHON, HERE / "run_mergekit.py", "--stable", *files]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


def run_ours(file: Path, folder: Path, tmp_path: Path, seed: int = 0) -> Path:
    translation = Translation(read_mergekit(file), file)
    settings = translation.settings({name: name for name in translation.models})
    config = MergeConfig.model_validate(settings)
    work = tmp_path / f"ours-{seed}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    models = {label: folder / name for label, name in config.inputs().items()}
    updates = {label: folder / name for label, name in config.files().items()}
    run_merge(config, models=models, adapters=updates, work=Work(work), seed=seed)
    return work / "model"


def ulps(ours: torch.Tensor, theirs: torch.Tensor) -> int:
    """How many bfloat16 numbers lie between two tensors, at most."""

    def ordered(tensor: torch.Tensor) -> torch.Tensor:
        found = tensor.view(torch.int16).int()
        return torch.where(found < 0, -32768 - found, found)

    return int((ordered(ours) - ordered(theirs)).abs().max())


def compare(case: str, folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    ours = weights(run_ours(folder / f"theirs-{case}.yml", folder, tmp_path))
    theirs = weights(folder / f"theirs-{case}")
    assert set(ours) == set(theirs) - {"lm_head.weight"}
    if case.startswith(RANDOM):
        compare_distributions(case, ours, theirs, weights(folder / "base"))
    elif dtype == torch.float32:
        # some norms of the real model have weights of several hundred
        sizes = {n: max(1.0, float(theirs[n].abs().max())) for n in ours}
        worst = max(float((ours[n] - theirs[n]).abs().max()) / sizes[n] for n in ours)
        print(f"{case}: largest difference {worst:.1e}")
        assert worst <= 1e-6
    else:
        # numbers near zero have tiny ulps: there the float32 bound counts
        far = {n: (ours[n].float() - theirs[n].float()).abs() > 1e-6 for n in ours}
        found = [ulps(ours[n][far[n]], theirs[n][far[n]]) for n in ours if far[n].any()]
        differing = sum(int((ours[n] != theirs[n]).sum()) for n in ours)
        print(f"{case}: at most {max(found, default=0)} ulp, {differing} entries differ")
        assert max(found, default=0) <= 1


def compare_distributions(case: str, ours: dict, theirs: dict, base: dict) -> None:
    """First and second moment of what was added to the base, in each large matrix.

    Entry by entry the difference of two draws has mean zero, whatever the entry's own mean.
    """
    worst = 0.0
    for name, mine in ours.items():
        if mine.numel() >= 4096:
            first, second = (x.double() - base[name].double() for x in (mine, theirs[name]))
            for power in (1, 2):
                difference = (first**power - second**power).flatten()
                error = difference.std() / len(difference) ** 0.5
                worst = max(worst, float(difference.mean().abs() / error))
    print(f"{case}: moments differ by at most {worst:.1f} standard errors")
    assert 0.5 < worst < 5


@pytest.mark.parametrize("case", CASES)
def test_tiny_models(case, tiny_models, tmp_path, dtype):
    compare(case, tiny_models, tmp_path, dtype)


@pytest.mark.real
@pytest.mark.parametrize("case", CASES)
def test_the_real_model(case, real_models, tmp_path, dtype):
    run_theirs({case: configuration(case, dtype)}, real_models)
    compare(case, real_models, tmp_path, dtype)
    shutil.rmtree(tmp_path)
    shutil.rmtree(real_models / f"theirs-{case}")


def test_adapters(tiny_models, tiny_config, tmp_path, dtype):
    model = add_adapter(Gemma3(tiny_config), 4, 8.0, ("query", "up"), seed=0)
    for _, adapted in adapters(model):
        torch.nn.init.normal_(adapted.b, std=0.2)
    save_adapter(model, tiny_models / "lora", "base")
    config = {
        "merge_method": "linear",
        "models": [
            {"model": "base+lora", "parameters": {"weight": 0.4}},
            {"model": "a", "parameters": {"weight": 0.6}},
        ],
        "dtype": "float32",
        "out_dtype": str(dtype).removeprefix("torch."),
    }
    run_theirs({"linear": config}, tiny_models)
    ours = weights(run_ours(tiny_models / "theirs-linear.yml", tiny_models, tmp_path))
    if dtype == torch.float32:  # mergekit rounds the adapted weights to bfloat16 first
        compare("linear", tiny_models, tmp_path, dtype)
    without = {**config, "models": [{**config["models"][0], "model": "base"}, config["models"][1]]}
    file = tmp_path / "without.yml"
    file.write_text(yaml.safe_dump(without))
    plain = weights(run_ours(file, tiny_models, tmp_path, seed=1))
    changed = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(plain[changed], ours[changed])


@pytest.mark.parametrize("source", ["union", "base", "longer"])
def test_vocabularies(source, tmp_path, tiny_config, tiny_vocabulary):
    """Rows of the embedding by the text of their tokens; theirs has none beyond the tokens."""
    tokens, scores, types = tiny_vocabulary
    longer = ([*tokens, "▁mak", "<tool>"], [*scores, min(scores[-9:]) - 1, 0.0], [*types, 1, 3])
    shorter = tuple(column[:-2] for column in tiny_vocabulary)
    for seed, (label, vocabulary) in enumerate(
        {"base": tiny_vocabulary, "longer": longer, "shorter": shorter}.items()
    ):
        tokenizer = Tokenizer.from_vocabulary(*vocabulary)
        config = replace(tiny_config, vocab_size=tokenizer.vocab_size)
        save_model(initialise(Gemma3(config), seed=seed), tmp_path / label, torch.float32)
        tokenizer.save(tmp_path / label)
    config = {
        "merge_method": "ties",
        "base_model": "base",
        "models": [
            {"model": "longer", "parameters": {"weight": 0.6, "density": 0.5}},
            {"model": "shorter", "parameters": {"weight": 0.4, "density": 0.9}},
        ],
        "dtype": "float32",
        "tokenizer_source": source,
    }
    run_theirs({"vocabulary": config}, tmp_path)
    ours = run_ours(tmp_path / "theirs-vocabulary.yml", tmp_path, tmp_path / "ours")
    found, wanted = rows_by_token(ours), rows_by_token(tmp_path / "theirs-vocabulary")
    assert found.keys() == wanted.keys()
    different = [t for t in found if (found[t] - wanted[t]).abs().max() > 1e-6]
    print(f"{source}: {len(found)} tokens, rows of {len(different)} differ")
    assert not different


def rows_by_token(folder: Path) -> dict[str, torch.Tensor]:
    rows = weights(folder)[EMBEDDING]
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    ids = dict(vocabulary["model"]["vocab"])
    ids |= {entry["content"]: entry["id"] for entry in vocabulary["added_tokens"]}
    return {token: rows[index] for token, index in ids.items()}
