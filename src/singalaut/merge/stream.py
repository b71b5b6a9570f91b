"""The merge stage: several models in, one model out, a few rows at a time.

Worker threads read and merge blocks of rows while this one writes the blocks in order; nothing
holds a whole tensor, so memory does not depend on the size of the models. A file of weights
appears when it is complete, and a killed merge goes on with the first file that is missing.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from singalaut.artifact import Work
from singalaut.errors import MachineError
from singalaut.merge.blocks import Buffers, Combine
from singalaut.merge.config import MergeConfig
from singalaut.merge.methods import METHODS
from singalaut.merge.output import prepare_output
from singalaut.merge.parameters import check_known
from singalaut.merge.plan import Given, Piece, check_inputs, gather_inputs, make_pieces, named
from singalaut.merge.report import Report
from singalaut.merge.sources import FileBlocks, Source
from singalaut.merge.work import Job, Merged, merge_block
from singalaut.merge.write import SequentialFile
from singalaut.model.hf import DTYPES, read_config, stored_dtype
from singalaut.model.tensors import TensorSpec, file_header, split_shards, write_index
from singalaut.progress import progress

log = logging.getLogger("singalaut")
EXTRA_THREADS = 2  # some wait for the disk
PIECES_AHEAD = 8  # tensors that are measured before their turn
BLOCKS_IN_FLIGHT = 4  # for each worker


def run_merge(
    config: MergeConfig,
    *,
    models: Mapping[str, Path],
    adapters: Mapping[str, Path],
    work: Work,
    seed: int,
) -> None:
    """Write the merged model to `model/` and a report beside it.

    `models` and `adapters` are keyed by the labels of `config.inputs()` and `config.files()`.
    Raises: RecipeError for settings, CheckpointError for models that do not fit together or hold
    what is not a number.
    """
    check_known(config)
    check_inputs(config)
    device = _device(config)
    shapes = {folder: read_config(folder) for folder in dict.fromkeys(models.values())}
    given = gather_inputs(config, models, adapters, shapes)
    first = next(iter(given.values()))
    folder = work.path / "model"
    folder.mkdir(exist_ok=True)
    with _opened(given) as sources:
        output = prepare_output(config, given, sources)
        dtype = DTYPES[config.dtype] if config.dtype else stored_dtype(first.folder)
        taken = named(config, given, "embeddings_from")
        control = taken if config.embedding_rows == "control" else None
        job = Job(output, dtype, Buffers(device), seed, sources, control)
        pieces = _in_order(make_pieces(config, given, output.shape), sources)
        report = Report(config.method, given.get("base", first).settings.source)
        threads = config.threads or (os.cpu_count() or 1) + EXTRA_THREADS
        _write_weights(folder, pieces, job, int(config.shard_gb * 1e9), threads, report)
        output.write_files(folder, dtype)
    names = list(dict.fromkeys(entry.settings.source for entry in given.values()))
    facts = {} if output.alignment is None else {"vocabulary": output.alignment.facts}
    work.facts["merge"] = report.write(work.path, pieces, names, facts)
    base = given["base"].settings.source if "base" in given else None
    onto = f" onto {base}" if base else ""
    merged = ", ".join(name for name in names if name != base) or base
    log.info("merged %s%s by %s", merged, onto, config.method)


def check_fit(
    config: MergeConfig, models: Mapping[str, Path], adapters: Mapping[str, Path]
) -> None:
    """Raises what `run_merge` would, as far as it can be known without reading weights."""
    check_known(config)
    check_inputs(config)
    shapes = {folder: read_config(folder) for folder in dict.fromkeys(models.values())}
    given = gather_inputs(config, models, adapters, shapes)
    with _opened(given) as sources:
        prepare_output(config, given, sources)


@contextmanager
def _opened(given: Mapping[str, Given]) -> Iterator[dict[Any, Source]]:
    """The models' files, each opened once."""
    with ExitStack() as stack:
        sources: dict[Any, Source] = {}
        for entry in given.values():
            if entry.key not in sources:
                sources[entry.key] = Source(entry.folder, entry.adapter, entry.shape)
                stack.callback(sources[entry.key].close)
        yield sources


