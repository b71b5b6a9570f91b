"""Rewards of a few answers to each prompt, by the model that a run starts from.

They are kept by content, so that another run over the same prompts, model and reward need not
answer again. What they say about a prompt is not known here.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from singalaut.contracts import Request, Reward, Sampler, SamplingParams
from singalaut.database import open_database
from singalaut.errors import ArtifactError, from_os_error
from singalaut.progress import progress
from singalaut.rl.ask import WHOLE, Task
from singalaut.rl.config import DifficultyConfig, RlConfig
from singalaut.rl.team import ALONE, Team

BLOCK = 64  # prompts answered in one call; a killed run repeats at most so many
SCHEMA = "CREATE TABLE IF NOT EXISTS tried (key BLOB PRIMARY KEY, rewards TEXT) STRICT"
Rewards = list[float | None]


@dataclass(frozen=True)
class Trial:
    """Who answers and who judges; `content` identifies both in the keys of `store`."""

    config: RlConfig
    wanted: DifficultyConfig
    sampler: Sampler
    reward: Reward
    content: str
    store: Path
    team: Team = ALONE


def try_all(trial: Trial, tasks: Sequence[Task]) -> list[Rewards]:
    """The rewards of a few answers to each prompt, None where there was no answer or no score.

    What has a number for every answer is kept.
    """
    team = trial.team
    keys = [_key(trial, task) for task in tasks]
    with closing(_open(trial.store)) as connection:
        known = {key: found for key in keys if (found := _find(connection, key)) is not None}
        team.world.wait()  # all look before the first one writes
        task_of = dict(zip(keys, tasks, strict=True))
        missing = [key for key in task_of if key not in known]
        with progress("difficulty", len(missing), "prompt") as bar:
            for begin in range(0, len(missing), BLOCK):
                block = missing[begin : begin + BLOCK]
                mine = team.share(block)
                scored = _scored(trial, [task_of[key] for key in mine], mine)
                rewards = dict(zip(block, team.merge(scored, list, list), strict=True))
                known |= rewards
                if team.is_first:
                    whole = [
                        (key, json.dumps(found))
                        for key, found in rewards.items()
                        if None not in found
                    ]
                    with connection:
                        connection.executemany("INSERT OR REPLACE INTO tried VALUES (?, ?)", whole)
                bar.advance(len(block))
    return [known[key] for key in keys]


def _scored(trial: Trial, tasks: Sequence[Task], keys: Sequence[bytes]) -> list[Rewards]:
    config = trial.config
    if config.engine.keeps == "call":
        trial.sampler.weights_changed()  # shared beginnings of earlier prompts would change numbers
    requests = [
        Request(task.prompt, _sampling(trial, key), id=str(number))
        for number, (task, key) in enumerate(zip(tasks, keys, strict=True))
    ]
    found: list[Rewards] = [[None] * trial.wanted.samples for _ in tasks]
    for completion in trial.sampler.sample(requests) if requests else ():
        if completion.finish_reason in WHOLE:
            number = int(completion.request_id)
            sample = tasks[number].sample
            score = trial.reward.score(sample.messages, [completion], sample)[0]
            cut = completion.finish_reason == "length" and config.truncated == "zero"
            found[number][completion.index] = 0.0 if cut else score.value
    return found


def _sampling(trial: Trial, key: bytes) -> SamplingParams:
    return SamplingParams(
        n=trial.wanted.samples,
        max_tokens=trial.config.max_tokens,
        temperature=trial.config.temperature,
        seed=int.from_bytes(key[:4], "big") >> 1,
    )


def _key(trial: Trial, task: Task) -> bytes:
    """What decides the rewards: model and reward, prompt, what is checked, and the sampling."""
    config, sample = trial.config, task.sample
    parts = [
        trial.content,
        task.prompt,
        asdict(sample) | {"id": ""},
        config.reward.model_dump(mode="json"),
        [trial.wanted.samples, config.max_tokens, config.temperature, config.truncated == "zero"],
    ]
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).digest()


def _open(store: Path) -> sqlite3.Connection:
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error) from error
    try:
        return open_database(store, SCHEMA)
    except sqlite3.Error as error:
        raise ArtifactError(
            f"this is no store of pass rates: {error}", where=store, hint="move the file away"
        ) from error


def _find(connection: sqlite3.Connection, key: bytes) -> Rewards | None:
    row = connection.execute("SELECT rewards FROM tried WHERE key = ?", (key,)).fetchone()
    return None if row is None else json.loads(row[0])
