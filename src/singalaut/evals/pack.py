"""Opens a pack: a folder of our own task files, the embedded one, or SEA-HELM's own files.

Everything that a task file can get wrong is found here, before a model is loaded; rows are read
in `examples`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from singalaut.errors import DataError
from singalaut.evals.official import is_official, load_official
from singalaut.evals.profiles import PROFILES, Profile
from singalaut.evals.taskfile import JudgeFile, LanguageFile, TaskFile, read_task_file
from singalaut.evals.tasks import JudgePrompts, Pack, PromptForm, Task, TaskLanguage
from singalaut.evals.template import Template

EMBEDDED = Path(__file__).parent / "packs"


def pack_path(name: str) -> Path:
    """The folder of an embedded pack (`demo`), or the folder that `name` is."""
    return EMBEDDED / "demo" if name == "demo" else Path(name)


def load_pack(
    path: Path | str, profile: Profile = PROFILES["card"], data: Sequence[Path] = ()
) -> Pack:
    """Read every task of the pack in `path`, or of the embedded pack `demo`.

    `data` are further folders to look for rows in, for official packs whose task files name rows
    that lie elsewhere. Raises: DataError where a task file is malformed or there is none.
    """
    folder = pack_path(path) if isinstance(path, str) else path
    if is_official(folder):
        return load_official(folder, profile, data)
    files = sorted(folder.glob("*.toml"))
    if not files:
        found = "has no task files" if folder.is_dir() else "is not a folder"
        raise DataError(
            f"the pack `{folder.name}` {found}",
            where=folder,
            hint="a pack is a folder of `<task>.toml` files, or of SEA-HELM's own; "
            "`demo` is the embedded one",
        )
    tasks = sorted((_task(file, folder) for file in files), key=lambda task: task.name)
    for first, second in pairwise(tasks):
        if first.name == second.name:
            raise DataError(
                f"two task files have the name `{first.name}`",
                where=folder,
                hint="give each task its own `name`",
            )
    return Pack(folder.name, tuple(tasks))


def _task(file: Path, folder: Path) -> Task:
    parsed = read_task_file(file)
    languages = {
        code: _language(code, spec, parsed, folder, f"{file}, [languages.{code}]")
        for code, spec in parsed.languages.items()
    }
    return Task(
        name=parsed.name,
        version=str(parsed.version),
        competency=parsed.competency,
        group=parsed.group,
        kind=parsed.answer_kind(),
        metric=parsed.metric,
        metrics=tuple(dict.fromkeys((parsed.metric, *parsed.metrics))),
        max_tokens=parsed.max_tokens,
        licence=parsed.licence,
        note=parsed.note,
        languages=languages,
        slices=parsed.slices,
        pooled=parsed.pooled,
        chance=parsed.chance,
        judge=None if parsed.judge is None else _judge(parsed.judge, file),
    )


def _language(
    code: str, spec: LanguageFile, parsed: TaskFile, folder: Path, where: str
) -> TaskLanguage:
    labels = dict(spec.labels)
    form = PromptForm(
        question=Template.plain(spec.prompt),
        preamble=spec.preamble,
        answer=Template.plain(spec.answer).partly({"tag": spec.tag}),
    )
    return TaskLanguage(
        language=code,
        answer_language=parsed.answer_language or code,
        tag=spec.tag,
        prompt=form,
        max_tokens=parsed.max_tokens,
        data=_inside(folder, spec.data, where),
        examples=_inside(folder, spec.examples, where) if spec.examples else None,
        labels=labels,
        aliases={label.strip().casefold(): label for label in labels},
        synonyms=spec.synonyms,
        source=spec.data,
        licence=parsed.licence,
    )


def _judge(spec: JudgeFile, file: Path) -> JudgePrompts:
    return JudgePrompts(
        system=(Template.plain(spec.system),),
        prompts=tuple(map(Template.plain, spec.prompts)),
        referenced=tuple(map(Template.plain, spec.referenced)),
        referenced_system=(Template.plain(spec.system),) if spec.referenced else (),
    )


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
