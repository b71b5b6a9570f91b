"""The command `singalaut`: what its commands are, and how errors become messages and exit codes.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from singalaut.cli import (
    aligning,
    data,
    doctor,
    evaluation,
    merging,
    models,
    planning,
    recipes,
    rewarding,
    selecting,
    stages,
    talk,
    watching,
)
from singalaut.cli.logs import start_logging

STOPPED = "stopped; finished stages and checkpoints are kept, run the same command to go on"
EXIT_STOPPED = 130  # 128 + SIGINT, as shells count


class Commands(TyperGroup):
    """The group of all commands; an error in any of them ends here."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[:2] == ["merge", "search"]:  # a command of two words, beside `merge MODEL…`
            args = ["merge search", *args[2:]]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a reader that has gone away is noticed here, not at exit
            return result
        except KeyboardInterrupt:
            print(f"\n{STOPPED}", file=sys.stderr)
            raise typer.Exit(EXIT_STOPPED) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except Exception as error:
            if isinstance(error, typer.Exit | typer.Abort) or hasattr(error, "show"):
                raise  # the parser's own, which it shows itself
            if ctx.params["debug"]:
                traceback.print_exc()
            text, code = explain(error)
            _tell_launcher(text, error)
            print(_of_process(text), file=sys.stderr)
            raise typer.Exit(code) from None


def explain(error: Exception) -> tuple[str, int]:
    """The message for an error, and the exit code: 2 where the user can mend it, else 1."""
    from singalaut.errors import MachineError, SingalautError, from_os_error

    if _is_memory(error):
        hint = "lower `micro_tokens` (training) or `batch_size` (answers), or use a smaller model"
        error = MachineError("the memory of this machine does not suffice", hint=hint)
    elif _is_lost_process(error):
        error = MachineError(
            "another process of the job has ended, so this one cannot go on",
            hint="`torchrun` names it below as the root cause; exit code -9 often means that the "
            "system ran out of memory. The same command goes on from the last checkpoint",
        )
    elif isinstance(error, OSError):
        error = from_os_error(error)
    if isinstance(error, SingalautError):
        return f"error: {error}", error.exit_code
    kind = type(error).__name__
    return f"internal error: {kind}: {error}\n  hint: `singalaut --debug …` shows where", 1


def _is_memory(error: Exception) -> bool:
    """Python's, CUDA's and the CPU allocator's ways to say that memory has run out."""
    name = type(error).__name__
    return name in ("MemoryError", "OutOfMemoryError") or (
        isinstance(error, RuntimeError) and "allocate memory" in str(error)
    )


def _is_lost_process(error: Exception) -> bool:
    """How NCCL and gloo say that they do not hear of another process any more."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not isinstance(error, RuntimeError):
        return False
    text = str(error).lower()
    is_network = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    return is_network or "gloo" in text or "connection closed by peer" in text


def _of_process(text: str) -> str:
    """An error's text, with the process whose it is where there are several."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return text if size == 1 else f"process {os.environ.get('RANK')} of {size}: {text}"


def _tell_launcher(text: str, error: Exception) -> None:
    """Let `torchrun` say in its report why a process ended, if it is not for another's sake."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file and not _is_lost_process(error):
        import json
        import time

        about = {"py_callstack": text, "timestamp": str(int(time.time()))}
        with suppress(OSError):
            report = {"message": {"message": text, "extraInfo": about}}
            Path(file).write_text(json.dumps(report), encoding="utf-8")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print("singalaut", version("singalaut"))
        raise typer.Exit


def _top(
    debug: Annotated[bool, typer.Option("--debug", help="Show where errors come from.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Post-train, evaluate and publish language models for Southeast Asian languages."""
    start_logging()


app = typer.Typer(
    cls=Commands,
    callback=_top,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("run")(recipes.run)
recipe_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look into a recipe.")
recipe_app.command("show")(recipes.show)
recipe_app.command("plan")(planning.plan)
app.add_typer(recipe_app, name="recipe")
app.command("status")(recipes.status)
app.command("report")(watching.report)
app.command("prepare")(stages.prepare)
data_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at prepared data.")
data_app.command("report")(data.report)
app.add_typer(data_app, name="data")
app.command("select")(selecting.select)
app.command("sft")(stages.sft)
app.command("pairs")(aligning.pairs)
app.command("apo")(aligning.apo)
app.command("merge")(merging.merge)
app.command("merge search")(merging.merge_search)
app.command("rl")(rewarding.rl)
reward_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Try out rewards.")
reward_app.command("check")(rewarding.check)
app.add_typer(reward_app, name="rewards")
app.add_typer(evaluation.eval_app, name="eval")
app.command("generate")(talk.generate)
app.command("chat")(talk.chat)
app.command("convert")(models.convert)
app.command("inspect")(models.inspect)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Run the command line and exit."""
    app()
