"""Files of rows, stores made of them, and a cache that is not the user's."""

from __future__ import annotations

import pytest
from row_files import conversation, write_rows

from singalaut.artifact import Work
from singalaut.data.config import PrepareConfig
from singalaut.data.prepare import run_prepare
from singalaut.data.store import Store


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SINGALAUT_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture
def prepare(tmp_path, tiny_model):
    """Prepares files with settings; returns the work folder."""

    def run(
        files, *, name="work", packs=(), identify=None, sight=None, sources=None, **settings
    ) -> Work:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        work = Work(folder)
        sources = sources or [{"path": str(file)} for file in files]
        model = settings.pop("model", tiny_model)
        values = {"data": sources, "workers": 1, "clean": {"duplicates": False}} | settings
        config = PrepareConfig.model_validate(values)
        run_prepare(
            config, model=model, data=files, packs=packs, work=work, identify=identify, sight=sight
        )
        return work

    return run


@pytest.fixture
def make_store(tmp_path, prepare):
    """A store with so many conversations of each source and language, of many lengths."""

    def make(counts: dict[str, dict[str, int]], **settings) -> Store:
        files = []
        for source, languages in counts.items():
            rows = [
                conversation("x" * (i * 37 % 61 + 1), f"{source} {code} {i}", language=code)
                for code, count in languages.items()
                for i in range(count)
            ]
            files.append(write_rows(tmp_path / f"{source}.jsonl", rows))
        return Store.open(prepare(files, **settings).path / "data")

    return make
