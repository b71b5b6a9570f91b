"""The moving average of what is trained, kept in float32 beside it and cut as it is.

average = d · average + (1 − d) · weight after every step that was taken, with
d = min(decay, (1 + step) / (10 + step)), so that a short run is not held at where it began.
Averages of weights generalise better than the last ones: arXiv 1803.05407 (there of equal weight).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from singalaut.train.parallel import local, put_away


class Average:
    """Averages of a model's trainable parameters, by name."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, decay: float):
        self._model, self._optimizer, self._decay = model, optimizer, decay
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.kept = {
            name: parameter.detach().to(torch.float32, copy=True)
            for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Take in the weights after step `step`: the float32 copy where the optimiser has one."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters.items():
            exact = self._optimizer.state[parameter].get("master", parameter)
            local(self.kept[name]).lerp_(local(exact).float(), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the averages as its weights; what it had waits on the host."""
        before = {name: local(p).detach().cpu().clone() for name, p in self._parameters.items()}
        self._put({name: local(kept) for name, kept in self.kept.items()})
        try:
            yield
        finally:
            self._put(before)

    @torch.no_grad()
    def _put(self, weights: dict[str, Tensor]) -> None:
        put_away(self._model)
        for name, parameter in self._parameters.items():
            local(parameter).copy_(weights[name])
