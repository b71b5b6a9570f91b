"""The weights as the engine runs them: query, key and value in one matrix, gate and up in another.

Where the model's parameters have the engine's dtype and no adapter, they become parts of these
matrices: no copy, and what a trainer changes in place is what the engine computes with. Other
parameters (float32 masters, low-rank adapters) are copied by `refresh`, and so are weights in eight
bits, beside which the model keeps its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from singalaut.generate.kernels.matmul import Matrix, Quantised
from singalaut.model.gemma3 import Gemma3, Layer
from singalaut.model.linear import Linear
from singalaut.model.lora import LoraLinear


@dataclass
class LayerWeights:
    """One layer; matrices are [out, in], norms as stored, without the one that is added."""

    attention_norm: Tensor
    qkv: Matrix
    query_norm: Tensor
    key_norm: Tensor
    output: Matrix
    attention_post_norm: Tensor
    mlp_norm: Tensor
    gate_up: Matrix
    down: Matrix
    mlp_post_norm: Tensor


class EngineWeights:
    """All weights of the text decoder in `dtype`, matrices in `kind` where it is given.

    `embedding` is what tokens are looked up in, `head` the same numbers for logits.
    """

    def __init__(self, model: Gemma3, dtype: torch.dtype, kind: str | None = None):
        self.model, self.dtype, self.kind = model, dtype, kind
        self.copied_bytes = 0
        self.embedding = self._shared([model.embedding])
        self.head = self._matrix([model.embedding])
        self.layers = [self._layer(layer) for layer in model.layers]
        self.final_norm = self._norm(model.final_norm)

    def refresh(self) -> None:
        """Copy again what is no part of the model's own parameters."""
        with torch.no_grad():
            if self.embedding.data_ptr() != self.model.embedding.weight.data_ptr():
                self.embedding.copy_(self.model.embedding.weight)
            if isinstance(self.head, Quantised):
                self.head.fill(self.embedding)
            for mine, layer in zip(self.layers, self.model.layers, strict=True):
                for matrix, modules in _matrices(mine, layer):
                    if isinstance(matrix, Quantised):
                        matrix.fill(self._joined(modules))
                    else:
                        self._fill(matrix, modules)

    def _layer(self, layer: nn.Module) -> LayerWeights:
        assert isinstance(layer, Layer)
        attention, mlp = layer.attention, layer.mlp
        return LayerWeights(
            attention_norm=self._norm(layer.attention_norm),
            qkv=self._matrix([attention.query, attention.key, attention.value]),
            query_norm=self._norm(attention.query_norm),
            key_norm=self._norm(attention.key_norm),
            output=self._matrix([attention.output]),
            attention_post_norm=self._norm(layer.attention_post_norm),
            mlp_norm=self._norm(layer.mlp_norm),
            gate_up=self._matrix([mlp.gate, mlp.up]),
            down=self._matrix([mlp.down]),
            mlp_post_norm=self._norm(layer.mlp_post_norm),
        )

    @staticmethod
    def _norm(module: nn.Module) -> Tensor:
        return module.weight.detach()  # type: ignore[operator]

    def _matrix(self, modules: Sequence[nn.Module]) -> Matrix:
        """The modules' weights above each other, as products take them."""
        if self.kind is None:
            return self._shared(modules)
        found = Quantised.of(self._joined(modules), self.kind)
        self.copied_bytes += found.values.numel() + 4 * found.scales.numel()
        return found

    def _joined(self, modules: Sequence[nn.Module]) -> Tensor:
        weights = [_plain_weight(module) for module in modules]
        shape = sum(len(weight) for weight in weights), weights[0].shape[1]
        whole = torch.empty(shape, dtype=self.dtype, device=weights[0].device)
        self._fill(whole, modules)
        return whole

    def _shared(self, modules: Sequence[nn.Module]) -> Tensor:
        """The modules' weights above each other; the parameters become its parts if they can."""
        weights = [_plain_weight(module) for module in modules]
        rows = [weight.shape[0] for weight in weights]
        can_share = all(
            isinstance(module, Linear) and weight.dtype == self.dtype
            for module, weight in zip(modules, weights, strict=True)
        )
        if can_share and len(modules) == 1:
            return weights[0].detach()
        if can_share and _are_parts_of_one(weights):
            return torch.as_strided(
                weights[0].detach(), (sum(rows), weights[0].shape[1]), weights[0].stride()
            )
        whole = torch.empty(
            sum(rows), weights[0].shape[1], dtype=self.dtype, device=weights[0].device
        )
        if can_share:
            for module, part in zip(modules, whole.split(rows), strict=True):
                assert isinstance(module, Linear)
                part.copy_(module.weight.detach())
                module.weight.data = part
        else:
            self._fill(whole, modules)
            self.copied_bytes += whole.numel() * whole.element_size()
        return whole

    def _fill(self, whole: Tensor, modules: Sequence[nn.Module]) -> None:
        rows = [_plain_weight(module).shape[0] for module in modules]
        for module, part in zip(modules, whole.split(rows), strict=True):
            weight = _plain_weight(module).detach()
            if isinstance(module, LoraLinear):
                update = module.scale * (module.b.detach().float() @ module.a.detach().float())
                part.copy_(weight.float() + update)
            elif part.data_ptr() != weight.data_ptr():
                part.copy_(weight)


def _matrices(mine: LayerWeights, layer: nn.Module) -> list[tuple[Matrix, list[nn.Module]]]:
    assert isinstance(layer, Layer)
    attention, mlp = layer.attention, layer.mlp
    return [
        (mine.qkv, [attention.query, attention.key, attention.value]),
        (mine.output, [attention.output]),
        (mine.gate_up, [mlp.gate, mlp.up]),
        (mine.down, [mlp.down]),
    ]


def _plain_weight(module: nn.Module) -> Tensor:
    base = module.base if isinstance(module, LoraLinear) else module
    assert isinstance(base, Linear)
    return base.weight


def _are_parts_of_one(weights: Sequence[Tensor]) -> bool:
    """Whether the weights lie directly after each other in one storage, as an engine left them."""
    place = weights[0].data_ptr()
    storage = weights[0].untyped_storage().data_ptr()
    for weight in weights:
        if weight.data_ptr() != place or weight.untyped_storage().data_ptr() != storage:
            return False
        place += weight.numel() * weight.element_size()
    return True
