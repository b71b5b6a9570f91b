"""The stage of supervised fine-tuning: a model and conversations in, a better model out."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from pathlib import Path

import torch

from singalaut.artifact import Work
from singalaut.contracts import derive
from singalaut.data.batches import TrainingData, load_training_data, micro_batches
from singalaut.errors import DataError
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import (
    copy_companions,
    load_model,
    read_config,
    save_model,
    stored_dtype,
)
from singalaut.model.lora import add_adapter, merge_adapter, save_adapter
from singalaut.model.training import checkpoint_layers, compile_layers, restore_layers
from singalaut.progress import progress
from singalaut.train.checkpoint import load_state, save_state
from singalaut.train.config import SftConfig
from singalaut.train.optim import adamw, scheduled_rate
from singalaut.train.pictures import check_pictures
from singalaut.train.step import train_step

log = logging.getLogger("singalaut")


def run_sft(config: SftConfig, *, model: Path, data: list[Path], work: Work, seed: int) -> None:
    """Tune `model` on the assistant's turns of `data`; a rerun goes on from the last checkpoint.

    Writes `model/` (merged, in the dtype of the input) and, with an adapter, `adapter/`. Weights
    and moments are float32 while training. Raises DataError when the loss is not finite.
    """
    shape = read_config(model)
    each = None if shape.vision is None else shape.vision.image_tokens
    rows = load_training_data(data, config.data, model, config.max_tokens, each)
    check_contexts(rows, shape.max_positions, config.max_tokens)
    check_pictures([(e.name, picture) for e in rows.examples for picture in e.pictures])
    work.facts["data"] = rows.provenance
    log.info("%d conversations", len(rows.examples))
    network = _trainable(config, model, rows.end_of_turn, seed)
    optimizer = adamw(network, config.learning_rate, config.weight_decay)
    state_file = work.scratch / "state.safetensors"
    start = load_state(state_file, network, optimizer)
    work.rewind(start)
    with progress("sft", config.steps, "step") as bar:
        bar.advance(start)
        for step in range(start, config.steps):
            begin = time.monotonic()
            micros = micro_batches(rows.batch(step, config.batch_size, seed), config.micro_tokens)
            rate = scheduled_rate(
                step,
                config.steps,
                config.warmup_steps,
                config.learning_rate,
                config.final_learning_rate,
            )
            meters = train_step(network, optimizer, micros, rate, config.max_gradient_norm)
            seconds = time.monotonic() - begin
            speed = round(meters.tokens / seconds)
            work.log(
                step=step,
                loss=meters.loss,
                gradient_norm=meters.gradient_norm,
                learning_rate=rate,
                tokens=meters.tokens,
                learned_tokens=meters.learned_tokens,
                tokens_per_second=speed,
            )
            if not (math.isfinite(meters.loss) and math.isfinite(meters.gradient_norm)):
                raise DataError(
                    f"the loss is {meters.loss}, the gradient norm {meters.gradient_norm} "
                    f"at step {step}",
                    where=work.path,
                    hint="lower `learning_rate` or look at the data",
                )
            bar.advance(loss=f"{meters.loss:.3f}", speed=f"{speed} tok/s")
            if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
                save_state(state_file, network, optimizer, step + 1)
    restore_layers(network)
    if config.adapter is not None:
        folder = model.parent if model.name == "model" else model
        save_adapter(network, work.path / "adapter", base_name=folder.name)
        merge_adapter(network)
    save_model(network, work.path / "model", stored_dtype(model))
    copy_companions(model, work.path / "model")


def _trainable(config: SftConfig, model: Path, end_of_turn: int, seed: int) -> Gemma3:
    """The network in float32, with what is to be learned; a vision part is frozen."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = load_model(model, torch.float32, device).train()
    network.config = replace(network.config, eos_ids=_with(network.config.eos_ids, end_of_turn))
    if config.adapter is not None:
        adapter = config.adapter
        init = derive(seed, "adapter")
        add_adapter(network, adapter.rank, adapter.alpha, adapter.targets, init)
    else:
        network.requires_grad_(True)
        if network.vision is not None:
            network.vision.requires_grad_(False)  # as Google trained: the decoder alone
    if config.keep != "all":
        checkpoint_layers(network, config.keep)
    if config.compile:
        compile_layers(network)
    return network


def check_contexts(rows: TrainingData, context: int, max_tokens: int) -> None:
    """Refuse conversations that are longer than what the model was made for.

    Raises: DataError naming the longest one.
    """
    longest = max(rows.examples, key=lambda example: len(example.tokens))
    if (length := len(longest.tokens)) > context:
        raise DataError(
            f"a conversation has {length} tokens; the model's context is {context}",
            where=longest.name,
            hint=f"lower `max_tokens` from {max_tokens} to {context}: longer conversations are "
            "then left out and counted; or shorten them",
        )


def _with(ids: tuple[int, ...], extra: int) -> tuple[int, ...]:
    return ids if extra in ids else (*ids, extra)
