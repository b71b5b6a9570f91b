"""The optimiser's kernel against plain PyTorch, on any device."""

from __future__ import annotations

import torch

from singalaut.train.adamw import plain_step
from singalaut.train.kernels import adamw_step
from singalaut.train.moments import BLOCK, Coded, blocks_of

NUMBERS = (1e-3, 1e-4, 0.3, 0.9, 0.95, 1e-8)


def state(device: str, dtype: torch.dtype, count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    weight, gradient, mean, square = torch.randn(4, count, generator=generator).unbind(0)
    made = [weight, gradient, mean * 0.1, square.square() * 0.01]
    return [tensor.to(device, dtype) for tensor in made]


def check_master(device: str) -> None:
    weight, gradient, mean, square = state(device, torch.bfloat16, 2500)
    mean, square, master = mean.float(), square.float(), weight.float() + 1e-4
    ours = [t.clone() for t in (weight, gradient, mean, square, master)]
    theirs = [t.clone() for t in (weight, gradient, mean, square, master)]
    adamw_step(*ours, NUMBERS, 5)
    plain_step(*theirs, NUMBERS, 5)
    for mine, wanted in zip(ours, theirs, strict=True):
        # Triton's interpreter cuts bfloat16 off instead of rounding it
        cuts = device == "cpu" and mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine, wanted, rtol=2**-7 if cuts else 1e-5, atol=1e-7)
    assert not torch.equal(ours[4], master)


def check_rounding(device: str, step=adamw_step) -> None:
    """What is written is a neighbour of the exact result, and right on average."""
    weight, gradient, mean, square = state(device, torch.bfloat16, 300)
    exact = [t.float().clone() for t in (weight, gradient, mean, square)]
    master = exact[0].clone()
    plain_step(weight.clone(), gradient, exact[2], exact[3], master, NUMBERS, 0)
    sums = [torch.zeros(300, dtype=torch.float64, device=device) for _ in range(3)]
    rounds = 400
    for seed in range(rounds):
        ours = [t.clone() for t in (weight, gradient, mean, square)]
        step(*ours, None, NUMBERS, seed)
        found = (ours[0], ours[2], ours[3])
        for total, tensor, wanted in zip(sums, found, (master, exact[2], exact[3]), strict=True):
            assert ((tensor.float() - wanted).abs() <= wanted.abs() * 2**-7 + 1e-30).all()
            total += tensor.double()
    for total, wanted in zip(sums, (master, exact[2], exact[3]), strict=True):
        spread = wanted.abs() * 2**-7 / rounds**0.5
        assert ((total / rounds - wanted).abs() <= 4 * spread + 1e-12).all()
        assert ((total / rounds - wanted).abs().mean() <= spread.mean()).all()


def check_coded(device: str, columns: int, step=adamw_step) -> None:
    """The step with moments in 8 bits: weights as with whole ones, codes near, right on average."""
    generator = torch.Generator().manual_seed(columns)
    shape = (20, columns)
    weight, gradient, mean, square = torch.randn(4, *shape, generator=generator).to(device)
    kept = coded(0.1 * mean, torch.int8), coded(0.01 * square.square(), torch.uint8)
    exact = [moment.decoded() for moment in kept]
    wanted = weight.clone()
    plain_step(wanted, gradient, *exact, wanted, NUMBERS, 0)
    sums, rounds = [torch.zeros(shape, device=device) for _ in kept], 40
    for seed in range(rounds):
        ours = weight.clone()
        moments = [Coded(moment.codes.clone(), moment.scales.clone()) for moment in kept]
        step(ours, gradient, *moments, ours, NUMBERS, seed)
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-7)
        for total, made, right in zip(sums, moments, exact, strict=True):
            largest = made.scales.repeat_interleave(BLOCK, 1)[:, :columns]
            assert ((made.decoded() - right).abs() <= 0.024 * largest).all()
            total += made.decoded()
    for total, right in zip(sums, exact, strict=True):
        error = (total / rounds - right).norm() / right.norm()
        assert error < 0.01, error
    assert not torch.equal(wanted, weight)


def coded(numbers: torch.Tensor, kind: torch.dtype) -> Coded:
    scales = numbers.new_zeros(len(numbers), blocks_of(numbers.shape[1]))
    made = Coded(torch.zeros_like(numbers, dtype=kind), scales)
    made.encode(numbers, torch.Generator(numbers.device).manual_seed(0))
    return made
