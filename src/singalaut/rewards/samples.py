"""Prompts whose answers can be checked: from files of rows in common shapes, or made without end.

Shapes: our own (`messages` with `answer` or `reference`, `constraints`), IFEval's and Nemotron's
(`input` or `prompt` with `args` or `instruction_id_list` and `kwargs`), DeepMath's (`question`,
`final_answer`). A row that cannot be checked, or asks for what contradicts itself, is left out,
counted and named.
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from singalaut.contracts import Message, Sample, derive
from singalaut.errors import DataError, SingalautError
from singalaut.verify.constraints.check import Constraint, constraints_of, validate
from singalaut.verify.generate import prompts as generated_prompts

log = logging.getLogger("singalaut")
PROMPTS = ("messages", "input", "prompt", "question", "problem")
REFERENCES = ("reference", "answer", "final_answer", "expected_answer")
EXAMPLES = 3


@dataclass
class Checked:
    """Samples that can be checked, and what was left out: reasons with counts and examples."""

    samples: list[Sample] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, reason: str, where: str) -> None:
        self.left_out[reason] += 1
        known = self.examples.setdefault(reason, [])
        if len(known) < EXAMPLES:
            known.append(where)


def read_samples(file: Path, language: str | None = None) -> Checked:
    """The rows of a JSONL file that can be checked; `language` is that of rows that state none.

    Raises: DataError if none can be used, or the file cannot be read.
    """
    found = Checked()
    try:
        lines = file.read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the file cannot be read: {error}", where=file) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{file.name}, row {number}"
        try:
            row = json.loads(line)
            sample = sample_of(row, f"{file.stem}-{number}", file.stem, language)
        except (ValueError, TypeError, KeyError, AttributeError, SingalautError) as error:
            reason = error.what if isinstance(error, SingalautError) else "the row is not readable"
            found.leave_out(reason, where)
            continue
        found.samples.append(sample)
    if not found.samples:
        reasons = "; ".join(f"{reason} ({n})" for reason, n in found.left_out.most_common(3))
        raise DataError(f"no row can be checked: {reasons or 'the file is empty'}", where=file)
    return found


def sample_of(row: Mapping[str, Any], id: str, source: str, language: str | None) -> Sample:
    """One row as a sample. Raises: DataError for what cannot be answered or checked."""
    key = next((key for key in PROMPTS if row.get(key)), None)
    if key is None:
        raise DataError("no prompt")
    messages = _messages(row[key], row.get("system_prompt"))
    reference = next((str(row[k]) for k in REFERENCES if row.get(k) is not None), None)
    code = str(row.get("language") or language or "en")
    constraints = _constraints(row)
    validate(constraints, code)
    if reference is None and not constraints and language is None and "language" not in row:
        raise DataError("neither a reference, nor constraints, nor a language to answer in")
    return Sample(
        messages,
        str(row.get("id") or id),
        code,
        str(row.get("source") or source),
        reference=reference,
        constraints=[
            {"instruction_id": c.instruction_id, "parameters": dict(c.parameters)}
            for c in constraints
        ],
    )


def make_samples(languages: Sequence[str], count: int, seed: int, most: int = 3) -> list[Sample]:
    """`count` prompts with constraints from our own templates, the languages in turn."""
    streams = [
        generated_prompts(code, derive(seed, "prompts", code), most=most) for code in languages
    ]
    samples = []
    for number in range(count):
        code = languages[number % len(languages)]
        made = next(streams[number % len(languages)])
        constraints = [
            {"instruction_id": c.instruction_id, "parameters": dict(c.parameters)}
            for c in made.constraints
        ]
        message = Message("user", made.prompt)
        name = f"generated-{code}-{number}"
        samples.append(Sample([message], name, code, "generated", constraints=constraints))
    return samples


def _messages(prompt: Any, system: Any) -> list[Message]:
    turns: list[Any] = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, str):
        turns = list(prompt)
    messages = [Message(turn["role"], turn["content"]) for turn in turns]
    while messages and messages[-1].role == "assistant":
        messages.pop()
    if isinstance(system, str) and system.strip() and messages[0].role != "system":
        messages.insert(0, Message("system", system))
    if not messages or messages[-1].role != "user":
        raise DataError("the prompt does not end with the user")
    return messages


def _constraints(row: Mapping[str, Any]) -> list[Constraint]:
    """Constraints in our form, in IFEval's, or in Nemotron's with arguments nested or flat."""
    if row.get("constraints"):
        return [
            Constraint(str(c["instruction_id"]), dict(c.get("parameters") or {}))
            for c in row["constraints"]
        ]
    inner = row.get("args")
    args: Mapping[str, Any] = inner if isinstance(inner, Mapping) else row
    names = args.get("instruction_id_list") or []
    given = args.get("kwargs") or args.get("instruction_kwargs")
    if given is None:
        flat = {k: v for k, v in args.items() if k != "instruction_id_list" and v is not None}
        given = [flat if row is not args else {} for _ in names]
    return constraints_of(names, [{k: v for k, v in g.items() if v is not None} for g in given])


@dataclass(frozen=True)
class Source:
    """A file of rows, or how many prompts in which languages are made."""

    file: Path | None
    generate: int = 0
    languages: Sequence[str] = ("en",)
    language: str | None = None


@dataclass
class Prompts:
    """Samples with their prompts as tokens, in an order that the seed decides."""

    prompts: list[tuple[Sample, tuple[int, ...]]]
    left_out: Counter[str]

    def counts(self) -> dict[str, Any]:
        """How many there are by source and language, and what was left out."""
        found = Counter((s.source or "unknown", s.language or "unknown") for s, _ in self.prompts)
        rows = [{"source": a, "language": b, "rows": n} for (a, b), n in sorted(found.items())]
        return {"rows": rows, "left_out": dict(self.left_out)}


def gather(
    sources: Sequence[Source],
    seed: int,
    encode: Callable[[Sequence[Message]], Sequence[int]],
    max_tokens: int,
) -> Prompts:
    """All prompts of the sources, each as tokens; what is too long or unfit is counted.

    Raises: DataError if nothing is left.
    """
    samples: list[Sample] = []
    left_out: Counter[str] = Counter()
    for number, source in enumerate(sources):
        if source.file is None:
            made = make_samples(source.languages, source.generate, derive(seed, "made", number))
            samples += made
            continue
        checked = read_samples(source.file, source.language)
        samples += checked.samples
        left_out.update(checked.left_out)
        for reason, count in checked.left_out.items():
            log.warning("%d rows left out: %s (%s)", count, reason, checked.examples[reason][0])
    prompts = []
    unfit: Counter[str] = Counter()
    for sample in samples:
        try:
            tokens = tuple(encode(sample.messages))
        except DataError as error:
            unfit[error.what] += 1
            continue
        if len(tokens) > max_tokens:
            unfit[f"the prompt is longer than {max_tokens} tokens"] += 1
            continue
        prompts.append((sample, tokens))
    left_out.update(unfit)
    for reason, count in unfit.items():
        log.warning("%d rows left out: %s", count, reason)
    if not prompts:
        raise DataError(f"no prompt is left: {dict(left_out)}")
    random.Random(derive(seed, "prompts")).shuffle(prompts)
    return Prompts(prompts, left_out)


def place_of(place: int, count: int, seed: int) -> int:
    """Which of `count` prompts is drawn at a place of an endless order: each pass has its own."""
    turn, index = divmod(place, count)
    return _order(count, derive(seed, "pass", turn))[index]


@lru_cache(maxsize=2)
def _order(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order
