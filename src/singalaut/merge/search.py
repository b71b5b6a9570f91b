"""Looks for the weights and parameters of a merge that an evaluation likes best.

The evaluation is a function from a model directory to scores by name; this file knows nothing
else of it. Each trial is proposed from the trials before it alone, merged, evaluated, written down
and forgotten, so a killed search goes on and ends as it would have. What has been evaluated once,
in this search or another, is not evaluated again: scores are kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from singalaut.artifact import Work, home, write_json
from singalaut.contracts import derive
from singalaut.errors import MachineError, RecipeError, SingalautError
from singalaut.merge.config import SEARCHED, MergeConfig, MergeSearchConfig
from singalaut.merge.front import Trial, best, front, write_page
from singalaut.merge.methods import METHODS
from singalaut.merge.stream import check_fit, run_merge

log = logging.getLogger("singalaut")
FIRST_AT_RANDOM = 6  # trials before the sampler has something to learn from
Evaluate = Callable[[Path, Path], Mapping[str, float]]
"""Scores by name of the model in a directory; the second path is a folder for its work."""


@dataclass(frozen=True)
class Inputs:
    """The files of a search, as the stage gets them."""

    models: Mapping[str, Path]
    adapters: Mapping[str, Path]
    keys: Mapping[str, str]
    """What each model and adapter is, by content."""
    evaluation: str
    """What the evaluation is, by content."""


@dataclass
class Search:
    """The trials so far."""

    config: MergeSearchConfig
    seed: int
    trials: list[Trial] = field(default_factory=list)


def run_merge_search(
    config: MergeSearchConfig, inputs: Inputs, *, work: Work, seed: int, evaluate: Evaluate
) -> None:
    """Try `config.trials` merges; write the best one to `model/`, all to `search.json` and `.html`.

    With several objectives the best is the one of the front with the highest mean.
    Raises: RecipeError for settings, or where no trial could be evaluated.
    """
    _check(config)
    for method in config.methods:  # before the models are evaluated, which takes long
        check_fit(_settings(config, method, {}), inputs.models, inputs.adapters)
    search = Search(config, seed, [Trial.from_row(row) for row in work.metrics() if "trial" in row])
    references = _references(config, inputs, work, evaluate)
    if search.trials:
        log.info("%d trials were made before", len(search.trials))
    while len(search.trials) < config.trials:
        trial = _run_trial(search, inputs, work, evaluate)
        search.trials.append(trial)
        work.log(**trial.as_row())
        told = trial.error or trial.summary()
        log.info("trial %d of %d, %.1f s: %s", trial.number, config.trials, trial.seconds, told)
    done = [trial for trial in search.trials if trial.error is None]
    if not done:
        raise RecipeError(
            f"none of {len(search.trials)} merges could be evaluated: {search.trials[-1].error}",
            where=config.name,
            hint="try one of them alone with `singalaut merge`",
        )
    chosen = best(done)
    log.info("the best merge is trial %d: %s", chosen.number, chosen.summary())
    merge = _settings(config, chosen.method, chosen.values)
    run_merge(merge, models=inputs.models, adapters=inputs.adapters, work=work, seed=seed)
    _write(config, search, references, chosen, work)


def _check(config: MergeSearchConfig) -> None:
    """Raises RecipeError for settings no trial could have, and MachineError without the library."""
    known = {name for m in config.methods for name in (*METHODS[m].of_models, *METHODS[m].shared)}
    for name, (low, high) in config.ranges.items():
        if name not in SEARCHED or name not in known:
            raise RecipeError(
                f"`{name}` cannot be searched for with {', '.join(config.methods)}",
                where=f"{config.name}.ranges",
                hint="it can be " + ", ".join(n for n in SEARCHED if n in known),
            )
        if not low <= high:
            raise RecipeError(
                f"the range of `{name}` ends before it begins: {low}, {high}",
                where=f"{config.name}.ranges",
            )
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise MachineError(
            "the search needs a package that is not installed",
            hint="pip install 'singalaut[search]'",
        ) from None


def _references(
    config: MergeSearchConfig, inputs: Inputs, work: Work, evaluate: Evaluate
) -> dict[str, dict[str, float]]:
    """Scores of the models as they are."""
    found = {}
    for label, name in config.inputs().items():
        if name not in found and f"{label}.adapter" not in inputs.adapters:
            key = _digest("model", inputs.keys[label], inputs.evaluation)
            scores, _ = _evaluated(key, inputs.models[label], work, evaluate)
            found[name] = _objectives(config, scores)
            log.info("%s: %s", name, _shown(found[name]))
    return found


def _run_trial(search: Search, inputs: Inputs, work: Work, evaluate: Evaluate) -> Trial:
    """Propose, merge, evaluate; what cannot be merged is a trial as well, with its reason."""
    config, number, begin = search.config, len(search.trials), time.monotonic()
    method, values = _propose(search, number)
    settings = _settings(config, method, values)
    files = [inputs.keys[label] for label in (*config.inputs(), *inputs.adapters)]
    key = _digest(settings.key_settings(), files, search.seed, inputs.evaluation)
    folder = work.scratch / "trial"
    try:
        scores = _remembered(key)
        if cached := scores is not None:
            assert scores is not None
        else:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            quiet = Work(folder)
            run_merge(
                settings,
                models=inputs.models,
                adapters=inputs.adapters,
                work=quiet,
                seed=search.seed,
            )
            scores, _ = _evaluated(key, folder / "model", work, evaluate)
        found, error = _objectives(config, scores), None
    except SingalautError as problem:
        if problem.exit_code == MachineError.exit_code:
            raise
        found, error, cached = {}, problem.what, False
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    seconds = round(time.monotonic() - begin, 2)
    return Trial(number, method, values, found, error, cached, seconds)


def _propose(search: Search, number: int) -> tuple[str, dict[str, float]]:
    """The method and values of the trial with this number, given those before it."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution
    from optuna.trial import TrialState, create_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    config = search.config
    kind = CategoricalDistribution(config.methods)
    with warnings.catch_warnings():  # the arguments are called experimental
        warnings.simplefilter("ignore")
        sampler = optuna.samplers.TPESampler(
            seed=derive(search.seed, "merge search", number) % 2**32,
            n_startup_trials=FIRST_AT_RANDOM,
            multivariate=True,
            group=True,  # methods have different parameters
        )
    study = optuna.create_study(directions=["maximize"] * len(config.objectives), sampler=sampler)
    for trial in search.trials:
        spaces = {name: FloatDistribution(*_range(config, name)) for name in trial.values}
        study.add_trial(
            create_trial(
                params={**trial.values, "method": trial.method},
                distributions={**spaces, "method": kind},
                values=None if trial.error else list(trial.scores.values()),
                state=TrialState.FAIL if trial.error else TrialState.COMPLETE,
            )
        )
    if number == 0:  # the middle of everything is a good first guess
        first = config.methods[0]
        return first, {name: sum(_range(config, name)) / 2 for name in _names(config, first)}
    asked = study.ask()
    method = str(asked.suggest_categorical("method", list(config.methods)))
    return method, {
        name: round(asked.suggest_float(name, *_range(config, name)), 4)
        for name in _names(config, method)
    }


