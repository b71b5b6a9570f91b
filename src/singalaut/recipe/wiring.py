"""Chooses which code runs each kind of stage: a function for each, and so a long file.

With `opening.py` the only part of a recipe that knows the rooms behind the stages; both load them
when a stage runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from singalaut.artifact import Work
from singalaut.data.config import PrepareConfig
from singalaut.evals.config import EvaluateConfig
from singalaut.merge.config import MergeConfig, MergeSearchConfig
from singalaut.pairs.config import JudgeConfig, PairsConfig, RewriterConfig
from singalaut.publish.config import CardConfig
from singalaut.recipe.lineage import lineage
from singalaut.recipe.opening import (
    endpoint_subject,
    local_subject,
    model_path,
    prompt_sources,
    recorded_subject,
    source_paths,
)
from singalaut.recipe.plan import Plan, PlannedStage
from singalaut.rl.config import RlConfig
from singalaut.select.config import SelectConfig, SelectPairsConfig, SelectPromptsConfig
from singalaut.train.config import ApoConfig, ReplayConfig, SftConfig

if TYPE_CHECKING:
    from singalaut.contracts import Message
    from singalaut.rewards.samples import Source
    from singalaut.train.watching import Asked

SAMPLE_QUESTION_TOKENS = 2048  # room for a question that is asked while a stage trains
StageFunction = Callable[[PlannedStage, Plan, Work], None]


def _prepare(stage: PlannedStage, plan: Plan, work: Work) -> None:
    from singalaut.data.prepare import run_prepare
    from singalaut.train.pictures import sight_of

    assert isinstance(stage.config, PrepareConfig)
    model = model_path(stage, plan, "model")
    packs = [stage.inputs[f"pack.{i}"].path for i in range(len(stage.config.clean.evaluations))]
    run_prepare(
        stage.config,
        model=model,
        data=source_paths(stage, stage.config.data),
        packs=packs,
        work=work,
        identify=_identify(),
        sight=sight_of(model),
    )


def join(stage: PlannedStage, plan: Plan) -> int:
    """Help a run of a stage that works on another machine; returns how many pieces it has."""
    from singalaut.data.prepare import join_prepare
    from singalaut.train.pictures import sight_of

    assert isinstance(stage.config, PrepareConfig)
    model = model_path(stage, plan, "model")
    return join_prepare(
        stage.config,
        model=model,
        data=source_paths(stage, stage.config.data),
        folder=stage.partial,
        identify=_identify(),
        sight=sight_of(model),
    )


def _identify() -> Callable[[str], Any]:
    from singalaut.verify.language import identify

    return identify


def _sft(stage: PlannedStage, plan: Plan, work: Work) -> None:
    from singalaut.train.sft import run_sft

    assert isinstance(stage.config, SftConfig)
    prepared = stage.inputs.get("prepared")
    run_sft(
        stage.config,
        model=model_path(stage, plan, "model"),
        data=source_paths(stage, stage.config.data),
        work=work,
        seed=plan.recipe.seed,
        prepared=None if prepared is None else prepared.path / "data",
        asked=_asked(stage, plan),
    )


def _asked(stage: PlannedStage, plan: Plan) -> Asked | None:
    """What the model of a stage is asked while it trains, if anything."""
    from singalaut.generate.engine import engine_over
    from singalaut.train.watching import Asked

    assert isinstance(stage.config, SftConfig | ApoConfig)
    questions, model = _questions(stage), model_path(stage, plan, "model")
    if not questions:
        return None
    context = SAMPLE_QUESTION_TOKENS + stage.config.watch.sample_tokens
    room = {"batch_size": min(len(questions), 16), "context_tokens": context}
    return Asked(questions, lambda network: engine_over(network, model, **room))


def _questions(stage: PlannedStage) -> Sequence[Sequence[Message]]:
    from singalaut.watch.samples import read_questions

    assert isinstance(stage.config, SftConfig | ApoConfig | RlConfig)
    given = stage.inputs.get("watch.samples")
    return read_questions(stage.config.watch, None if given is None else given.path)


def _select(stage: PlannedStage, plan: Plan, work: Work) -> None:
    from singalaut.select.run import run_select

    assert isinstance(stage.config, SelectConfig)
    labels = [f"target.{i}" for i in range(len(stage.config.targets))]
    prepared = stage.inputs.get("prepared")
    run_select(
        stage.config,
        model=model_path(stage, plan, "model"),
        data=source_paths(stage, stage.config.data),
        targets=[stage.inputs[label].path if label in stage.inputs else None for label in labels],
        work=work,
        seed=plan.recipe.seed,
        prepared=None if prepared is None else prepared.path / "data",
    )


def _select_pairs(stage: PlannedStage, plan: Plan, work: Work) -> None:
    from singalaut.select.pairs import run_select_pairs

    assert isinstance(stage.config, SelectPairsConfig)
    labels = [f"target.{i}" for i in range(len(stage.config.targets))]
    data = source_paths(stage, stage.config.data)
    if "pairs" in stage.inputs:
        data = [stage.inputs["pairs"].path / "data" / "pairs.jsonl"]
    run_select_pairs(
        stage.config,
        model=model_path(stage, plan, "model"),
        data=data,
        targets=[stage.inputs[label].path if label in stage.inputs else None for label in labels],
        work=work,
        seed=plan.recipe.seed,
    )


def _select_prompts(stage: PlannedStage, plan: Plan, work: Work) -> None:
    from singalaut.contracts import derive
    from singalaut.generate.engine import engine_over
    from singalaut.rewards.compose import ComposedReward
    from singalaut.rewards.samples import gather
    from singalaut.rl.ask import Task
    from singalaut.select.prompts import run_select_prompts
    from singalaut.text.chat import ChatFormat
    from singalaut.text.tokenizer import Tokenizer

    config, seed = stage.config, plan.recipe.seed
    assert isinstance(config, SelectPromptsConfig)
    model = model_path(stage, plan, "model")
    tokenizer = Tokenizer.load(model)
    chat = ChatFormat.load(model, tokenizer)

    def tasks_of(sources: Sequence[Source], seed: int) -> tuple[list[Task], dict[str, Any]]:
        found = gather(sources, seed, chat.encode, config.max_prompt_tokens)
        return [Task(sample, tokens) for sample, tokens in found.prompts], found.counts()

    pool, work.facts["prompts"] = tasks_of(prompt_sources(stage, config.prompts), seed)
    wanted = prompt_sources(stage, [target.prompts for target in config.targets], "target")
    context = config.max_prompt_tokens + config.max_tokens
    with ComposedReward(config.reward) as reward:
        run_select_prompts(
            config,
            model=model,
            end_of_turn=tokenizer.end_of_turn_id,
            pool=pool,
            targets=[
                tasks_of([source], derive(seed, "target", number))[0]
                for number, source in enumerate(wanted)
            ],
            engine_over=lambda network: engine_over(
                network, model, context_tokens=context, batch_size=config.engine_batch_size
            ),
            reward=reward,
            work=work,
            seed=seed,
        )


def _pairs(stage: PlannedStage, plan: Plan, work: Work) -> None:
    from singalaut.artifact import home
    from singalaut.pairs.calls import Model
    from singalaut.pairs.run import run_pairs
    from singalaut.rewards.samples import gather
    from singalaut.text.chat import ChatFormat
    from singalaut.text.tokenizer import Tokenizer

    config, seed = stage.config, plan.recipe.seed
    assert isinstance(config, PairsConfig)
    files = {label: stage.inputs[label].path for label in config.files()}
    model = model_path(stage, plan, "model")
    chat = ChatFormat.load(model, Tokenizer.load(model))
    sources = prompt_sources(stage, config.prompts)
    found = gather(sources, seed, chat.encode, config.max_prompt_tokens)
    room: dict[str, Any] = {"batch_size": config.batch_size, "cache_gib": config.cache_gib}

    def opened(label: str, who: RewriterConfig | JudgeConfig | None) -> Model | None:
        if who is None:
            return None
        if who.endpoint is None:
            found = local_subject(model_path(stage, plan, label), **room)
        else:
            found = endpoint_subject(who.endpoint, own_settings=False)
        return Model(found.identity, found.open)

    policy = local_subject(model, **room)
    run_pairs(
        config,
        prompts=[sample for sample, _ in found.prompts],
        left_out=dict(found.left_out),
        policy=Model(policy.identity, policy.open),
        rewriter=opened("rewriter", config.rewriter),
        judge=opened("judge", config.judge),
        packs=[files[label] for label in files if label.startswith("pack.")],
        calls=home() / "pairs" / "calls.sqlite",
        work=work,
        seed=seed,
    )


def _apo(stage: PlannedStage, plan: Plan, work: Work) -> None:
    from singalaut.train.apo import run_apo

    assert isinstance(stage.config, ApoConfig)
    made = [stage.inputs[label].path for label in stage.config.pair_stages()]
    files = [folder / "data" / "pairs.jsonl" for folder in made]
    run_apo(
        stage.config,
        model=model_path(stage, plan, "model"),
        data=files or source_paths(stage, stage.config.data),
        work=work,
        seed=plan.recipe.seed,
        reference=model_path(stage, plan, "reference") if "reference" in stage.inputs else None,
        asked=_asked(stage, plan),
        replayed=_replayed(stage, stage.config.replay),
    )


def _replayed(stage: PlannedStage, replay: ReplayConfig | None) -> list[Path | None]:
    return [] if replay is None else source_paths(stage, replay.data, "replay")


def _rl(stage: PlannedStage, plan: Plan, work: Work) -> None:
    from singalaut.artifact import home
    from singalaut.errors import DataError
    from singalaut.generate.engine import engine_over
    from singalaut.rewards.compose import ComposedReward
    from singalaut.rewards.samples import gather
    from singalaut.rl.run import Task, run_rl
    from singalaut.text.chat import ChatFormat
    from singalaut.text.tokenizer import Tokenizer

    config, seed = stage.config, plan.recipe.seed
    assert isinstance(config, RlConfig)
    model = model_path(stage, plan, "model")
    tokenizer = Tokenizer.load(model)
    chat = ChatFormat.load(model, tokenizer)
    sources = prompt_sources(stage, config.prompts)
    checked = gather(sources, seed, chat.encode, config.max_prompt_tokens)
    work.facts["prompts"] = checked.counts()
    tasks = [Task(sample, tokens) for sample, tokens in checked.prompts]
    if len(tasks) <= config.held_out:
        raise DataError(
            f"there are {len(tasks)} prompts, and {config.held_out} are held out: none is left",
            hint="take more prompts, or lower `held_out`",
        )
    context = config.max_prompt_tokens + config.max_tokens
    with ComposedReward(config.reward) as reward:
        run_rl(
            config,
            model=model,
            end_of_turn=tokenizer.end_of_turn_id,
            tasks=tasks[config.held_out :],
            held_out=tasks[: config.held_out],
            engine_over=lambda network: engine_over(
                network, model, context_tokens=context, **config.engine.settings()
            ),
            reward=reward,
            work=work,
            seed=seed,
            questions=_questions(stage),
            replayed=_replayed(stage, config.replay),
            content=" ".join([stage.inputs["model"].key, *reward.sources()]),
            store=home() / "rl" / "difficulty.sqlite",
        )


def _merge(stage: PlannedStage, plan: Plan, work: Work) -> None:
    from singalaut.merge.stream import run_merge

    assert isinstance(stage.config, MergeConfig)
    models = {label: model_path(stage, plan, label) for label in stage.config.inputs()}
    adapters = {label: stage.inputs[label].path for label in stage.config.files()}
    run_merge(stage.config, models=models, adapters=adapters, work=work, seed=plan.recipe.seed)


def _merge_search(stage: PlannedStage, plan: Plan, work: Work) -> None:
    from singalaut.artifact import home, stage_key
    from singalaut.errors import RequestError
    from singalaut.evals.evaluate import run_evaluate
    from singalaut.evals.output import load_results
    from singalaut.merge.search import Inputs, run_merge_search

    config = stage.config
    assert isinstance(config, MergeSearchConfig)
    seed, pack = plan.recipe.seed, stage.inputs["pack"]
    names = ("pack", "tasks", "languages", "limit")
    given = {name: getattr(config, name) for name in names}
    protocol = {"allowed_failures": config.allowed_failures}
    asked = EvaluateConfig.model_validate(
        {"models": ("merged",), "temperature": 0.0, "protocol": protocol, **given}
    )

    def evaluate(model: Path, scratch: Path) -> dict[str, float]:
        try:
            run_evaluate(
                asked,
                subjects={"merged": local_subject(model, asked.batch_size)},
                pack=pack.path,
                work=Work(scratch),
                seed=seed,
                store=home() / "evaluations" / "store.sqlite",
            )
        except RequestError as error:
            hint = (error.hint or "").replace("evaluate.protocol.", f"{config.name}.")
            raise RequestError(error.what, where=error.where, hint=hint or None) from error
        return {row["name"]: row["scores"]["merged"] for row in load_results(scratch)["rows"]}

    settings = {"seed": seed, "settings": asked.key_settings()}
    adapters = [label for label in config.files() if label != "pack"]
    inputs = Inputs(
        {label: model_path(stage, plan, label) for label in config.inputs()},
        {label: stage.inputs[label].path for label in adapters},
        {label: stage.inputs[label].key for label in (*config.inputs(), *adapters)},
        stage_key(asked.kind, asked.VERSION, settings, {"pack": pack.key}),
    )
    run_merge_search(config, inputs, work=work, seed=seed, evaluate=evaluate)


def _evaluate(stage: PlannedStage, plan: Plan, work: Work) -> None:
    from singalaut.artifact import home
    from singalaut.evals.evaluate import run_evaluate

    config = stage.config
    assert isinstance(config, EvaluateConfig)
    inputs = stage.inputs

    subjects = {
        name: local_subject(
            model_path(stage, plan, label),
            config.batch_size,
            config.replicas,
            config.cache_gib,
            tensor_parallel=config.tensor_parallel,
        )
        for label, name in config.inputs().items()
    }
    subjects |= {
        endpoint.name: endpoint_subject(endpoint, config.temperature is None)
        for endpoint in config.endpoints
    }
    subjects |= {
        item.name: recorded_subject(inputs[f"recorded.{item.name}"].path)
        for item in config.recorded
    }
    run_evaluate(
        config,
        subjects=subjects,
        pack=inputs["pack"].path,
        data=[inputs[label].path for label in config.files() if label.startswith("data.")],
        work=work,
        seed=plan.recipe.seed,
        store=home() / "evaluations" / "store.sqlite",
        judge=None if config.judge is None else endpoint_subject(config.judge, own_settings=False),
        metricx=inputs["metricx"].path if config.metricx else None,
    )


def _card(stage: PlannedStage, plan: Plan, work: Work) -> None:
    from singalaut.publish.card import run_card

    assert isinstance(stage.config, CardConfig)
    evaluation = stage.inputs.get("evaluation")
    run_card(
        stage.config,
        model=stage.inputs["model"].path,
        evaluation=None if evaluation is None else evaluation.path,
        lineage=lineage(stage.config.inputs()["model"], plan),
        work=work,
    )


STAGES: Mapping[str, StageFunction] = {
    "prepare": _prepare,
    "sft": _sft,
    "select": _select,
    "select_pairs": _select_pairs,
    "select_prompts": _select_prompts,
    "pairs": _pairs,
    "apo": _apo,
    "merge": _merge,
    "rl": _rl,
    "merge_search": _merge_search,
    "evaluate": _evaluate,
    "card": _card,
}
