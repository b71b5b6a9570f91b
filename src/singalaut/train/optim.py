"""AdamW over the right parameter groups, in float32 or in bfloat16, and the learning-rate schedule.

Weights in float32 are the library's fused AdamW's work. Weights in bfloat16 need more care: a step
is often smaller than half the distance between two bfloat16 numbers, and rounding to the nearest
would lose it. Either a float32 copy of the weights takes the steps (`master`), or weights and
moments are rounded up or down at random, so that their mean is right (`rounded`).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from singalaut.contracts import derive
from singalaut.train.parallel import local

Precision = Literal["float32", "master", "rounded"]
BETAS = (0.9, 0.95)


def adamw(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    precision: Precision = "float32",
    seed: int = 0,
) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101) over the trainable parameters.

    Norms and embeddings are not decayed: Gemma 3's norms multiply by 1 + weight, so decay would
    pull them to 1, and rare tokens' embeddings would shrink between their appearances.
    """
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_exempt = parameter.ndim < 2 or name.startswith("embedding")
            (exempt if is_exempt else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if precision == "float32":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=BETAS, fused=True)
    return LowPrecisionAdamW(groups, learning_rate, master=precision == "master", seed=seed)


class LowPrecisionAdamW(torch.optim.Optimizer):
    """AdamW for weights in bfloat16; all arithmetic is float32.

    With `master`, weights and moments are kept in float32 beside the bfloat16 weights. Without, a
    number that is written is rounded up with the probability that makes its mean right (stochastic
    rounding, arXiv 2010.06192), and nothing is kept but two moments in bfloat16. Which way a number
    goes is a function of the seed, the step, and its place: a resumed run repeats it.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        learning_rate: float,
        *,
        master: bool,
        seed: int,
        betas: tuple[float, float] = BETAS,
        eps: float = 1e-8,
    ):
        super().__init__(groups, {"lr": learning_rate, "betas": betas, "eps": eps})
        self.master, self.seed = master, seed

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step along the gradients that are there."""
        number = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                number += 1
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state.update(self._fresh_state(parameter))
                state["step"] += 1
                self._update(parameter, state, group, number)

    def _fresh_state(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        dtype = torch.float32 if self.master else parameter.dtype
        state = {
            "step": torch.zeros((), dtype=torch.float32),
            "exp_avg": torch.zeros_like(parameter, dtype=dtype),
            "exp_avg_sq": torch.zeros_like(parameter, dtype=dtype),
        }
        if self.master:
            state["master"] = parameter.detach().to(torch.float32, copy=True)
        return state

    def _update(
        self, parameter: nn.Parameter, state: dict[str, Tensor], group: dict[str, Any], number: int
    ) -> None:
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
        moments = local(state["exp_avg"]), local(state["exp_avg_sq"])
        master = local(state["master"]) if self.master else None
        seed = derive(self.seed, "rounding", step, number) & 0x7FFFFFFF
        if weight.is_cuda:
            from singalaut.train.kernels import adamw_step

            adamw_step(weight, gradient, *moments, master, numbers, seed)
        else:
            plain_step(weight, gradient, *moments, master, numbers, seed)


def plain_step(
    weight: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    master: Tensor | None,
    numbers: tuple[float, ...],
    seed: int,
) -> None:
    """One AdamW step in PyTorch's own operations; what the kernel is held to."""
    rate, decay, root_correction, first, second, eps = numbers
    g = gradient.float()
    m = mean.float().lerp_(g, 1 - first)
    v = square.float().mul_(second).addcmul_(g, g, value=1 - second)
    w = (weight.float() if master is None else master).mul(1 - decay)
    w.addcdiv_(m, v.sqrt().div_(root_correction).add_(eps), value=-rate)
    if master is not None:
        master.copy_(w)
        weight.copy_(w)
        mean.copy_(m)
        square.copy_(v)
        return
    generator = torch.Generator(weight.device).manual_seed(seed)
    for target, exact in ((weight, w), (mean, m), (square, v)):
        target.copy_(randomly_rounded(exact, generator))


def randomly_rounded(x: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 to one of the two bfloat16 neighbours, the nearer the likelier; infinities stay."""
    bits = x.view(torch.int32)
    noise = torch.randint(
        0, 1 << 16, x.shape, dtype=torch.int32, device=x.device, generator=generator
    )
    up = torch.where(x.isfinite(), (bits + noise) & -65536, bits)
    return up.view(torch.float32).to(torch.bfloat16)


def scheduled_rate(step: int, steps: int, warmup: int, peak: float, final: float) -> float:
    """Linear rise over `warmup` steps, then half a cosine from `peak` down to `final` · `peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
