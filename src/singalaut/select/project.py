"""Gradients to short vectors whose inner products are nearly the same, by a seeded projection.

Every weight is added to one of D numbers, with a random sign: a sparse random projection, whose
matrix is two numbers a weight and is never written out. E⟨Sx, Sy⟩ = ⟨x, y⟩, with a variance of
about (‖x‖² ‖y‖² + ⟨x, y⟩²) / D, as of a dense matrix of random signs, for vectors that have no few
dominant entries. Source: count sketch; its place among such projections is that of
arXiv 1012.1577. LESS (arXiv 2402.04333) uses a dense matrix of signs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from singalaut.contracts import derive


class Sketch:
    """The projection of a seed; weights are known by the name of their parameter."""

    def __init__(self, dimensions: int, seed: int, device: torch.device):
        self.dimensions, self._seed, self._device = dimensions, seed, device
        self._known: dict[str, tuple[Tensor, Tensor]] = {}

    def add(self, total_Dn: Tensor, name: str, values_nP: Tensor) -> None:
        """Add the projection of a parameter's part of n vectors to `total_Dn`, in place."""
        if name not in self._known:
            self._known[name] = self._make(name, values_nP.shape[1])
        places_P, signs_P = self._known[name]
        total_Dn.index_add_(0, places_P, (values_nP * signs_P).T.contiguous())

    def _make(self, name: str, size: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(derive(self._seed, "sketch", name))
        places = torch.randint(0, self.dimensions, (size,), generator=generator)
        signs = torch.randint(0, 2, (size,), generator=generator).mul_(2).sub_(1)
        return places.to(self._device), signs.to(self._device, torch.float32)
