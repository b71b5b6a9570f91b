"""What training does to the network's layers from outside: recompute activations, compile.

The network itself knows of neither. A checkpointed layer keeps its input and computes the rest
again in the backward pass; a compiled one runs as one graph, whatever the lengths of documents are,
with one graph for window layers and one for global ones. Checkpoint first, then compile.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from singalaut.model.attention import AttentionPlan
from singalaut.model.gemma3 import Gemma3, Rotation

Keep = Literal["inputs", "attention", "products"]
# kernels of attention, of which any may run, by device and dtype
ATTENTION = (
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_flash_attention_forward",
    "torch_attn::_varlen_attn",
)
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")


def checkpoint_layers(model: Gemma3, keep: Keep = "inputs", every: int = 1) -> Gemma3:
    """Let every `every`-th layer recompute its activations in the backward pass.

    What is kept beside a layer's input: nothing (`inputs`), what attention gave (`attention`: its
    cost grows with the square of the length), or that and the matrix products (`products`: only
    norms, rotations and the like are computed twice).
    """
    kept = {"inputs": (), "attention": ATTENTION, "products": (*ATTENTION, *PRODUCTS)}[keep]
    for layer in model.layers[::every]:
        layer.forward = _recomputed(layer.forward, kept)
    return model


def compile_layers(model: Gemma3, backend: str | Callable[..., Any] = "inductor") -> Gemma3:
    """Compile every layer as one graph. A graph that would have to break is an error."""
    for layer in model.layers:
        layer.forward = torch.compile(layer.forward, fullgraph=True, backend=backend)
    return model


def restore_layers(model: Gemma3) -> Gemma3:
    """Undo `checkpoint_layers` and `compile_layers`, for what is neither training nor its plans."""
    for layer in model.layers:
        layer.__dict__.pop("forward", None)
    return model


def _recomputed(forward: Callable[..., Tensor], kept: tuple[str, ...]) -> Callable[..., Tensor]:
    contexts: dict[str, Any] = {}
    if kept:
        policy = partial(_policy, kept)
        contexts["context_fn"] = partial(create_selective_checkpoint_contexts, policy)

    def run(x: Tensor, rotation: Rotation, plan: AttentionPlan) -> Tensor:
        return checkpoint(
            forward, x, rotation, plan, use_reentrant=False, preserve_rng_state=False, **contexts
        )

    return run


def _policy(kept: tuple[str, ...], _context: Any, op: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    name = op.name().partition(".")[0] if isinstance(op, torch._ops.OpOverload) else ""
    wanted = name in kept
    return CheckpointPolicy.MUST_SAVE if wanted else CheckpointPolicy.PREFER_RECOMPUTE
