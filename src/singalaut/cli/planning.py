"""The command that says what the training stages of a recipe will take: recipe plan."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from singalaut.cli.recipes import JsonOption, RecipeFile, SetOption

if TYPE_CHECKING:
    from singalaut.model.config import Gemma3Config
    from singalaut.recipe.plan import Plan, PlannedStage
    from singalaut.train.config import ApoConfig, SftConfig
    from singalaut.train.estimate import Estimate, Fleet

MOST_COUNTED_BYTES = 100 << 20  # of rows that are tokenised to plan, unless asked to
KINDS = ("sft", "apo", "rl")
GIB = 2**30


def plan(
    recipe: RecipeFile,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    stage: Annotated[str | None, typer.Option(metavar="NAME", help="Only this stage.")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Which, as in H200  [the one here, or H100]")
    ] = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    shape: Annotated[
        str | None, typer.Option(help="270m, 1b, 4b, 12b or 27b  [that of the recipe's model]")
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a conversation; of an answer in `rl`  [counted]"),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Rows there are  [counted]")] = None,
    count: Annotated[
        bool, typer.Option("--count", help="Tokenise the data to count it, however much it is.")
    ] = False,
    tflops: Annotated[
        float | None, typer.Option(min=0.001, help="What one GPU reaches, in 10¹² a second.")
    ] = None,
    mfu: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="The same as a share of its peak.")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Of one GPU and hour.")] = None,
    watts: Annotated[float | None, typer.Option(min=1, help="Of one GPU  [its most]")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what training stages will take: steps, tokens, memory, hours, energy, cost."""
    from singalaut.cli import show
    from singalaut.errors import RecipeError
    from singalaut.recipe.load import load_recipe
    from singalaut.recipe.run import check_name, plan_recipe

    loaded = load_recipe(recipe, overrides)
    if stage is not None:
        check_name(loaded, stage, "--stage")
    fleet = _fleet(gpu, gpus, tflops, mfu, price, watts)
    planned = plan_recipe(loaded, recipe.parent, fetch=False)
    wanted = [s for s in planned.stages if s.config.kind in KINDS and stage in (None, s.name)]
    if not wanted:
        kinds = ", ".join(f"`{kind}`" for kind in KINDS)
        raise RecipeError(f"there is no stage to plan: only {kinds} have plans", where=recipe)
    found = {}
    for each in wanted:
        config = _shape(each, planned, shape)
        found[each.name] = (
            each,
            config,
            _estimate(each, planned, config, fleet, length, rows, count),
        )
    if as_json:
        print(show.as_json({n: _as_dict(*about, fleet) for n, about in found.items()}))
        return
    print(show.table([_row(*about, fleet) for about in found.values()]))
    for _, (each, config, estimate) in found.items():
        _print_memory(each, config, estimate, fleet)


def _fleet(
    gpu: str | None,
    gpus: int,
    tflops: float | None,
    mfu: float | None,
    price: float | None,
    watts: float | None,
) -> Fleet:
    from singalaut.errors import RecipeError
    from singalaut.train.devices import DEVICES, device_of
    from singalaut.train.estimate import Fleet

    if tflops is not None and mfu is not None:
        raise RecipeError("`--tflops` and `--mfu` say the same", where="--mfu", hint="give one")
    device = device_of(gpu or _present_gpu() or "H100")
    if device is None:
        known = ", ".join(sorted({device.name for device in DEVICES.values()}))
        raise RecipeError(f"`{gpu}` is no GPU that is known", where="--gpu", hint=f"known: {known}")
    flops = tflops * 1e12 if tflops is not None else None
    if mfu is not None:
        flops = mfu * device.peak_flops
    return Fleet(device, gpus, flops, watts, price)


def _present_gpu() -> str | None:
    import torch

    from singalaut.train.devices import device_of

    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name()
    return name if device_of(name) else None


