"""From rows to questions with gold answers: the reading of one task in one language.

Whatever is wrong with a row is counted by its kind. Two forms of rows are known: our own, an
object of texts, and that of SEA-HELM, with the texts in `prompts` and the gold in `label`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from singalaut.errors import DataError
from singalaut.evals.rows import Problem, ProblemKind, Problems, read_rows
from singalaut.evals.tasks import (
    Cell,
    Example,
    Task,
    TaskLanguage,
    messages_before,
    question,
)
from singalaut.evals.template import texts

Shot = tuple[Mapping[str, str], str]


@dataclass(frozen=True)
class Row:
    """A row in either form: the fields of each turn, the gold as written, and the rest."""

    id: str
    turns: Sequence[Mapping[str, str]]
    gold: Any
    meta: Mapping[str, Any]
    rest: Mapping[str, Any]


class RowProblem(Exception):
    """Why a row cannot be used."""

    def __init__(self, kind: ProblemKind, what: str):
        super().__init__(what)
        self.kind, self.what = kind, what


def read_cell(task: Task, language: TaskLanguage, limit: int | None = None, shots: int = 0) -> Cell:
    """The questions of a task in one language, at most `limit`, with `shots` worked examples.

    All rows are read, so that labels and problems do not depend on the limit.
    Raises: DataError where the file is missing or no row of it can be used.
    """
    if language.data is None:
        raise DataError(
            f"`{task.name}` has no rows in `{language.language}`",
            where=language.source,
            hint="give the folder that has them with `--data`, or fetch them: `eval fetch`",
        )
    file = language.data
    problems = Problems()
    rows = list(_rows(task, language, problems))
    if task.kind == "labels" and not language.labels:
        language = _labels_from_rows(language, rows)
    worked = _worked_examples(task, language, shots)
    made: list[Example] = []
    seen: set[str] = set()
    for number, row in rows:
        where = f"{file.name}, line {number}"
        try:
            example = _example(task, language, row, worked(row))
        except RowProblem as problem:
            problems.add(Problem(problem.kind, where, problem.what))
            continue
        if example.id in seen:
            problems.add(
                Problem("duplicate_id", where, f"another row has the id `{example.id}`", lost=False)
            )
            example = replace(example, id=f"{example.id}#{number}")
        seen.add(example.id)
        made.append(example)
    if not made:
        found = problems.first[0].what if problems.first else "it has no rows"
        raise DataError(
            f"no row can be used: {found}", where=language.data, hint="mend or replace the file"
        )
    return Cell(task, language, tuple(made[:limit]), problems)


def question_texts(task: Task, language: TaskLanguage) -> list[tuple[str, list[str]]]:
    """The texts of each question as its row has them, without the prompt around; unusable rows
    are passed over."""
    problems = Problems()
    made = []
    for _, row in _rows(task, language, problems):
        gold = row.gold if isinstance(row.gold, list) else [row.gold]
        references = [text for text in gold if isinstance(text, str)]
        turns = [{k: text for k, text in turn.items() if k != "id"} for turn in row.turns]
        texts_of_row = [text for turn in turns for text in turn.values()]
        made.append((row.id, texts_of_row + references))
    return made


def _rows(task: Task, language: TaskLanguage, problems: Problems) -> Iterable[tuple[int, Row]]:
    file = language.data
    assert file is not None
    adapt: Callable[[Task, int, dict[str, Any]], Row]
    adapt = _official_row if task.form == "official" else _flat_row
    for number, raw in read_rows(file, problems):
        try:
            yield number, adapt(task, number, raw)
        except RowProblem as problem:
            problems.add(Problem(problem.kind, f"{file.name}, line {number}", problem.what))


def _flat_row(task: Task, number: int, raw: dict[str, Any]) -> Row:
    """A row of our own: `id`, texts, and `label`, `reference` or `references`."""
    identity = raw.get("id")
    if not isinstance(identity, str) or not identity.strip():
        raise RowProblem("missing_field", f"`id` {_found(raw, 'id')}, a text is needed")
    gold_key = {"labels": "label", "dialogue": "references"}.get(task.kind, "reference")
    gold = raw.get("references", raw.get(gold_key))
    gold_keys = ("label", "reference", "references")
    fields = {k: v for k, v in raw.items() if isinstance(v, str) and k not in gold_keys}
    turns: list[Mapping[str, str]] = [fields]
    if task.kind == "dialogue" or "turns" in raw:
        given = raw.get("turns")
        if not _texts(given):
            raise RowProblem("missing_field", f"`turns` {_found(raw, 'turns')}, texts are needed")
        turns = [{**fields, "text": text} for text in given or ()]
    meta = raw.get("meta")
    return Row(identity, turns, gold, meta if isinstance(meta, dict) else raw, raw)


def _official_row(task: Task, number: int, raw: dict[str, Any]) -> Row:
    """A row of SEA-HELM: the fields of each turn in `prompts`, the gold in `label`."""
    prompts = raw.get("prompts")
    if prompts is None and isinstance(raw.get("answer"), str) and "question" in raw:
        fields = texts({k: v for k, v in raw.items() if k in ("question", *"abcde")})
        about = {"subject": raw.get("subject", "")}
        return Row(str(number - 1), [fields], raw["answer"].upper(), about, raw)  # ThaiExam's form
    if not isinstance(prompts, list) or not prompts or {type(p) for p in prompts} != {dict}:
        raise RowProblem("missing_field", f"`prompts` {_found(raw, 'prompts')}, objects are needed")
    identity = raw.get("id", raw.get("question_id", number - 1))
    meta = raw.get("metadata")
    return Row(
        str(identity),
        [texts(turn) for turn in prompts],
        raw.get("label"),
        meta if isinstance(meta, dict) else {},
        raw,
    )


def _example(task: Task, language: TaskLanguage, row: Row, shots: Sequence[Shot]) -> Example:
    gold, references = _gold(task, language, row)
    turns = []
    for position, fields in enumerate(row.turns):
        try:
            turns.append(question(language.prompt, fields, () if position else shots))
        except KeyError as missing:
            name = missing.args[0]
            what = f"the prompt asks for `{{{name}}}`, which the row lacks"
            raise RowProblem("missing_field", what) from None
    extra = _extra(task, row)
    part = "" if not task.slices else row.meta.get(task.slices)
    if task.slices and not isinstance(part, str):
        raise RowProblem("missing_field", f"`{task.slices}` {_found(row.meta, task.slices)}")
    before = _before(language, shots)
    return Example(row.id, before, tuple(turns), gold, references, part or "", extra)


def _before(language: TaskLanguage, shots: Sequence[Shot]) -> tuple[Any, ...]:
    return messages_before(language.prompt, shots) if shots else ()


def _gold(task: Task, language: TaskLanguage, row: Row) -> tuple[str, tuple[str, ...]]:
    """The gold label, or the reference texts. Raises: RowProblem where there is none to use."""
    gold = row.gold
    if task.kind == "labels":
        if gold is None or gold == "" or isinstance(gold, list | dict | float):
            raise RowProblem("missing_label", f"the label {_told(gold)}, a text is needed")
        label = language.aliases.get(str(gold).strip().casefold())
        if label is None:
            known = ", ".join(language.labels)
            raise RowProblem("unknown_label", f"the label `{gold}` is not among {known}")
        return label, ()
    if task.kind in ("instructions", "dialogue", "criteria"):
        given = row.rest.get("references") if task.kind == "dialogue" else gold
        if isinstance(given, str):
            return "", (given,)
        return "", tuple(given) if isinstance(given, list) and _texts(given) else ()
    references = gold if isinstance(gold, list) else [gold]
    if not _texts(references) or not all(text.strip() for text in references):
        raise RowProblem("missing_label", f"the reference {_told(gold)}, a text is needed")
    return "", tuple(references)


def _extra(task: Task, row: Row) -> Mapping[str, Any]:
    """What a translation, an instruction, a conversation or criteria are scored with."""
    if task.kind == "translation":
        fields = row.turns[0]
        return {"source": fields.get("text", fields.get("source", ""))}
    if task.kind == "instructions":
        return {"constraints": _constraints(row)}
    if task.kind == "dialogue":
        category = row.meta.get("category", "")
        return {"category": str(category).strip().lower(), "baselines": _baselines(row)}
    if task.kind == "criteria":
        criteria = row.rest.get("criteria")
        if not isinstance(criteria, list) or not criteria:
            raise RowProblem("missing_field", f"`criteria` {_found(row.rest, 'criteria')}")
        category = str(row.meta.get("category", "")).strip().lower()
        return {"criteria": criteria, "category": category, "fields": row.turns}
    return {}


def _constraints(row: Row) -> list[tuple[str, dict[str, Any]]]:
    """Each instruction's name and its arguments, those that are null left out."""
    own = row.rest.get("constraints")
    if isinstance(own, list):
        pairs = [(c.get("type"), {k: v for k, v in c.items() if k != "type"}) for c in own]
    else:
        names = row.meta.get("subcategory", row.rest.get("instruction_id_list"))
        given = row.rest.get("kwargs")
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not isinstance(given, list):
            raise RowProblem("missing_field", "the row has no instructions to check")
        if len(names) != len(given):
            what = f"{len(names)} instructions have {len(given)} sets of arguments"
            raise RowProblem("bad_constraint", what)
        pairs = list(zip(names, given, strict=True))
    made = []
    for name, arguments in pairs:
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise RowProblem("bad_constraint", f"`{name}` is not an instruction with arguments")
        made.append((name, {k: v for k, v in arguments.items() if v is not None}))
    if not made:
        raise RowProblem("missing_field", "the row has no instructions to check")
    return made


