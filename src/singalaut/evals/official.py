"""Reads SEA-HELM's own task files (YAML) and finds their rows (JSON lines).

Two forms are known: that of v1.0.0, a template with examples filled in, and that since v1.1, a
preamble and turns. What the files leave to SEA-HELM's code stands in `official.toml`. Rows of
later versions lie on the hub; where they are not at hand, those of v1.0.0 are taken, whose fields
are the same.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from singalaut.errors import DataError, from_os_error
from singalaut.evals.judge_prompts import judge_prompts
from singalaut.evals.profiles import Profile, Version
from singalaut.evals.rows import find_file
from singalaut.evals.taskfile import Kind, Metric
from singalaut.evals.tasks import Pack, PromptForm, Task, TaskLanguage
from singalaut.evals.template import Template

TASKS = "seahelm_tasks"
SUITE = "seahelm"
# what stands in a prompt of v1.0.0 where the answer has to be put
PLACEHOLDER = re.compile(r"^(.*?)[ \t]*\$(?:OPTION|ANSWER|TRANSLATION|SUMMARY|LABEL)", re.M)
REFERENCE = re.compile(r"\$\{([^}]+)\}")
LEFT_OUT = ("-logprobs", "-increased-tokens")  # variants that settings of ours stand for


def is_official(folder: Path) -> bool:
    """Whether the folder holds SEA-HELM's files."""
    return next(_prompt_roots(folder), None) is not None


def load_official(folder: Path, profile: Profile, data: Sequence[Path] = ()) -> Pack:
    """The tasks of the prompts that the profile asks for, with the rows that can be found.

    Raises: DataError where these prompts are not there or a file is malformed.
    """
    roots = {_version(root): root for root in _prompt_roots(folder)}
    root = roots.get(profile.version)
    if root is None:
        raise DataError(
            f"the profile `{profile.name}` needs the prompts of SEA-HELM {profile.version}",
            where=folder,
            hint=f"the folder has those of {', '.join(roots)}: choose another `--profile`",
        )
    places = [folder, folder / "data", *(p for d in data for p in (d, d / "data"))]
    old = _config(roots["v1.0"]) if "v1.0" in roots else {}
    for place in data:
        for more in _prompt_roots(place):
            if _version(more) == "v1.0":
                old = {**_config(more), **old}
    config = _config(root)
    suite = _suite(root, profile)
    finder = _Finder(places, old)
    tasks, skipped = [], []
    for name, body in sorted(config.items()):
        if name.endswith(LEFT_OUT):
            continue
        task = _task(name, body, profile, suite, finder, root)
        if task is None:
            skipped.append(name)
        else:
            tasks.append(task)
    expected = {code: tuple(names) for code, names in suite.items()}
    return Pack(
        f"sea-helm-{root.name}" if root.name.startswith("v") else "sea-helm",
        tuple(tasks),
        tuple(suite),
        expected,
        tuple(skipped),
    )


class _Finder:
    """Where the rows of a task and language lie."""

    def __init__(self, places: Sequence[Path], old: Mapping[str, Any]):
        self.places, self.old = places, old

    def find(
        self, name: str, code: str, body: Mapping[str, Any], key: str
    ) -> tuple[Path | None, str]:
        """The file, or None, and how the task file calls it."""
        named = body["languages"][code].get(key) or ""
        if named.endswith((".jsonl", ".json")):
            return self._first(named), named
        config, *splits = hub_place(name, code)
        split = splits[0] if key == "filepath" else splits[1]
        found = self._first(f"hub/{named}/{config}/{split}.jsonl") if named else None
        if found is None and named:
            old = self.old.get(name, {}).get("languages", {})
            spelled = next((c for c in old if our_code(c) == our_code(code)), None)
            if spelled is not None and old[spelled].get(key):
                found = self._first(old[spelled][key])
        return found, f"{named} ({config}, {split})" if named else ""

    def _first(self, name: str) -> Path | None:
        return next((file for p in self.places if (file := find_file(p, name))), None)


