"""Asks a model the questions of a pack in one stream, and scores tasks beside that.

All questions of all tasks and runs go to the model as one stream, in as many rounds as
conversations have turns. A task is scored, in a thread of its own, once its last answer is there.
"""

from __future__ import annotations

import gc
import json
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from singalaut.artifact import Work, write_atomic
from singalaut.evals.gather import Ask, Gatherer
from singalaut.evals.results import folder_name
from singalaut.evals.schedule import CellAnswers, Place, Protocol, next_round
from singalaut.evals.scored import Scored, distribution
from singalaut.evals.store import Generation
from singalaut.evals.tasks import Cell

ENCODE = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode
Score = Callable[[CellAnswers], "Scored | None"]


@dataclass
class Answered:
    """What one model made of a pack: its answers, and the scores of the cells scored so far."""

    everything: list[CellAnswers]
    scored: dict[str, Scored]


def answer_all(
    gatherer: Gatherer, protocol: Protocol, cells: Sequence[Cell], work: Work, score: Score
) -> Answered:
    """Ask every question of the cells; `score` is called for each cell with all its answers.

    A cell for which `score` gives None has to wait for what others say of it.
    """
    everything = [CellAnswers.empty(cell, protocol.runs(cell)) for cell in cells]
    rounds = max(_turns(answers) for answers in everything)
    with Scoring(score, lambda scored: write_rows(work, gatherer.name, scored)) as scoring:
        for turn in range(rounds):
            begin = time.monotonic()

            def take(ask: Ask, found: Generation | None, reason: str, turn: int = turn) -> None:
                for place in ask.places:
                    _put(place, found, reason)
                    if not place.answers.left and turn + 1 >= _turns(place.answers):
                        scoring.add(place.answers)

            missing = gatherer.replay(next_round(protocol, everything), take)
            gc.freeze()  # half a million small objects that live to the end: do not look through
            for answers in everything:
                if not answers.left and turn + 1 >= _turns(answers):
                    scoring.add(answers)
            gatherer.ask(missing, take, f"evaluate {gatherer.name}")
            if missing:
                seconds = round(time.monotonic() - begin, 3)
                work.log(model=gatherer.name, turn=turn, answers=len(missing), seconds=seconds)
    gc.unfreeze()
    return Answered(everything, scoring.scored)


def write_rows(work: Work, model: str, scored: Scored) -> None:
    """The rows of a cell as JSON lines: every answer with what was made of it."""
    folder = work.path / "responses" / folder_name(model)
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(ENCODE(row) + "\n" for row in scored.rows)
    write_atomic(folder / f"{scored.cell.name}.jsonl", lines.encode())
    scored.distribution = distribution(scored.rows)
    scored.rows = []  # they would fill the memory


class Scoring:
    """A thread that scores cells in the order in which they become complete."""

    def __init__(self, score: Score, write: Callable[[Scored], None]):
        self.scored: dict[str, Scored] = {}
        self._score, self._write = score, write
        self._queue: queue.SimpleQueue[CellAnswers | None] = queue.SimpleQueue()
        self._added: set[str] = set()
        self._error: BaseException | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)

    def __enter__(self) -> Scoring:
        self._thread.start()
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        stopped = kind is not None
        if stopped:
            self._stopped = True
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and not stopped:
            raise self._error

    def add(self, answers: CellAnswers) -> None:
        """Score a cell whose answers are all there, once."""
        if answers.cell.name not in self._added:
            self._added.add(answers.cell.name)
            self._queue.put(answers)

    def _run(self) -> None:
        while (answers := self._queue.get()) is not None:
            if self._stopped or self._error is not None:
                continue
            try:
                scored = self._score(answers)
                if scored is not None:
                    self._write(scored)
                    self.scored[answers.cell.name] = scored
            except BaseException as error:  # raised again where the cells come from
                self._error = error


def _put(place: Place, found: Generation | None, reason: str) -> None:
    answers = place.answers
    turns = answers.turns[place.run][place.example]
    if found is None:
        answers.turns[place.run][place.example] = None
        answers.failed.append((place.name(), reason))
    elif turns is not None:
        turns.append(found)
    answers.left -= 1


def _turns(answers: CellAnswers) -> int:
    return max(len(example.turns) for example in answers.cell.examples)
