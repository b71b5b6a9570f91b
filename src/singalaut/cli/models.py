"""Commands on checkpoints: convert and inspect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from singalaut.cli.recipes import JsonOption
from singalaut.cli.stages import NAMED_HELP


def convert(
    source: Annotated[str, typer.Argument(help=NAMED_HELP + " Or an adapter directory.")],
    output: Annotated[Path, typer.Argument(help="The directory or `.gguf` file that is made.")],
    dtype: Annotated[
        str | None, typer.Option(help="Directories: float32 or bfloat16; else as it is.")
    ] = None,
    quant: Annotated[
        str | None, typer.Option(help="GGUF: F32, F16, BF16, Q8_0, Q4_0, Q4_K_M, Q5_K_M, Q6_K …")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The model that an adapter belongs to.")] = None,
    mmproj: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The vision part of a GGUF file  [mmproj-SOURCE beside it]"
        ),
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="Which checkpoint of a stage in training  [the last]")
    ] = None,
    adapter_only: Annotated[
        bool, typer.Option("--adapter-only", help="Of such a stage, the adapter, not folded in.")
    ] = False,
) -> None:
    """Write a model as a Hugging Face directory or a GGUF file; prints what was written.

    The vision part of a model goes to `mmproj-OUTPUT`, a GGUF file of its own, as llama.cpp has it;
    an OUTPUT named `mmproj….gguf` is that part alone. SOURCE may be the folder of a stage that is
    training or was stopped: its last checkpoint is written, or that of `--step`.
    """
    from singalaut.train.export import checkpoints_of

    if step is not None or adapter_only or checkpoints_of(Path(source).expanduser()):
        print(_export(Path(source).expanduser(), output, step, base, dtype, quant, adapter_only))
        return
    from singalaut.checkpoint.convert import convert as convert_model

    base_folder = None if base is None else open_named(base)
    written = convert_model(
        _checkpoint(source), output, dtype=dtype, quant=quant, base=base_folder, mmproj=mmproj
    )
    print(*written, sep="\n")


def _export(
    source: Path,
    output: Path,
    step: int | None,
    base: str | None,
    dtype: str | None,
    quant: str | None,
    adapter_only: bool,
) -> Path:
    """A checkpoint of training as a directory."""
    from singalaut.errors import RecipeError
    from singalaut.train.export import export_checkpoint

    if quant is not None or output.suffix == ".gguf":
        raise RecipeError(
            "a checkpoint of training becomes a directory",
            where=output,
            hint="name the output without `.gguf`, then convert it",
        )
    return export_checkpoint(
        source,
        output,
        step=step,
        base=None if base is None else open_named(base),
        dtype=dtype,
        adapter_only=adapter_only,
    )


def inspect(
    source: Annotated[str, typer.Argument(help=NAMED_HELP)], as_json: JsonOption = False
) -> None:
    """Print what a model is: shape, size, dtypes, memory by context and batch, tokenizer checks."""
    from singalaut.checkpoint.inspect import inspect as inspect_model
    from singalaut.cli.show import as_json as json_text
    from singalaut.cli.show import table

    facts = inspect_model(_checkpoint(source))
    if as_json:
        print(json_text(facts))
        return
    memory = facts.pop("memory_bfloat16", [])
    print(table([{"what": name, "value": _plain(value)} for name, value in facts.items()]))
    if memory:
        print("\nmemory in bfloat16, weights and cache; activations come on top")
        print(table(memory))


def _checkpoint(source: str) -> Path:
    """A file or an adapter itself; any other name as in recipes."""
    path = Path(source).expanduser()
    itself = path.is_file() or (path / "adapter_config.json").exists()
    return path if itself and not (path / "config.json").exists() else open_named(source)


def open_named(source: str) -> Path:
    """The directory of a model's name, which may also be `RECIPE.toml:STAGE`."""
    from singalaut.recipe.opening import open_model
    from singalaut.recipe.run import stage_model

    recipe, _, stage = source.rpartition(":")
    if recipe.endswith(".toml"):
        return stage_model(Path(recipe), stage)
    return open_model(source, Path())


def _plain(value: object) -> str:
    """A value in one line of a table."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
