"""The command `eval`: run an evaluation, and look at what came of one.

Without a command of its own, `eval` runs the stage; the commands below it read finished folders
and packs, and need no model.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from singalaut.cli.recipes import JsonOption, SetOption
from singalaut.cli.stages import (
    NAMED_HELP,
    OutputOption,
    RecipeOption,
    SeedOption,
    StageOption,
    labelled,
    run_stage,
)

if TYPE_CHECKING:
    from singalaut.evals.tasks import Pack, Task, TaskLanguage

PackOption = Annotated[
    str | None, typer.Option(help="`demo`, or the folder of a pack, of ours or SEA-HELM's.")
]
DataOption = Annotated[
    list[str], typer.Option(metavar="DIR", help="More folders with rows of an official pack.")
]
ProfileOption = Annotated[str | None, typer.Option(help="card, v1.0 or v1.2.  [card]")]
TaskOption = Annotated[list[str], typer.Option(help="Only this task.")]
LanguageOption = Annotated[list[str], typer.Option(help="Only this language.")]
ExtrasOption = Annotated[
    bool, typer.Option("--extras", help="Also what the official suite does not average.")
]
eval_app = typer.Typer(
    rich_markup_mode=None, help="Evaluate models, and look at evaluations and packs."
)


@eval_app.callback(invoke_without_command=True)
def evaluate(
    context: typer.Context,
    recipe: RecipeOption = None,
    stage: StageOption = None,
    overrides: SetOption = [],  # noqa: B006 - typer copies it
    model: Annotated[list[str], typer.Option(help=NAMED_HELP)] = [],  # noqa: B006
    endpoint: Annotated[
        list[str],
        typer.Option(metavar="URL#MODEL", help="A model behind an OpenAI-compatible endpoint."),
    ] = [],  # noqa: B006
    recorded: Annotated[
        list[str], typer.Option(metavar="FILE", help="Answers from a file of JSON lines.")
    ] = [],  # noqa: B006
    key_variable: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable with the access key.")
    ] = None,
    pack: PackOption = None,
    data: DataOption = [],  # noqa: B006
    profile: ProfileOption = None,
    task: TaskOption = [],  # noqa: B006
    language: LanguageOption = [],  # noqa: B006
    extras: ExtrasOption = False,
    limit: Annotated[int | None, typer.Option(help="Only the first rows of each.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each question.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy  [the model's own settings]")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(metavar="URL#MODEL", help="Who compares conversations.")
    ] = None,
    metricx: Annotated[
        str | None, typer.Option(metavar="DIR", help="A MetricX-24 checkpoint.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Answers generated at once.")] = None,
    tensor_parallel: Annotated[
        int | None, typer.Option(metavar="N", help="GPUs that hold a model together.")
    ] = None,
    seed: SeedOption = None,
    output: OutputOption = None,
) -> None:
    """Answer and score the tasks of a pack; prints the results and their folder."""
    if context.invoked_subcommand is not None:
        return
    from singalaut.cli.show import results
    from singalaut.recipe.plan import shown

    models = labelled("evaluate", model)
    taken = [*models]
    settings: dict[str, Any] = {
        "models": list(models),
        "endpoints": [_endpoint(text, key_variable, taken) for text in endpoint],
        "recorded": [{"name": _name(Path(f).stem, taken), "path": f} for f in recorded],
        "pack": pack,
        "data": data,
        "profile": profile,
        "tasks": task,
        "languages": language,
        "extras": extras or None,
        "limit": limit,
        "protocol": None if seeds is None else {"seeds": seeds},
        "temperature": temperature,
        "judge": None if judge is None else _address(judge, key_variable, "--judge"),
        "metricx": metricx,
        "batch_size": batch_size,
        "tensor_parallel": tensor_parallel,
    }
    flags = {"--seed": seed, "--output": output}
    made = run_stage("evaluate", recipe, stage, overrides, settings, models, flags)
    print(f"{results(made.path)}\n\n{shown(made.path)}")


@eval_app.command("report")
def report(
    folder: Annotated[Path, typer.Argument(metavar="EVALUATION", help="The folder of a stage.")],
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the page is written.")
    ] = None,
    answers: Annotated[int, typer.Option(min=0, help="Questions of each task to show.")] = 50,
) -> None:
    """Write an evaluation as one HTML page, to look through results and answers."""
    from singalaut.evals.output import load_results
    from singalaut.evals.report import write_report

    target = output or Path(f"{folder.resolve().name}.html")
    write_report(folder, load_results(folder), target, answers)
    print(target)


@eval_app.command("compare")
def compare(
    first: Annotated[str, typer.Argument(metavar="EVALUATION[:MODEL]", help="The one.")],
    second: Annotated[str, typer.Argument(metavar="EVALUATION[:MODEL]", help="The other.")],
    resamples: Annotated[int, typer.Option(min=100, help="Of the bootstrap.")] = 2000,
    as_json: JsonOption = False,
) -> None:
    """Show where the second model differs from the first, and whether by more than chance."""
    from singalaut.cli.show import as_json as json_text
    from singalaut.cli.show import table
    from singalaut.evals.compare import compare as compare_sides
    from singalaut.evals.compare import open_side

    found = compare_sides(open_side(first), open_side(second), resamples=resamples)
    if as_json:
        print(json_text(found))
        return
    rows = []
    for row in found["rows"]:
        low, high = row["interval"]
        p = row.get("p_holm", row["p"])
        rows.append(
            {
                "": row["name"],
                found["first"]: row["first"],
                f"{found['second']} ": row["second"],
                "difference": f"{row['difference']:+.1f}",
                "95 %": f"[{low:+.1f}, {high:+.1f}]",
                "p": f"{p:.3f}" + ("*" if p < 0.05 else ""),
            }
        )
    print(table(rows))
    print("normalised scores; p of tasks is corrected for their number (Holm), * below 0.05")
    for side, count in found["questions_only_in"].items():
        if count:
            print(f"{count} questions are only in the {side} evaluation", file=sys.stderr)
    for name in found["cells_not_comparable"]:
        print(
            f"{name}: not comparable: not scored, another metric, or other questions",
            file=sys.stderr,
        )


@eval_app.command("tasks")
def tasks(
    pack: PackOption = "demo",
    data: DataOption = [],  # noqa: B006
    profile: ProfileOption = None,
    task: TaskOption = [],  # noqa: B006
    language: LanguageOption = [],  # noqa: B006
    shots: Annotated[int, typer.Option(min=0, help="Worked examples before the question.")] = 0,
    prompt: Annotated[
        bool, typer.Option("--prompt", help="Show the first conversation of each.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the tasks of a pack, what their rows lack, and what languages they cover."""
    from singalaut.cli.show import as_json as json_text
    from singalaut.cli.show import table
    from singalaut.evals.catalogue import catalogue, coverage

    loaded, cells = _pack(pack, data, profile, task, language)
    entries = catalogue(cells, shots)
    if as_json:
        print(json_text({"tasks": entries, "coverage": coverage(loaded)}))
    elif prompt:
        for entry in entries:
            print(f"=== {entry['task']}.{entry['language']}")
            for role, text in entry["conversation"]:
                print(f"--- {role}\n{text}")
            if not entry["conversation"]:
                print(entry["problems"])
    else:
        names = ("task", "language", "metric", "rows", "counted", "chance", "licence", "problems")
        shown = [{name: entry[name] for name in names} for entry in entries]
        for row in shown:
            row["counted"] = "yes" if row["counted"] else "extra"
            row["chance"] = None if row["chance"] is None else f"{100 * row['chance']:.1f} %"
        print(table(shown))
        print()
        print(table(coverage(loaded)))
    lost = sum(entry["lost"] for entry in entries)
    if lost:
        print(f"{lost} rows cannot be used", file=sys.stderr)
        raise typer.Exit(2)


