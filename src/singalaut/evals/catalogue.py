"""What a pack holds: its tasks with their rows and faults, and which languages they cover."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from singalaut.errors import DataError
from singalaut.evals.examples import read_cell
from singalaut.evals.tasks import Pack, Task, TaskLanguage
from singalaut.text.languages import LANGUAGES

# what a language should have at least, by the kinds of answers and competencies
PARTS = ("sentiment", "questions", "translation", "reasoning", "instructions", "conversation")


def catalogue(cells: Sequence[tuple[Task, TaskLanguage]], shots: int = 0) -> list[dict[str, Any]]:
    """One entry for each task and language; one without rows says where they should be."""
    return [_entry(task, spec, shots) for task, spec in cells]


def coverage(pack: Pack) -> list[dict[str, Any]]:
    """For each of our languages the number of tasks by what they ask for.

    A task of translation counts for the language of its texts and for that of its answers.
    """
    rows = []
    for code in LANGUAGES:
        counts = dict.fromkeys(PARTS, 0)
        for task in pack.tasks:
            part = _part(task)
            if part is not None and any(
                spec.data is not None and code in (spec.language, spec.answer_language)
                for spec in task.languages.values()
            ):
                counts[part] += 1
        missing = [name for name, count in counts.items() if not count]
        rows.append({"language": code, **counts, "not covered": ", ".join(missing)})
    return rows


def _entry(task: Task, spec: TaskLanguage, shots: int) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "task": task.name,
        "language": spec.language,
        "version": task.version,
        "competency": task.competency,
        "kind": task.kind,
        "metric": task.metric,
        "rows": 0,
        "counted": spec.counted,
        "chance": None,
        "licence": spec.licence or task.licence,
        "tag": spec.tag,
        "labels": dict(spec.labels),
        "max_tokens": spec.max_tokens,
        "problems": "",
        "lost": 0,
        "conversation": [],
    }
    if spec.data is None:
        return entry | {"problems": f"no rows here: {spec.source}"}
    try:
        cell = read_cell(task, spec, shots=shots)
    except DataError as error:
        return entry | {"problems": error.what, "lost": 1}
    first = cell.examples[0]
    counts = cell.problems.counts
    return entry | {
        "rows": len(cell.examples),
        "chance": cell.chance or None,
        "labels": dict(cell.language.labels),
        "problems": ", ".join(f"{n} {kind.replace('_', ' ')}" for kind, n in counts.items()),
        "lost": cell.problems.lost,
        "conversation": [
            *((message.role, message.content) for message in first.before),
            *(("user", text) for text in first.turns),
        ],
    }


def _part(task: Task) -> str | None:
    """What a task asks for, by its name and kind."""
    if task.kind in ("translation", "instructions"):
        return {"translation": "translation", "instructions": "instructions"}[task.kind]
    if task.kind in ("dialogue", "criteria"):
        return "conversation" if task.competency == "multi-turn" else None
    if task.kind == "span" or "qa" in task.name or task.competency == "knowledge":
        return "questions"
    if task.competency == "nlr":
        return "reasoning"
    return "sentiment" if task.name == "sentiment" else None
