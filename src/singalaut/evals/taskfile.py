"""The schema of a task file, and what to say where a file does not follow it.

Only what one file says is checked here; its rows and its neighbours are not read.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, ValidationError

from singalaut.errors import DataError, from_os_error
from singalaut.settings import Settings

Metric = Literal["accuracy", "chrf++"]
SAFE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"  # also a file name on every system


class LanguageFile(Settings):
    """The table `[languages.<code>]` of a task file."""

    tag: str = Field(min_length=1)
    labels: dict[str, str] = Field(default_factory=dict)
    prompt: str = Field(min_length=1)
    data: str = Field(min_length=1)


class TaskFile(Settings):
    """A task file as written."""

    name: str = Field(pattern=SAFE_NAME)
    version: int = Field(ge=1)
    competency: str = Field(min_length=1)
    group: str = ""
    metric: Metric
    max_tokens: int = Field(ge=1)
    licence: str = Field(min_length=1)
    note: str = ""
    languages: dict[str, LanguageFile] = Field(min_length=1)


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
    for code, spec in parsed.languages.items():
        where = f"{file}, [languages.{code}]"
        if not re.fullmatch(SAFE_NAME, code):
            raise DataError(
                f"`{code}` is not a language code", where=where, hint="use a code such as `th`"
            )
        _check_labels(parsed.metric, spec.labels, where)
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
        model = LanguageFile if place[0] == "languages" else TaskFile
        known = list(model.model_fields)
        hint = nearest(place[-1], known) or f"the keys are {', '.join(known)}"
        return DataError(f"unknown key `{place[-1]}`", where=where, hint=hint)
    if first["type"] == "missing":
        return DataError(f"`{place[-1]}` is missing", where=where, hint="add the key")
    if place == ["metric"]:
        hint = f"the metrics are {', '.join(get_args(Metric))}"
        return DataError(f"unknown metric `{first['input']}`", where=where, hint=hint)
    return DataError(f"{first['msg']}, found `{first['input']}`", where=where)


def _check_labels(metric: Metric, labels: Mapping[str, str], where: str) -> None:
    if metric != "accuracy":
        if labels:
            raise DataError(
                f"`labels` has no meaning for the metric `{metric}`",
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
