"""Run folders: named by the content that made them, written aside, renamed when complete.

An artifact is a folder with `manifest.json`, `metrics.jsonl`, `log.txt` and what its kind
promises. It is written in `<name>-<key8>.partial/` under a lock and renamed when its stage
returns; a finished folder is never changed. What goes into a folder is the stage's business.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from singalaut.errors import ArtifactError, from_os_error

log = logging.getLogger("singalaut")
PACKAGES = ("singalaut", "torch", "safetensors", "tokenizers", "numpy", "gguf", "sacrebleu")
WORKING_FILES = ("state.json", "manifest.json")  # of a folder in progress, never its output
CLOCK_TICK_NANOSECONDS = 50_000_000  # above the steps in which file systems count time


@dataclass(frozen=True)
class Input:
    """Something a stage reads: `key` enters the stage's own key, `path` is where it lies."""

    path: Path
    key: str


@dataclass(frozen=True)
class Artifact:
    """A finished run folder."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def key(self) -> str:
        return self.manifest["key"]

    @property
    def kind(self) -> str:
        return self.manifest["kind"]

    def as_input(self) -> Input:
        return Input(self.path, self.key)


class Work:
    """An artifact in progress: `path` is its folder; `log` adds a line to `metrics.jsonl`.

    What a stage puts into `facts` stands in the manifest; `listeners` hear of each line, too.
    """

    def __init__(self, path: Path):
        self.path = path
        self.scratch = path / ".work"  # what a resume needs; gone once the artifact is sealed
        self.facts: dict[str, Any] = {}
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        self._metrics = path / "metrics.jsonl"
        if self._metrics.exists() and not self._metrics.read_bytes().endswith(b"\n"):
            self.rewind(sys.maxsize)  # a kill cut the last line short

    def log(self, **values: Any) -> None:
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, ensure_ascii=False) + "\n")
        for listener in self.listeners:
            listener(values)

    def metrics(self) -> list[dict[str, Any]]:
        """The lines logged so far; a last line cut short by a kill is dropped."""
        if not self._metrics.exists():
            return []
        rows = []
        for line in self._metrics.read_bytes().split(b"\n"):
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def rewind(self, step: int) -> None:
        """Forget the metrics of `step` and later, before those steps are run again."""
        kept = [row for row in self.metrics() if row.get("step", -1) < step]
        write_atomic(
            self._metrics, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept).encode()
        )


def home() -> Path:
    """The cache folder of this user: `$SINGALAUT_HOME`, else `singalaut` in the XDG cache."""
    if override := os.environ.get("SINGALAUT_HOME"):
        return Path(override).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "singalaut"


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds either the old bytes or all of the new ones."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def hash_file(path: Path) -> str:
    """SHA-256 of a file; remembered in the user's cache by inode, size and times of change."""
    stat = path.stat()
    identity = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    memory = home() / "hashes" / f"{stat.st_dev:x}-{stat.st_ino:x}.json"
    try:
        known = json.loads(memory.read_bytes())
        if known["identity"] == identity:
            return known["sha256"]
    except (OSError, ValueError, KeyError):
        pass
    settled = time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > CLOCK_TICK_NANOSECONDS
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if settled:  # a write within the same tick of the clock would leave the same time
        try:
            memory.parent.mkdir(parents=True, exist_ok=True)
            write_json(memory, {"identity": identity, "sha256": digest})
        except OSError:
            pass  # a read-only cache only costs the next hash
    return digest


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and hashes of a folder's visible files."""
    if not path.is_dir():
        return hash_file(path)
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(f"{file.relative_to(path).as_posix()}\0{hash_file(file)}\n".encode())
    return digest.hexdigest()


