"""The schema of a task file, and what to say where a file does not follow it.

Only what one file says is checked here; its rows and its neighbours are not read.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError

from singalaut.errors import DataError, from_os_error
from singalaut.settings import Settings

Metric = Literal[
    "accuracy",
    "chrf++",
    "token-f1",
    "exact-match",
    "rouge-l",
    "metricx",
    "instructions",
    "win-rate",
    "criteria",
]
Kind = Literal["labels", "span", "translation", "summary", "instructions", "dialogue", "criteria"]
KINDS: dict[Metric, Kind] = {
    "accuracy": "labels",
    "chrf++": "translation",
    "token-f1": "span",
    "exact-match": "span",
    "rouge-l": "summary",
    "metricx": "translation",
    "instructions": "instructions",
    "win-rate": "dialogue",
    "criteria": "criteria",
}
TEXT_KINDS: tuple[Kind, ...] = ("span", "translation", "summary")
UNTAGGED_KINDS: tuple[Kind, ...] = ("instructions", "dialogue", "criteria")
TEXT_METRICS: tuple[Metric, ...] = ("chrf++", "token-f1", "exact-match", "rouge-l", "metricx")
SAFE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"  # also a file name on every system


class LanguageFile(Settings):
    """The table `[languages.<code>]` of a task file."""

    tag: str = ""
    """What stands before an answer; tasks that score whole responses have none."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Gold label of the rows, and how the model has to write it."""
    synonyms: dict[str, list[str]] = Field(default_factory=dict)
    """Gold label, and what else counts for it where extraction is robust."""
    preamble: str = ""
    """What stands before the first question, an empty line between."""
    prompt: str = Field(min_length=1)
    """The question; `{name}` is a text of the row."""
    answer: str = "{tag} {label}"
    """How an example given beforehand is answered."""
    data: str = Field(min_length=1)
    examples: str = ""
    """Rows that may be shown, answered, before the question."""


class JudgeFile(Settings):
    """The table `[judge]`: what a judge of two conversations is told.

    `prompts` has one text for each turn, with the fields `{question_1}`, `{answer_a_1}`,
    `{answer_b_1}` and so on; `referenced` the same with `{ref_answer_1}`.
    """

    system: str = Field(min_length=1)
    prompts: list[str] = Field(min_length=1)
    referenced: list[str] = Field(default_factory=list)


class TaskFile(Settings):
    """A task file as written."""

    name: str = Field(pattern=SAFE_NAME)
    version: int = Field(ge=1)
    competency: str = Field(min_length=1)
    group: str = ""
    """Tasks of a group are averaged before their competency is."""
    metric: Metric
    kind: Kind | None = None
    """What an answer is; follows from the metric where it is not given."""
    metrics: list[Metric] = Field(default_factory=list)
    """Other metrics to report beside it."""
    max_tokens: int = Field(ge=1)
    licence: str = Field(min_length=1)
    note: str = ""
    answer_language: str = ""
    """Language of the answers where it is not that of the table, as in translation."""
    slices: str = ""
    """Key of `meta` whose values are averaged, each weighing the same."""
    pooled: bool = False
    """Whether slices are pooled over the tasks of the group first."""
    chance: float | None = Field(None, gt=0, lt=1)
    """Accuracy of guessing where it is not one label among all."""
    judge: JudgeFile | None = None
    languages: dict[str, LanguageFile] = Field(min_length=1)

    def answer_kind(self) -> Kind:
        return self.kind or KINDS[self.metric]


