"""Judges of conversations and criteria: prompts, verdicts, sums, and every way to misbehave."""

from __future__ import annotations

import re

import pytest

from singalaut.contracts import Completion, Usage
from singalaut.errors import RecipeError, RequestError
from singalaut.evals.criteria import _total
from singalaut.evals.output import oddity_shares
from singalaut.evals.pairwise import read_verdict
from singalaut.evals.tasks import JudgePrompts
from singalaut.evals.template import Template

DIALOGUE = """
name = "chat"
version = 1
competency = "multi-turn"
metric = "win-rate"
max_tokens = 50
licence = "CC0-1.0"
[judge]
system = "Bandingkan. [[A]], [[B]] atau [[C]]."
prompts = [
  "{question_1} | A: {answer_a_1} | B: {answer_b_1}",
  "{question_1} {question_2} | A: {answer_a_1} {answer_a_2} | B: {answer_b_1} {answer_b_2}",
]
[languages.id]
prompt = "{text}"
data = "data/chat.jsonl"
"""
JUDGE = {"urls": ("http://judge/v1",), "model": "judge"}


@pytest.fixture
def chat(pack):
    import json

    rows = [
        {
            "id": f"c{i}",
            "turns": [f"tanya {i}", f"lanjut {i}"],
            "category": category,
            "baseline": [f"dasar {i}", f"dasar lagi {i}"],
        }
        for i, category in enumerate(["math", "math", "writing"])
    ]
    (pack / "chat.toml").write_text(DIALOGUE, "utf-8")
    (pack / "data" / "chat.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return pack


def answer(prompt: str) -> str:
    return f"model: {prompt}"


def always(verdict):
    return lambda prompt: f"Karena. {verdict}"


def fair(prompt: str) -> str:
    """Prefers the judged model in mathematics, wherever it stands."""
    first = re.search(r"A: model", prompt) is not None
    mathematics = " 0 " in prompt or " 1 " in prompt
    return "[[A]]" if first == mathematics else "[[B]]"


def cell(results):
    return results["models"]["m"]["tasks"]["chat"]["id"]


def run(bench, judge, **settings):
    options = {"judge_answers": judge, "tasks": ("chat",)}
    options["protocol"] = settings.pop("protocol", {})
    options["judge"] = {**JUDGE, **settings}
    return bench.run({"m": answer}, **options)


def test_both_orders_are_judged_after_each_turn(bench, chat):
    results = run(bench, fair)
    found = cell(results)
    assert found["judgements"] == 3 * 2 * 2
    assert found["score"] == pytest.approx(50)  # categories weigh the same: math 1, writing 0
    assert found["win_rate"] == pytest.approx(100 * 2 / 3)
    assert found["published_rule"] == pytest.approx(found["score"])
    assert found["slices"] == {"math": 100, "writing": 0}
    assert found["agreement_of_orders"] == 1
    prompts = [prompt for name, prompt in bench.asked if name == "judge"]
    assert "tanya 0 | A: dasar 0 | B: model: tanya 0" in prompts
    second = "tanya 0 lanjut 0 | A: model: tanya 0 model: lanjut 0 | B: dasar 0 dasar lagi 0"
    assert second in prompts
    row = bench.rows("m", "chat.id")[0]["runs"][0]
    assert [note["verdict"] for note in row["judge"]] == ["win"] * 4
    assert row["turns"] == ["model: tanya 0", "model: lanjut 0"]


def test_a_judge_that_prefers_a_place_gives_ties(bench, chat):
    found = cell(run(bench, always("[[A]]")))
    assert found["score"] == 50 and found["agreement_of_orders"] == 0
    assert found["judge_counts"] == {"judge_orders_disagree": 6}
    assert found["first_place_preferred"] == 1


@pytest.mark.parametrize(
    ("verdict", "counter"),
    [
        ("Saya tidak bisa menilai.", "judge_prose"),
        ("", "judge_empty"),
        ("[[A]] atau [[B]]", "judge_contradictory"),
    ],
)
def test_verdicts_that_cannot_be_read_are_no_verdicts(bench, chat, verdict, counter, caplog):
    said = iter(range(100))

    def sometimes(prompt: str) -> str:
        next(said)
        return verdict if "tanya 2" in prompt else fair(prompt)

    with caplog.at_level("WARNING", "singalaut"):
        results = run(bench, sometimes)
    found = cell(results)
    assert found["judge_counts"] == {counter: 4}
    assert f"4 × {counter.removeprefix('judge_')}" in caplog.text
    shares = oddity_shares(results["models"]["m"])
    assert shares[f"of judgements: {counter.removeprefix('judge_')}"] == pytest.approx(1 / 3)
    assert found["score"] == 100  # the conversation without verdicts is left out
    assert found["published_rule"] == pytest.approx(50)  # there it is lost
    row = bench.rows("m", "chat.id")[2]["runs"][0]
    assert row["score"] is None and row["judge"][0]["odd"] == counter


def test_a_judge_that_fails_is_counted(bench, chat, sampler):
    class Failing(sampler):
        def sample(self, requests):
            for done in super().sample(requests):
                broken = done.request_id.startswith("chat.id/0") and "|" in str(
                    self.asked[-1].prompt
                )
                if broken:
                    yield Completion(done.request_id, 0, (), "", "error", Usage(0, 0), error="429")
                else:
                    yield done

    bench.sampler = Failing
    with pytest.raises(RequestError, match="1 of 12 requests to `judge judge` failed: 1 × 429"):
        run(bench, fair)
    results = run(bench, fair, protocol={"allowed_failures": 0.1})
    found = cell(results)
    assert found["judge_counts"] == {"judge_failed": 1}
    assert results["models"]["m"]["judge"]["failures"] == {"429": 1}
    bench.sampler = sampler
    again = run(bench, fair)
    assert "judge_failed" not in cell(again)["judge_counts"]
    assert again["models"]["m"]["judge"]["asked"] == 1  # all other judgements were in the store


def test_conversations_without_a_judge_or_baseline_are_not_scored(bench, chat):
    results = bench.run({"m": answer}, tasks=("chat",))
    assert cell(results)["score"] is None and cell(results)["answered"] == 3
    file = chat / "data" / "chat.jsonl"
    file.write_text(file.read_text().replace('"baseline"', '"other"', 1))
    found = cell(run(bench, fair))
    assert found["judge_counts"] == {"judge_without_baseline": 1}
    assert found["score"] == 50


def test_the_cost_is_estimated_before_the_first_request(bench, chat):
    with pytest.raises(RecipeError, match="the judge may cost") as caught:
        run(bench, fair, answer_price=1000.0, highest_cost=1.0)
    assert caught.value.where == "judge.highest_cost"
    with pytest.raises(RecipeError, match="but no price"):
        run(bench, fair, highest_cost=1.0)
    assert bench.opened == []
    assert cell(run(bench, fair, answer_price=1.0, highest_cost=1.0))["score"] == 50


@pytest.mark.parametrize(
    ("text", "order", "verdict", "odd"),
    [
        ("[[A]]", "first", "win", ""),
        ("[[A]]", "second", "loss", ""),
        ("[[B]]", "first", "loss", ""),
        ("[[B]]", "second", "win", ""),
        ("so [[C]].", "first", "tie", ""),
        ("[A]", "first", None, "judge_prose"),
        ("[[A]][[C]]", "first", None, "judge_contradictory"),
        (" \n", "first", None, "judge_empty"),
    ],
)
def test_verdicts(text, order, verdict, odd):
    prompts = JudgePrompts(system=(), prompts=())
    assert read_verdict(text, prompts, order) == (verdict, odd)


def official_pair(one, two):
    """The published rule, as its table of cases reads; None is an error."""
    if one == "tie" or one != two:
        return 0.5
    return {"win": 1.0, "loss": 0.0, None: 0.0}[one]


def test_pairs_are_summed_as_published():
    from singalaut.evals.pairwise import _published

    for one in ("win", "loss", "tie", None):
        for two in ("win", "loss", "tie", None):
            assert _published(one, two) == official_pair(one, two)


CRITERIA = """
criteria-task:
  metadata: {version: 1}
  competency: cultural
  metric_class: CriteriaJudgeMetric
  judge:
    classifications: {CLASS_UNMET: 0, CLASS_MET: 1.0}
    judge_prompts:
      system_prompt: "Judge {strictly}."
      criteria_prompt: "{prompt} / {response} / {keyPointText}{reference_text_block}"
      reference_prompt: "REF {reference}"
  languages:
    id:
      filepath: seahelm_tasks/c.jsonl
      max_tokens: 9
      prompt_template: {preamble: "", task_template: "{text}", answer_template: "", answer_tag: ""}
"""


@pytest.fixture
def criteria(tmp_path):
    """An official task of criteria, with the table's entry of `kalahi-judge`."""
    import json

    folder = tmp_path / "official" / "seahelm_tasks"
    folder.mkdir(parents=True)
    text = CRITERIA.replace("criteria-task", "kalahi-judge")
    (folder / "config.yaml").write_text(text, "utf-8")
    rows = [
        {
            "id": 1,
            "label": "emas",
            "metadata": {"category": "a"},
            "prompts": [{"text": "Apa?"}],
            "criteria": [
                {"criterion": "Says {text}"},
                {"criterion": "Right", "include_reference": True},
            ],
        },
        {
            "id": 2,
            "metadata": {"category": "b"},
            "prompts": [{"text": "Siapa?"}],
            "criteria": [{"criterion": "Says {nothing}"}, {"criterion": "Right"}],
        },
        {"id": 3, "metadata": {}, "prompts": [{"text": "Mana?"}]},
    ]
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "official"


def test_criteria_are_asked_one_by_one(bench, criteria):
    bench.pack = criteria

    def judge(prompt: str) -> str:
        met = "Right" in prompt
        return f"<classification>{'CLASS_MET' if met else 'CLASS_UNMET'}</classification>"

    results = bench.run(
        {"m": answer}, judge_answers=judge, judge=JUDGE, extras=True, profile="v1.2"
    )
    found = results["models"]["m"]["tasks"]["kalahi-judge"]["id"]
    asked = [prompt for name, prompt in bench.asked if name == "judge"]
    assert "Apa? / model: Apa? / Says Apa?" in asked
    assert "Apa? / model: Apa? / Right\nREF emas\n" in asked
    assert found["judge_counts"] == {"judge_bad_criterion": 1}
    assert found["score"] == 50  # the answer with a criterion that cannot be asked is left out
    assert found["row_problems"] == {"missing_field": 1}


@pytest.mark.parametrize(
    ("text", "counter"),
    [
        ("prose", "judge_prose"),
        ("", "judge_empty"),
        ("<classification>CLASS_GREAT</classification>", "judge_unknown_class"),
    ],
)
def test_classes_that_cannot_be_read_are_counted(bench, criteria, text, counter):
    bench.pack = criteria
    results = bench.run(
        {"m": answer}, judge_answers=lambda prompt: text, judge=JUDGE, extras=True, profile="v1.2"
    )
    found = results["models"]["m"]["tasks"]["kalahi-judge"]["id"]
    assert found["judge_counts"][counter] == 3 and found["score"] is None


def test_criteria_are_summed_as_published():
    criteria = [{"turn": 0}, {"turn": 0}, {"turn": 1}]
    assert _total(criteria, {0: 1.0, 1: 0.0, 2: 1.0}, weighted=False) == pytest.approx(0.75)
    weighted = [{"severity": s} for s in ("High", "medium", "low", "generic", "generic")]
    worths = {0: 1.0, 1: 0.0, 2: 1.0, 3: 1.0, 4: 0.0}
    assert _total(weighted, worths, weighted=True) == pytest.approx((11 / 16) * 0.5)
    assert _total([{"severity": "generic"}], {0: 1.0}, weighted=True) == 0


def test_official_judge_prompts_are_read():
    from singalaut.evals.judge_prompts import judge_prompts

    turn = {
        "system_prompt": 'say "{A_wins}", "{B_wins}" or "{Tie}"',
        "prompt_template": "{question_1}",
    }
    body = {
        "judge": {"judge_prompts": {"without-reference": [turn], "with-reference": [turn, turn]}},
        "judgement_labels": {"A_wins": "<1>", "B_wins": "<2>", "Tie": "<0>"},
        "categories_with_reference": ["Math"],
        "baseline_model": "base",
    }
    read = judge_prompts(body, "dialogue")
    assert read.system[0].fill({}) == 'say "<1>", "<2>" or "<0>"'
    assert read.verdicts == ("<1>", "<2>", "<0>") and read.baseline == "base"
    assert len(read.referenced) == 2 and read.referenced_categories == {"math"}
    assert isinstance(read.prompts[0], Template)
    assert judge_prompts({}, "dialogue") is None