def _shape(stage: PlannedStage, plan: Plan, named: str | None) -> Gemma3Config:
    """The shape named, else that of the model the stage starts from, from its files or its name."""
    from dataclasses import replace

    from singalaut.errors import RecipeError
    from singalaut.model.config import SIZES
    from singalaut.model.hf import read_config

    if named is not None:
        if named.lower() not in SIZES:
            hint = "one of " + ", ".join(SIZES)
            raise RecipeError(f"`{named}` is no shape", where="--shape", hint=hint)
        return replace(SIZES[named.lower()], vision=None)
    sources = dict(plan.models)
    start = stage.config.inputs()["model"]
    model = sources.get(start, next(iter(sources.values())))
    if model.path is not None:
        return replace(read_config(model.path), vision=None)
    for size, shape in SIZES.items():
        if re.search(rf"(?<![0-9a-z]){size}(?![0-9a-z])", model.source.lower()):
            return replace(shape, vision=None)
    raise RecipeError(
        f"the shape of `{model.source}` is not known before it is there",
        where=stage.name,
        hint="say it with `--shape`",
    )


def _estimate(
    stage: PlannedStage,
    plan: Plan,
    shape: Gemma3Config,
    fleet: Fleet,
    length: int | None,
    rows: int | None,
    count: bool,
) -> Estimate:
    import math

    from singalaut.rl.config import RlConfig
    from singalaut.rl.plan import rl_estimate
    from singalaut.train.config import ApoConfig, SftConfig
    from singalaut.train.estimate import apo_estimate, sft_estimate

    config = stage.config
    if isinstance(config, RlConfig):
        return rl_estimate(config, shape, fleet, length)
    assert isinstance(config, SftConfig | ApoConfig)
    _check_processes(config, shape, fleet)
    lengths, found, notes = _lengths(stage, plan, length, rows, count)
    steps = config.steps or math.ceil((config.epochs or 1) * found / config.batch_size)
    if isinstance(config, ApoConfig):
        made = apo_estimate(config, shape, lengths, found, steps, fleet)
    else:
        made = sft_estimate(config, shape, lengths, steps, fleet)
    from dataclasses import replace

    return replace(made, notes=(*made.notes, *notes))


def _check_processes(config: SftConfig | ApoConfig, shape: Gemma3Config, fleet: Fleet) -> None:
    """Refuse what the stage itself would refuse of so many GPUs, or of this model."""
    from singalaut.errors import RecipeError
    from singalaut.train.tensor_parallel import check_split

    check_split(shape, config.tensor_parallel)
    needed = config.replicas * config.tensor_parallel
    if fleet.count % needed:
        raise RecipeError(
            f"`replicas = {config.replicas}` and `tensor_parallel = {config.tensor_parallel}` need "
            f"a multiple of {needed} GPUs, not {fleet.count}",
            where=config.name,
            hint=f"plan with `--gpus {needed}`, or lower them",
        )


def _lengths(
    stage: PlannedStage, plan: Plan, length: int | None, rows: int | None, count: bool
) -> tuple[Sequence[int], int, list[str]]:
    """Tokens of conversations, how many rows there are, and what is only guessed of that.

    Data that is there and not large is tokenised, as the stage itself would do, and kept.
    """
    from singalaut.errors import RecipeError
    from singalaut.train.config import ApoConfig, SftConfig

    config = stage.config
    assert isinstance(config, SftConfig | ApoConfig)
    if length is None or (rows is None and config.steps is None):
        counted = _counted(stage, plan, count)
        if counted is not None:
            lengths, found = counted
            return ([length] if length else lengths), rows or found, []
    if rows is None and config.steps is None:
        raise RecipeError(
            f"how many steps `{stage.name}` has is not known before its data is counted",
            where=f"{stage.name}.epochs",
            hint="say `--rows`; or run the stages before it, or count large files with `--count`",
        )
    notes = [] if length else [f"every conversation is taken to have {config.max_tokens} tokens"]
    return [length or config.max_tokens], rows or (config.steps or 1) * config.batch_size, notes


