"""Writes losses and gradients as TRL computes them: the reference of the tests of our losses.

Run with a Python that has TRL (1.16), from the root of the repository:

    python tests/loss/make_golden.py

TRL's trainers are not started: their loss functions are called on an object that has the settings
they read, with a model whose log-probabilities are ours to choose.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
from safetensors.torch import save_file

FOLDER = Path(__file__).parent / "golden"
PAIR_LOSSES = {"apo_zero": 0.1, "apo_down": 0.3, "sigmoid": 0.2, "ipo": 0.25}
POLICY_CASES = [
    {"loss_type": "dr_grpo", "epsilon_low": 0.2, "epsilon_high": 0.2, "beta": 0.0},
    {"loss_type": "dr_grpo", "epsilon_low": 0.2, "epsilon_high": 0.28, "beta": 0.05},
    {"loss_type": "grpo", "epsilon_low": 0.1, "epsilon_high": 0.3, "beta": 0.0},
    {"loss_type": "dapo", "epsilon_low": 0.2, "epsilon_high": 0.28, "beta": 0.0},
    {
        "loss_type": "grpo",
        "epsilon_low": 0.003,
        "epsilon_high": 0.004,
        "beta": 0.0,
        "importance_sampling_level": "sequence",
    },
    {"loss_type": "cispo", "epsilon_low": 0.0, "epsilon_high": 1.2, "beta": 0.0},
]
MAX_COMPLETION = 16


def main() -> None:
    tensors = {**pairs(), **policies()}
    FOLDER.mkdir(exist_ok=True)
    save_file(
        {name: t.detach().clone().contiguous() for name, t in tensors.items()},
        FOLDER / "trl.safetensors",
    )
    (FOLDER / "trl.json").write_text(
        json.dumps({"pairs": PAIR_LOSSES, "policies": POLICY_CASES, "length": MAX_COMPLETION})
        + "\n"
    )


def quiet(**settings) -> MagicMock:
    """An object with these settings, for which measuring and gathering is nothing."""
    trainer = MagicMock()
    trainer.model.training = True
    trainer.aux_loss_enabled = False
    trainer._metrics = {mode: defaultdict(list) for mode in ("train", "eval")}
    trainer.accelerator.device = torch.device("cpu")
    for name in ("gather", "gather_for_metrics"):
        setattr(trainer.accelerator, name, lambda x: x)
    trainer.accelerator.reduce = lambda x, reduction: x
    trainer.accelerator.num_processes = 1
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    for name, value in settings.items():
        setattr(trainer, name, value)
    return trainer


def pairs() -> dict[str, torch.Tensor]:
    from trl import DPOTrainer

    generator = torch.Generator().manual_seed(0)
    count, length = 6, 9
    logprobs = -3 * torch.rand(2 * count, length, generator=generator)
    lengths = torch.randint(2, length + 1, (2 * count,), generator=generator)
    mask = torch.arange(length) < lengths[:, None]
    logprobs = logprobs * mask
    reference = (logprobs + 0.8 * torch.randn(logprobs.shape, generator=generator)) * mask
    found = {"pair.logprobs": logprobs, "pair.reference": reference.sum(1), "pair.lengths": lengths}
    # the first token of the row is the prompt
    completion = torch.cat((torch.zeros(2 * count, 1, dtype=torch.long), mask.long()), 1)
    chosen, rejected = reference.sum(1).chunk(2)
    for name, beta in PAIR_LOSSES.items():
        leaf = logprobs.clone().requires_grad_()
        zeros = torch.zeros(2 * count, length)
        outputs = SimpleNamespace(
            log_probs=leaf, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
        )
        trainer = quiet(
            ld_alpha=None,
            precompute_ref_logps=True,
            f_divergence_type="reverse_kl",
            loss_types=[name],
            loss_weights=[1.0],
            beta=beta,
            use_weighting=False,
            label_smoothing=0.0,
        )
        inputs = {
            "input_ids": torch.zeros_like(completion),
            "attention_mask": torch.ones_like(completion),
            "completion_mask": completion,
            "ref_chosen_logps": chosen,
            "ref_rejected_logps": rejected,
        }
        loss = DPOTrainer._compute_loss(
            trainer, lambda outputs=outputs, **_: outputs, inputs, False
        )
        loss.backward()
        found[f"pair.{name}.loss"], found[f"pair.{name}.gradient"] = loss, leaf.grad
    return found | simpo(logprobs, lengths)


def simpo(logprobs: torch.Tensor, lengths: torch.Tensor) -> dict[str, torch.Tensor]:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    leaf = logprobs.clone().requires_grad_()
    chosen, rejected = (leaf.sum(1) / lengths).chunk(2)
    trainer = quiet(loss_type="simpo", simpo_gamma=0.5, beta=2.0, label_smoothing=0.0, alpha=0.0)
    losses, *_ = CPOTrainer.cpo_loss(trainer, chosen, rejected)
    losses.mean().backward()
    return {"pair.simpo.loss": losses.mean(), "pair.simpo.gradient": leaf.grad}


def policies() -> dict[str, torch.Tensor]:
    from trl import GRPOTrainer

    generator = torch.Generator().manual_seed(1)
    answers, length = 8, 12
    old = -2 * torch.rand(answers, length, generator=generator)
    logprobs = old + 0.4 * torch.randn(old.shape, generator=generator)
    reference = old + 0.4 * torch.randn(old.shape, generator=generator)
    mask = torch.arange(length) < torch.randint(1, length + 1, (answers, 1), generator=generator)
    advantages = torch.randn(answers, generator=generator)
    found = {
        "policy.old": old,
        "policy.logprobs": logprobs,
        "policy.reference": reference,
        "policy.mask": mask.to(torch.uint8),
        "policy.advantages": advantages,
    }
    for number, case in enumerate(POLICY_CASES):
        leaf = logprobs.clone().requires_grad_()
        settings = {"importance_sampling_level": "token", **case}
        trainer = quiet(
            **settings,
            top_entropy_quantile=1.0,
            off_policy_mask_threshold=None,
            use_vllm=False,
            max_completion_length=MAX_COMPLETION,
            current_gradient_accumulation_steps=1,
            _entropy_bonus_enabled=False,
        )
        trainer.args = SimpleNamespace(
            delta=None, use_bias_correction_kl=False, steps_per_generation=1
        )
        trainer._get_per_token_logps_and_entropies = lambda *_, leaf=leaf, **__: (
            leaf,
            torch.zeros_like(leaf),
            None,
        )
        ids = torch.zeros(answers, length, dtype=torch.long)
        inputs = {
            "prompt_ids": ids[:, :1],
            "prompt_mask": torch.ones_like(ids[:, :1]),
            "completion_ids": ids,
            "completion_mask": mask.long(),
            "advantages": advantages,
            "old_per_token_logps": old,
            "ref_per_token_logps": reference,
            "num_items_in_batch": mask.sum(),
        }
        loss = GRPOTrainer._compute_loss(trainer, None, inputs)
        loss.backward()
        found[f"policy.{number}.loss"], found[f"policy.{number}.gradient"] = loss, leaf.grad
    return found


if __name__ == "__main__":
    main()
