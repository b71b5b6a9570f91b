"""What reinforcement learning will take before it is run: memory of trainer and engine, and time.

On every device lie the trainer's state (its part, where weights are cut among several), what layers
keep for the backward pass, the engine's weights where it cannot read the trainer's, and the
engine's keys and values. All of it is there at once: nothing is put away between the phases.
"""

from __future__ import annotations

import torch

from singalaut.model.config import SIZES, Gemma3Config
from singalaut.model.paged import KINDS, PAGE_TOKENS, Kind, page_bytes
from singalaut.rl.config import RlConfig
from singalaut.train.devices import ENGINE_TOKENS, MEASURED_ON, MEASURED_PEAK_FLOPS
from singalaut.train.estimate import Estimate, Fleet, adapter_weights, nearest_size
from singalaut.train.optim import Precision
from singalaut.train.plan import Keep, layer_weights, memory_plan, step_flops

SLOTS = 256  # answers that an engine writes at once on a GPU
CHUNK_TOKENS = 8192  # of prompts that it reads in a step
GRAPHS_BYTES = 1 << 30  # buffers of captured graphs and of sampling, about


def rl_memory(
    config: Gemma3Config,
    *,
    answers: int,
    context_tokens: int,
    micro_tokens: int,
    precision: Precision,
    keep: Keep,
    learned: int | None = None,
    has_reference: bool = False,
    processes: int = 1,
    cut: int = 1,
    has_copy: bool = False,
) -> dict[str, int]:
    """Bytes on one device by part; `answers` are those of a step, over all `processes`.

    Weights are `cut` among so many of them; each process has an engine for its share of the
    answers, over a copy of the weights where they are cut, or change while it answers (`has_copy`).
    """
    plan = memory_plan(
        config,
        max(micro_tokens, context_tokens),
        precision=precision,
        keep=keep,
        learned=learned,
        processes=cut,
    )
    slots = min(SLOTS, -(-answers // processes))
    return {
        **plan,
        "reference": weight_bytes(config, precision) // cut if has_reference else 0,
        "engine's weights": engine_weight_bytes(
            config, precision, learned is not None, cut > 1 or has_copy
        ),
        "engine's keys and values": cache_bytes(config, slots, context_tokens),
        "engine's buffers": GRAPHS_BYTES + 3 * slots * config.vocab_size * 4,
    }


def weight_bytes(config: Gemma3Config, precision: Precision) -> int:
    """Bytes of all weights as they are computed with."""
    head = config.vocab_size * config.hidden_size
    weights = config.num_layers * layer_weights(config) + head
    return weights * (4 if precision == "float32" else 2)


def engine_weight_bytes(
    config: Gemma3Config, precision: Precision, has_adapter: bool, has_copy: bool
) -> int:
    """Bytes of weights that the engine has beside the trainer's; it computes in bfloat16.

    It reads bfloat16 weights where they lie. From float32 it has copies, of the embedding two (for
    tokens and for logits); of adapted layers those with the adapter added; and all weights where it
    works over a copy.
    """
    head = config.vocab_size * config.hidden_size
    layers = config.num_layers * layer_weights(config)
    if precision == "float32":
        return 2 * (layers + 2 * head)
    if has_copy:
        return 2 * (layers + head)
    return 2 * layers if has_adapter else 0


def cache_bytes(config: Gemma3Config, slots: int, context_tokens: int) -> int:
    """Keys and values of so many sequences of this length, in pages, in bfloat16."""
    pages = -(-context_tokens // PAGE_TOKENS)
    window = -(-config.window // PAGE_TOKENS) + 1
    chunk = -(-min(CHUNK_TOKENS, pages * PAGE_TOKENS) // PAGE_TOKENS) + 1
    counts: dict[Kind, int] = {
        "global": 1 + slots * pages,
        "window": 1 + slots * min(pages, window) + chunk,
    }
    return sum(counts[kind] * page_bytes(config, kind, torch.bfloat16) for kind in KINDS)


def rl_estimate(
    config: RlConfig, shape: Gemma3Config, fleet: Fleet, answer_tokens: int | None = None
) -> Estimate:
    """Of a stage whose answers have `answer_tokens`, `max_tokens` if None, and prompts of the most
    that they may have; without the prompts that are replaced because they teach nothing."""
    answers = config.prompts_per_step * config.samples
    written, prompt = answer_tokens or config.max_tokens, config.max_prompt_tokens
    adapted = config.adapter is not None
    # a prompt is computed once for as many answers as a row has room for
    together = min(config.samples, max(1, (config.micro_tokens - prompt) // written))
    saved = answers - config.prompts_per_step * -(-config.samples // together)
    once = answers * step_flops(shape, [prompt + written], adapted)
    once -= saved * step_flops(shape, [prompt], adapted)
    passes = config.updates + ((config.updates > 1 or config.kl > 0) + (config.kl > 0)) / 3
    flops = config.steps * once * passes
    speed, told = fleet.speed(shape)
    engine = engine_tokens_per_second(shape, fleet)
    seconds = {
        "generate": config.steps * answers * written / engine,
        "learn": flops / speed,
    }
    memory = rl_memory(
        shape,
        answers=answers,
        context_tokens=config.max_prompt_tokens + config.max_tokens,
        micro_tokens=max(config.micro_tokens, config.replay.max_tokens if config.replay else 0),
        precision=config.precision,
        keep=config.keep,
        learned=None if config.adapter is None else adapter_weights(shape, config.adapter),
        has_reference=config.kl > 0,
        processes=fleet.count,
        cut=fleet.count if config.sharded else 1,
        has_copy=config.overlap,
    )
    notes = ["prompts that teach nothing and are replaced come on top of the time"]
    if config.replay is not None:
        notes.append("conversations that are learned again come on top of time and tokens")
    if fleet.count > 1 and not config.sharded:
        notes.append("every device holds all weights; `sharded` cuts them among the devices")
    tokens = config.steps * float(answers * (prompt + written) - saved * prompt)
    return Estimate(config.steps, tokens, flops, seconds, memory, told, tuple(notes))


def engine_tokens_per_second(shape: Gemma3Config, fleet: Fleet) -> float:
    """What the engines of all devices write, from the size measured that is nearest.

    Other sizes by the ratio of weights, other devices by that of peaks.
    """
    size = nearest_size(shape, ENGINE_TOKENS)
    weights = shape.num_layers * layer_weights(shape) + shape.vocab_size * shape.hidden_size
    rate = ENGINE_TOKENS[size] * SIZES[size].num_parameters / weights
    if fleet.device.name not in MEASURED_ON:
        rate *= fleet.device.peak_flops / MEASURED_PEAK_FLOPS
    return rate * fleet.count
