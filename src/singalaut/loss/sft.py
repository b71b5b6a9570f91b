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
) -> Float[Tensor, ""]:
    """Σ −log p(token_t | tokens before t) over the masked tokens, divided by `normaliser`.

    `normaliser` is the number of masked tokens of the whole optimiser step, so that splitting a
    step into micro-batches does not change it. The head is applied only where there is loss. The
    first token of a row has nothing before it and is never counted, whatever its mask.
    """
    wanted = mask[:, 1:]
    return (
        negative_log_likelihood(hidden[:, :-1][wanted], weight, tokens[:, 1:][wanted]) / normaliser
    )
