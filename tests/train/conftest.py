"""Training data from a file of rows, in a cache that is not the user's."""

from __future__ import annotations

import numpy as np
import pytest

from singalaut.data.cache import cached_store
from singalaut.data.config import DataSource
from singalaut.data.mix import mixture
from singalaut.train.pictures import sight_of


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SINGALAUT_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def load():
    """The store of a file of rows, and the documents of a few conversations of it."""

    def load_rows(file, model, count, first=0) -> tuple:
        sources = (DataSource(path=file.name),)
        store = cached_store(sources, [file], model, 2048, sight_of(model))
        mix = mixture(store, 0, weights=[1.0], limits=[None])
        return store, mix.documents(first, first + count)

    return load_rows


@pytest.fixture
def example():
    """Token ids and mask of one document."""

    def one(store, document) -> tuple[np.ndarray, np.ndarray]:
        from singalaut.text.conversations import is_learned, token_ids

        words = store.words(document)
        return token_ids(words).astype(np.int64), is_learned(words)

    return one
