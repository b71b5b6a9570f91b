"""The stage: models, a pack and a protocol in, answers and results out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from singalaut.artifact import Work
from singalaut.contracts import Sampler
from singalaut.errors import DataError
from singalaut.evals.aggregate import summarise
from singalaut.evals.config import EvaluateConfig
from singalaut.evals.examples import read_cell
from singalaut.evals.gather import Gatherer, check_failures
from singalaut.evals.output import oddity_shares, write_results
from singalaut.evals.outside import Outsiders
from singalaut.evals.pack import load_pack
from singalaut.evals.profiles import PROFILES, Profile
from singalaut.evals.protocol import make_protocol, seeds_of
from singalaut.evals.report import write_report
from singalaut.evals.results import all_results, leaf_of, model_results
from singalaut.evals.runner import Answered, answer_all
from singalaut.evals.schedule import CellAnswers
from singalaut.evals.score import score_cell
from singalaut.evals.scored import Rules, Scored
from singalaut.evals.store import Store
from singalaut.evals.tasks import Cell, Pack, choose
from singalaut.evals.words import words_used

log = logging.getLogger("singalaut")
REPORTED_QUESTIONS = (
    10  # of each task in the page that is written at once; `eval report` takes more
)


@dataclass(frozen=True)
class Subject:
    """A model to judge: what names it for good, how to open it, and where its files lie, if any."""

    identity: str
    open: Callable[[], Sampler]
    directory: Path | None = None


def run_evaluate(
    config: EvaluateConfig,
    *,
    subjects: Mapping[str, Subject],
    pack: Path,
    data: Sequence[Path] = (),
    work: Work,
    seed: int,
    store: Path,
    judge: Subject | None = None,
    metricx: Path | None = None,
) -> None:
    """Answer and score the pack with each model, in order, and write the results.

    Raises: DataError, RecipeError for the pack and its choice, before any model is opened;
    RequestError where more requests fail than are allowed.
    """
    profile = PROFILES[config.profile]
    loaded = load_pack(pack, profile, data)
    cells = read_cells(loaded, config)
    kept = Store(store)
    outsiders = Outsiders(
        *(cells, kept, seed, config.judge, judge, metricx), config.protocol.allowed_failures
    )
    outsiders.estimate(len(subjects), len(seeds_of(config, profile, seed)))
    models, timings = {}, {}
    for name, subject in subjects.items():
        protocol = make_protocol(config, profile, subject.identity, subject.directory, seed)
        gatherer = Gatherer(name, kept, subject.open)
        rules = Rules(profile.version, config.protocol.extraction)

        def score(answers: CellAnswers, rules: Rules = rules) -> Scored | None:
            if outsiders.waits_for(answers.cell):
                return None
            return score_cell(answers, rules, logprobs=config.protocol.logprobs)

        answered = answer_all(gatherer, protocol, cells, work, score)
        statistics, requests = gatherer.statistics(), gatherer.about()
        gatherer.close()
        check_failures(name, gatherer, config.protocol.allowed_failures)
        outsiders.score(name, answered, rules, work)
        models[name] = _sum_up(answered, loaded, cells, config, seed)
        models[name]["identity"] = subject.identity
        models[name]["sampling"] = protocol.about
        models[name]["requests"] = requests
        models[name]["judge"] = outsiders.about(name)
        timings[name] = _timing(gatherer, statistics, outsiders)
        _report(name, models[name], timings[name])
    results = all_results(loaded, cells, models, _protocol(config, profile, seed))
    write_results(work.path / "results", results)
    write_report(work.path, results, work.path / "results" / "report.html", REPORTED_QUESTIONS)
    work.facts["timing"] = timings
    kept.close()


def read_cells(pack: Pack, config: EvaluateConfig) -> list[Cell]:
    """The chosen cells with their rows; those of an official pack without rows are passed over.

    Raises: DataError where a task that is named has none, or nothing is left.
    """
    chosen = choose(pack, config.tasks, config.languages, config.extras)
    shots = 5 if config.protocol.base and not config.protocol.shots else config.protocol.shots
    there = [
        (task, spec)
        for task, spec in chosen
        if spec.data is not None and (task.base_models or not config.protocol.base)
    ]
    for task, spec in chosen:
        if spec.data is None and config.tasks and not any(t is task for t, _ in there):
            read_cell(task, spec)  # which says what is missing
    if not there:
        raise DataError(
            "no task has rows here",
            where=pack.name,
            hint="give the folder that has them with `--data`, or fetch them: `eval fetch`",
        )
    absent = Counter(task.name for task, spec in chosen if spec.data is None)
    if absent:
        log.warning(
            "not asked, as their rows are not here: %s; `eval fetch` fetches what the hub has",
            ", ".join(f"{name} ({n} language{'s' * (n > 1)})" for name, n in absent.items()),
        )
    cells = [read_cell(task, spec, config.limit, shots) for task, spec in there]
    bare = [cell.name for cell in cells if cell.language.examples is None] if shots else []
    if bare:
        more = f" and {len(bare) - 3} more" if len(bare) > 3 else ""
        log.warning(
            "asked without worked examples, as there are none: %s%s", ", ".join(bare[:3]), more
        )
    for cell in cells:
        if cell.problems.lost:
            first = cell.problems.first[0]
            log.warning(
                "%s: %d rows are left out, the first: %s: %s",
                *(cell.name, cell.problems.lost, first.where, first.what),
            )
    return cells


def _sum_up(
    answered: Answered, pack: Pack, cells: Sequence[Cell], config: EvaluateConfig, seed: int
) -> dict[str, Any]:
    scored = [answered.scored[cell.name] for cell in cells if cell.name in answered.scored]
    partial = bool(config.tasks)
    codes = {cell.language.language for cell in cells}
    summary = summarise(
        [leaf_of(one) for one in scored],
        resamples=config.protocol.resamples,
        seed=seed,
        averaged=[code for code in pack.averaged if code in codes],
        expected={} if partial else {c: n for c, n in pack.expected.items() if c in codes},
    )
    failed = {a.cell.name: len(a.failed) for a in answered.everything}
    return model_results(scored, summary, failed)


def _protocol(config: EvaluateConfig, profile: Profile, seed: int) -> dict[str, Any]:
    given = config.protocol
    return {
        "profile": profile.name,
        "version": profile.version,
        "seed": seed,
        "seeds": list(seeds_of(config, profile, seed)),
        "temperature": config.temperature,
        "shots": 5 if given.base and not given.shots else given.shots,
        "base": given.base,
        "logprobs": given.logprobs,
        "extraction": given.extraction,
        "resamples": given.resamples,
        "limit": config.limit,
        "words": words_used(),
    }


def _timing(
    gatherer: Gatherer, statistics: Mapping[str, float], outsiders: Outsiders
) -> dict[str, Any]:
    timing = gatherer.timing
    return {
        "seconds": round(timing.seconds(), 3),
        "engine_seconds": round(timing.engine, 3),
        "opening_seconds": round(timing.opening, 3),
        "engine_share": round(timing.share(), 4),
        "asked": timing.asked,
        "replayed": timing.replayed,
        "prompt_tokens": timing.prompt_tokens,
        "completion_tokens": timing.completion_tokens,
        "sampler": {name: round(value, 6) for name, value in statistics.items()},
    }


def _report(name: str, results: Mapping[str, Any], timing: Mapping[str, Any]) -> None:
    overall = results["overall"]
    shares = oddity_shares(results)
    log.info(
        "%s: %d answers made, %d from the store, %.1f s: %.1f s to open, %.1f %% of the rest in "
        "the engine; normalised mean %s; unextractable %.1f %%, wrong language %.1f %%, "
        "truncated %.1f %%",
        name,
        timing["asked"],
        timing["replayed"],
        timing["seconds"],
        timing["opening_seconds"],
        100 * timing["engine_share"],
        "—" if overall.get("normalised") is None else f"{overall['normalised']:.1f}",
        *(100 * shares.get(odd, 0.0) for odd in ("unextractable", "wrong_language", "truncated")),
    )
