"""Run folders: atomic, locked, resumable after any kill, and checked when they are used again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from singalaut import artifact
from singalaut.artifact import Input, Work, content_hash, find, hash_file, open_artifact
from singalaut.errors import ArtifactError

WORKER = """
import sys, time
from pathlib import Path
from singalaut.artifact import open_artifact
with open_artifact(Path(sys.argv[1]), kind="sft", key="k", name="sft", version=1, config={},
                   inputs={}, seed=1) as work:
    for step in range(3):
        work.log(step=step)
    (work.path / "half.bin").write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SINGALAUT_HOME", str(tmp_path / "home"))


def open_stage(folder, **changes):
    values = {"kind": "sft", "key": "k", "name": "sft", "version": 1, "config": {"steps": 3}}
    return open_artifact(folder, **{**values, "inputs": {}, "seed": 1, **changes})


def start_worker(folder):
    """A process that works on the stage until it is killed."""
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout.readline() == "ready\n"
    return worker


def kill(worker):
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    worker.stdout.close()


def test_finished_folder_has_manifest_outputs_and_nothing_else(tmp_path):
    folder = tmp_path / "run" / "sft-1"
    source = Input(tmp_path / "run" / "base-1", "b")
    outside = Input(tmp_path / "elsewhere" / "model", "c")
    with open_stage(folder, inputs={"model": source, "other": outside}) as work:
        assert work.path.name == "sft-1.partial" and not folder.exists()
        (work.path / "model").mkdir()
        (work.path / "model" / "weights").write_bytes(b"1234")
        (work.path / ".weights.99.tmp").write_bytes(b"left by a kill")
        work.log(step=0, loss=1.5)
    assert sorted(p.name for p in folder.iterdir()) == [
        "log.txt",
        "manifest.json",
        "metrics.jsonl",
        "model",
    ]
    found = find(folder)
    assert found is not None and (found.key, found.kind) == ("k", "sft")
    manifest = found.manifest
    assert manifest["config"] == {"steps": 3} and manifest["seed"] == 1
    assert {"started", "finished", "seconds", "packages", "hardware"} <= set(manifest)
    weights = next(o for o in manifest["outputs"] if o["file"] == "model/weights")
    assert weights["bytes"] == 4 and len(weights["sha256"]) == 64
    assert manifest["inputs"]["model"] == {"path": "base-1", "key": "b"}
    assert str(tmp_path) not in json.dumps(manifest)  # no folder of this machine is written down


def test_error_leaves_the_work_for_the_next_run(tmp_path):
    folder = tmp_path / "sft-1"
    with pytest.raises(KeyError), open_stage(folder) as work:
        (work.path / "half.bin").write_bytes(b"half")
        raise KeyError
    assert find(folder) is None and not folder.exists()
    with open_stage(folder) as work:
        assert (work.path / "half.bin").read_bytes() == b"half"
    assert find(folder) is not None


def test_kill_in_the_middle_leaves_no_finished_folder_and_the_next_run_goes_on(tmp_path):
    folder = tmp_path / "sft-1"
    kill(start_worker(folder))
    assert find(folder) is None
    with (tmp_path / "sft-1.partial" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # the kill came while a line was written
    with open_stage(folder) as work:
        assert (work.path / "half.bin").exists()
        assert [row["step"] for row in work.metrics()] == [0, 1, 2]
        work.rewind(2)
        work.log(step=2, again=True)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 0},
        {"step": 1},
        {"step": 2, "again": True},
    ]


def test_second_process_is_refused_until_the_first_ends(tmp_path):
    folder = tmp_path / "sft-1"
    worker = start_worker(folder)
    try:
        with pytest.raises(ArtifactError, match="another process"), open_stage(folder):
            pass
    finally:
        kill(worker)
    with open_stage(folder):
        pass
    assert find(folder) is not None


def test_folder_in_the_way_is_told_before_the_work(tmp_path):
    (tmp_path / "sft-1").mkdir()
    with pytest.raises(ArtifactError, match="already there"), open_stage(tmp_path / "sft-1"):
        raise AssertionError("the work has begun")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(b"4321"), "`weights` of a finished stage has changed"),
        (lambda file: file.unlink(), "`weights` of a finished stage is missing"),
    ],
)
def test_damaged_output_is_named(tmp_path, damage, message):
    folder = tmp_path / "sft-1"
    with open_stage(folder) as work:
        (work.path / "weights").write_bytes(b"1234")
    damage(folder / "weights")
    with pytest.raises(ArtifactError, match=message):
        find(folder)


def test_unreadable_manifest_is_told(tmp_path):
    with open_stage(tmp_path / "sft-1"):
        pass
    (tmp_path / "sft-1" / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="manifest cannot be read"):
        find(tmp_path / "sft-1")


def test_hash_is_remembered_until_the_file_changes(tmp_path, monkeypatch):
    file = tmp_path / "data"
    file.write_bytes(b"one")
    monkeypatch.setattr(artifact, "CLOCK_TICK_NANOSECONDS", -(10**9))  # as if it were older
    first = hash_file(file)
    with monkeypatch.context() as patched:
        patched.setattr(artifact.hashlib, "file_digest", lambda *_: pytest.fail("hashed again"))
        assert hash_file(file) == first
    file.write_bytes(b"two")
    assert hash_file(file) != first


def test_a_file_in_the_place_of_another_is_hashed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "CLOCK_TICK_NANOSECONDS", -(10**9))
    file = tmp_path / "data"
    hashes = set()
    for text in (b"one", b"two"):
        file.unlink(missing_ok=True)  # the next file may get the same inode
        file.write_bytes(text)
        os.utime(file, ns=(10**18, 10**18))
        hashes.add(hash_file(file))
    assert len(hashes) == 2


def test_a_kill_while_sealing_keeps_what_a_resume_needs(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    folder = tmp_path / "sft-1"
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(artifact, "hash_file", killed)
        with open_stage(folder) as work:
            work.scratch.mkdir()
            (work.scratch / "state").write_text("step 5")
            (work.path / "weights").write_bytes(b"1234")
    with open_stage(folder) as work:
        assert (work.scratch / "state").read_text() == "step 5"
    assert {p.name for p in folder.iterdir()} == {"manifest.json", "weights", "log.txt"} | (
        {"metrics.jsonl"} & {p.name for p in folder.iterdir()}
    )


def test_hash_of_a_file_that_was_just_written_is_not_trusted(tmp_path):
    file = tmp_path / "data"
    file.write_bytes(b"one")
    stamp = time.time_ns()
    os.utime(file, ns=(stamp, stamp))
    first = hash_file(file)
    file.write_bytes(b"two")  # same size, and within the same tick of the clock
    os.utime(file, ns=(stamp, stamp))
    assert hash_file(file) != first


def test_content_of_a_folder_is_its_visible_files_by_name(tmp_path):
    def folder(name, **files):
        path = tmp_path / name
        path.mkdir()
        for file, text in files.items():
            (path / file).write_text(text)
        return content_hash(path)

    first = folder("one", a="x", b="y")
    assert folder("two", b="y", a="x") == first
    assert folder("three", a="y", b="x") != first
    (tmp_path / "one" / ".hidden").write_text("z")
    assert content_hash(tmp_path / "one") == first
    with pytest.raises(FileNotFoundError):
        content_hash(tmp_path / "nothing")


def test_metrics_keep_every_unicode_line(tmp_path):
    work = Work(tmp_path)
    rows = [{"step": 0, "text": "a\u2028b\x85c"}, {"step": 1, "text": "ខ្មែរ\n"}]
    for row in rows:
        work.log(**row)
    assert work.metrics() == rows
