"""What others say of answers: a judge of conversations and criteria, a model of translations.

They come after the judged model, so that both never need memory at once, and everything they say
is kept in the store, by their identity and the texts they were shown.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from singalaut.artifact import Work
from singalaut.contracts import SamplingParams
from singalaut.errors import RecipeError
from singalaut.evals.config import JudgeConfig
from singalaut.evals.criteria import criteria_questions, judge_criteria
from singalaut.evals.extraction import text_extractor
from singalaut.evals.gather import Ask, Gatherer, check_failures
from singalaut.evals.metricx import check_checkpoint
from singalaut.evals.pairwise import Question, judge_pairs, pair_questions
from singalaut.evals.runner import Answered, write_rows
from singalaut.evals.schedule import CellAnswers, PromptSeeds
from singalaut.evals.score import score_cell
from singalaut.evals.scored import Outside, Rules, Scored
from singalaut.evals.store import Generation, Keys, Store, prompt_digest
from singalaut.evals.tasks import Cell

if TYPE_CHECKING:
    from singalaut.evals.evaluate import Subject

log = logging.getLogger("singalaut")
CHARACTERS_PER_TOKEN = 3.0  # a cautious guess for the languages at hand
JUDGED = ("dialogue", "criteria")


class Outsiders:
    """The judge and the regression model of one evaluation, if there are any."""

    def __init__(
        self,
        cells: Sequence[Cell],
        store: Store,
        seed: int,
        judge_config: JudgeConfig | None,
        judge: Subject | None,
        metricx: Path | None,
        allowed_failures: float = 0.0,
    ):
        self.cells, self.store, self.seed = cells, store, seed
        self.config, self.judge, self.metricx = judge_config, judge, metricx
        self.allowed_failures = allowed_failures
        self._about: dict[str, dict[str, Any]] = {}
        for cell in cells:
            if cell.task.kind in JUDGED and judge is None:
                log.warning("%s: not scored, as no judge is given", cell.name)
        if judge is not None and not any(cell.task.kind in JUDGED for cell in cells):
            log.warning("none of these tasks needs the judge")
        if metricx is not None and not any("metricx" in cell.task.metrics for cell in cells):
            log.warning("none of these tasks is scored by MetricX")
        elif metricx is not None:
            check_checkpoint(metricx)  # before the work

    def waits_for(self, cell: Cell) -> bool:
        """Whether a cell cannot be scored before others have been heard."""
        if cell.task.kind in JUDGED:
            return self.judge is not None and cell.task.judge is not None
        return self.metricx is not None and "metricx" in cell.task.metrics

    def estimate(self, models: int, runs: int) -> None:
        """Tell what the judge will cost at most. Raises: RecipeError above the highest cost."""
        config = self.config
        calls = prompt = 0
        for cell in self.cells:
            if cell.task.kind not in JUDGED or not self.waits_for(cell):
                continue
            for example in cell.examples:
                turns = len(example.turns)
                number = len(example.extra.get("criteria", ())) or 2 * turns
                calls += number
                longest = cell.language.max_tokens * CHARACTERS_PER_TOKEN * turns
                asked = sum(map(len, example.turns)) + 3000 + 2 * longest
                prompt += int(number * asked / CHARACTERS_PER_TOKEN)
        if not calls or config is None:
            return
        calls, prompt = calls * models * runs, prompt * models * runs
        answer = calls * config.max_tokens
        cost = (prompt * config.prompt_price + answer * config.answer_price) / 1e6
        priced = config.prompt_price or config.answer_price
        log.info(
            "judge %s: %s requests, at most %s tokens of prompts and %s of answers, %s; what is in "
            "the store is not asked again",
            *(config.model, f"{calls:,}", f"{prompt:,}", f"{answer:,}"),
            f"cost at most {cost:,.2f}" if priced else "cost unknown (no prices are set)",
        )
        if config.highest_cost is not None and not priced:
            raise RecipeError(
                "a highest cost is set, but no price",
                where="judge.highest_cost",
                hint="set `judge.prompt_price` and `judge.answer_price`, per million tokens",
            )
        if config.highest_cost is not None and cost > config.highest_cost:
            raise RecipeError(
                f"the judge may cost {cost:.2f}, more than the {config.highest_cost:.2f} allowed",
                where="judge.highest_cost",
                hint="raise it, or judge fewer questions with `--limit`",
            )

    def score(self, name: str, answered: Answered, rules: Rules, work: Work) -> None:
        """Score the cells that waited, and write their rows."""
        waiting = [a for a in answered.everything if self.waits_for(a.cell)]
        translated = [a for a in waiting if a.cell.task.kind == "translation"]
        judged = [a for a in waiting if a.cell.task.kind in JUDGED]
        for answers, outside in [*self._metricx(translated, rules), *self._judge(name, judged)]:
            scored = score_cell(answers, rules, outside)
            scored.facts |= outside.facts
            _add_counts(scored, outside)
            write_rows(work, name, scored)
            answered.scored[answers.cell.name] = scored

    def about(self, name: str) -> dict[str, Any]:
        """Who judged one model, and how that went."""
        return self._about.get(name, {})

    def _metricx(
        self, everything: Sequence[CellAnswers], rules: Rules
    ) -> list[tuple[CellAnswers, Outside]]:
        if not everything or self.metricx is None:
            return []
        from singalaut.evals.metricx import MetricX

        model = MetricX(self.metricx, self.store)
        triples, sizes = [], []
        for answers in everything:
            spec = answers.cell.language
            extract = text_extractor(rules.version, spec.tag, spec.language)
            for turns in answers.turns:
                for example, found in zip(answers.cell.examples, turns, strict=True):
                    text = extract(found[0].text).answer if found else None
                    triples.append((example.extra["source"], text, example.references[0]))
            sizes.append((answers.runs, len(answers.cell.examples)))
        scores = iter(model.score(triples))
        return [
            (answers, Outside(metricx=[[next(scores) for _ in range(n)] for _ in range(runs)]))
            for answers, (runs, n) in zip(everything, sizes, strict=True)
        ]

    def _judge(
        self, name: str, everything: Sequence[CellAnswers]
    ) -> list[tuple[CellAnswers, Outside]]:
        if not everything or self.judge is None or self.config is None:
            return []
        sampling = SamplingParams(
            max_tokens=self.config.max_tokens, temperature=self.config.temperature
        )
        keys = Keys(self.judge.identity, sampling)
        batches = []
        asks: dict[bytes, Ask] = {}
        for answers in everything:
            counts: Counter[str] = Counter()
            pairs = answers.cell.task.kind == "dialogue"
            questions = (pair_questions if pairs else criteria_questions)(answers, counts)
            wanted = [
                self._ask(keys, sampling, q, f"{answers.cell.name}/{i}")
                for i, q in enumerate(questions)
            ]
            for ask in wanted:
                asks.setdefault(ask.key, ask)
            batches.append((answers, questions, [ask.key for ask in wanted], counts))
        heard: dict[bytes, Generation | None] = {}

        def take(ask: Ask, found: Generation | None, reason: str) -> None:
            heard[ask.key] = found

        gatherer = Gatherer(f"judge {self.config.model}", self.store, self.judge.open)
        gatherer.ask(gatherer.replay(list(asks.values()), take), take, f"judge {name}")
        requests = gatherer.about()
        gatherer.close()
        check_failures(gatherer.name, gatherer, self.allowed_failures)
        self._about[name] = {
            "identity": self.judge.identity,
            "asked": gatherer.timing.asked,
            "replayed": gatherer.timing.replayed,
            "prompt_tokens": gatherer.timing.prompt_tokens,
            "completion_tokens": gatherer.timing.completion_tokens,
            **requests,
        }
        made = []
        for answers, questions, wanted_keys, counts in batches:
            conclude = judge_pairs if answers.cell.task.kind == "dialogue" else judge_criteria
            result = conclude(answers, questions, [heard[key] for key in wanted_keys], counts)
            made.append(
                (answers, Outside(None, result.values, result.notes, result.counts, result.facts))
            )
        return made

    def _ask(self, keys: Keys, sampling: SamplingParams, question: Question, name: str) -> Ask:
        digest = prompt_digest(question.messages)
        seed = None if sampling.temperature == 0 else PromptSeeds(self.seed).of(digest)
        return Ask(keys.key(digest, seed), name, question.messages, sampling, seed, [])


def _add_counts(scored: Scored, outside: Outside) -> None:
    if outside.judged is None:
        return
    missing = Counter({name: count for name, count in outside.counts.items() if count})
    scored.facts["judge_counts"] = dict(missing)
    told = ", ".join(
        f"{count} × {name.removeprefix('judge_').replace('_', ' ')}"
        for name, count in missing.most_common()
        if name != "judge_orders_disagree"
    )
    if told:
        log.warning(
            "%s: of %d judgements some cannot be used: %s",
            *(scored.cell.name, outside.facts["judgements"], told),
        )
