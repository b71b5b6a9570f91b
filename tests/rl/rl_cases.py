"""A tiny run of reinforcement learning: settings, tasks, a reward, and what it ended in."""

from __future__ import annotations

from singalaut.artifact import Work
from singalaut.contracts import Message, Sample, Score
from singalaut.generate.engine import engine_over
from singalaut.model.tensors import TensorReader
from singalaut.rl.ask import Task
from singalaut.rl.config import RlConfig
from singalaut.rl.run import run_rl
from singalaut.text.tokenizer import Tokenizer

REWARD = {"parts": [{"kind": "form"}]}


def settings(**more) -> RlConfig:
    given = {
        "prompts": [{"generate": 4}],
        "reward": REWARD,
        "steps": 4,
        "prompts_per_step": 2,
        "samples": 4,
        "max_tokens": 6,
        "learning_rate": 3e-2,
        "truncated": "keep",
        "held_out": 0,
        "save_every": 2,
        "adapter": {"rank": 4},
    }
    return RlConfig.model_validate(given | more)


class Even:
    """A reward for even token ids: what a tiny model can learn."""

    def score(self, prompt, completions, sample):
        shares = [sum(t % 2 == 0 for t in c.token_ids) / len(c.token_ids) for c in completions]
        return [Score(share, {"even": share}) for share in shares]


def tasks(count=6):
    made = []
    for number in range(count):
        sample = Sample([Message("user", f"{number}")], str(number), "en", "made")
        made.append(Task(sample, (2, 10 + number, 20, 30 + number)))
    return made


def run(
    tmp_path, model, name, config=None, reward=None, wrap=lambda engine: engine, given=(), **more
):
    """A run in a folder of that name; `wrap` may put something around the engine."""
    config = config or settings()
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    work, all_tasks = Work(folder), given or tasks()
    run_rl(
        config,
        model=model,
        end_of_turn=Tokenizer.load(model).end_of_turn_id,
        tasks=all_tasks,
        held_out=all_tasks[:2] if config.held_out else [],
        engine_over=lambda network: wrap(
            engine_over(network, model, context_tokens=32, **config.engine.settings())
        ),
        reward=reward or Even(),
        work=work,
        seed=5,
        **more,
    )
    return work


def weights(work):
    with TensorReader.open(work.path / "model") as reader:
        return {name: reader.read(name).clone() for name in reader}


def plain(work):
    hidden = ("seconds", "memory_gib")
    return [{k: v for k, v in line.items() if k not in hidden} for line in work.metrics()]
