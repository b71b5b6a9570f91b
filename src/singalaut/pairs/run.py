"""The stage that makes preference pairs on policy: prompts and a model in, pairs out.

The model's own answer is rejected; what is chosen comes from rules, a rewriter, or another own
answer. Every prompt becomes a pair, or is counted with the reason why not. Source of the idea that
the chosen answer be an edit of the rejected one: arXiv 2408.06266.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from singalaut.artifact import Work
from singalaut.contracts import Message, Request, Sample, SamplingParams, derive
from singalaut.data.contamination import EvaluationTexts, read_evaluation_texts
from singalaut.errors import DataError, RequestError
from singalaut.pairs.calls import Answer, Calls, Model, ask
from singalaut.pairs.case import Case, remaining
from singalaut.pairs.config import FilterConfig, PairsConfig, SamplingConfig
from singalaut.pairs.filters import (
    difference,
    has_control,
    num_faults,
    refusal_of,
    repetition,
)
from singalaut.pairs.fixing import fix
from singalaut.pairs.judging import ORDERS, judge_prompt, read_verdict, refusal
from singalaut.pairs.report import write_pairs
from singalaut.pairs.rewriting import rewrite_prompt, without_frame
from singalaut.progress import progress
from singalaut.verify.constraints.check import answer_language

log = logging.getLogger("singalaut")
CUT = "was cut short"


def run_pairs(
    config: PairsConfig,
    *,
    prompts: Sequence[Sample],
    left_out: dict[str, int],
    policy: Model,
    rewriter: Model | None,
    judge: Model | None = None,
    packs: Sequence[Path],
    calls: Path,
    work: Work,
    seed: int,
) -> None:
    """Ask, better, filter; a rerun asks nothing that was answered before (`calls`).

    Writes `data/pairs.jsonl`, `report/pairs.json` (counts, examples) and `report/refused.jsonl`
    (every prompt that became no pair). `left_out` counts rows that were no prompts.
    Raises: RequestError where too many calls fail, DataError where no pair is left.
    """
    cases = [Case(sample) for sample in prompts]
    _refuse_known(cases, packs, config.contamination)
    store = Calls(calls)
    try:
        _answer(cases, config, policy, store, seed)
        _reject(cases, config.filters)
        if config.method == "rewrite":
            assert rewriter is not None
            _rewrite(cases, config, rewriter, store, seed)
        elif config.method == "fix":
            _fix(cases, config.filters)
        else:
            _sample(cases, config.filters)
        _choose(cases, config)
        if config.judge is not None:
            assert judge is not None
            _judge(cases, config, judge, store, seed)
    finally:
        store.close()
    about = {
        "method": config.method,
        "policy": policy.identity,
        "rewriter": None if rewriter is None else rewriter.identity,
        **({} if judge is None else {"judge": judge.identity}),
        "left_out": left_out,
    }
    report = write_pairs(work.path, cases, about)
    work.facts["pairs"] = {key: report[key] for key in ("prompts", "pairs", "method", "languages")}
    _tell(report, work)


def _refuse_known(cases: Sequence[Case], packs: Sequence[Path], share: float) -> None:
    """Refuse prompts that came before, and those that hold the text of an evaluation."""
    seen: set[str] = set()
    for case in cases:
        text = json.dumps([[m.role, m.content] for m in case.sample.messages])
        if text in seen:
            case.refused = "the same prompt came before"
        seen.add(text)
    if packs:
        texts = EvaluationTexts.build(read_evaluation_texts(packs))
        for hit in texts.find([case.prompt for case in cases], share):
            cases[hit.document].refused = "the prompt holds the text of an evaluation"


def _answer(
    cases: Sequence[Case], config: PairsConfig, policy: Model, store: Calls, seed: int
) -> None:
    """The model's own answers; those that are empty, cut short or broken are set aside.

    One that repeats itself until it is cut can be rejected, but not be mended or chosen.
    """
    requests = {
        f"{number}/{k}": (
            case,
            _request(case.sample.messages, config.sampling, seed, "own", case.sample.id, k),
        )
        for number, case in enumerate(cases)
        if case.refused is None
        for k in range(config.samples)
    }
    found = _ask_all("answers", requests, policy, store, config.allowed_failures)
    for name in requests:  # in their order, not in that of arrival
        case, answer = requests[name][0], found[name]
        fault = _fault(answer)
        if fault is None:
            case.own.append(answer.text.strip())
            continue
        text = answer.text.strip().rstrip("\ufffd")  # of a character that was cut
        repeats = repetition(text) > config.filters.max_repetition
        if fault == CUT and repeats and not has_control(text):
            case.endless.append(text)
        case.refused = f"the model's own answer {fault}"
    for case in cases:
        if case.own or (case.endless and config.method == "rewrite"):
            case.refused = None


def _fault(answer: Answer) -> str | None:
    if answer.finish == "error":
        return "did not come"
    if answer.finish == "length":
        return CUT
    if not answer.text.strip():
        return "is empty"
    return "has control tokens or characters" if has_control(answer.text) else None


def _reject(cases: Sequence[Case], filters: FilterConfig) -> None:
    """Of several own answers, the first with most faults."""
    for case in remaining(cases):
        case.rejected = max(case.own + case.endless, key=lambda text: _faults(case, text, filters))


def _faults(case: Case, text: str, filters: FilterConfig) -> int:
    """Of an answer; one that came to no end has a fault more."""
    if text not in case.faults:
        faults = num_faults(text, case.prompt, case.constraints, case.language, filters)
        case.faults[text] = faults + (text in case.endless)
    return case.faults[text]


def _fix(cases: Sequence[Case], filters: FilterConfig) -> None:
    """Every own answer as rules mend it: they cannot translate a rejected one, nor end it."""
    for case in remaining(cases):
        if not case.constraints:
            case.refused = "the prompt has no constraints that rules could mend"
        elif not _faults(case, case.rejected, filters):
            case.refused = "the model's own answer keeps to all constraints already"
        else:
            own = list(dict.fromkeys(case.own))
            fixed = [fix(text, case.constraints, case.language, case.prompt) for text in own]
            case.candidates = [t for t in fixed if t is not None and t != case.rejected]
            if not case.candidates and case.rejected in fixed:
                case.refused = "no constraint is broken, and rules mend nothing else"
            elif not case.candidates:
                case.refused = "the rules do not reach"


def _sample(cases: Sequence[Case], filters: FilterConfig) -> None:
    """The other own answers: those with fewer faults, or any if that is asked for."""
    for case in remaining(cases):
        case.candidates = [text for text in case.own if text != case.rejected]
        if filters.constraints != "any":
            most = _faults(case, case.rejected, filters)
            better = [text for text in case.candidates if _faults(case, text, filters) < most]
            case.candidates = better


def _rewrite(
    cases: Sequence[Case], config: PairsConfig, rewriter: Model, store: Calls, seed: int
) -> None:
    assert config.rewriter is not None
    how = config.rewriter
    requests = {}
    for number, case in enumerate(cases):
        if case.refused is not None:
            continue
        language = answer_language(case.constraints, case.language)
        messages = rewrite_prompt(case.sample.messages, case.rejected, language, how.edit)
        for k in range(how.candidates):
            asked = _request(messages, how.sampling, seed, "rewrite", case.sample.id, k)
            requests[f"{number}/{k}"] = (case, asked)
    found = _ask_all("rewriting", requests, rewriter, store, config.allowed_failures)
    for name, (case, _) in requests.items():
        answer = found[name]
        fault = _fault(answer)
        if fault is None:
            language = answer_language(case.constraints, case.language)
            case.candidates.append(without_frame(answer.text, language))
        elif not case.candidates:
            case.refused = f"the rewritten answer {fault}"
    for case in cases:
        if case.candidates:
            case.refused = None


def _judge(
    cases: Sequence[Case], config: PairsConfig, judge: Model, store: Calls, seed: int
) -> None:
    """Refuse the pairs whose chosen answer a judge does not prefer in both orders."""
    assert config.judge is not None
    requests = {}
    for number, case in enumerate(cases):
        if case.refused is None:
            language = answer_language(case.constraints, case.language)
            for order in ORDERS:
                messages = judge_prompt(
                    case.sample.messages, case.chosen, case.rejected, language, order
                )
                how = config.judge.sampling
                asked = _request(messages, how, seed, "judge", case.sample.id, order)
                requests[f"{number}/{order}"] = (case, asked)
    found = _ask_all("judgements", requests, judge, store, config.allowed_failures)
    for name, (case, _) in requests.items():
        order = name.partition("/")[2]
        case.verdicts[order] = read_verdict(found[name], order)
    for case, _ in requests.values():
        case.refused = refusal(case.verdicts)


def _request(
    messages: Sequence[Message], how: SamplingConfig, seed: int, *names: str | int
) -> Request:
    sampling = SamplingParams(
        temperature=how.temperature,
        top_p=how.top_p,
        max_tokens=how.max_tokens,
        seed=derive(seed, *names) % 2**31,  # what servers take
    )
    return Request(messages, sampling)


def _ask_all(
    label: str,
    requests: dict[str, tuple[Case, Request]],
    model: Model,
    store: Calls,
    allowed: float,
) -> dict[str, Answer]:
    """The answer to each request. Raises: RequestError where more than `allowed` of them fail."""
    found: dict[str, Answer] = {}
    named = [
        Request(request.prompt, request.sampling, name) for name, (_, request) in requests.items()
    ]
    with progress(label, len(named), "answer") as bar:
        for name, answer in ask(model, named, store):
            found[name] = answer
            bar.advance()
    failed = [answer.error or "" for answer in found.values() if answer.finish == "error"]
    if len(failed) > allowed * len(found):
        raise RequestError(
            f"{len(failed)} of {len(found)} calls failed; the first: {failed[0]}",
            hint="run again: what was answered is kept; or raise `allowed_failures`",
        )
    return found


def _choose(cases: Sequence[Case], config: PairsConfig) -> None:
    """Of the candidates that pass the filters, the one with fewest faults and least changes.

    An own answer that is right as it is comes before one that was mended: the model may write it.
    """
    for case in remaining(cases):
        order = sorted(
            dict.fromkeys(case.candidates),
            key=lambda text: (
                _faults(case, text, config.filters),
                text not in case.own,
                difference(case.rejected, text),
            ),
        )
        reasons = []
        for text in order:
            reason = refusal_of(
                text,
                case.rejected,
                case.prompt,
                case.constraints,
                case.language,
                config.filters,
                is_cut=case.is_cut,
            )
            if reason is None:
                case.chosen = text
                break
            reasons.append(reason)
        else:
            case.refused = reasons[0] if reasons else "there is no better answer to choose"


def _tell(report: Mapping[str, Any], work: Work) -> None:
    log.info("%d pairs from %d prompts", report["pairs"], report["prompts"])
    if judged := report.get("judgements"):
        log.info(
            "of %d pairs the judge prefers the chosen answer %d times, the rejected %d, none %d",
            *(judged[name] for name in ("judged", "chosen", "rejected", "undecided")),
        )
        for fault, count in judged["bad_answers"].items():
            log.warning("%d answers of the judge: %s", count, fault)
    for entry in report["refused"]:
        log.warning("%d prompts: %s (%s)", entry["prompts"], entry["reason"], entry["examples"][0])
    if not report["pairs"]:
        raise DataError(
            "no prompt became a pair",
            where=work.path / "report" / "refused.jsonl",
            hint="the reasons are above; every refused prompt is in that file",
        )