@eval_app.command("contamination")
def contamination(
    files: Annotated[list[Path], typer.Argument(metavar="DATA", help="Training rows, JSON lines.")],
    pack: PackOption = "demo",
    data: DataOption = [],  # noqa: B006
    profile: ProfileOption = None,
    task: TaskOption = [],  # noqa: B006
    language: LanguageOption = [],  # noqa: B006
    as_json: JsonOption = False,
) -> None:
    """Look whether training rows hold questions of a pack, whole or in long pieces."""
    from singalaut.cli.show import as_json as json_text
    from singalaut.cli.show import table
    from singalaut.evals.contamination import check

    _, cells = _pack(pack, data, profile, task, language)
    found = check([(t, spec) for t, spec in cells if spec.data is not None], files)
    if as_json:
        print(json_text(found))
        return
    rows = [
        {name: cell[name] for name in ("cell", "questions", "whole", "pieces")}
        for cell in found["cells"]
    ]
    print(table(rows))
    for cell in found["cells"]:
        for example in cell["examples"]:
            kind = "whole" if example["whole"] else "a piece"
            text = " ".join(example["text"].split())[:80]
            print(f"{cell['cell']}/{example['question']}, {kind}: {example['where']}: {text}")
    hit = sum(cell["pieces"] for cell in found["cells"])
    total = sum(cell["questions"] for cell in found["cells"])
    print(f"{hit} of {total} questions occur in {found['rows']} rows")