def _device(config: MergeConfig) -> torch.device:
    """Raises MachineError for a device that is not there."""
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=config.device)
        return torch.device(config.device)
    except (RuntimeError, AssertionError) as error:
        raise MachineError(
            f"the device `{config.device}` cannot be used: {str(error).partition(chr(10))[0]}",
            where=f"{config.name}.device",
            hint="`auto` takes a GPU if there is one",
        ) from None


def _in_order(pieces: Sequence[Piece], sources: Mapping[Any, Source]) -> list[Piece]:
    """The tensors as they lie in the first model's files, so that those are read in order."""

    def position(piece: Piece) -> tuple[str, int]:
        entry, name = piece.models[0]
        source = sources[entry.key]
        return source.reader.position(source.places[name])

    return sorted(pieces, key=position)


def _write_weights(
    folder: Path, pieces: Sequence[Piece], job: Job, shard_bytes: int, threads: int, report: Report
) -> None:
    """Write every file of weights that is not complete yet."""
    specs = [TensorSpec(piece.place, piece.shape, job.dtype) for piece in pieces]
    by_place = {piece.place: piece for piece in pieces}
    shards = split_shards(specs, shard_bytes)
    total = sum(spec.num_bytes for spec in specs)
    done = 0
    with progress("merge", -(-total // 10**6), "MB") as bar, _one_thread_each():
        for file, inside in shards.items():
            header = file_header(inside)
            size = len(header) + sum(spec.num_bytes for spec in inside)
            if _is_complete(folder / file, header, size):
                log.info("%s was written before", file)
                done += size - len(header)
                bar.advance(-(-done // 10**6) - bar.done)
                continue
            with SequentialFile(folder / file) as out, _workers(threads) as pool:
                out.write(header)
                chosen = [by_place[spec.name] for spec in inside]
                for piece, merged in _merged(chosen, job, pool, threads * BLOCKS_IN_FLIGHT):
                    out.write(merged.rows)
                    report.add(piece.place, merged.change, merged.size)
                    done += merged.rows.numel() * merged.rows.itemsize
                    bar.advance(-(-done // 10**6) - bar.done)
                    job.give_back(merged.rows)
        write_index(folder, shards)


def _is_complete(file: Path, header: bytes, size: int) -> bool:
    """Whether an earlier run has written this very file; it appears only when it is whole."""
    if not file.exists() or file.stat().st_size != size:
        return False
    with file.open("rb") as handle:
        return handle.read(len(header)) == header


def _merged(
    pieces: Sequence[Piece], job: Job, pool: ThreadPoolExecutor, in_flight: int
) -> Iterator[tuple[Piece, Merged]]:
    """The blocks of all pieces in order; what comes next is measured and merged meanwhile."""
    upcoming = iter(pieces)
    measuring: deque[tuple[Piece, FileBlocks, Future[Combine]]] = deque()
    merging: deque[tuple[Piece, Future[Merged]]] = deque()

    def look_ahead() -> None:
        while len(measuring) < PIECES_AHEAD and (piece := next(upcoming, None)) is not None:
            blocks = job.blocks(piece)
            prepare = METHODS[piece.method].prepare
            measuring.append((piece, blocks, pool.submit(prepare, blocks, piece.chosen)))

    def take() -> tuple[Piece, Merged]:
        piece, future = merging.popleft()
        return piece, future.result()

    look_ahead()
    while measuring:
        piece, blocks, measured = measuring.popleft()
        look_ahead()
        while merging and not measured.done():
            yield take()
        combine = measured.result()
        for index in range(len(blocks.bounds)):
            blocks.fetch(index)
            merging.append((piece, pool.submit(merge_block, job, piece, blocks, combine, index)))
            if len(merging) >= in_flight:
                yield take()
    while merging:
        yield take()


@contextmanager
def _workers(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads; where something goes wrong, what has not begun is dropped."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="merge")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """One thread of the library for each worker: blocks are too small to be shared out."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
