"""Opening stores: prepared ones, and those that stages make for themselves from files of rows.

The latter are kept in the user's cache and named by what made them: the content of the files, how
they are read, the tokenizer and the chat template. So a second run, with another learning rate
say, finds the store of the first.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from singalaut.artifact import content_hash, home, locked
from singalaut.data.config import DataSource, PrepareConfig
from singalaut.data.prepare import make_store, tell
from singalaut.data.report import read_report
from singalaut.data.store import Store
from singalaut.data.tokenise import Sight
from singalaut.errors import DataError
from singalaut.text.chat import ChatFormat
from singalaut.text.tokenizer import Tokenizer


def cached_store(
    sources: tuple[DataSource, ...],
    data: Sequence[Path | None],
    model: Path,
    max_tokens: int,
    sight: Sight | None = None,
) -> Store:
    """The store of these rows for this model, made now or earlier.

    Raises: DataError as `run_prepare` does, with its default settings and no cleaning.
    """
    config = PrepareConfig.model_validate(
        {"data": sources, "max_tokens": max_tokens, "clean": {"duplicates": False}}
    )
    folder = home() / "stores" / _key(config, data, model, sight)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / ".work"
    with locked(folder, wait=True):
        if (folder / "data" / "store.json").exists():
            tell(read_report(folder))
        else:
            try:
                make_store(
                    config,
                    model=model,
                    data=data,
                    packs=[],
                    out=folder,
                    scratch=scratch,
                    identify=None,
                    sight=sight,
                )
            except DataError:
                shutil.rmtree(folder)  # the same rows will not do better another time
                raise
        shutil.rmtree(scratch, ignore_errors=True)
        return Store.open(folder / "data")


def stored_in(data: Sequence[Path | None]) -> Path | None:
    """The token store that is given where rows are expected: the folder of a stage `prepare`.

    Raises: DataError where there are other sources beside it.
    """
    stores = [path / "data" for path in data if path and (path / "data" / "store.json").exists()]
    if stores and len(data) > 1:
        hint = "prepare all sources together"
        raise DataError("prepared data cannot be mixed with others", where=stores[0], hint=hint)
    return stores[0] if stores else None


def open_store(folder: Path, model: Path) -> Store:
    """The store in `folder`, if its tokens are those of this model. Raises: DataError."""
    store = Store.open(folder)
    identity = ChatFormat.load(model, Tokenizer.load(model)).identity
    if store.about["format_identity"] != identity:
        raise DataError(
            "the data were prepared with another tokenizer or chat template than the model's",
            where=folder,
            hint="prepare them with this model",
        )
    return store


def _key(
    config: PrepareConfig, data: Sequence[Path | None], model: Path, sight: Sight | None
) -> str:
    identity = ChatFormat.load(model, Tokenizer.load(model)).identity
    settings = config.key_settings()
    for source in settings["data"]:
        del source["weight"], source["limit"]
    hashes = [None if path is None else content_hash(path) for path in data]
    parts = [config.VERSION, settings, hashes, identity, sight and sight.tokens_per_image]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
