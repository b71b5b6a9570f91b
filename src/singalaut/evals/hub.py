"""Fetches the rows of official tasks that lie on the Hugging Face hub, once, as JSON lines.

After that an evaluation needs no network, and the rows it used can be named by their content. Which
files hold which split is read from the header of a data set's card.
"""

from __future__ import annotations

import fnmatch
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from singalaut.artifact import write_atomic
from singalaut.errors import DataError, MachineError
from singalaut.evals.tasks import Task, TaskLanguage

log = logging.getLogger("singalaut")
Download = Callable[[str, str], Path]  # data set and file to a local path
ListFiles = Callable[[str], Sequence[str]]


def fetch_rows(
    wanted: Sequence[tuple[Task, TaskLanguage]],
    output: Path,
    *,
    download: Download | None = None,
    list_files: ListFiles | None = None,
) -> list[dict[str, Any]]:
    """Write the rows of the wanted tasks and languages below `output`; what was done with each.

    A data set that cannot be had (most ask for an account and consent) is told of, not raised.
    Raises: DataError where none of the tasks names a data set.
    """
    get, names = download or _download, list_files or _list_files
    report = []
    for task, spec in wanted:
        if spec.hub is None:
            continue
        repository, config, *splits = spec.hub
        for split in dict.fromkeys(splits):
            state = _fetch(output, repository, config, split, get, names)
            entry = {"task": task.name, "language": spec.language, "source": repository}
            report.append(entry | {"split": split, "state": state})
    if not report:
        raise DataError(
            "none of these tasks has rows on the hub",
            hint="only SEA-HELM's own task files name them",
        )
    return report


def _fetch(
    output: Path, repository: str, config: str, split: str, get: Download, names: ListFiles
) -> str:
    """Write one split; what became of it."""
    target = output / "hub" / repository / config / f"{split}.jsonl"
    if target.exists():
        return "there"
    try:
        rows = list(_rows(repository, config, split, get, names))
    except Exception as error:  # whatever the network and the hub may do
        log.warning("%s (%s, %s): %s", repository, config, split, _first_line(error))
        return f"not fetched: {_first_line(error)}"
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)
    write_atomic(target, lines.encode())
    return f"{len(rows)} rows"


def split_patterns(card: str, config: str, split: str) -> list[str]:
    """The file patterns of a split that the header of a data set's card names."""
    import yaml

    header = card.split("---")[1] if card.startswith("---") else ""
    try:
        about = yaml.safe_load(header) or {}
    except yaml.YAMLError:
        about = {}
    for entry in about.get("configs", []):
        if entry.get("config_name") != config:
            continue
        files = entry.get("data_files", [])
        if isinstance(files, str | list) and not (files and isinstance(files[0], dict)):
            return [files] if isinstance(files, str) else list(files)
        for item in files:
            if item.get("split") == split:
                path = item["path"]
                return [path] if isinstance(path, str) else list(path)
    return [f"{config}/{split}*", f"data/{config}/{split}*", f"{config}_{split}*"]


def _rows(
    repository: str, config: str, split: str, get: Download, names: ListFiles
) -> Iterator[Mapping[str, Any]]:
    card = get(repository, "README.md").read_text("utf-8")
    patterns = split_patterns(card, config, split)
    found = [n for n in sorted(names(repository)) if any(fnmatch.fnmatch(n, p) for p in patterns)]
    if not found:
        raise DataError(f"no file fits {', '.join(patterns)}", where=repository)
    for name in found:
        file = get(repository, name)
        if name.endswith(".parquet"):
            yield from _parquet(file)
        elif name.endswith((".jsonl", ".json")):
            for line in file.read_text("utf-8").split("\n"):
                if line.strip():
                    yield json.loads(line)
        else:
            raise DataError(f"`{name}` is neither Parquet nor JSON lines", where=repository)


def _parquet(file: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise MachineError(
            "Parquet files need the package `pyarrow`", hint="pip install 'singalaut[hub]'"
        ) from None
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(file).to_pylist()
    return rows


def _download(repository: str, name: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(repository, name, repo_type="dataset"))


def _list_files(repository: str) -> Sequence[str]:
    from huggingface_hub import HfApi

    return HfApi().list_repo_files(repository, repo_type="dataset")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
