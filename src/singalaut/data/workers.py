"""Runs the pieces of a job on the cores of this machine, beside other machines if there are any.

Who does which piece is settled by the folders they leave: a finished piece is skipped, one that
another process has claimed is left to it, and at the end what nobody has finished is done again
by whoever is still there. Claims only save work: a piece done twice is the same twice.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

from singalaut.data.pieces import Summary, read_summary
from singalaut.data.sources import Piece
from singalaut.data.tokenise import Job, tokenise_piece
from singalaut.errors import MachineError

ONE_PROCESS_BYTES = 8 << 20  # less than this is done before other processes have started
PARENT_EVERY_SECONDS = 2.0
CLOSING = "closing.json"  # in the folder of pieces, when no more are wanted


def run_pieces(job: Job, pieces: Sequence[Piece], folder: Path, workers: int) -> Iterator[Summary]:
    """The summary of every piece, as they finish; finished ones are not done again.

    Raises: MachineError if a process dies or the disk is full.
    """
    waiting = dict(enumerate(pieces))
    for number in list(waiting):
        if (summary := read_summary(folder, number)) is not None:
            del waiting[number]
            yield summary
    for may_repeat in (False, True):
        for number, summary in _run(job, waiting, folder, workers, may_repeat):
            if summary is not None:
                del waiting[number]
                yield summary


def _run(
    job: Job, waiting: dict[int, Piece], folder: Path, workers: int, may_repeat: bool
) -> Iterator[tuple[int, Summary | None]]:
    """Each waiting piece and its summary, None where another process has claimed it."""
    work = partial(_work, job, folder, may_repeat)
    todo = list(waiting.items())
    if workers == 1 or len(todo) < 2 or sum(p.size_bytes for _, p in todo) < ONE_PROCESS_BYTES:
        yield from (work(number, piece) for number, piece in todo)
        return
    # a fresh interpreter: a copy of this one would share locks and threads that others hold
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        min(workers, len(todo)), mp_context=context, initializer=_start, initargs=(os.getpid(),)
    )
    try:
        futures: list[Future[tuple[int, Summary | None]]] = [
            pool.submit(work, number, piece) for number, piece in todo
        ]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise MachineError(
            "a worker process has died, most likely for lack of memory",
            hint="use fewer `workers`; finished pieces are kept",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _work(
    job: Job, folder: Path, may_repeat: bool, number: int, piece: Piece
) -> tuple[int, Summary | None]:
    claim = folder / f".claim-{number:06d}"
    if (folder / CLOSING).exists():
        return number, None
    if not may_repeat:
        try:
            claim.touch(exist_ok=False)
        except FileExistsError:
            return number, read_summary(folder, number)
    return number, tokenise_piece(job, number, piece, folder)


def _start(parent: int) -> None:
    """Set up a worker: one thread for the tokenizer, and an end when the parent has gone."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_EVERY_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def forget_claims(folder: Path) -> None:
    """Give back what processes that are no longer there had claimed."""
    for claim in folder.glob(".claim-*"):
        claim.unlink(missing_ok=True)
