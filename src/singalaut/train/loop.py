"""When a training stage gives up."""

from __future__ import annotations

from collections.abc import Sequence

from singalaut.artifact import Work
from singalaut.errors import DataError
from singalaut.train.checkpoint import Checkpoints


def no_progress(
    bad: Sequence[int], fault: tuple[float, float], checkpoints: Checkpoints, work: Work
) -> DataError:
    """The error that ends a run in which nothing is learned any more."""
    last = checkpoints.path()
    kept = "there is no checkpoint yet" if last is None else f"the last good one is {last.name}"
    return DataError(
        f"the loss is {fault[0]}, the gradient norm {fault[1]} at step {bad[-1]}"
        + (f", the last of {len(bad)} bad steps in a row" if len(bad) > 1 else "")
        + f"; {kept}",
        where=work.path,
        hint="lower `learning_rate` or look at the data",
    )
