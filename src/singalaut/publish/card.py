"""Writes the model card: what a model is, how it was made, and how it did, from manifests alone.

Nothing is asked of the model and no weights are copied; the card says which stage holds them.
A figure that the manifests do not have is said to be missing, never guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from singalaut.artifact import Work, write_atomic, write_json
from singalaut.errors import ArtifactError
from singalaut.licences import GEMMA_NOTICE
from singalaut.publish.config import CardConfig

Manifest = Mapping[str, Any]
GEMMA_DUTIES = (
    "The weights are not as Google published them: the stages below have modified them. If you "
    "pass them on, pass on a copy of the terms and the file `NOTICE`, and bind who receives them "
    "to the use restrictions of the terms."
)
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
PUBLISHERS = ("google/", "aisingapore/")  # a bare `a/b` of others may as well be a folder
LEARNED = ("data.", "replay.")  # how inputs are labelled that are trained on
HIDDEN_SETTINGS = ("kind", "name")
LIMITATIONS = """\
- It has not been aligned for safety, and was not tested against adversarial prompts. Do your own
  safety tuning and tests before people use it.
- It can state what is false, drop into another language, or repeat itself. Check what it says.
- Quality differs between languages; a language without a score above was not measured.
- The limits of Gemma 3, and the uses its terms prohibit, hold for this model too."""


def run_card(
    config: CardConfig,
    *,
    model: Path,
    evaluation: Path | None,
    lineage: Sequence[Manifest],
    work: Work,
) -> None:
    """Write `release/README.md`, `release/NOTICE` and `release/manifest-lineage.json`.

    `model` and `evaluation` are folders of stages; `model` may also be a plain model directory.
    `lineage` has the base, then the manifest of every stage that led to the model, in order.

    Raises: ArtifactError where a manifest or the results cannot be read.
    """
    lineage = [portable(manifest) for manifest in lineage]
    card = card_markdown(
        title=config.title,
        weights=_manifest(model) or {"stage": model.name},
        lineage=lineage,
        results=None if evaluation is None else _json(evaluation / "results" / "results.json"),
        evaluation=None if evaluation is None else _manifest(evaluation),
    )
    release = work.path / "release"
    release.mkdir(exist_ok=True)
    write_json(release / "manifest-lineage.json", lineage)
    write_atomic(release / "NOTICE", f"{GEMMA_NOTICE}\n".encode())
    write_atomic(release / "README.md", card.encode())


def card_markdown(
    *,
    title: str,
    weights: Manifest,
    lineage: Sequence[Manifest],
    results: Mapping[str, Any] | None = None,
    evaluation: Manifest | None = None,
) -> str:
    """The model card as Markdown, with the front matter that Hugging Face reads.

    `weights` is the manifest of the stage that holds them (`stage`, `key`), `results` the
    contents of an evaluation's `results.json`, `evaluation` its manifest.
    """
    stages = [portable(manifest) for manifest in lineage]
    ran = [manifest for manifest in stages if "kind" in manifest]
    measured = ran if evaluation is None else [*ran, portable(evaluation)]
    title = " ".join(title.split())
    parts = [
        _front_matter(stages, results),
        f"# {title}",
        f"{GEMMA_NOTICE}. {GEMMA_DUTIES}",
        "## What it is",
        _what_it_is(stages, results),
        "## How to use it",
        _how_to_use(portable(weights)),
        "## How it was made",
        _stage_table(stages),
        "## Data",
        _data(ran),
        "## Evaluation",
        _evaluation(results),
        "## Limitations",
        LIMITATIONS,
        "## Hardware, time and energy",
        _costs(measured),
        "## To make it again",
        _reproduction(stages, measured),
    ]
    return "\n\n".join(parts) + "\n"


def portable(value: Any) -> Any:
    """The same value with absolute paths, which tell of one machine, cut to their last part."""
    if isinstance(value, str):
        rooted = PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if rooted or value[:1] == "~" else value
    if isinstance(value, Mapping):
        return {name: portable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [portable(item) for item in value]
    return value


def base_model(source: str) -> str | None:
    """The hub name of the model that training started from, where the source tells it."""
    if source.startswith("demo:"):
        return f"google/{source.removeprefix('demo:')}"
    name = re.sub("^(hf|hub):", "", source)
    told = name != source or source.startswith(PUBLISHERS)
    return name if told and HUB_NAME.fullmatch(name) else None


def _front_matter(stages: Sequence[Manifest], results: Mapping[str, Any] | None) -> str:
    """YAML that any reader understands: texts are quoted as in JSON."""
    lines = ["---", "license: gemma", "license_link: https://ai.google.dev/gemma/terms"]
    if codes := _languages(stages, results):
        lines += ["language:", *(f"- {json.dumps(code)}" for code in codes)]  # `no` is a boolean
    if known := [name for source in _sources(stages) if (name := base_model(source))]:
        lines += ["base_model:", *(f"- {name}" for name in known)]
    lines += ["pipeline_tag: text-generation", "library_name: transformers", "tags:"]
    tags = [
        "singalaut",
        "gemma3",
        "southeast-asia",
        *dict.fromkeys(m["kind"] for m in stages if "kind" in m),
    ]
    return "\n".join([*lines, *(f"- {tag}" for tag in tags), "---"])


def _what_it_is(stages: Sequence[Manifest], results: Mapping[str, Any] | None) -> str:
    steps = " → ".join(f"`{manifest['stage']}`" for manifest in stages)
    origins = []
    for source in _sources(stages):
        known = base_model(source)
        origins.append(f"[{known}](https://huggingface.co/{known})" if known else f"`{source}`")
    origin = " and ".join(origins) or "an unknown model"
    codes = _languages(stages, results)
    spoken = f" Languages trained or measured: {', '.join(codes)}." if codes else ""
    return (
        f"A text-generation model made from {origin} with Singalaut, a toolkit for languages of "
        f"Southeast Asia.{spoken} Stages: {steps}."
    )


def _how_to_use(weights: Manifest) -> str:
    place = f"the directory `{weights['stage']}`"
    if "key" in weights:
        place = f"`model/` in the folder of stage `{weights['stage']}`, key `{weights['key'][:16]}`"
    return f"""\