def read_task_file(file: Path) -> TaskFile:
    """Parse and check one task file. Raises: DataError naming the file and the key."""
    try:
        parsed = TaskFile.model_validate(tomllib.loads(file.read_text("utf-8")))
    except OSError as error:
        raise from_os_error(error) from error
    except ValidationError as error:
        raise _schema_error(error, file) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"not a TOML file: {error}", where=file, hint="mend this line") from None
    _check_metrics(parsed, file)
    for code, spec in parsed.languages.items():
        where = f"{file}, [languages.{code}]"
        if not re.fullmatch(SAFE_NAME, code):
            raise DataError(
                f"`{code}` is not a language code", where=where, hint="use a code such as `th`"
            )
        if not spec.tag and parsed.answer_kind() not in UNTAGGED_KINDS:
            raise DataError(
                "`tag` is missing",
                where=f"{where}.tag",
                hint='add a line such as `tag = "Answer:"`',
            )
        _check_labels(parsed.answer_kind(), spec.labels, where)
        if unknown := sorted(set(spec.synonyms) - set(spec.labels)):
            raise DataError(
                f"`synonyms` has `{unknown[0]}`, which is no label",
                where=where,
                hint=nearest(unknown[0], list(spec.labels)) or "use the names of `labels`",
            )
    return parsed


def nearest(name: str, known: Sequence[str]) -> str | None:
    """A question about the known name that looks most like `name`, or None."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{close[0]}`?" if close else None


def _schema_error(error: ValidationError, file: Path) -> DataError:
    """The first complaint of the schema; a misspelt key before the key it leaves missing."""
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    place = [str(part) for part in first["loc"]]
    where = f"{file}, {'.'.join(place)}"
    if first["type"] == "extra_forbidden":
        known = list(_table(place).model_fields)
        hint = nearest(place[-1], known) or f"the keys are {', '.join(known)}"
        return DataError(f"unknown key `{place[-1]}`", where=where, hint=hint)
    if first["type"] == "missing":
        return DataError(f"`{place[-1]}` is missing", where=where, hint="add the key")
    if place[0] in ("metric", "metrics"):
        hint = f"the metrics are {', '.join(get_args(Metric))}"
        return DataError(f"unknown metric `{first['input']}`", where=where, hint=hint)
    return DataError(f"{first['msg']}, found `{_short(first['input'])}`", where=where)


def _table(place: Sequence[str]) -> type[BaseModel]:
    if place[0] == "languages":
        return LanguageFile
    return JudgeFile if place[0] == "judge" and len(place) > 1 else TaskFile


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _check_metrics(parsed: TaskFile, file: Path) -> None:
    kind = parsed.answer_kind()
    fitting = TEXT_METRICS if kind in TEXT_KINDS else (parsed.metric,)
    if kind != KINDS[parsed.metric] and not (
        kind in TEXT_KINDS and KINDS[parsed.metric] in TEXT_KINDS
    ):
        raise DataError(
            f"answers of kind `{kind}` cannot be scored by `{parsed.metric}`",
            where=f"{file}, kind",
            hint=f"leave `kind` out: it is `{KINDS[parsed.metric]}` then",
        )
    for name in parsed.metrics:
        if name not in fitting:
            raise DataError(
                f"answers of kind `{kind}` cannot be scored by `{name}`",
                where=f"{file}, metrics",
                hint=f"the metrics for it are {', '.join(fitting)}",
            )
    if parsed.pooled and not (parsed.slices and parsed.group):
        raise DataError(
            "`pooled` needs `slices` and `group`", where=f"{file}, pooled", hint="add them"
        )
    if kind == "dialogue" and parsed.judge is None:
        raise DataError(
            "conversations are scored by a judge, whose prompts are missing",
            where=f"{file}, judge",
            hint="add the table `[judge]` with `system` and `prompts`",
        )


def _check_labels(kind: Kind, labels: Mapping[str, str], where: str) -> None:
    if kind != "labels":
        if labels:
            raise DataError(
                f"`labels` has no meaning for answers of kind `{kind}`",
                where=where,
                hint="remove `labels`, or set `metric` to accuracy",
            )
        return
    if len(labels) < 2:
        raise DataError(
            f"accuracy needs at least two labels, found {len(labels)}",
            where=where,
            hint='add a line such as `labels = { yes = "Ya", no = "Tidak" }`',
        )
    written = {text.strip().casefold() for text in labels.values()}
    if "" in written or len(written) < len(labels):
        raise DataError(
            "two labels are written the same, or one is empty",
            where=where,
            hint="case and outer spaces do not tell labels apart",
        )
