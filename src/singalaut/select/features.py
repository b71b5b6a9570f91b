"""Projected gradients of many documents on disk: half-precision, mapped, written block by block.

Files hold the projection of each gradient divided by its length, so that half precision suffices,
and the length apart. A killed run goes on at the next block. Gradients of the pool are turned into
the step that Adam would take along them, those of targets are not. Source: arXiv 2402.04333.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from singalaut.artifact import write_atomic
from singalaut.model.gemma3 import Gemma3
from singalaut.progress import Bar
from singalaut.select.gradients import SampleGradients
from singalaut.select.project import Sketch
from singalaut.train.optim import BETAS

BLOCK = 256  # documents that are written together
EPSILON = 1e-8
Precondition = Callable[[str, Tensor], Tensor]
GradientsOf = Callable[[np.ndarray], Iterable[tuple[np.ndarray, SampleGradients]]]


@dataclass(frozen=True)
class Features:
    """`vectors` [documents, D] half, `norms` and `losses` [documents] float32; all mapped."""

    vectors: np.ndarray
    norms: np.ndarray
    losses: np.ndarray


def adam_steps(model: Gemma3, optimizer: torch.optim.Optimizer) -> Precondition:
    """m̂ / (√v̂ + ε) after one more step with each gradient alone, from the optimiser's moments."""
    named = dict(model.named_parameters())
    first, second = BETAS

    def step(name: str, gradients_nP: Tensor) -> Tensor:
        state = optimizer.state[named[name]]
        number = float(state["step"]) + 1
        mean = torch.lerp(gradients_nP, state["exp_avg"].flatten(), first)
        square = torch.lerp(gradients_nP.square(), state["exp_avg_sq"].flatten(), second)
        root = (square / (1 - second**number)).sqrt_().add_(EPSILON)
        return mean.div_(1 - first**number).div_(root)

    return step


def measure(
    tokens: np.ndarray,
    gradients_of: GradientsOf,
    sketch: Sketch,
    precondition: Precondition | None,
    folder: Path,
    bar: Bar,
) -> Features:
    """The features of samples with so many `tokens` each, from `folder` as far as they are there.

    `gradients_of` gives places and gradients, row by row, of the samples at these places.
    """
    folder.mkdir(parents=True, exist_ok=True)
    features = _open(folder, len(tokens), sketch.dimensions)
    by_length = np.argsort(tokens, kind="stable")
    done_file = folder / "done"
    done = int(done_file.read_text()) if done_file.exists() else 0
    bar.advance(min(done, len(tokens)))
    for start in range(done, len(tokens), BLOCK):
        places = by_length[start : start + BLOCK]
        for at, found in gradients_of(places):
            vectors, norms, losses = project(found, sketch, precondition)
            features.vectors[at] = vectors.cpu().numpy().astype(np.float16)
            features.norms[at] = norms.cpu().numpy()
            features.losses[at] = losses.cpu().numpy()
        for part in (features.vectors, features.norms, features.losses):
            part.flush()  # type: ignore[attr-defined]
        write_atomic(done_file, str(start + len(places)).encode())
        bar.advance(len(places))
    return features


def project(
    found: SampleGradients, sketch: Sketch, precondition: Precondition | None
) -> tuple[Tensor, Tensor, Tensor]:
    """[n, D] projections over lengths, [n] lengths and losses of the samples of a row."""
    count = len(found.losses)
    total_Dn = torch.zeros(sketch.dimensions, count, device=found.losses.device)
    squares_n = torch.zeros(count, device=found.losses.device)
    for name, gradients_nP in found.pieces:
        taken = gradients_nP if precondition is None else precondition(name, gradients_nP)
        sketch.add(total_Dn, name, taken)
        squares_n += taken.square().sum(1)
    norms_n = squares_n.sqrt()
    return (total_Dn / norms_n.clamp(min=1e-30)).T, norms_n, found.losses


def joined(parts: Sequence[Features]) -> np.ndarray:
    """[documents, checkpoints]: lengths of gradients."""
    return np.stack([part.norms for part in parts], 1)


def _open(folder: Path, count: int, dimensions: int) -> Features:
    def mapped(name: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        file = folder / f"{name}.bin"
        mode = "r+" if file.exists() else "w+"
        return np.memmap(file, dtype=dtype, mode=mode, shape=shape)  # type: ignore[call-overload]

    return Features(
        mapped("vectors", (count, dimensions), np.float16),
        mapped("norms", (count,), np.float32),
        mapped("losses", (count,), np.float32),
    )
