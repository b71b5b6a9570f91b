"""When a training stage gives up."""

from __future__ import annotations

import math
from collections.abc import Sequence

from singalaut.artifact import Work
from singalaut.errors import DataError
from singalaut.train.checkpoint import Checkpoints


def why_left_out(fault: tuple[float, float], limit: float | None) -> str:
    """Why a step was not taken: `fault` is its loss and gradient norm, `limit` what is a spike."""
    loss, norm = fault
    told = f"loss {loss:.4g}, gradient norm {norm:.4g}"
    if is_spike(fault, limit):
        return f"{told}, a spike: more than {limit:.4g}"
    return f"{told}, not finite"


def is_spike(fault: tuple[float, float], limit: float | None) -> bool:
    """Whether loss and gradient norm are numbers, and the norm too large a one."""
    loss, norm = fault
    return limit is not None and math.isfinite(loss) and limit < norm < math.inf


def no_progress(
    bad: Sequence[int],
    fault: tuple[float, float],
    checkpoints: Checkpoints,
    work: Work,
    limit: float | None = None,
) -> DataError:
    """The error that ends a run in which nothing is learned any more."""
    last = checkpoints.path()
    remedy = "lower `learning_rate` or look at the data"
    if bad[0] == 0:
        remedy = "no step was ever taken: look at the weights it began with, and at the data"
    kept = "there is no checkpoint yet" if last is None else f"the last good one is {last.name}"
    return DataError(
        f"step {bad[-1]} cannot be taken: {why_left_out(fault, limit)}"
        + (f", the last of {len(bad)} bad steps in a row" if len(bad) > 1 else "")
        + f"; {kept}",
        where=work.path,
        hint=remedy + ("; or raise `spike`, or take it out" if is_spike(fault, limit) else ""),
    )