The weights are not beside this card. They are {place};
`transformers` loads them unchanged. Put the path of that directory in place of `MODEL`.

```python
from transformers import pipeline

generate = pipeline("text-generation", model="MODEL")
messages = [{{"role": "user", "content": "Apa ibu kota Indonesia?"}}]
print(generate(messages, max_new_tokens=100)[0]["generated_text"][-1]["content"])
```

```
singalaut generate --model MODEL "Apa ibu kota Indonesia?"
singalaut chat --model MODEL
```"""


def _stage_table(stages: Sequence[Manifest]) -> str:
    rows = []
    for manifest in stages:
        if "kind" in manifest:
            settings = _settings(manifest.get("config", {}))
            rows.append([manifest["stage"], manifest["kind"], settings])
        else:
            rows.append(
                [manifest["stage"], "start", f"source = {manifest.get('source', 'unknown')}"]
            )
    return _table(["stage", "kind", "settings"], rows)


def _settings(config: Manifest, prefix: str = "") -> str:
    """`name = value` for every setting; those of groups are written `group.name`."""
    texts = []
    for name, value in config.items():
        if name in HIDDEN_SETTINGS and not prefix:
            continue
        if isinstance(value, Mapping):
            texts.append(_settings(value, f"{prefix}{name}."))
        else:
            shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            texts.append(f"{prefix}{name} = {shown}")
    return ", ".join(text for text in texts if text)


def _data(ran: Sequence[Manifest]) -> str:
    """What each stage was trained on; counts and licences where its manifest has them."""
    rows = []
    for manifest in ran:
        inputs = [i for name, i in manifest.get("inputs", {}).items() if name.startswith(LEARNED)]
        contents = {PurePosixPath(given["path"]).name: given["key"] for given in inputs}
        config = manifest.get("config", {})
        sources = list(manifest.get("data") or config.get("data") or ())
        sources += (config.get("replay") or {}).get("data") or ()
        for source in sources:
            name = PurePosixPath(source.get("source") or source.get("path") or "unnamed").name
            known = [source.get(figure) for figure in ("language", "rows", "licence")]
            known.append(contents.get(name, "")[:16])
            rows.append([manifest["stage"], name, *(str(k or "not recorded") for k in known)])
    if not rows:
        return "No stage of this model read training data, or its manifest does not say which."
    return _table(["stage", "source", "language", "rows", "licence", "content"], rows)


def _evaluation(results: Mapping[str, Any] | None) -> str:
    if results is None:
        return "This model has not been evaluated."
    models = list(results["models"])
    rows = [
        [row["name"], row["metric"], str(row["n"])]
        + [f"{row['scores'][m]:.1f} ({100 * row['extracted'][m]:.0f} %)" for m in models]
        for row in results["rows"]
    ]
    about = (
        "Zero-shot, prompts in the language of the task. Each cell is the score and, in brackets, "
        "the share of answers that stood after the answer tag as asked. Accuracy and chrF++ run "
        "from 0 to 100; the rows of languages are means in which guessing counts 0."
    )
    if results["pack"] == "demo":
        about += (
            "\n\nThe pack `demo` is a demonstration: few questions, written for Singalaut. It "
            "shows that the system works and ranks no models; differences of a few points mean "
            "nothing."
        )
    sources = [
        f"- {name}, version {task['version']}, {task['licence']}: {', '.join(task['languages'])}"
        for name, task in results["tasks"].items()
    ]
    table = _table(["", "metric", "questions", *models], rows)
    return "\n\n".join(
        [about, table, f"Tasks of the pack `{results['pack']}`:", "\n".join(sources)]
    )


def _costs(measured: Sequence[Manifest]) -> str:
    if not measured:
        return "Not recorded: no stage was run."
    rows = []
    for manifest in measured:
        machine, seconds = manifest.get("hardware"), manifest.get("seconds")
        energy = manifest.get("energy_kwh")
        where = "not recorded"
        if machine:
            gpus = ", ".join(machine["gpus"]) or "no GPU"
            where = f"{machine['cpu']}, {machine['cores']} cores, {gpus}"
        spent = "not recorded" if seconds is None else f"{seconds:.1f}"
        kwh = "not measured" if energy is None else f"{energy:.3f}"
        rows.append([manifest["stage"], where, spent, kwh])
    return _table(["stage", "hardware", "wall-clock seconds", "energy, kWh"], rows)


def _reproduction(stages: Sequence[Manifest], measured: Sequence[Manifest]) -> str:
    text = (
        "The same recipe, inputs and versions give the same keys. "
        "`manifest-lineage.json` has the manifest of every stage."
    )
    origins = [manifest for manifest in stages if "kind" not in manifest]
    rows = [[m["stage"], m.get("content", "not recorded")[:16], "", ""] for m in origins]
    for manifest in measured:
        figures = [str(manifest.get(name, "not recorded")) for name in ("version", "seed")]
        rows.append([manifest["stage"], manifest.get("key", "not recorded")[:16], *figures])
    parts = [text, _table(["stage", "key", "version", "seed"], rows)]
    packages = next((m["packages"] for m in reversed(measured) if m.get("packages")), None)
    if packages:
        parts.append("Versions: " + ", ".join(f"{k} {v}" for k, v in packages.items()) + ".")
    return "\n\n".join(parts)


def _languages(stages: Sequence[Manifest], results: Mapping[str, Any] | None) -> list[str]:
    """Codes of the languages that were trained or measured, sorted."""
    codes = set()
    for manifest in stages:
        for source in (*manifest.get("config", {}).get("data", ()), *manifest.get("data", ())):
            codes.add(source.get("language"))
    for task in (results or {}).get("tasks", {}).values():
        codes.update(task["languages"])
    return sorted(code for code in codes if code)


def _sources(stages: Sequence[Manifest]) -> list[str]:
    """Where the models came from that no stage made."""
    return [str(m.get("source", "unknown")) for m in stages if "kind" not in m]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(text) for text in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a stage's folder; None for a plain directory."""
    file = folder / "manifest.json"
    return _json(file) if file.exists() else None


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"`{file.name}` cannot be read",
            where=file,
            hint="this must be the folder of a finished stage",
        ) from error
    return found
