"""The loss of supervised fine-tuning: cross-entropy where the mask asks for it."""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor

from singalaut.loss.logprobs import negative_log_likelihood


def sft_loss(
    hidden: Float[Tensor, "B T W"],
    weight: Float[Tensor, "V W"],
    tokens: Int[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    normaliser: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, " N"]]:
    """Σ −log p(token_t | tokens before t) over the N masked tokens / `normaliser`, and its terms.

    `normaliser` is the number of masked tokens of the whole optimiser step, so that splitting a
    step into micro-batches does not change it. The head is applied only where there is loss. The
    first token of a row has nothing before it and is never counted, whatever its mask. The terms,
    in the order of the tokens, are not divided and have no gradient. A mask on the host saves a
    wait for the device.
    """
    wanted = mask.clone()
    wanted[:, 0] = False
    places = wanted.flatten().nonzero()[:, 0].to(hidden.device, non_blocking=True)
    chosen = hidden.flatten(0, 1).index_select(0, places - 1)
    total, losses = negative_log_likelihood(chosen, weight, tokens.flatten()[places])
    return total / normaliser, losses
