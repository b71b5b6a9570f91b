"""Small models, answers and what plain passes say of them, for tests of runners on any device."""

from __future__ import annotations

import os
import sys
from array import array
from dataclasses import replace
from pathlib import Path

import torch

from singalaut.contracts import Request, SamplingParams
from singalaut.generate.answer import Answer
from singalaut.generate.core import Core
from singalaut.generate.ranks import Ranks, device_of
from singalaut.model.config import SIZES
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.hf import load_model
from singalaut.model.shard import sum_outputs

VOCAB = 6000


class Ids:
    """A tokenizer that only knows how many tokens there are."""

    image_ids = None
    end_of_turn_id = 106

    def __init__(self, vocab_size: int = VOCAB):
        self.vocab_size = vocab_size

    def bytes_of(self, ids, *, skip_control=True) -> bytes:
        return b"x" * len(list(ids))


def small(size: str, **changes) -> Gemma3:
    """A published size with less depth and 64 embedding rows beyond the tokenizer."""
    changes = {
        "num_layers": 7,
        "window": 128,
        "max_positions": 2048,
        "vocab_size": VOCAB,
        **changes,
    }
    changes["vocab_size"] += 64
    return initialise(Gemma3(replace(SIZES[size], **changes)), seed=3).eval()


def answer(prompt: list[int], order: int, **params) -> Answer:
    sampling = SamplingParams(logprobs=True, ignore_eos=True, **params)
    return Answer(
        request=Request(prompt, sampling), index=0, tokens=array("i", prompt),
        num_prompt=len(prompt), marked=array("q", prompt), images=None, image_runs=[],
        seed=order, limit=sampling.max_tokens, stop_ids=frozenset(), order=(0, order),
        deadline=None, listener=lambda _: None, decoder=None,
    )  # fmt: skip


def together(folder: Path, *follower: str) -> tuple[Gemma3, Ranks]:
    """The first of two shares of a model, and the process that has the other one."""
    ranks = Ranks(0, 2, reads_peers="ONLY_NCCL" not in os.environ)
    module = follower or ("-m", "singalaut.generate.follower")
    ranks.start([sys.executable, *module, str(folder)])
    device = device_of(0, 2)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = load_model(folder, dtype, device, shard=ranks.shard)
    ranks.meet(device)
    return sum_outputs(model, ranks.sum), ranks


def run(core: Core, answers: list[Answer]) -> None:
    for each in answers:
        core.add(each)
    for _ in range(3000):
        if not core.is_busy:
            return
        core.step()
    raise AssertionError("a request is stuck")


def difference(core: Core, each: Answer, head: torch.Tensor | None = None) -> torch.Tensor:
    """Log-probabilities that the engine gave, less those of one plain pass over the tokens."""
    model = core.model
    with torch.inference_mode():
        tokens = torch.tensor([each.tokens.tolist()], device=model.embedding.weight.device)
        hidden = model(tokens)[0, each.num_prompt - 1 : -1]
        table = model.embedding.weight if head is None else head
        table = table[: core.tokenizer.vocab_size]
        logprobs = (hidden.float() @ table.float().T).log_softmax(-1)
    chosen = logprobs.gather(1, tokens[0, each.num_prompt :, None])[:, 0]
    return torch.tensor(each.logprobs, device=tokens.device) - chosen