def _counted(stage: PlannedStage, plan: Plan, count: bool) -> tuple[Sequence[int], int] | None:
    """Lengths and rows of data that is there; None where it is not, or large."""
    from singalaut.data.preference import Pairs, make_pairs
    from singalaut.recipe.opening import model_path, source_paths
    from singalaut.train.config import ApoConfig, SftConfig
    from singalaut.train.material import open_material

    config, seed = stage.config, plan.recipe.seed
    if "model" not in stage.inputs or not stage.inputs["model"].path.exists():
        base = next(iter(plan.models.values())).path  # a later stage's tokenizer is the first one's
    else:
        base = model_path(stage, plan, "model")
    places = source_paths(stage, getattr(config, "data", ()))
    made = [label for label in stage.inputs if label.split(".")[0] in ("prepared", "pairs")]
    if made:
        places = [stage.inputs[label].path / "data" for label in made]
    there = [place for place in places if place is not None and place.exists()]
    size = sum(
        f.stat().st_size for place in there for f in [place, *place.rglob("*")] if f.is_file()
    )
    if base is None or len(there) < len(places) or (size > MOST_COUNTED_BYTES and not count):
        return None
    if isinstance(config, SftConfig):
        prepared = places[0] if "prepared" in stage.inputs else None
        material = open_material(config, base, places, seed, prepared)
        tokens = material.store.documents["tokens"]
        lengths = tokens[tokens <= config.max_tokens].tolist()
        return lengths, round(float(sum(material.mixture.quotas)))
    assert isinstance(config, ApoConfig)
    files = [p / "pairs.jsonl" if p.is_dir() else p for p in there]
    with tempfile.TemporaryDirectory() as folder:
        make_pairs(config.sources(), files, base, config.max_tokens, Path(folder) / "pairs")
        pairs = Pairs.open(Path(folder) / "pairs")
        return pairs.computed().tolist(), len(pairs)


def _row(
    stage: PlannedStage, shape: Gemma3Config, estimate: Estimate, fleet: Fleet
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "stage": stage.name,
        "kind": stage.config.kind,
        "shape": shape.size_name,
        "steps": estimate.steps,
        "tokens": f"{estimate.tokens:.3g}",
        "operations": f"{estimate.flops:.3g}",
        "hours": _short(estimate.hours),
        "kWh": _short(estimate.energy_kwh(fleet)),
        "GiB a GPU": f"{estimate.memory_bytes / GIB:.1f}",
    }
    if (cost := estimate.cost(fleet)) is not None:
        row["cost"] = f"{cost:.2f}"
    return row


def _short(value: float) -> str:
    return "<0.01" if value < 0.01 else f"{value:.3g}"


def _print_memory(
    stage: PlannedStage, shape: Gemma3Config, estimate: Estimate, fleet: Fleet
) -> None:
    from singalaut.cli import show
    from singalaut.train.plan import remedies

    room = fleet.device.memory_bytes
    fits = "fits" if estimate.memory_bytes <= room else "does NOT fit"
    print(f"\n{stage.name}: memory of each of {fleet.count} {fleet.device.name}, GiB")
    parts = [(name, size) for name, size in estimate.memory.items() if size]
    parts += [("all", estimate.memory_bytes), (f"there is ({fits})", room)]
    print(show.table([{"part": name, "GiB": round(size / GIB, 1)} for name, size in parts]))
    helps = remedies(estimate.memory, room, stage.config.model_dump())
    if estimate.memory_bytes > room and helps:
        print("what would help: " + " or ".join(helps))
    phases = ", ".join(f"{name} {_short(s / 3600)} h" for name, s in estimate.seconds.items() if s)
    told = f"time: {phases}; speed {estimate.speed_from}"
    print("\n".join([told, *(f"- {note}" for note in estimate.notes)]))


def _as_dict(
    stage: PlannedStage, shape: Gemma3Config, estimate: Estimate, fleet: Fleet
) -> dict[str, Any]:
    return {
        "kind": stage.config.kind,
        "shape": shape.size_name,
        "gpu": fleet.device.name,
        "gpus": fleet.count,
        "steps": estimate.steps,
        "tokens": estimate.tokens,
        "flops": estimate.flops,
        "seconds": estimate.seconds,
        "speed_from": estimate.speed_from,
        "energy_kwh": estimate.energy_kwh(fleet),
        "cost": estimate.cost(fleet),
        "memory_bytes": estimate.memory,
        "memory_bytes_in_all": estimate.memory_bytes,
        "memory_bytes_there": fleet.device.memory_bytes,
        "notes": list(estimate.notes),
    }
