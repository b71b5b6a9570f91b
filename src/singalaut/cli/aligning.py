"""Commands of alignment: pairs, apo."""

from __future__ import annotations

from typing import Annotated

import typer

from singalaut.cli.recipes import SetOption
from singalaut.cli.stages import (
    MODEL_HELP,
    DataOption,
    OutputOption,
    RecipeOption,
    SeedOption,
    StageOption,
    pairs_source,
    prompt_source,
    run_stage,
)


def pairs(
    recipe: RecipeOption = None,
    stage: StageOption = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    prompts: Annotated[
        list[str],
        typer.Option(metavar="FILE|FOLDER", help="Prompts in JSON lines, with constraints."),
    ] = [],  # noqa: B006 - typer copies it
    generate: Annotated[
        int | None, typer.Option(help="Compose so many prompts with constraints.")
    ] = None,
    language: Annotated[list[str], typer.Option(help="Of composed prompts.")] = [],  # noqa: B006
    method: Annotated[str | None, typer.Option(help="fix, rewrite or sample  [fix]")] = None,
    rewriter: Annotated[
        str | None, typer.Option(help="A model, or the address of an endpoint (http…/v1).")
    ] = None,
    rewriter_name: Annotated[
        str | None, typer.Option(help="What the endpoint calls its model.")
    ] = None,
    key_variable: Annotated[
        str | None, typer.Option(help="Environment variable with the key of endpoints.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="Who has to prefer the chosen answer: a model or an address.")
    ] = None,
    judge_name: Annotated[
        str | None, typer.Option(help="What the judge's endpoint calls its model.")
    ] = None,
    samples: Annotated[int | None, typer.Option(help="Own answers to each prompt.")] = None,
    evaluation: Annotated[
        list[str], typer.Option(metavar="PACK", help="Leave out prompts that hold its texts.")
    ] = [],  # noqa: B006
    seed: SeedOption = None,
    output: OutputOption = None,
) -> None:
    """Make pairs: the model's own answers, and better ones; prints the folder."""
    from singalaut.errors import RecipeError
    from singalaut.recipe.plan import shown

    sources: list[dict[str, object]] = [prompt_source(place) for place in prompts]
    if generate is not None:
        sources.append({"generate": generate, "languages": language or ["en"]})
    models = {} if model is None else {"base": model}
    asked = {"rewriter": (rewriter, rewriter_name), "judge": (judge, judge_name)}
    given: dict[str, dict[str, object]] = {}
    for label, (who, name) in asked.items():
        if who is not None and who.startswith(("http://", "https://")):
            if name is None:
                what, flag = f"the model at the endpoint `{who}` has no name", f"--{label}-name"
                raise RecipeError(what, where=f"--{label}", hint=f"give it with `{flag}`")
            endpoint = {"urls": [who], "model": name, "key_variable": key_variable or ""}
            given[label] = {"endpoint": endpoint}
        elif who is not None:
            models[label] = who
            given[label] = {"model": label}
    settings = {
        "prompts": sources,
        "method": method or (None if rewriter is None else "rewrite"),
        "rewriter": given.get("rewriter"),
        "judge": given.get("judge"),
        "samples": samples,
        "evaluations": evaluation,
    }
    flags = {"--model": model, "--seed": seed, "--output": output}
    made = run_stage("pairs", recipe, stage, overrides, settings, models, flags)
    print(shown(made.path))


def apo(
    recipe: RecipeOption = None,
    stage: StageOption = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    data: DataOption = [],  # noqa: B006 - typer copies it
    loss: Annotated[
        str | None, typer.Option(help="apo-zero, apo-down, dpo, ipo or simpo  [apo-zero]")
    ] = None,
    beta: Annotated[float | None, typer.Option(help="How strongly the model is held.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the pairs instead.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs in a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak of the schedule.")] = None,
    rank: Annotated[int | None, typer.Option(help="Train an adapter of this rank.")] = None,
    seed: SeedOption = None,
    output: OutputOption = None,
) -> None:
    """Align a model with pairs of a chosen and a rejected answer; prints the folder."""
    from singalaut.recipe.plan import shown

    settings = {
        "data": [pairs_source(place) for place in data],
        "loss": loss,
        "beta": beta,
        "steps": steps,
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "adapter": None if rank is None else {"rank": rank},
    }
    flags = {"--model": model, "--seed": seed, "--output": output}
    models = {} if model is None else {"base": model}
    made = run_stage("apo", recipe, stage, overrides, settings, models, flags)
    print(shown(made.path))
