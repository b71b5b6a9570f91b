"""Fifty steps of fine-tuning against TRL's, on the same conversations in the same order."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from singalaut.data.batches import Micro
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.hf import load_model, save_model
from singalaut.train.optim import adamw
from singalaut.train.step import train_step
from tests.model.reduced_shapes import reduced

trl = pytest.importorskip("trl")
STEPS, WARMUP, BATCH = 50, 5, 4
Rows = list[tuple[list[int], int]]  # tokens, and how many of them at the beginning are not learned


def conversations(count: int, longest: int, vocabulary: int) -> Rows:
    chance = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        length = int(torch.randint(8, longest, (1,), generator=chance))
        first = torch.randint(5, vocabulary, (1,), generator=chance)
        # each token is the one before it plus a small step, so that there is something to learn
        steps = torch.randint(1, 4, (length - 1,), generator=chance)
        tokens = (torch.cat([first, steps]).cumsum(0) - 5) % (vocabulary - 5) + 5
        rows.append((tokens.tolist(), length // 3))
    return rows


def our_curve(
    folder: Path, rows: Rows, rate: float, precision: str, device: str = "cpu"
) -> list[float]:
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    model = load_model(folder, dtype, device).train().requires_grad_()
    optimizer = adamw(model, rate, 0.0, precision, seed=0)
    losses = []
    for step in range(STEPS):
        chosen = rows[step * BATCH : (step + 1) * BATCH]
        tokens = torch.tensor([token for row, _ in chosen for token in row])
        mask = torch.cat([torch.arange(len(row)) >= unlearned for row, unlearned in chosen])
        micro = Micro(tokens[None], mask[None], tuple(len(row) for row, _ in chosen))
        now = rate * min(1.0, step / WARMUP)  # as the schedule of TRL has it
        losses.append(train_step(model, optimizer, [micro], now, 1.0).loss)
    return losses


def trl_curve(
    folder: Path, rows: Rows, rate: float, precision: str, work: Path, device: str = "cpu"
) -> list[float]:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    data = Dataset.from_list(
        [{"input_ids": row, "labels": [-100] * n + row[n:]} for row, n in rows]
    )
    settings = trl.SFTConfig(
        output_dir=str(work),
        max_steps=STEPS,
        per_device_train_batch_size=BATCH,
        learning_rate=rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=WARMUP,
        optim="adamw_torch",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        use_cpu=device == "cpu",
        bf16=precision != "float32",
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
        disable_tqdm=True,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trainer = trl.SFTTrainer(
        model, settings, train_dataset=data, processing_class=stand_in_tokenizer()
    )
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def stand_in_tokenizer():
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<bos>": 2, "?": 3}, "?"))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )


def largest_gap(mine: list[float], theirs: list[float]) -> float:
    return max(abs(a - b) / b for a, b in zip(mine, theirs, strict=True))


def test_the_curve_of_losses_is_that_of_trl(tmp_path):
    config = reduced("270m")
    save_model(initialise(Gemma3(config), seed=1), tmp_path / "model", torch.float32)
    rows = conversations(STEPS * BATCH, 40, config.vocab_size)
    mine = our_curve(tmp_path / "model", rows, 1e-3, "float32")
    theirs = trl_curve(tmp_path / "model", rows, 1e-3, "float32", tmp_path / "trl")
    assert largest_gap(mine, theirs) <= 1e-5
    assert mine[-1] < 0.9 * mine[0]
    other = our_curve(tmp_path / "model", rows, 1.01e-3, "float32")
    assert largest_gap(other, theirs) > 1e-5