@eval_app.command("fetch")
def fetch(
    output: Annotated[Path, typer.Argument(metavar="DIR", help="Where the rows are written.")],
    pack: Annotated[str, typer.Option(help="The folder of SEA-HELM's task files.")],
    profile: ProfileOption = None,
    task: TaskOption = [],  # noqa: B006
    language: LanguageOption = [],  # noqa: B006
    extras: ExtrasOption = False,
) -> None:
    """Fetch the rows of official tasks from the Hugging Face hub; give DIR as `--data` after."""
    from singalaut.cli.show import table
    from singalaut.evals.hub import fetch_rows

    _, cells = _pack(pack, [], profile, task, language, extras=extras)
    rows = fetch_rows(cells, output)
    print(table(rows))
    if rows and all(str(row["state"]).startswith("not fetched") for row in rows):
        raise typer.Exit(1)


def _pack(
    pack: str | None,
    data: Sequence[str],
    profile: str | None,
    tasks: Sequence[str],
    languages: Sequence[str],
    extras: bool = True,
) -> tuple[Pack, list[tuple[Task, TaskLanguage]]]:
    from singalaut.errors import RecipeError
    from singalaut.evals.pack import load_pack, pack_path
    from singalaut.evals.profiles import PROFILES
    from singalaut.evals.tasks import choose

    if profile is not None and profile not in PROFILES:
        hint = f"the profiles are {', '.join(PROFILES)}"
        raise RecipeError(f"there is no profile `{profile}`", where="--profile", hint=hint)
    folder = pack_path(pack or "demo").expanduser()
    loaded = load_pack(folder, PROFILES[profile or "card"], [Path(d).expanduser() for d in data])
    return loaded, choose(loaded, tasks, languages, extras)


def _endpoint(text: str, key_variable: str | None, taken: list[str]) -> dict[str, Any]:
    address = _address(text, key_variable, "--endpoint")
    return {"name": _name(address["model"].rpartition("/")[2], taken), **address}


def _address(text: str, key_variable: str | None, option: str) -> dict[str, Any]:
    """`URL#MODEL` as settings; several addresses may be joined by commas."""
    from singalaut.errors import RecipeError

    urls, _, name = text.partition("#")
    if not name:
        hint = f"as in `{option} http://localhost:8000/v1#my-model`"
        raise RecipeError(f"`{text}` does not name a model", where=option, hint=hint)
    return {"urls": urls.split(","), "model": name, "key_variable": key_variable or ""}


def _name(name: str, taken: list[str]) -> str:
    """A name that no other column has."""
    count, free = 1, name
    while free in taken:
        count += 1
        free = f"{name}-{count}"
    taken.append(free)
    return free