def _range(config: MergeSearchConfig, name: str) -> tuple[float, float]:
    return config.ranges[name.partition("[")[0]]


def _names(config: MergeSearchConfig, method: str) -> list[str]:
    """What is searched for: `weight[0]` is the weight of the first model, `t` that of all."""
    names = []
    for name in config.ranges:
        if name in METHODS[method].of_models:
            names += [
                f"{name}[{i}]" for i, m in enumerate(config.models) if getattr(m, name) is None
            ]
        elif name in METHODS[method].shared:
            names.append(name)
    return names


def _settings(config: MergeSearchConfig, method: str, values: Mapping[str, float]) -> MergeConfig:
    """One merge, with those values that its method knows."""
    known = METHODS[method]
    models = [model.model_dump(by_alias=True) for model in config.models]
    shared = config.parameters.model_dump(by_alias=True)
    for name, value in values.items():
        parameter, _, rest = name.partition("[")
        (models[int(rest[:-1])] if rest else shared)[parameter] = value
    used = {*known.of_models, *known.shared}
    shared = {name: value for name, value in shared.items() if name in used}
    models = [{k: v for k, v in m.items() if k in ("from", "adapter", *used)} for m in models]
    base = None if known.base == "unused" else config.base
    return config.as_merge(models=models, parameters=shared, method=method, base=base)


def _objectives(config: MergeSearchConfig, scores: Mapping[str, float]) -> dict[str, float]:
    """The scores that count. Raises: RecipeError for one that the evaluation does not give."""
    for name in config.objectives:
        if name not in scores:
            raise RecipeError(
                f"the evaluation gives no score `{name}`",
                where=f"{config.name}.objectives",
                hint="it gives " + ", ".join(f"`{known}`" for known in scores),
            )
    return {name: float(scores[name]) for name in config.objectives}


def _evaluated(
    key: str, model: Path, work: Work, evaluate: Evaluate
) -> tuple[dict[str, float], bool]:
    """All scores of a model, and whether they were known before."""
    if (known := _remembered(key)) is not None:
        return known, True
    scratch = work.scratch / "evaluation"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    scores = {name: float(score) for name, score in evaluate(model, scratch).items()}
    shutil.rmtree(scratch, ignore_errors=True)
    file = _memory(key)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"scores": scores})
    return scores, False


def _remembered(key: str) -> dict[str, float] | None:
    try:
        return dict(json.loads(_memory(key).read_bytes())["scores"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _memory(key: str) -> Path:
    return home() / "merge-evaluations" / f"{key}.json"


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _shown(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {score:.2f}" for name, score in scores.items())


def _write(
    config: MergeSearchConfig,
    search: Search,
    references: Mapping[str, Mapping[str, float]],
    chosen: Trial,
    work: Work,
) -> None:
    done = [trial for trial in search.trials if trial.error is None]
    failed = [trial for trial in search.trials if trial.error is not None]
    names: Sequence[str] = [model.source for model in config.models]
    facts = {
        "objectives": list(config.objectives),
        "models": list(names),
        "base": config.base,
        "best": chosen.number,
        "front": [trial.number for trial in front(done)],
        "trials": len(search.trials),
        "failed": len(failed),
        "cached": sum(trial.cached for trial in search.trials),
        "references": {name: dict(scores) for name, scores in references.items()},
    }
    write_json(
        work.path / "search.json", {**facts, "all": [trial.as_row() for trial in search.trials]}
    )
    write_page(work.path / "search.html", search.trials, references, chosen, names)
    work.facts["search"] = {**facts, "scores": dict(chosen.scores), "values": dict(chosen.values)}