def _baselines(row: Row) -> Mapping[str, Sequence[str]]:
    """Answers to compare with, by the name of who gave them."""
    given = row.rest.get("baselines")
    if _texts(row.rest.get("baseline")):
        given = {"baseline": row.rest["baseline"]}
    if not isinstance(given, dict):
        return {}
    return {name: turns for name, turns in given.items() if _texts(turns)}


def _worked_examples(
    task: Task, language: TaskLanguage, count: int
) -> Callable[[Row], Sequence[Shot]]:
    """The examples to show before a row: the first of the file, or of the row's subject."""
    if count == 0 or language.examples is None:
        return lambda row: ()
    problems = Problems()
    spec = replace(language, data=language.examples)
    groups: dict[str, list[Shot]] = {}
    for _, row in _rows(task, spec, problems):
        key = str(row.meta.get(task.shots_by, "")).lower() if task.shots_by else ""
        groups.setdefault(key, []).append((row.turns[0], _shown_label(language, row.gold)))
    if problems.lost:
        first = problems.first[0]
        raise DataError(
            f"a worked example cannot be used: {first.what}",
            where=first.where,
            hint="mend the file of examples, or ask without any",
        )
    chosen = {key: tuple(shots[:count]) for key, shots in groups.items()}
    if not task.shots_by:
        everyone = chosen.get("", ())
        return lambda row: everyone
    return lambda row: chosen.get(row.turns[0].get(task.shots_by, "").lower(), ())


def _shown_label(language: TaskLanguage, gold: Any) -> str:
    """The label of an example as the model shall write it; texts stay as the file has them."""
    if isinstance(gold, list):
        gold = gold[0] if gold else ""
    text = str(gold)
    if language.prompt.inline is not None or not language.labels:
        return text
    written = {value.casefold() for value in language.labels.values()}
    if isinstance(gold, str) and text.strip().casefold() in written:
        return text
    label = language.aliases.get(text.strip().casefold())
    return text if label is None else language.labels[label]


def _labels_from_rows(language: TaskLanguage, rows: Sequence[tuple[int, Row]]) -> TaskLanguage:
    """Labels where the task names none: every gold of the whole file, as it is written."""
    found = dict.fromkeys(str(row.gold).strip() for _, row in rows if row.gold not in (None, ""))
    labels = {label: label for label in sorted(found)}
    return replace(language, labels=labels, aliases={k.casefold(): k for k in labels})


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, str) for v in value)


def _found(row: Mapping[str, Any], key: str) -> str:
    return _told(row[key]) if key in row else "is missing"


def _told(value: Any) -> str:
    text = repr(value)
    return "is missing" if value is None else f"is {text if len(text) <= 60 else text[:60] + '…'}"
