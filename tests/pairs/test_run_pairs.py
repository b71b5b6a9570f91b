"""Making pairs with models that are scripts: kills and reruns, bad answers, what is written."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from singalaut.artifact import Work
from singalaut.contracts import Completion, Message, Sample, Usage
from singalaut.errors import DataError, RequestError
from singalaut.pairs.calls import Calls, Model, ask, call_key
from singalaut.pairs.config import PairsConfig
from singalaut.pairs.rewriting import rewrite_prompt
from singalaut.pairs.run import run_pairs
from singalaut.text.languages import LANGUAGES

ANSWER = "The river {} is long, and people fish there. It is cold in the morning, they say."
TITLE = {"instruction_id": "detectable_format:title", "parameters": {}}
COMMA = {"instruction_id": "punctuation:no_comma", "parameters": {}}


class Script:
    """A Sampler whose answers come from a function; `asked` counts what it was asked."""

    def __init__(self, answer, dies_after=None):
        self.answer, self.dies_after = answer, dies_after
        self.asked: Counter[str] = Counter()

    def sample(self, requests):
        for number, request in enumerate(requests):
            if number == self.dies_after:
                raise KeyboardInterrupt
            content = request.prompt[-1].content
            self.asked[f"{content}|{request.sampling.seed}"] += 1
            said = self.answer(content)
            finish = "stop"
            if isinstance(said, tuple):
                said, finish = said
            usage = Usage(1, 1)
            yield Completion(request.id, 0, (), said, finish, usage, error="down" * (not said))


def sample(number, *constraints, **more):
    messages = [Message("user", f"Tell me about river number {number} in the north.")]
    return Sample(messages, f"p{number}", "en", "test", constraints=constraints or (COMMA,), **more)


def make(tmp_path, policy, prompts, writer=None, *, judged_by=None, packs=(), **settings):
    folder = tmp_path / "work"
    folder.mkdir(exist_ok=True)
    config = PairsConfig(prompts=({"generate": 1},), **settings)
    run_pairs(
        config,
        prompts=prompts,
        left_out={},
        policy=Model("policy", lambda: policy),
        rewriter=writer and Model("rewriter", lambda: writer),
        judge=judged_by and Model("judge", lambda: judged_by),
        packs=packs,
        calls=tmp_path / "calls.sqlite",
        work=Work(folder),
        seed=5,
    )
    return folder


def rows(folder, name="data/pairs.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]


def report(folder):
    found = json.loads((folder / "report" / "pairs.json").read_bytes())
    return {entry["reason"]: entry["prompts"] for entry in found["refused"]}, found


def test_fixed_answers_become_pairs(tmp_path):
    script = Script(ANSWER.format)
    folder = make(tmp_path, script, [sample(1), sample(2, COMMA, TITLE), sample(1)])
    found = rows(folder)
    assert [row["id"] for row in found] == ["p1", "p2"]
    assert all("," not in row["chosen"] and "," in row["rejected"] for row in found)
    assert found[1]["chosen"].startswith("<<")
    refused, whole = report(folder)
    assert refused == {"the same prompt came before": 1}
    assert whole["policy"] == "policy" and whole["languages"]["en"]["pairs"] == 2


def test_pairs_are_read_by_the_stage_that_learns_from_them(tmp_path, tiny_model):
    from singalaut.data.config import DataSource
    from singalaut.data.preference import make_pairs

    folder = make(tmp_path, Script(ANSWER.format), [sample(1), sample(2)])
    file = folder / "data" / "pairs.jsonl"
    made = make_pairs([DataSource(path="p")], [file], tiny_model, 2048, tmp_path / "store")
    assert len(made) == 2 and made.about["refused"] == [] and made.languages == ["en"]


@pytest.mark.parametrize("dies_after", [0, 1, 5])
def test_a_killed_run_repeats_no_call_and_loses_none(dies_after, tmp_path):
    prompts = [sample(number) for number in range(8)]
    better = lambda text: "The long river has fish. It is cold there in the mornings they say."  # noqa: E731
    settings = {"method": "rewrite", "rewriter": {"model": "r", "candidates": 2}}
    settings |= {"filters": {"min_length": 0.2}}
    first = [Script(ANSWER.format, dies_after), Script(better)]
    second = [Script(ANSWER.format), Script(better, dies_after)]
    third = [Script(ANSWER.format), Script(better)]
    for policy, rewriter in (first, second):
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, policy, prompts, rewriter, **settings)
    folder = make(tmp_path, third[0], prompts, third[1], **settings)
    asked = [sum((run[who].asked for run in (first, second, third)), Counter()) for who in (0, 1)]
    assert set(asked[0].values()) == {1} and len(asked[0]) == 8
    assert set(asked[1].values()) == {1} and len(asked[1]) == 16
    assert not third[0].asked
    assert len(rows(folder)) == 8
    (tmp_path / "alone").mkdir()
    alone = make(tmp_path / "alone", Script(ANSWER.format), prompts, Script(better), **settings)
    assert rows(alone) == rows(folder)


def make_with_rewriter(tmp_path, answer, prompts=None, **settings):
    settings = {"method": "rewrite", "rewriter": {"model": "r"}} | settings
    policy = Script(ANSWER.format)
    return make(tmp_path, policy, prompts or [sample(1)], Script(answer), **settings)


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ((" ", "stop"), "the rewritten answer is empty"),
        (("so long", "length"), "the rewritten answer was cut short"),
        (("bad <end_of_turn>", "stop"), "the rewritten answer has control tokens or characters"),
        (("I cannot help with that, or with anything that is like it.", "stop"), "a refusal"),
        (("Sungai itu panjang dan orang memancing di sana setiap pagi hari.", "stop"), "language"),
        (("The river is long, and people fish there in the mornings.", "stop"), "constraints"),
    ],
)
def test_bad_rewritten_answers_are_counted(said, reason, tmp_path):
    with pytest.raises(DataError, match="no prompt became a pair"):
        make_with_rewriter(tmp_path, lambda _: said)
    refused, _ = report(tmp_path / "work")
    assert len(refused) == 1 and reason in next(iter(refused))
    assert len(rows(tmp_path / "work", "report/refused.jsonl")) == 1


def test_failed_calls_stop_the_stage_or_are_counted(tmp_path):
    def sometimes(text):
        return ("", "error") if "river number 1 " in text else (ANSWER.format(""), "stop")

    prompts = [sample(number) for number in range(4)]
    with pytest.raises(RequestError, match="1 of 4 calls failed; the first: down"):
        make(tmp_path, Script(sometimes), prompts)
    script = Script(sometimes)
    folder = make(tmp_path, script, prompts, allowed_failures=0.5)
    assert sum(script.asked.values()) == 1  # what failed is asked again, the rest is not
    assert report(folder)[0] == {"the model's own answer did not come": 1}


def test_prompts_of_evaluations_are_left_out(tmp_path):
    pack = tmp_path / "pack"
    pack.mkdir()
    question = sample(2).messages[0].content
    (pack / "rows.jsonl").write_text(json.dumps({"q": question}) + "\n")
    folder = make(tmp_path, Script(ANSWER.format), [sample(2), sample(7)], packs=[pack])
    assert report(folder)[0]["the prompt holds the text of an evaluation"] >= 1


def test_own_answers_are_chosen_among(tmp_path):
    seen = []

    def varied(text):
        seen.append(text)
        return ANSWER.format("") if len(seen) % 2 else ANSWER.format("").replace(",", " and")

    folder = make(tmp_path, Script(varied), [sample(1)], method="sample", samples=3)
    (row,) = rows(folder)
    assert "," in row["rejected"] and "," not in row["chosen"]


MALAY = "Sungai itu panjang, dan orang memancing di sana. Airnya sejuk pada waktu pagi."


def in_turn(*answers):
    """A script that says one after the other."""
    said = iter(answers)
    return Script(lambda _: next(said))


def test_an_answer_in_another_language_has_one_fault_more(tmp_path):
    plain = ANSWER.format(1).replace(",", "")
    script = in_turn(plain, MALAY.replace(",", ""), plain + " So it is.")
    folder = make(tmp_path, script, [sample(1)], method="sample", samples=3)
    (row,) = rows(folder)  # both keep to the constraint
    assert row["rejected"].startswith("Sungai") and row["chosen"].startswith("The river")


def test_rules_mend_an_own_answer_in_the_language_asked_for(tmp_path):
    script = in_turn(ANSWER.format(1), MALAY, ANSWER.format(2), ANSWER.format(2) + " Commas, too.")
    folder = make(tmp_path, script, [sample(1), sample(2)], samples=2)
    first, second = rows(folder)
    assert first["rejected"] == MALAY and first["chosen"] == ANSWER.format(1).replace(",", "")
    # where the rejected answer is in it, it is that which is mended
    assert second["rejected"] == ANSWER.format(2)
    assert second["chosen"] == ANSWER.format(2).replace(",", "")


def test_languages_do_not_count_where_pairs_are_not_filtered_by_them(tmp_path):
    script = in_turn(MALAY.replace(",", ""), ANSWER.format(1))
    folder = make(tmp_path, script, [sample(1)], samples=2, filters={"language": False})
    (row,) = rows(folder)
    assert row["rejected"] == ANSWER.format(1)


def test_rules_do_not_translate(tmp_path):
    with pytest.raises(DataError):
        make(tmp_path, in_turn(MALAY.replace(",", "")), [sample(1)])
    reasons, _ = report(tmp_path / "work")
    assert reasons == {"no constraint is broken, and rules mend nothing else": 1}


def test_an_own_answer_that_is_right_comes_before_a_mended_one(tmp_path):
    right = "A long river with fish is there and it is cold in the mornings so they say to us."
    script = in_turn(ANSWER.format(1), ANSWER.format(2), right)
    (row,) = rows(make(tmp_path, script, [sample(1)], samples=3))
    assert (row["rejected"], row["chosen"]) == (ANSWER.format(1), right)


LOOP = ("It is long, and it is cold. " * 9, "length")


def test_an_answer_that_repeats_itself_without_end_is_rejected(tmp_path, tiny_model):
    """Its end, which it has not, is not learned."""
    from singalaut.data.config import DataSource
    from singalaut.data.preference import make_pairs
    from singalaut.text.conversations import is_learned

    script = in_turn(ANSWER.format(1), LOOP, ANSWER.format(2), ANSWER.format(2))
    folder = make(tmp_path, script, [sample(1), sample(2)], samples=2)
    cut, whole = rows(folder)
    assert cut["rejected"] == LOOP[0].strip() and cut["chosen"] == ANSWER.format(1).replace(",", "")
    assert cut["rejected_is_cut"] and "rejected_is_cut" not in whole
    file = folder / "data" / "pairs.jsonl"
    made = make_pairs([DataSource(path="p")], [file], tiny_model, 2048, tmp_path / "store")
    ends = [[is_learned(words)[-2:].any() for words in made.words(pair)] for pair in (0, 1)]
    assert ends == [[True, False], [True, True]]


@pytest.mark.parametrize("said", [LOOP, (ANSWER.format(1), "length")])
def test_rules_do_not_end_an_answer(said, tmp_path):
    with pytest.raises(DataError):
        make(tmp_path, in_turn(said), [sample(1)])
    assert report(tmp_path / "work")[0] == {"the model's own answer was cut short": 1}


def test_a_rewriter_may_end_one(tmp_path):
    better = Script(lambda _: ANSWER.format(1).replace(",", ""))
    how = {"method": "rewrite", "rewriter": {"model": "r"}}
    (row,) = rows(make(tmp_path, in_turn(LOOP), [sample(1)], better, **how))
    assert row["rejected_is_cut"] and row["chosen"].startswith("The river")


def test_own_answers_with_equal_faults_make_no_pair(tmp_path):
    plain = ANSWER.format(1).replace(",", "")
    both = {"method": "sample", "samples": 2}
    with pytest.raises(DataError):
        make(tmp_path, in_turn(plain, plain + " So it is."), [sample(1)], **both)
    reasons, _ = report(tmp_path / "work")
    assert reasons == {"there is no better answer to choose": 1}


def test_calls_are_keyed_by_content(tmp_path):
    from singalaut.contracts import Request, SamplingParams

    one = Request([Message("user", "a")], SamplingParams(seed=1), "x")
    same = Request([Message("user", "a")], SamplingParams(seed=1), "y")
    other = Request([Message("user", "a")], SamplingParams(seed=2), "x")
    assert call_key("m", one) == call_key("m", same)
    assert len({call_key("m", one), call_key("m", other), call_key("n", one)}) == 3
    script = Script(lambda _: "b")
    calls = Calls(tmp_path / "c.sqlite")
    found = dict(ask(Model("m", lambda: script), [one, same], calls))
    assert set(found) == {"x", "y"} and sum(script.asked.values()) == 1


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("edit", ["minimal", "full"])
def test_a_rewriter_is_asked_in_the_language(language, edit):
    from singalaut.text.languages import script_share

    (message,) = rewrite_prompt([Message("user", "1?")], "2!", language, edit)
    assert script_share(message.content, LANGUAGES[language].script) > 0.95
    assert "1?" in message.content and "2!" in message.content


def test_settings_that_do_not_fit_are_refused():
    for settings in (
        {"method": "rewrite"},
        {"rewriter": {"model": "r"}},
        {"method": "sample"},
        {"method": "rewrite", "rewriter": {}},
    ):
        with pytest.raises(ValueError, match="need"):
            PairsConfig(prompts=({"generate": 1},), **settings)


def test_a_model_that_answers_anew_does_not_see_the_rejected_answer(tmp_path):
    better = ANSWER.format(2).replace(",", "")
    script = Script(lambda asked: better)
    how = {"method": "rewrite", "rewriter": {"model": "r", "edit": "anew"}}
    (row,) = rows(make(tmp_path, Script(ANSWER.format), [sample(1)], script, **how))
    assert row["chosen"] == better
    (asked,) = (key.partition("|")[0] for key in script.asked)
    assert asked == row["prompt"][0]["content"]
