"""Gradients of every sample of a packed row at once, for the weights of adapters.

A sample is a document with its mean loss, or both conversations of a pair with the loss of
alignment. For y = x Wᵀ + s (x Aᵀ) Bᵀ, one backward pass gives g = ∂L/∂y at every token. As no
sample sees another, those of sample n are its tokens' sums: ∂L/∂B = s Σ_t g_t (A x_t)ᵀ and
∂L/∂A = s Σ_t (Bᵀ g_t) x_tᵀ. Shapes: n samples, L tokens of the longest, I in, O out, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from singalaut.data.batches import Micro
from singalaut.data.pair_batches import PairRow
from singalaut.loss.logprobs import token_logprobs
from singalaut.model.attention import Packed
from singalaut.model.gemma3 import Gemma3
from singalaut.model.lora import LoraLinear, adapters
from singalaut.train.pairs import PairLosses, row_losses


class SampleGradients(NamedTuple):
    """`losses` [n] of the samples; the pieces of their gradients, [n, weights] each, by the name of
    the parameter; to be taken once."""

    losses: Tensor
    pieces: Iterator[tuple[str, Tensor]]


def sample_gradients(model: Gemma3, micro: Micro) -> SampleGradients:
    """The gradient of each document's own mean loss, for all adapters of the model."""
    return gradients_at_once(model, micro.lengths, lambda: sample_losses(model, micro))


def pair_gradients(
    model: Gemma3, row: PairRow, answers: np.ndarray, reference: np.ndarray, loss: PairLosses
) -> SampleGradients:
    """The gradient of each pair's own loss; tokens of answers and log-probabilities are [n, 2]."""
    both = tuple(sum(row.lengths[at : at + 2]) for at in range(0, len(row.lengths), 2))
    return gradients_at_once(model, both, lambda: row_losses(model, row, answers, reference, loss))


def gradients_at_once(
    model: Gemma3, lengths: tuple[int, ...], losses_of: Callable[[], Tensor]
) -> SampleGradients:
    """From one backward pass over samples that lie end to end, of these lengths in tokens."""
    with _watched(model) as seen:
        losses = losses_of()
    names = list(seen)
    outputs = [seen[name][1] for name in names]
    errors = torch.autograd.grad(losses.sum(), outputs)
    return SampleGradients(losses.detach(), _pieces(model, lengths, seen, names, errors))


def sample_losses(model: Gemma3, micro: Micro) -> Tensor:
    """[n]: the mean negative log-probability of the learned tokens of each document."""
    hidden, weight, places, document = _forward(model, micro)
    targets = micro.tokens.to(weight.device)[0, places]
    logprobs, *_ = token_logprobs(hidden[places - 1], weight, targets)
    return _means(-logprobs, document, len(micro.lengths))


@torch.no_grad()
def error_norms(model: Gemma3, micro: Micro, chunk_rows: int = 128) -> Tensor:
    """[n]: EL2N, the mean over learned tokens of ‖softmax − one-hot‖. Source: arXiv 2107.07075."""
    hidden, weight, places, document = _forward(model, micro)
    targets = micro.tokens.to(weight.device)[0, places]
    norms = []
    for start in range(0, len(places), chunk_rows):
        part = slice(start, start + chunk_rows)
        p_CV = (hidden[places[part] - 1] @ weight.T).float().softmax(-1)
        right_C = p_CV.gather(1, targets[part, None])[:, 0]
        norms.append((p_CV.square().sum(-1) - 2 * right_C + 1).clamp(min=0).sqrt())
    return _means(torch.cat(norms), document, len(micro.lengths))


def _forward(model: Gemma3, micro: Micro) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states [T, W], the head, the places of learned tokens and their documents."""
    weight = model.embedding.weight
    plan = Packed(micro.lengths, None, weight.device)
    hidden = model(micro.tokens.to(weight.device), plan.positions(), plan)[0]
    places = micro.mask[0].nonzero()[:, 0].to(weight.device)
    return hidden, weight, places, plan.documents[places]


def _means(values: Tensor, document: Tensor, count: int) -> Tensor:
    sums = values.new_zeros(count).index_add(0, document, values)
    return sums / document.bincount(minlength=count).clamp(min=1)


@contextmanager
def _watched(model: Gemma3) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """What goes into every adapter and comes out of it, [T, I] and [1, T, O], while it runs."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = []
    for name, adapted in adapters(model):

        def keep(_: LoraLinear, inputs: tuple[Tensor], output: Tensor, name: str = name) -> None:
            seen[name] = (inputs[0].detach()[0], output)

        handles.append(adapted.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _pieces(
    model: Gemma3,
    lengths: tuple[int, ...],
    seen: dict[str, tuple[Tensor, Tensor]],
    names: list[str],
    errors: tuple[Tensor, ...],
) -> Iterator[tuple[str, Tensor]]:
    ends = [torch.arange(length) for length in lengths]
    inside_nL = pad_sequence(ends, batch_first=True, padding_value=-1)
    starts_n = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
    places_nL = (starts_n[:, None] + inside_nL.clamp(min=0)).to(errors[0].device)
    real_nL1 = (inside_nL >= 0)[..., None].to(errors[0].device)
    for name, error in zip(names, errors, strict=True):
        adapted = model.get_submodule(name)
        assert isinstance(adapted, LoraLinear)
        x_nLI = seen.pop(name)[0][places_nL]
        g_nLO = error[0][places_nL] * real_nL1
        down_nLR, up_nLR = x_nLI @ adapted.a.T, g_nLO @ adapted.b
        yield f"{name}.a", (up_nLR.mT @ x_nLI).flatten(1) * adapted.scale
        yield f"{name}.b", (g_nLO.mT @ down_nLR).flatten(1) * adapted.scale
