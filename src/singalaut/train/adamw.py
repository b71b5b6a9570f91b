"""AdamW for weights in any precision, with moments in 32, 16 or 8 bits.

Weights in bfloat16 need care: a step is often smaller than half the distance between two bfloat16
numbers, and rounding to the nearest would lose it. Either a float32 copy of the weights takes the
steps (`master`), or weights are rounded up or down at random, so that their mean is right
(`rounded`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from singalaut.contracts import derive
from singalaut.train.moments import Coded, blocks_of
from singalaut.train.parallel import like, local

Precision = Literal["float32", "master", "rounded"]
Moments = Literal["full", "int8"]
BETAS = (0.9, 0.95)
MOMENTS = {"exp_avg": torch.int8, "exp_avg_sq": torch.uint8}


class AdamW(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101); all arithmetic is float32.

    `float32` steps the weights themselves. With `master`, weights are kept in float32 beside the
    bfloat16 ones, with moments in float32. With `rounded`, a number that is written is rounded up
    with the probability that makes its mean right (stochastic rounding, arXiv 2010.06192), and
    nothing is kept but moments in bfloat16. `int8` keeps the moments of matrices in 8 bits
    (`moments.py`). Which way a number goes is a function of the seed, the step, and its place: a
    resumed run repeats it.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        learning_rate: float,
        *,
        precision: Precision,
        seed: int,
        moments: Moments = "full",
        betas: tuple[float, float] = BETAS,
        eps: float = 1e-8,
    ):
        super().__init__(groups, {"lr": learning_rate, "betas": betas, "eps": eps})
        self.precision, self.moments, self.seed = precision, moments, seed

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step along the gradients that are there."""
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if parameter.grad is not None and group.get("rule", "adamw") == "adamw":
                    self._update(parameter, group, number)

    def state_of(
        self, parameter: nn.Parameter, moments: Mapping[str, torch.dtype]
    ) -> dict[str, Tensor]:
        """What is kept of a parameter, with the step counted that is being made.

        `moments` says what codes of each moment are in 8 bits.
        """
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            for name, dtype in moments.items():
                state.update(self._fresh_moment(name, parameter, dtype))
            if self.precision == "master":
                state["master"] = parameter.detach().to(torch.float32, copy=True)
        state["step"] += 1
        return state

    def _fresh_moment(
        self, name: str, parameter: nn.Parameter, codes: torch.dtype
    ) -> dict[str, Tensor]:
        if self.moments == "int8" and parameter.ndim == 2:
            scales = like(parameter, blocks_of(local(parameter).shape[1]), torch.float32)
            return {name: torch.zeros_like(parameter, dtype=codes), f"{name}_scale": scales}
        dtype = parameter.dtype if self.precision == "rounded" else torch.float32
        return {name: torch.zeros_like(parameter, dtype=dtype)}

    def _update(self, parameter: nn.Parameter, group: dict[str, Any], number: int) -> None:
        state = self.state_of(parameter, MOMENTS)
        step = int(state["step"].item())  # it lies on the host
        first, second = group["betas"]
        numbers = (
            group["lr"] / (1 - first**step),
            group["lr"] * group["weight_decay"],
            math.sqrt(1 - second**step),
            first,
            second,
            group["eps"],
        )
        weight, gradient = local(parameter), local(parameter.grad)
        mean, square = moment(state, "exp_avg"), moment(state, "exp_avg_sq")
        master = self.exact(weight, state)
        seed = self.seed_of(step, number)
        if weight.is_cuda:
            from singalaut.train.kernels import adamw_step

            adamw_step(weight, gradient, mean, square, master, numbers, seed)
        else:
            plain_step(weight, gradient, mean, square, master, numbers, seed)

    def exact(self, weight: Tensor, state: dict[str, Tensor]) -> Tensor | None:
        """The float32 weights that take the steps, if there are any."""
        if self.precision == "float32":
            return weight
        return local(state["master"]) if self.precision == "master" else None

    def seed_of(self, step: int, number: int) -> int:
        """What decides how the numbers of a parameter are rounded in a step."""
        return derive(self.seed, "rounding", step, number) & 0x7FFFFFFF


def moment(state: dict[str, Tensor], name: str) -> Tensor | Coded:
    """A moment of a parameter as this process holds it."""
    if f"{name}_scale" in state:
        return Coded(local(state[name]), local(state[f"{name}_scale"]))
    return local(state[name])


def plain_step(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor | Coded,
    square: Tensor | Coded,
    master: Tensor | None,
    numbers: tuple[float, ...],
    seed: int,
) -> None:
    """One AdamW step in PyTorch's own operations; what the kernel is held to.

    m = β₁ m + (1 − β₁) g;  v = β₂ v + (1 − β₂) g²;  w = (1 − decay) w − rate m / (√v / root + ε).
    """
    rate, decay, root_correction, first, second, eps = numbers
    g = gradient.float()
    m = read(mean).lerp_(g, 1 - first)
    v = read(square).mul_(second).addcmul_(g, g, value=1 - second)
    w = (weight.float() if master is None else master).mul(1 - decay)
    w.addcdiv_(m, v.sqrt().div_(root_correction).add_(eps), value=-rate)
    generator = torch.Generator(weight.device).manual_seed(seed)
    write_weight(weight, master, w, generator)
    for target, exact in ((mean, m), (square, v)):
        write(target, exact, generator)


def read(target: Tensor | Coded) -> Tensor:
    """The numbers of a moment, float32, in memory of their own."""
    if isinstance(target, Coded):
        return target.decoded()
    return target.to(torch.float32, copy=True)


def write(target: Tensor | Coded, numbers: Tensor, generator: torch.Generator) -> None:
    """Keep float32 numbers in what a moment has for them."""
    if isinstance(target, Coded):
        target.encode(numbers, generator)
    elif target.dtype == torch.float32:
        target.copy_(numbers)
    else:
        target.copy_(randomly_rounded(numbers, generator))


def write_weight(
    weight: Tensor, master: Tensor | None, numbers: Tensor, generator: torch.Generator
) -> None:
    """Keep float32 numbers as weights: exactly where there is a float32 copy, else on average."""
    if master is not None:
        master.copy_(numbers)
        weight.copy_(numbers)
    else:
        weight.copy_(randomly_rounded(numbers, generator))


def randomly_rounded(x: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 to one of the two bfloat16 neighbours, the nearer the likelier; infinities stay."""
    bits = x.view(torch.int32)
    noise = torch.randint(
        0, 1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator
    )
    up = torch.where(x.isfinite(), (bits + noise) & -65536, bits)
    return up.view(torch.float32).to(torch.bfloat16)