def hub_place(name: str, code: str) -> tuple[str, str, str]:
    """Configuration of a task's data set, and the splits of questions and of worked examples."""
    if name.startswith("thai_exam_"):
        return name.removeprefix("thai_exam_"), "test", "test"
    config = _table()["tasks"].get(name, {}).get("hub_config", "{lang}")
    return config.format(lang=code), "eval", "examples"


def our_code(code: str) -> str:
    """Our code of a language as the files spell it."""
    return _table()["languages"].get(code, code)


def _task(
    name: str,
    body: Mapping[str, Any],
    profile: Profile,
    suite: Mapping[str, Sequence[str]],
    finder: _Finder,
    root: Path,
) -> Task | None:
    """The task, or None where its kind of answers is not known."""
    table = _table()["tasks"].get(name) or _guess(body)
    if table is None:
        return None
    kind: Kind = table["kind"]
    metrics: tuple[Metric, ...] = tuple(table.get("metrics", ("accuracy",)))
    if kind == "span":
        metrics = (profile.span_metric, *(m for m in metrics if m != profile.span_metric))
    where = f"{root.name}, task `{name}`"
    try:
        languages = {
            our_code(code): _language(name, code, body, table, profile, suite, finder, where)
            for code in body["languages"]
        }
        return Task(
            name=name,
            version=str(body["metadata"]["version"]),
            competency=body["competency"],
            group=table.get("group", body.get("aggregation_group") or ""),
            kind=kind,
            metric=metrics[0],
            metrics=metrics,
            max_tokens=max(spec.max_tokens for spec in languages.values()),
            licence="each set has its own",
            note=f"SEA-HELM, prompts of {profile.version}.",
            languages=languages,
            form="official",
            slices=table.get("slices", ""),
            pooled=table.get("pooled", False),
            chance=table.get("chance"),
            temperature=body.get("temperature"),
            shots_by=table.get("shots_by", ""),
            base_models=table.get("base_models", True),
            case_sensitive=table.get("case_sensitive", False),
            judge=judge_prompts(body, kind),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(
            f"the task file is not in SEA-HELM's form: {type(error).__name__}: {error}",
            where=where,
            hint="use the files of v1.0.0 or v1.2.1 unchanged",
        ) from None


def _language(
    name: str,
    code: str,
    body: Mapping[str, Any],
    table: Mapping[str, Any],
    profile: Profile,
    suite: Mapping[str, Sequence[str]],
    finder: _Finder,
    where: str,
) -> TaskLanguage:
    spec = body["languages"][code]
    tag, form = _form(spec["prompt_template"])
    ours = our_code(code)
    written = _written(table, ours, profile.version)
    data, source = finder.find(name, code, body, "filepath")
    examples, _ = finder.find(name, code, body, "example_filepath")
    licences = _table()["licences"]
    local = spec["filepath"].endswith((".jsonl", ".json"))
    return TaskLanguage(
        language=ours,
        answer_language=table.get("answer_language", ours),
        tag=tag,
        prompt=form,
        max_tokens=spec["max_tokens"],
        data=data,
        examples=examples,
        labels={label: label for label in written},
        aliases=_aliases(table, written),
        synonyms=_synonyms(table, written),
        counted=name in suite.get(ours, ()),
        hub=None if local else (spec["filepath"], *hub_place(name, code)),
        source=source or where,
        licence=next((licences[part] for part in licences if data and part in str(data)), ""),
    )


def _form(spec: Mapping[str, Any]) -> tuple[str, PromptForm]:
    """The answer tag and the form of prompts, of either version."""
    if "task_template" in spec:
        tag = spec["answer_tag"]
        return tag, PromptForm(
            question=Template.formatted(spec["task_template"]).partly({"answer_tag": tag}),
            preamble=Template.formatted(spec["preamble"]).fill({"answer_tag": tag}),
            answer=Template.formatted(spec["answer_template"]).partly({"answer_tag": tag}),
            stripped=True,
        )
    found = PLACEHOLDER.search(spec["template"])
    inline = Template.formatted(spec.get("fewshot_example", ""))
    label = Template.formatted(spec.get("fewshot_label", "{label}"))
    return found[1] if found else "", PromptForm(
        question=Template.formatted(spec["template"]), answer=label, inline=inline
    )


def _written(table: Mapping[str, Any], code: str, version: Version) -> list[str]:
    """The labels as the model has to write them; none where the rows have to tell."""
    if code in table.get("labels", {}):
        return list(table["labels"][code])
    if "letters" not in table:
        return []
    burmese = code == "my" and version != "v1.0"
    return list(_table()["burmese_letters" if burmese else "letters"][: table["letters"]])


def _aliases(table: Mapping[str, Any], written: Sequence[str]) -> dict[str, str]:
    """What rows may call each label, casefolded: its number, an English word, a letter, itself."""
    golds = table.get("golds", [])
    aliases: dict[str, str] = {}
    for position, label in enumerate(written):
        names = [str(position), _table()["letters"][position]] if "letters" in table else []
        names += golds[position] if position < len(golds) else []
        aliases |= {name.casefold(): label for name in names}
    return aliases | {label.casefold(): label for label in written}


def _synonyms(table: Mapping[str, Any], written: Sequence[str]) -> dict[str, list[str]]:
    """Latin letters for labels that are letters of another script."""
    if "letters" not in table or (written and written[0].isascii()):
        return {}
    return {label: [latin] for label, latin in zip(written, _table()["letters"], strict=False)}


def _guess(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """A task that is not in the table: choices whose labels the rows tell, or nothing we know."""
    return {"kind": "labels"} if body.get("metric_class") == "F1AccMetric" else None


def _suite(root: Path, profile: Profile) -> dict[str, list[str]]:
    """The tasks that the overall mean is made of, by language."""
    file = root / TASKS / "task_config.yaml"
    suite = _read(file).get(SUITE, {}) if file.is_file() else {}
    made = {}
    for code, names in suite.items():
        kept = [profile.replaced.get(name, name) for name in names if name not in profile.dropped]
        made[our_code(code)] = kept + [n for n in profile.added.get(code, ()) if n not in kept]
    return made


def _prompt_roots(folder: Path) -> Iterator[Path]:
    """The folders whose `seahelm_tasks` holds task files: the folder or those below `prompts`."""
    below = folder / "prompts"
    for root in (folder, *(sorted(below.iterdir()) if below.is_dir() else ())):
        if (root / TASKS).is_dir() and next((root / TASKS).rglob("config.yaml"), None):
            yield root


def _version(root: Path) -> Version:
    """Which form the task files have."""
    for body in _config(root).values():
        for spec in body.get("languages", {}).values():
            return "v1.2" if "task_template" in spec.get("prompt_template", {}) else "v1.0"
    raise DataError("no task file has a language", where=root, hint="use SEA-HELM's files")


@cache
def _config(root: Path) -> dict[str, Any]:
    """All tasks of all files by name, with references between them resolved."""
    merged: dict[str, Any] = {}
    for file in sorted((root / TASKS).rglob("config.yaml")):
        merged |= _read(file)
    return {name: _resolve(body, merged) for name, body in merged.items() if isinstance(body, dict)}


def _resolve(value: Any, merged: Mapping[str, Any]) -> Any:
    """`${task.field}` replaced by what it points to."""
    if isinstance(value, dict):
        return {key: _resolve(item, merged) for key, item in value.items()}
    match = REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return value
    target: Any = merged
    for part in match[1].split("."):
        target = target[part]
    return target


def _read(file: Path) -> dict[str, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        read = yaml.load(file.read_text("utf-8"), loader)
    except OSError as error:
        raise from_os_error(error) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"not a YAML file: {error}", where=file, hint="mend it") from None
    if not isinstance(read, dict):
        raise DataError("the file is not a table", where=file, hint="use SEA-HELM's files")
    return read


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "official.toml").read_text("utf-8"))
