"""One piece of a source to tokens: read, filtered, rendered and tokenised in batches.

Runs in worker processes, each with its own tokenizer; what it does depends on the job and the
piece alone, so any process on any machine gives the same folder. Which pieces there are and what
is made of their folders is decided elsewhere (`prepare.py`, `seal.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from singalaut.contracts import Message, Sample
from singalaut.data.contamination import EvaluationTexts
from singalaut.data.filters import Identify, answer_text, repetition
from singalaut.data.near import signatures
from singalaut.data.pieces import (
    DOCUMENT,
    EXCERPT_CHARACTERS,
    MOST_ALIKE,
    OTHER,
    PieceWriter,
    Reason,
    Summary,
    blurred,
    read_summary,
)
from singalaut.data.readers import Numbered
from singalaut.data.row_images import pictures_of
from singalaut.data.rows import RowReader
from singalaut.data.sources import Piece, read_piece
from singalaut.errors import DataError, MachineError
from singalaut.text.bulk import IDS, BulkEncoder
from singalaut.text.chat import ChatFormat
from singalaut.text.conversations import ConversationEncoder, is_learned, token_ids
from singalaut.text.tokenizer import Tokenizer

ROWS_AT_ONCE = 256
MOST_REASONS = 50  # in a piece
FEWEST_CHARACTERS = 40  # of a text whose language can be told: names and labels are shorter
UNKNOWN = "unknown"
REPEATS = Reason("the answer repeats itself", False)
OTHER_LANGUAGE = Reason("the answer is in another language", False)
CONTAMINATED = Reason("it holds the text of an evaluation", False)
TOOLS = DataError("the row offers tools, which the chat format does not put into the prompt")


class SourceJob(NamedTuple):
    """How the rows of a source are read; `columns` as pairs, so that a job can be hashed."""

    name: str
    language: str | None = None
    licence: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    folder: Path | None = None


class Sight(NamedTuple):
    """What a model sees of a picture: so many tokens; `check` raises DataError for a bad one."""

    tokens_per_image: int
    check: Callable[[bytes], None]


@dataclass(frozen=True)
class Job:
    """All that decides what a piece becomes. Files are named by paths on this machine."""

    model: Path
    sources: tuple[SourceJob, ...]
    max_tokens: int
    cut_long: bool = False
    min_answer_tokens: int = 1
    sign: bool = False
    """Whether signatures are made, by which near-duplicates are found."""
    max_repetition: float | None = None
    language: float | None = None
    identify: Identify | None = None
    evaluations: Path | None = None
    contamination: float = 0.6
    sight: Sight | None = None
    """None for a model that cannot see."""


@dataclass
class Tools:
    """What a process needs to work on a job."""

    readers: list[RowReader]
    encoder: ConversationEncoder
    longest_token: int
    evaluations: EvaluationTexts | None


@lru_cache(maxsize=1)
def open_tools(job: Job) -> Tools:
    """The tokenizer and filters of a job; kept, since a process works on many pieces of one job."""
    tokenizer = Tokenizer.load(job.model)
    chat = ChatFormat.load(job.model, tokenizer)
    evaluations = None if job.evaluations is None else EvaluationTexts.load(job.evaluations)
    readers = [
        RowReader(s.name, s.language, s.licence, dict(s.columns), s.folder) for s in job.sources
    ]
    each = None if job.sight is None else job.sight.tokens_per_image
    bulk = BulkEncoder(tokenizer)
    encoder = ConversationEncoder(chat, bulk, tokens_per_image=each)
    return Tools(readers, encoder, bulk.longest_token, evaluations)


def tokenise_piece(job: Job, number: int, piece: Piece, folder: Path) -> Summary:
    """Write the folder of a piece below `folder`, unless it is there; a lost one leaves none."""
    if (done := read_summary(folder, number)) is not None:
        return done
    tools = open_tools(job)
    summary = Summary(number, piece.source, piece.file.name, piece.size_bytes)
    try:
        with PieceWriter(folder, summary) as writer:
            rows = read_piece(piece)
            while batch := _next(rows):
                summary.rows += len(batch)
                _Batch(job, tools, writer, tools.readers[piece.source]).write(batch)
    except _Lost as lost:
        return Summary(number, piece.source, piece.file.name, piece.size_bytes, lost=str(lost))
    return summary


class _Lost(Exception):
    """The source of a piece cannot be read; unlike a disk that cannot be written."""


class _Candidate(NamedTuple):
    """A row on its way into the store."""

    number: int
    sample: Sample
    words: bytes
    pictures: tuple[bytes, ...]


def _next(rows: Iterator[Numbered]) -> list[Numbered]:
    """The next batch of rows; empty at the end."""
    try:
        return list(islice(rows, ROWS_AT_ONCE))
    except (DataError, MachineError) as error:
        raise _Lost(error.what) from error


class _Batch:
    """Takes some rows into a piece; every row is either added, or dropped for a reason."""

    def __init__(self, job: Job, tools: Tools, writer: PieceWriter, reader: RowReader):
        self._job, self._tools, self._writer, self._reader = job, tools, writer, reader
        self._too_long = Reason(f"longer than {job.max_tokens} tokens", False)
        self._found: dict[int, str] = {}

    def write(self, rows: list[Numbered]) -> None:
        candidates = self._encoded(list(self._samples(rows)))
        if not candidates:
            return
        flat = np.frombuffer(b"".join([c.words for c in candidates]), IDS)
        lengths = np.array([len(c.words) // 4 for c in candidates])
        learned = np.add.reduceat(is_learned(flat), np.cumsum(lengths) - lengths, dtype=np.int64)
        refused = self._refused(candidates, flat, learned)
        for i, (reason, detail) in sorted(refused.items()):
            self._drop(candidates[i].number, candidates[i].sample, reason, detail)
        kept = [i for i in range(len(candidates)) if i not in refused]
        self._add([candidates[i] for i in kept], learned[kept])

    def _samples(self, rows: list[Numbered]) -> Iterator[tuple[int, Sample]]:
        """Rows to samples; those that are none are dropped."""
        most_characters = self._job.max_tokens * self._tools.longest_token
        for number, row in rows:
            try:
                if isinstance(row, DataError):
                    raise row
                sample = self._reader.read(row, number)
                if sample.tools:
                    raise TOOLS
            except DataError as error:
                self._fault(number, row, error)
                continue
            if not self._job.cut_long and _characters(sample.messages) > most_characters:
                self._drop(
                    number, sample, self._too_long, f"{_characters(sample.messages)} characters"
                )
            else:
                yield number, sample

    def _encoded(self, rows: list[tuple[int, Sample]]) -> list[_Candidate]:
        """Samples with their tokens and pictures; those that do not fit the format are dropped."""
        encoded = self._tools.encoder.encode([sample.messages for _, sample in rows])
        candidates = []
        for (number, sample), words in zip(rows, encoded, strict=True):
            if isinstance(words, DataError):
                self._fault(number, sample, words)
                continue
            if len(words) > 4 * self._job.max_tokens:
                if not self._job.cut_long:
                    self._drop(number, sample, self._too_long, f"{len(words) // 4} tokens")
                    continue
                words = words[: 4 * self._job.max_tokens]
                self._writer.summary.cut += 1
            try:
                pictures = pictures_of(sample.messages)
                for picture in pictures:
                    assert self._job.sight is not None
                    self._job.sight.check(picture)
            except DataError as error:
                self._fault(number, sample, error)
                continue
            self._writer.summary.joined += _has_neighbours(sample.messages)
            candidates.append(_Candidate(number, sample, words, pictures))
        return candidates

    def _refused(
        self, candidates: list[_Candidate], flat: np.ndarray, learned: np.ndarray
    ) -> dict[int, tuple[Reason, str]]:
        """Which candidates the filters leave out, and why; the first filter that does is named."""
        job = self._job
        few = Reason(f"fewer than {job.min_answer_tokens} tokens to learn", False)
        refused = {
            i: (few, f"{learned[i]} tokens")
            for i in np.flatnonzero(learned < job.min_answer_tokens).tolist()
        }
        if job.max_repetition is not None:
            shares = repetition(token_ids(flat[is_learned(flat)]), learned)
            for i in np.flatnonzero(shares > job.max_repetition).tolist():
                refused.setdefault(i, (REPEATS, f"{shares[i]:.2f} of the runs of tokens"))
        if job.language is not None and job.identify is not None:
            for i, candidate in enumerate(candidates):
                if i not in refused and (detail := self._other_language(candidate)):
                    refused[i] = (OTHER_LANGUAGE, detail)
        if self._tools.evaluations is not None:
            texts = [_all_text(candidate.sample.messages) for candidate in candidates]
            for hit in self._tools.evaluations.find(texts, job.contamination):
                detail = f"{hit.share:.2f} of: {self._tools.evaluations.texts[hit.text]}"
                refused.setdefault(hit.document, (CONTAMINATED, detail[:EXCERPT_CHARACTERS]))
        return refused

    def _other_language(self, candidate: _Candidate) -> str | None:
        """What an answer is written in, if that is surely not what its row declares.

        Where the row declares nothing, the language found is its language from here on.
        """
        assert self._job.identify is not None and self._job.language is not None
        messages, declared = candidate.sample.messages, candidate.sample.language
        text = answer_text(messages) if declared else _all_text(messages)
        if len(text) < FEWEST_CHARACTERS:
            return None
        found = self._job.identify(text)
        self._writer.found_language(declared or UNKNOWN, found.language or UNKNOWN)
        if found.language in (None, declared) or found.confidence < self._job.language:
            return None
        if declared is None:
            self._found[candidate.number] = str(found.language)
            return None
        return f"{found.language} ({found.confidence:.2f}), not {declared}"

    def _add(self, candidates: list[_Candidate], learned: np.ndarray) -> None:
        writer = self._writer
        documents = np.zeros(len(candidates), dtype=DOCUMENT)
        languages = [c.sample.language or self._found.get(c.number, UNKNOWN) for c in candidates]
        documents["tokens"] = [len(candidate.words) // 4 for candidate in candidates]
        documents["learned"] = learned
        documents["origin"] = [
            writer.origin(c.sample.source or OTHER, language, c.sample.licence or "not stated")
            for c, language in zip(candidates, languages, strict=True)
        ]
        documents["row"] = [candidate.number for candidate in candidates]
        documents["pictures"] = [len(candidate.pictures) for candidate in candidates]
        documents["hash"] = [_hash(candidate) for candidate in candidates]
        for candidate in candidates:
            writer.add_pictures(candidate.pictures)
        tokens = b"".join([candidate.words for candidate in candidates])
        signed = None
        if self._job.sign:
            signed = signatures(token_ids(np.frombuffer(tokens, IDS)), documents["tokens"])
        writer.add(tokens, documents, signed)

    def _fault(self, number: int, row: Any, error: DataError) -> None:
        """A row that cannot be used, for a reason that may name a value of the row."""
        known = [reason["what"] for reason in self._writer.summary.reasons]
        what = error.what
        if what not in known and sum(blurred(w) == blurred(what) for w in known) >= MOST_ALIKE:
            what = blurred(what)
        if what not in known and len(known) >= MOST_REASONS:
            what = "other faults"
        self._drop(number, row, Reason(what, True), error.what)

    def _drop(self, number: int, row: Any, reason: Reason, detail: str) -> None:
        self._writer.drop(number, reason, detail, lambda: _excerpt(row))


def _excerpt(row: Any) -> str:
    """The beginning of a row, as people can read it."""
    if isinstance(row, Sample):
        text = " | ".join(f"{m.role}: {m.content}"[:EXCERPT_CHARACTERS] for m in row.messages[:4])
    elif isinstance(row, DataError):
        return ""
    else:
        text = json.dumps(row, ensure_ascii=False, default=lambda _: "…")
    return text[:EXCERPT_CHARACTERS].encode("utf-8", "replace").decode()


def _characters(messages: list[Message]) -> int:
    return sum(len(m.content) for m in messages if isinstance(m.content, str))


def _has_neighbours(messages: list[Message]) -> bool:
    """Whether people or the assistant speak twice in a row, which the chat format joins."""
    roles = [m.role for m in messages]
    return any(a == b != "tool" for a, b in pairwise(roles))


def _all_text(messages: list[Message]) -> str:
    """What is said in all turns, without images."""
    texts = []
    for message in messages:
        if isinstance(message.content, str):
            texts.append(message.content)
        else:
            texts += [part["text"] for part in message.content if part["type"] == "text"]
    return "\n".join(texts)


def _hash(candidate: _Candidate) -> int:
    """64 bits of a hash of the tokens, mask and pictures."""
    digest = hashlib.blake2b(candidate.words, digest_size=8)
    for picture in candidate.pictures:
        digest.update(picture)
    return int.from_bytes(digest.digest(), "little")
