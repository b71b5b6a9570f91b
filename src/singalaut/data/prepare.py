"""The stage that turns sources of rows into a token store.

Pieces are read, cleaned and tokenised in parallel (`workers.py`), then the store is closed
(`seal.py`) and described (`report.py`). A run can be killed at any moment: finished pieces are
kept, and other machines that see the same folder can help (`join_prepare`).
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from singalaut.artifact import Work, cores, write_atomic, write_json
from singalaut.data.config import DataSource, PrepareConfig
from singalaut.data.contamination import EvaluationTexts, read_evaluation_texts
from singalaut.data.filters import Identify
from singalaut.data.hub import fetch_hub
from singalaut.data.page import page
from singalaut.data.pieces import Summary, summary_from
from singalaut.data.report import make_report, reasons
from singalaut.data.seal import Tokens, close, decide, gather
from singalaut.data.sources import Piece, cut, find_files
from singalaut.data.tokenise import Job, Sight, SourceJob, open_tools
from singalaut.data.workers import CLOSING, forget_claims, run_pieces
from singalaut.errors import DataError
from singalaut.progress import progress
from singalaut.text.chat import ChatFormat
from singalaut.text.tokenizer import Tokenizer

log = logging.getLogger("singalaut")
WAIT_SECONDS = 600.0
LOOK_EVERY_SECONDS = 0.5
EXCERPT_TOKENS = 60
MOST_TOLD = 20  # reasons that are logged one by one


def run_prepare(
    config: PrepareConfig,
    *,
    model: Path,
    data: Sequence[Path | None],
    packs: Sequence[Path],
    work: Work,
    identify: Identify | None,
    sight: Sight | None,
) -> None:
    """Tokenise `data` with the tokenizer and chat format of `model`; a rerun goes on.

    `data` has the file or folder of each source, None for those of the hub; `identify` tells the
    language of a text, `sight` what the model sees of pictures. Writes `data/`, the store, and
    `report/`.
    Raises: DataError where more of a source is unusable than `max_bad_share` allows.
    """
    report = make_store(
        config,
        model=model,
        data=data,
        packs=packs,
        out=work.path,
        scratch=work.scratch,
        identify=identify,
        sight=sight,
    )
    work.facts["data"] = report["provenance"]
    work.facts["rows"] = {name: report[name] for name in ("rows", "kept", "tokens", "learned")}


def join_prepare(
    config: PrepareConfig,
    *,
    model: Path,
    data: Sequence[Path | None],
    folder: Path,
    identify: Identify | None,
    sight: Sight | None,
) -> int:
    """Help the run that works in `folder`; returns the number of its pieces when all are done.

    Raises: DataError where no run begins within ten minutes, or its pieces are others than ours.
    """
    scratch = Work(folder).scratch
    begin = time.monotonic()
    while not (scratch / "pieces.json").exists():
        if time.monotonic() - begin > WAIT_SECONDS:
            hint = "start the stage without `--join` on one machine"
            raise DataError("no run has begun that could be helped", where=scratch, hint=hint)
        time.sleep(LOOK_EVERY_SECONDS)
    pieces = _pieces(config.data, data)
    if _described(pieces) != json.loads((scratch / "pieces.json").read_bytes()):
        raise DataError("the files of this machine are not those of the run", where=scratch)
    job = _job(config, model, data, scratch, identify, sight)
    try:
        _tokenised(config, job, pieces, scratch / "pieces")
    except FileNotFoundError:  # the run has ended while we were at a piece that others had done
        log.info("the run has ended")
    return len(pieces)


def make_store(
    config: PrepareConfig,
    *,
    model: Path,
    data: Sequence[Path | None],
    packs: Sequence[Path],
    out: Path,
    scratch: Path,
    identify: Identify | None,
    sight: Sight | None,
) -> dict[str, Any]:
    """Write the store and its report below `out`; returns the report."""
    folder = scratch / "pieces"
    folder.mkdir(parents=True, exist_ok=True)
    forget_claims(folder)
    if packs:
        texts = EvaluationTexts.build(read_evaluation_texts(packs))
        log.info(
            "%d evaluation texts, %d long enough to be found", len(texts.texts), texts.num_indexed
        )
        texts.save(scratch / "evaluations")
    pieces = _pieces(config.data, data)
    write_json(scratch / "pieces.json", _described(pieces))
    closing = folder / CLOSING
    if closing.exists():
        summaries = [summary_from(values) for values in json.loads(closing.read_bytes())]
    else:
        job = _job(config, model, data, scratch, identify, sight)
        summaries = sorted(_tokenised(config, job, pieces, folder), key=lambda s: s.number)
        check_faults(config, summaries, pieces)
        write_json(closing, [asdict(summary) for summary in summaries])
    return _close(config, model, folder, summaries, out)


def check_faults(
    config: PrepareConfig, summaries: Sequence[Summary], pieces: Sequence[Piece]
) -> None:
    """Refuse to go on where already more of a source is unusable than may be in the end.

    What has not been read yet is taken to be like what has, and without faults.
    """
    for number, source in enumerate(config.data):
        own = [s for s in summaries if s.source == number]
        all_bytes = sum(p.size_bytes for p in pieces if p.source == number) or 1
        read_bytes = sum(s.size_bytes for s in own if not s.lost)
        lost_bytes = sum(s.size_bytes for s in own if s.lost)
        rows = sum(s.rows for s in own)
        all_rows = rows * all_bytes / read_bytes if read_bytes else 0
        faults = sum(s.faults for s in own)
        share = (faults / all_rows if all_rows else 0) + lost_bytes / all_bytes
        if share > config.max_bad_share:
            raise _too_many(source, own, share, config.max_bad_share)


def _too_many(
    source: DataSource, summaries: Sequence[Summary], share: float, allowed: float
) -> DataError:
    """The error that names the faults of a source, and where the first one is."""
    counts, before = Counter[str](), Counter[str]()
    found: list[tuple[int, int, str, str]] = []  # piece, row, where, what
    for summary in sorted(summaries, key=lambda s: s.number):
        if summary.lost:
            counts[summary.lost] += 1
            found.append((summary.number, 0, summary.file, summary.lost))
        for reason in summary.reasons:
            if reason["is_fault"]:
                counts[reason["what"]] += reason["rows"]
                example = reason["examples"][0]
                place = f"{summary.file}, row {example['row'] + before[summary.file]}"
                found.append((summary.number, example["row"], place, example["detail"]))
        before[summary.file] += summary.rows
    *_, where, detail = min(found)
    remedy = "correct or remove the rows, or name their columns with `columns`, and run again"
    if any(summary.lost for summary in summaries):
        remedy = "bring the file back or replace it, and run again: what is done is kept"
    listed = "; ".join(f"{what} ({rows:,})" for what, rows in counts.most_common(5))
    return DataError(
        f"{share:.1%} of `{source.label}` cannot be used: {listed}",
        where=f"{where}: {detail}" if detail not in counts else where,
        hint=f"{remedy}, or raise `max_bad_share` of a stage `prepare` ({allowed:g})",
    )


def _pieces(sources: Sequence[DataSource], data: Sequence[Path | None]) -> list[Piece]:
    """All pieces of all sources, in an order that depends on the settings alone."""
    pieces = []
    for number, (source, path) in enumerate(zip(sources, data, strict=True)):
        if path is None:
            assert source.hub is not None
            files = fetch_hub(source.hub, source.subset, source.split, source.revision)
        else:
            files = find_files(path, source.split)
        for file in files:
            pieces += cut(number, file)
    return pieces


def _described(pieces: Sequence[Piece]) -> list[list[Any]]:
    """What machines must agree on."""
    return [[p.source, p.file.name, p.start, p.stop, p.stamp[0]] for p in pieces]


def _job(
    config: PrepareConfig,
    model: Path,
    data: Sequence[Path | None],
    scratch: Path,
    identify: Identify | None,
    sight: Sight | None,
) -> Job:
    clean = config.clean
    if clean.language is not None and identify is None:
        raise DataError("nothing here can tell languages apart", hint="leave `language` out")
    sources = tuple(
        SourceJob(
            source.label,
            source.language,
            source.licence,
            tuple(sorted(source.columns.items())),
            None if path is None else path if path.is_dir() else path.parent,
        )
        for source, path in zip(config.data, data, strict=True)
    )
    return Job(
        model,
        sources,
        max_tokens=config.max_tokens,
        cut_long=config.too_long == "cut",
        min_answer_tokens=clean.min_answer_tokens,
        sign=clean.near_duplicates is not None,
        max_repetition=clean.max_repetition,
        language=clean.language,
        identify=identify if clean.language is not None else None,
        evaluations=scratch / "evaluations" if clean.evaluations else None,
        contamination=clean.contamination,
        sight=sight,
    )


def _tokenised(
    config: PrepareConfig, job: Job, pieces: Sequence[Piece], folder: Path
) -> list[Summary]:
    """Every piece done, with a bar; stops early where too much is unusable."""
    workers = config.workers or cores()
    summaries: list[Summary] = []
    rows = 0
    with progress("prepare", len(pieces), "piece") as bar:
        for summary in run_pieces(job, pieces, folder, workers):
            summaries.append(summary)
            rows += summary.rows
            speed = rows / max(time.monotonic() - bar.begin, 1e-9)
            bar.advance(rows=f"{rows:,}", speed=f"{speed:,.0f} rows/s")
            check_faults(config, summaries, pieces)
    open_tools.cache_clear()  # a stage that goes on in this process wants the memory
    return summaries


def _close(
    config: PrepareConfig, model: Path, folder: Path, summaries: Sequence[Summary], out: Path
) -> dict[str, Any]:
    tokenizer = Tokenizer.load(model)
    chat = ChatFormat.load(model, tokenizer)
    gathered = gather(folder, summaries)
    clean = config.clean
    twins = decide(folder, gathered, duplicates=clean.duplicates, near=clean.near_duplicates)
    if len(twins) == len(gathered.documents):
        left_out = "; ".join(sorted({r["what"] for s in summaries for r in s.reasons}))
        what = f"no row is left: {left_out}" if left_out else "the sources have no rows"
        files = sorted({summary.file for summary in summaries})
        read = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if files[3:] else "")
        raise DataError(what, where=read, hint="look at the files and the settings")
    report_file = out / "report" / "report.json"
    if report_file.exists():  # written before any token was moved by a run that was stopped
        report = json.loads(report_file.read_bytes())
    else:
        tokens = Tokens(folder, gathered)

        def text_of(document: int) -> str:
            return tokenizer.decode(tokens.tokens(document)[:EXCERPT_TOKENS].tolist())

        names = [source.label for source in config.data]
        report = make_report(gathered, twins, names, text_of)
        report_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(report_file.with_suffix(".html"), page(report, "Prepared data").encode())
        write_json(report_file, report)
    about = {
        "format_identity": chat.identity,
        "end_of_turn": tokenizer.end_of_turn_id,
        "max_tokens": config.max_tokens,
        "sources": [{"name": s.label, "weight": s.weight, "limit": s.limit} for s in config.data],
    }
    close(folder, out / "data", gathered, twins, about)
    tell(report)
    return report


def tell(report: dict[str, Any]) -> None:
    log.info(
        "%s of %s rows kept, %s tokens",
        f"{report['kept']:,}",
        f"{report['rows']:,}",
        f"{report['tokens']:,}",
    )
    if report["cut"]:
        log.warning("shortened: %s rows", f"{report['cut']:,}")
    if report["joined"]:
        log.warning("turns of one role, one after the other, joined: %s rows", report["joined"])
    left_out = reasons(report)
    for entry in left_out[:MOST_TOLD]:
        log.warning(
            "left out: %s rows of %s: %s", f"{entry['rows']:,}", entry["source"], entry["reason"]
        )
    if len(left_out) > MOST_TOLD:
        log.warning("left out: %d more reasons, in the report", len(left_out) - MOST_TOLD)
    for source in report["sources"]:
        for lost in source["lost"]:
            log.warning(
                "could not be read: %s of %s: %s", lost["file"], source["name"], lost["why"]
            )
