"""Reads a pack, a folder of task files (TOML) and rows (JSONL), into prompts with gold answers.

Everything a pack can get wrong is found here, before a model is loaded. Asking, scoring and
reporting are left to the other files of this room.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from singalaut.errors import DataError, RecipeError, from_os_error
from singalaut.evals.taskfile import Metric, nearest, read_task_file

FIELD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class TaskLanguage:
    """One language of a task; `labels` maps a gold label to what the model must write."""

    language: str
    tag: str
    labels: Mapping[str, str]
    prompt: str
    data: Path


@dataclass(frozen=True)
class Task:
    """One task of a pack, with its languages in the order of the file."""

    name: str
    version: int
    competency: str
    group: str
    metric: Metric
    max_tokens: int
    licence: str
    note: str
    languages: Mapping[str, TaskLanguage]


@dataclass(frozen=True)
class Pack:
    """A folder of tasks, in the order of their names."""

    name: str
    path: Path
    tasks: tuple[Task, ...]


@dataclass(frozen=True)
class Example:
    """One question: the filled prompt and its gold label, or reference text."""

    id: str
    task: str
    language: str
    prompt: str
    gold: str
    labels: Mapping[str, str]
    tag: str


@dataclass(frozen=True)
class Chunk:
    """The questions of one task in one language: the unit that is asked, saved and resumed."""

    task: Task
    language: TaskLanguage
    examples: tuple[Example, ...]

    @property
    def name(self) -> str:
        return f"{self.task.name}.{self.language.language}"


def pack_path(name: str) -> Path:
    """The folder of an embedded pack (`demo`), or the folder that `name` is."""
    return Path(__file__).parent / "packs" / "demo" if name == "demo" else Path(name)


def load_pack(path: Path | str) -> Pack:
    """Read every task file of the pack in `path`, or of the embedded pack `demo`.

    Raises: DataError where a task file is malformed or there is none.
    """
    folder = pack_path(path) if isinstance(path, str) else path
    files = sorted(folder.glob("*.toml"))
    if not files:
        found = "has no task files" if folder.is_dir() else "is not a folder"
        raise DataError(
            f"the pack `{folder.name}` {found}",
            where=folder,
            hint="a pack is a folder of `<task>.toml` files; `demo` is the embedded one",
        )
    tasks = sorted((_task(file, folder) for file in files), key=lambda task: task.name)
    for first, second in pairwise(tasks):
        if first.name == second.name:
            raise DataError(
                f"two task files have the name `{first.name}`",
                where=folder,
                hint="give each task its own `name`",
            )
    return Pack(folder.name, folder, tuple(tasks))


def examples(task: Task, language: str, limit: int | None = None) -> list[Example]:
    """The questions of `task` in `language`, in the order of the file, at most `limit`.

    Raises: DataError naming the file and line of a row that cannot be used. All rows are read.
    """
    spec = task.languages[language]
    made: list[Example] = []
    seen: dict[str, int] = {}
    for number, row in _rows(spec.data):
        where = f"{spec.data}, line {number}"
        example = _example(task, spec, row, where)
        if example.id in seen:
            raise DataError(
                f"the id `{example.id}` is also the id of line {seen[example.id]}",
                where=where,
                hint="give each row its own `id`",
            )
        seen[example.id] = number
        made.append(example)
    if not made:
        raise DataError("the file has no rows", where=spec.data, hint="add at least one row")
    return made[:limit]


def chunks(
    pack: Pack,
    tasks: Sequence[str] = (),
    languages: Sequence[str] = (),
    limit: int | None = None,
) -> list[Chunk]:
    """The chosen part of the pack in a fixed order; no `tasks` or `languages` means all.

    Raises: RecipeError for a task or language that the pack lacks, DataError for a bad row.
    """
    _known("task", tasks, [task.name for task in pack.tasks], pack)
    everywhere = dict.fromkeys(code for task in pack.tasks for code in task.languages)
    _known("language", languages, list(everywhere), pack)
    chosen = [
        Chunk(task, spec, tuple(examples(task, code, limit)))
        for task in pack.tasks
        if not tasks or task.name in tasks
        for code, spec in task.languages.items()
        if not languages or code in languages
    ]
    if not chosen:
        raise RecipeError(
            f"no task among {', '.join(tasks)} is in {', '.join(languages)}",
            where=f"pack `{pack.name}`",
            hint="choose other tasks or languages",
        )
    return chosen


def _task(file: Path, folder: Path) -> Task:
    parsed = read_task_file(file)
    languages = {}
    for code, spec in parsed.languages.items():
        data = _inside(folder, spec.data, f"{file}, [languages.{code}]")
        languages[code] = TaskLanguage(code, spec.tag, spec.labels, spec.prompt, data)
    return Task(**{**dict(parsed), "languages": languages})


def _inside(folder: Path, name: str, where: str) -> Path:
    """The data file; outside of the pack it would escape the pack's content hash."""
    file = folder / name
    if not file.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            f"`{name}` is outside of the pack", where=where, hint="put the file into the pack"
        )
    if not file.is_file():
        raise DataError(f"the data file `{name}` is missing", where=where, hint=f"write `{file}`")
    return file


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each row with its line number; blank lines are skipped."""
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise from_os_error(error) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line.decode("utf-8"))
            json.dumps(row, ensure_ascii=False).encode()  # a lone surrogate could not be saved
        except ValueError as error:
            raise DataError(
                f"the row is not JSON in UTF-8: {error}", where=where, hint="mend or remove it"
            ) from None
        if not isinstance(row, dict):
            raise DataError(
                f"the row is a {type(row).__name__}, an object is needed",
                where=where,
                hint='write {"id": …, …}',
            )
        yield number, row


def _example(task: Task, spec: TaskLanguage, row: Mapping[str, Any], where: str) -> Example:
    gold_key = "label" if task.metric == "accuracy" else "reference"
    for key in ("id", gold_key):
        if not isinstance(row.get(key), str) or not row[key].strip():
            found = f"is {row[key]!r}" if key in row else "is missing"
            raise DataError(
                f"`{key}` {found}, a text is needed", where=where, hint=f"give the row its `{key}`"
            )
    gold = row[gold_key]
    if spec.labels and gold not in spec.labels:
        raise DataError(
            f"the gold label `{gold}` is not a label of `{task.name}` in `{spec.language}`",
            where=where,
            hint=f"the labels are {', '.join(spec.labels)}",
        )
    fields = {k: v for k, v in row.items() if isinstance(v, str) and k != gold_key}
    prompt = _fill(spec.prompt, fields, where)
    return Example(row["id"], task.name, spec.language, prompt, gold, spec.labels, spec.tag)


def _fill(template: str, fields: Mapping[str, str], where: str) -> str:
    """Put the row's texts in place of `{name}`, once; the gold answer is not among them."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in fields:
            raise DataError(
                f"the prompt asks for `{{{match[1]}}}`, which the row lacks",
                where=where,
                hint=nearest(match[1], list(fields)) or f"its texts are {', '.join(fields)}",
            )
        return fields[match[1]]

    return FIELD.sub(value, template)


def _known(what: str, wanted: Sequence[str], known: list[str], pack: Pack) -> None:
    for name in wanted:
        if name not in known:
            raise RecipeError(
                f"the pack `{pack.name}` has no {what} `{name}`",
                where=f"{what}s",
                hint=nearest(name, known) or f"it has {', '.join(known)}",
            )
