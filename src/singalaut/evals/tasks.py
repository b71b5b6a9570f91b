"""What is asked: packs of tasks, their languages, questions with gold answers, and prompts.

Plain data and the building of prompts; files are read in `pack` (our own form), `official` (that
of SEA-HELM) and `examples` (rows).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from singalaut.contracts import Message
from singalaut.errors import RecipeError
from singalaut.evals.rows import Problems
from singalaut.evals.taskfile import Kind, Metric, nearest
from singalaut.evals.template import Template

RowForm = Literal["flat", "official"]


@dataclass(frozen=True)
class PromptForm:
    """How a row becomes a conversation.

    `preamble` stands before the first message, an empty line between. Examples are turns of their
    own, or, with `inline`, filled in where the question has `{fewshot_examples}`. `stripped` takes
    outer white space off the first message, as SEA-HELM does since v1.1.
    """

    question: Template
    answer: Template
    preamble: str = ""
    inline: Template | None = None
    stripped: bool = False

    def open(self, text: str) -> str:
        """A first message with the preamble before it."""
        if self.stripped:
            return f"{self.preamble}\n\n{text}".strip()
        return f"{self.preamble}\n\n{text}" if self.preamble else text


@dataclass(frozen=True)
class TaskLanguage:
    """One language of a task.

    `labels` maps a gold label to what the model must write, `aliases` what rows may call it
    (casefolded) to the gold label. `counted` says whether the suite averages it. `hub` names the
    data set on the hub, its configuration, and the splits of questions and of examples.
    """

    language: str
    answer_language: str
    tag: str
    prompt: PromptForm
    max_tokens: int
    data: Path | None
    examples: Path | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    synonyms: Mapping[str, Sequence[str]] = field(default_factory=dict)
    counted: bool = True
    hub: tuple[str, str, str, str] | None = None
    source: str = ""
    licence: str = ""


@dataclass(frozen=True)
class JudgePrompts:
    """What a judge is told. Pairs: a text for each turn; criteria: a text for each turn.

    `classes` maps what a judge of criteria may answer to its worth; empty for pairs. `baseline`
    names whose answers are compared with, where rows have those of several.
    """

    system: tuple[Template, ...]
    prompts: tuple[Template, ...]
    referenced_system: tuple[Template, ...] = ()
    referenced: tuple[Template, ...] = ()
    referenced_categories: frozenset[str] = frozenset()
    verdicts: tuple[str, str, str] = ("[[A]]", "[[B]]", "[[C]]")
    classes: Mapping[str, float] = field(default_factory=dict)
    reference: Template | None = None
    weighted: bool = False
    baseline: str = ""


@dataclass(frozen=True)
class Task:
    """One task of a pack, with its languages in the order of the file."""

    name: str
    version: str
    competency: str
    group: str
    kind: Kind
    metric: Metric
    metrics: tuple[Metric, ...]
    max_tokens: int
    licence: str
    note: str
    languages: Mapping[str, TaskLanguage]
    form: RowForm = "flat"
    slices: str = ""
    pooled: bool = False
    chance: float | None = None
    temperature: float | None = None
    shots_by: str = ""
    base_models: bool = True
    case_sensitive: bool = False
    judge: JudgePrompts | None = None


@dataclass(frozen=True)
class Pack:
    """Tasks in the order of their names; `averaged` are the languages of the overall mean."""

    name: str
    tasks: tuple[Task, ...]
    averaged: tuple[str, ...] = ()
    expected: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Example:
    """One question: messages shown before it, its turns, and what an answer is held against.

    `gold` is a gold label; `references` are texts, for a conversation one for each turn. `slice`
    is what results are broken down by. `extra` has what only some kinds of answers need.
    """

    id: str
    before: tuple[Message, ...]
    turns: tuple[str, ...]
    gold: str
    references: tuple[str, ...]
    slice: str
    extra: Mapping[str, Any]

    @property
    def prompt(self) -> str:
        """The first question as text, for people to read."""
        return self.turns[0]


@dataclass(frozen=True)
class Cell:
    """The questions of one task in one language: the unit of scores."""

    task: Task
    language: TaskLanguage
    examples: tuple[Example, ...]
    problems: Problems = field(default_factory=Problems)

    @property
    def name(self) -> str:
        return f"{self.task.name}.{self.language.language}"

    @property
    def chance(self) -> float:
        """Accuracy of guessing, 0 where the answer is a text."""
        if self.task.kind != "labels":
            return 0.0
        return self.task.chance or 1 / len(self.language.labels)


def messages_before(
    form: PromptForm, shots: Sequence[tuple[Mapping[str, str], str]]
) -> tuple[Message, ...]:
    """The turns of worked examples, each given by its fields and its label as text."""
    made: list[Message] = []
    if form.inline is not None:
        return ()
    for values, label in shots:
        text = form.question.fill(values)
        made.append(Message("user", text if made else form.open(text)))
        made.append(Message("assistant", form.answer.fill({**values, "label": label})))
    return tuple(made)


def question(
    form: PromptForm,
    values: Mapping[str, str],
    shots: Sequence[tuple[Mapping[str, str], str]] = (),
) -> str:
    """The message that asks, with the preamble unless examples have opened with it.

    Raises: KeyError for a field that the row lacks.
    """
    if form.inline is not None:
        inline = form.inline
        shown = "".join(inline.fill({**fields, "label": label}) for fields, label in shots)
        return form.question.fill({**values, "fewshot_examples": shown})
    text = form.question.fill(values)
    return text if shots else form.open(text)


def choose(
    pack: Pack,
    tasks: Sequence[str] = (),
    languages: Sequence[str] = (),
    extras: bool = False,
) -> list[tuple[Task, TaskLanguage]]:
    """The chosen tasks and languages in the order of the pack; none named means all.

    What the suite does not average is chosen with `extras`, or where its task is named.
    Raises: RecipeError for a task or language that the pack lacks.
    """
    _known("task", tasks, [task.name for task in pack.tasks], pack)
    everywhere = dict.fromkeys(code for task in pack.tasks for code in task.languages)
    _known("language", languages, list(everywhere), pack)
    chosen = [
        (task, spec)
        for task in pack.tasks
        if not tasks or task.name in tasks
        for code, spec in task.languages.items()
        if (not languages or code in languages) and (extras or tasks or spec.counted)
    ]
    if not chosen:
        named = f" among {', '.join(tasks)}" if tasks else ""
        raise RecipeError(
            f"no task{named} is in {', '.join(languages) or 'the suite'}",
            where=f"pack `{pack.name}`",
            hint="choose other tasks or languages",
        )
    return chosen


def _known(what: str, wanted: Sequence[str], known: list[str], pack: Pack) -> None:
    for name in wanted:
        if name not in known:
            raise RecipeError(
                f"the pack `{pack.name}` has no {what} `{name}`",
                where=f"{what}s",
                hint=nearest(name, known) or f"it has {', '.join(known)}",
            )
