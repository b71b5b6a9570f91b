"""Data sets of the Hugging Face hub, fetched by `datasets` and read from its files."""

from __future__ import annotations

from pathlib import Path

from singalaut.errors import DataError, MachineError


def fetch_hub(
    name: str, subset: str | None = None, split: str | None = None, revision: str | None = None
) -> list[Path]:
    """The Arrow files of one split of a data set, in the cache of `datasets`.

    Raises: DataError where the data set cannot be had, MachineError where the library is missing.
    """
    try:
        import datasets
    except ImportError as error:
        raise MachineError(
            "data sets of the hub need `datasets`", hint="pip install 'singalaut[data]'"
        ) from error
    try:
        found = datasets.load_dataset(name, subset, split=split or "train", revision=revision)
    except Exception as error:  # the library passes on whatever goes wrong below it
        raise DataError(
            f"the data set cannot be had: {type(error).__name__}: {error}",
            where=name,
            hint="check `hub`, `subset`, `split` and `revision`, and that the hub can be reached",
        ) from error
    return [Path(file["filename"]) for file in found.cache_files]