def stage_key(kind: str, version: int, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """SHA-256 of what decides a stage's output: kind, code version, settings, inputs' keys."""
    parts = {"kind": kind, "version": version, "config": config, "inputs": inputs}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def find(folder: Path) -> Artifact | None:
    """The finished artifact in `folder`, with its files checked, or None."""
    manifest_file = folder / "manifest.json"
    if not manifest_file.exists():
        return None
    try:
        manifest = json.loads(manifest_file.read_bytes())
        outputs = manifest["outputs"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            "the manifest cannot be read", where=manifest_file, hint=f"remove `{folder}`"
        ) from error
    for output in outputs:
        file = folder / output["file"]
        if not file.exists() or hash_file(file) != output["sha256"]:
            state = "has changed since it was written" if file.exists() else "is missing"
            raise ArtifactError(
                f"`{output['file']}` of a finished stage {state}",
                where=folder,
                hint=f"put it back, or remove `{folder}` to run the stage again",
            )
    if (folder / "state.json").exists():  # killed between the rename and the sweep
        _sweep(folder)
    return Artifact(folder, manifest)


@contextmanager
def open_artifact(
    folder: Path,
    *,
    kind: str,
    key: str,
    name: str,
    version: int,
    config: Mapping[str, Any],
    inputs: Mapping[str, Input],
    seed: int,
) -> Iterator[Work]:
    """Work in `<folder>.partial` and rename it to `folder` when the block ends without error.

    What an interrupted run left there is still there. Raises ArtifactError if another process
    works in the same folder.
    """
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial), _log_file(partial / "log.txt"):
        if folder.exists():
            raise ArtifactError(
                "the folder for the result of this stage is already there",
                where=folder,
                hint="run again if another process has just finished it; else move it away",
            )
        state_file = partial / "state.json"
        state: dict[str, Any] = {
            "kind": kind,
            "stage": name,
            "config": dict(config),
            "seed": seed,
            "started": _now(),
            "seconds": 0.0,
        }
        if state_file.exists():
            state = json.loads(state_file.read_bytes())
        else:
            write_json(state_file, state)
        work = Work(partial)
        work.rewind(sys.maxsize)  # a last line cut short by a kill would spoil the next one
        begin = time.monotonic()
        try:
            yield work
        finally:
            state["seconds"] += time.monotonic() - begin
            if partial.exists():
                write_json(state_file, state)
        manifest = {
            "kind": kind,
            "key": key,
            "stage": name,
            "version": version,
            "config": dict(config),
            "inputs": {
                name: {"path": os.path.relpath(i.path, folder.parent), "key": i.key}
                if i.path.is_relative_to(folder.parent)
                else {"path": i.path.name, "key": i.key}
                for name, i in inputs.items()
            },
            "seed": seed,
            "started": state["started"],
            "finished": _now(),
            "seconds": round(state["seconds"], 3),
            "packages": package_versions(),
            "hardware": hardware(),
            **work.facts,
        }
        _finish(partial, folder, manifest)


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it however the process ends."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise ArtifactError(
                "another process is working on this stage",
                where=folder,
                hint="wait until it ends, or stop it",
            ) from None
        yield


def package_versions() -> dict[str, str]:
    """Versions of the packages that can change a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """What this machine is: processor, cores, memory, and GPUs where torch has been loaded."""
    cpu = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    torch = sys.modules.get("torch")
    gpus = []
    if torch is not None and torch.cuda.is_available():
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": cpu,
        "cores": cores(),
        "memory_gib": round(memory_bytes() / 2**30, 1),
        "gpus": gpus,
        "system": f"{platform.system()} {platform.machine()}",
    }


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _files(folder: Path) -> list[Path]:
    """The visible files below `folder`, in a fixed order."""
    found = (p for p in folder.rglob("*") if p.is_file())
    return sorted(
        p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts)
    )


def _finish(partial: Path, folder: Path, manifest: dict[str, Any]) -> None:
    """Hash the outputs, write the manifest, put everything on the disk, rename."""
    try:
        for file in partial.rglob(".*.tmp"):
            file.unlink(missing_ok=True)
        working = [partial / name for name in WORKING_FILES]
        outputs = []
        for file in (file for file in _files(partial) if file not in working):
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
            outputs.append(
                {
                    "file": file.relative_to(partial).as_posix(),
                    "bytes": file.stat().st_size,
                    "sha256": hash_file(file),
                }
            )
        write_json(partial / "manifest.json", {**manifest, "outputs": outputs})
        for inner in (p for p in partial.rglob("*") if p.is_dir()):
            _fsync_folder(inner)
        _fsync_folder(partial)
        partial.rename(folder)
        _fsync_folder(folder.parent)
        _sweep(folder)  # not before: a kill while we hash must lose nothing
    except OSError as error:
        raise from_os_error(error) from error


def _sweep(folder: Path) -> None:
    """Remove what only work in progress needs from a finished folder."""
    for name in (".lock", "state.json"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / ".work", ignore_errors=True)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """Copy the log of this package into the artifact while its stage runs."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
