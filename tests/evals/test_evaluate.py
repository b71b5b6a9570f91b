"""Whole evaluations with a source of known answers: figures, files, stores, kills and refusals."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.contracts import Completion, Usage
from singalaut.errors import ArtifactError, DataError, RecipeError, RequestError
from singalaut.evals.output import load_results
from singalaut.evals.results import folder_name, results_table


def answer_base(prompt: str) -> str:
    """No tag, ever; long enough to be cut in the sentiment task."""
    return "saya tidak tahu apa yang harus saya jawab di sini"


def answer_tuned(prompt: str) -> str:
    """Right on everything but the negative rows of sentiment."""
    if "คำตอบ" in prompt:
        return "คำตอบ: แง่บวก"
    if "Jawaban" in prompt:
        return "Jawaban: Positif"
    return f"Terjemahan: teks nomor {prompt[-1]}"


ANSWERS = {"base": answer_base, "sft": answer_tuned}


def test_the_figures_are_those_of_the_answers(bench):
    results = bench.run(ANSWERS)
    assert bench.opened == ["base", "sft"]
    tuned, base = results["models"]["sft"], results["models"]["base"]
    cell = tuned["tasks"]["sentiment"]["id"]
    wanted = {
        "n": 4,
        "runs": 1,
        "answered": 4,
        "metric": "accuracy",
        "score": 50.0,
        "plain_accuracy": 75.0,
        "chance": 50.0,
        "normalised": 0.0,
        "extracted": 1.0,
        "truncated": 0.0,
        "counts": {},
        "disagreements": 0.0,
    }
    assert {name: cell[name] for name in wanted} == wanted
    lost = base["tasks"]["sentiment"]["id"]
    assert (lost["score"], lost["extracted"], lost["truncated"]) == (0, 0, 1)
    assert lost["counts"]["unextractable"] == lost["counts"]["truncated"] == 4
    assert tuned["tasks"]["translation-a"]["id"]["score"] == pytest.approx(100)
    # guessing counts 0 in sentiment; nlg, two tasks of one group, 100; competencies weigh the same
    assert tuned["languages"]["id"]["normalised"] == pytest.approx(50)
    assert tuned["languages"]["id"]["competencies"]["nlg"]["normalised"] == pytest.approx(100)
    assert tuned["languages"]["th"]["normalised"] == 0
    assert tuned["overall"]["normalised"] == pytest.approx(25)
    assert (tuned["overall"]["n"], tuned["overall"]["extracted"]) == (10, 1)
    low, high = tuned["overall"]["interval"]
    assert low <= 25 <= high


def test_the_table_compares_the_models(bench):
    results = bench.run(ANSWERS)
    rows = results_table(results)
    assert rows == results["rows"]
    assert [(row["kind"], row["name"]) for row in rows] == [
        ("task", "sentiment"),
        ("task", "translation-a"),
        ("task", "translation-b"),
        ("language", "id"),
        ("language", "th"),
        ("overall", "all"),
    ]
    assert rows[0]["scores"] == {"base": 0.0, "sft": 50.0}
    assert rows[0]["extracted"] == {"base": 0.0, "sft": 1.0}
    text = (bench.work.path / "results" / "results.md").read_text("utf-8")
    assert "| sentiment | accuracy | 6 | 0.0 (0 %) | 50.0 (100 %) |" in text
    assert "| unextractable | 60.00 % | 0.00 % |" in text
    with (bench.work.path / "results" / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * 4
    assert lines[4]["model"] == "sft" and float(lines[4]["score"]) == 50
    assert lines[0]["unextractable"] == "4"


def test_every_response_is_kept_with_what_was_read(bench):
    bench.run(ANSWERS)
    rows = bench.rows("sft", "sentiment.id")
    assert [row["id"] for row in rows] == ["s0", "s1", "s2", "s3"]
    assert [row["runs"][0]["score"] for row in rows] == [1, 0, 1, 1]
    assert rows[1]["runs"][0]["answer"] == "positive" and rows[1]["gold"] == "negative"
    assert rows[0]["prompt"].endswith("kalimat positive 0 {text}")
    row = bench.rows("sft", "translation-a.id")[0]
    assert row["runs"][0]["answer"] == row["references"][0] == "teks nomor 0"


def test_requests_carry_the_settings_and_stand_in_a_good_order(bench, tmp_path):
    bench.run({"m": answer_tuned}, temperature=0.5, protocol={"seeds": 2})
    requests = bench.requests[::-1]
    assert len(requests) == 2 * (4 + 2) + 2 * 2  # equal questions of both translations once
    assert {r.sampling.max_tokens for r in requests[:4]} == {32}  # the longest answers first
    assert all(r.sampling.temperature == 0.5 for r in requests)
    texts = [request.prompt[0].content for request in requests]
    assert texts[::2] == texts[1::2]  # the runs of a question stand together
    seeds = [request.sampling.seed for request in requests]
    assert len(set(seeds)) == len(seeds) and max(seeds) < 2**31


def test_seeds_do_not_depend_on_what_else_is_asked(new_bench):
    seen = []
    for tasks in ((), ("sentiment",)):
        bench = new_bench(f"tasks{len(tasks)}")
        bench.run({"m": answer_tuned}, temperature=0.5, tasks=tasks, protocol={"seeds": 2})
        seen.append({(r.prompt[0].content, r.sampling.seed) for r in bench.requests})
    assert seen[1] < seen[0]


def test_greedy_answers_are_generated_once(bench):
    results = bench.run({"m": answer_tuned}, temperature=0.0, protocol={"seeds": 8})
    assert len(bench.asked) == 8
    assert results["models"]["m"]["tasks"]["sentiment"]["id"]["runs"] == 1


def test_runs_are_averaged_and_their_spread_is_told(bench):
    turns = iter(range(1000))

    def now_and_then(prompt: str) -> str:
        return "Jawaban: Positif" if next(turns) % 2 else "Jawaban: Negatif"

    results = bench.run(
        {"m": now_and_then},
        temperature=1.0,
        tasks=("sentiment",),
        languages=("id",),
        protocol={"seeds": 4},
    )
    cell = results["models"]["m"]["tasks"]["sentiment"]["id"]
    assert cell["runs"] == len(cell["by_run"]) == 4
    assert cell["score"] == pytest.approx(sum(cell["by_run"]) / 4)
    assert cell["deviation_between_runs"] >= 0
    assert {len(row["runs"]) for row in bench.rows("m", "sentiment.id")} == {4}


def test_the_model_own_settings_are_used(bench, tmp_path):
    from singalaut.evals.config import EvaluateConfig
    from singalaut.evals.examples import read_cell
    from singalaut.evals.pack import load_pack
    from singalaut.evals.profiles import PROFILES
    from singalaut.evals.protocol import make_protocol

    task = load_pack(bench.pack).tasks[0]
    cell = read_cell(task, task.languages["id"])
    given = {"top_k": 64, "top_p": 0.95, "do_sample": True, "temperature": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(given))

    def sampling(profile, **settings):
        config = EvaluateConfig(**settings)
        return make_protocol(config, PROFILES[profile], "m", tmp_path, 1).sampling(cell)

    own = sampling("card")
    assert (own.top_k, own.top_p, own.temperature, own.max_tokens) == (64, 0.95, 1.0, 8)
    assert sampling("card", temperature=0.0).top_k == 0
    old = sampling("v1.0")
    assert (old.temperature, old.top_k) == (0.0, 50)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(Exception, match="not JSON"):
        sampling("card")


class Killed(BaseException):
    pass


@pytest.mark.parametrize("deadline", [0, 1, 3, 6, 7, 11, 15])
def test_a_stopped_run_ends_as_an_undisturbed_one(new_bench, deadline):
    whole = new_bench("whole")
    whole.run(ANSWERS)
    bench = new_bench("stopped")

    def until(name):
        def answer(prompt: str) -> str:
            if len(bench.asked) == deadline:
                raise Killed
            return ANSWERS[name](prompt)

        return answer

    with pytest.raises(Killed):
        bench.run({name: until(name) for name in ANSWERS})
    before = len(bench.asked)
    bench.run(ANSWERS)
    assert bench.files() == whole.files()
    # all but the last answer, which was on its way, had been kept
    assert len(bench.asked) - before <= len(whole.asked) - before + 1


def test_kill_9_at_random_moments_changes_nothing(new_bench):
    whole = new_bench("whole")
    protocol = {"seeds": 3, "resamples": 100}
    new_bench("warm").run(ANSWERS)  # what is imported late would make the first run the longest

    def slow(name):
        def answer(prompt: str) -> str:
            time.sleep(0.0005)
            return ANSWERS[name](prompt)

        return answer

    begin = time.monotonic()
    whole.run({name: slow(name) for name in ANSWERS}, temperature=1.0, protocol=protocol)
    longest = time.monotonic() - begin
    bench = new_bench("killed")
    generator = random.Random(1)
    kills = 0
    for turn in range(12):  # benchmarks/evals_kill.py does it 50 times, to the whole command
        if turn % 4 == 0:  # begin anew, so that kills hit every part of a run
            (bench.folder / "store.sqlite").unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            try:
                slowly = {name: slow(name) for name in ANSWERS}
                bench.run(slowly, temperature=1.0, protocol=protocol)
            finally:
                os._exit(0)
        time.sleep(generator.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
    assert kills > 2
    bench.run(ANSWERS, temperature=1.0, protocol=protocol)
    assert bench.files() == whole.files()


def test_a_finished_run_opens_no_model(bench):
    first = bench.run(ANSWERS)
    bench.opened.clear()
    assert bench.run(ANSWERS) == first
    assert bench.opened == []


def test_runs_with_other_settings_share_what_they_can(bench):
    bench.run(ANSWERS, languages=("id",))
    before = len(bench.asked)
    bench.run(ANSWERS)
    assert len(bench.asked) - before == 2 * 2  # only the Thai questions
    bench.run(ANSWERS, protocol={"extraction": "robust"})
    assert len(bench.asked) - before == 2 * 2


def test_changed_questions_are_asked_again(bench, pack):
    bench.run({"sft": answer_tuned})
    before = len(bench.asked)
    file = pack / "data" / "sentiment.th.jsonl"
    file.write_text(file.read_text("utf-8").replace("ประโยค", "ข้อความ"), "utf-8")
    bench.run({"sft": answer_tuned})
    assert len(bench.asked) - before == 2


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda found: found[:-1], "`sft` answered 5 of 6 questions; .*`sentiment.id/s1/0`"),
        (lambda found: [], "answered 0 of 6"),
        (lambda found: [*found[:1], found[0], *found[1:]], "answered `.*` a second time"),
        (lambda found: [Completion("x", 0, (), "", "stop", Usage(0, 0))], "answered `x` unasked"),
    ],
)
def test_answers_that_do_not_fit_the_questions_are_refused(bench, sampler, change, what):
    class Faulty(sampler):
        def sample(self, requests):
            yield from change(list(super().sample(requests)))

    bench.sampler = Faulty
    with pytest.raises(RequestError, match=what):
        bench.run({"sft": answer_tuned}, tasks=("sentiment",))
    assert not (bench.work.path / "results").exists()


def test_failed_requests_are_no_answers(bench, sampler):
    class Failing(sampler):
        def sample(self, requests):
            for done in super().sample(requests):
                if done.request_id.startswith("sentiment.id/s1"):
                    yield Completion(done.request_id, 0, (), "", "error", Usage(0, 0), error="boom")
                elif done.request_id.startswith("sentiment.id/s2"):
                    yield Completion(done.request_id, 0, (), "", "deadline", Usage(0, 0))
                else:
                    yield done

    bench.sampler = Failing
    with pytest.raises(RequestError, match=r"2 of 8 requests to `sft` failed: 1 × \w+, 1 × \w+"):
        bench.run({"sft": answer_tuned})
    assert not (bench.work.path / "results").exists()
    results = bench.run({"sft": answer_tuned}, protocol={"allowed_failures": 0.5})
    cell = results["models"]["sft"]["tasks"]["sentiment"]["id"]
    assert (cell["n"], cell["answered"], cell["failed"]) == (4, 2, 2)
    assert cell["score"] == 100  # of the rows that have an answer: only positive ones are left
    assert bench.rows("sft", "sentiment.id")[1]["runs"] == [None]
    bench.sampler = sampler
    mended = bench.run({"sft": answer_tuned})["models"]["sft"]["tasks"]["sentiment"]["id"]
    assert (mended["answered"], mended["failed"]) == (4, 0)


ODD = {
    "empty": "",
    "endless": "Jawaban: Positif " + "lagi dan lagi " * 200,
    "echo": "Jawaban: ANSWER",
    "emoji": "😀😀",
    "hebrew": "Jawaban: Positif שלום",
    "nul": "Jawaban: Positif\x00",
    "surrogate": "Jawaban: Positif \ud83d",
    "contradiction": "Jawaban: Positif\nJawaban: Negatif",
    "megabyte": "Jawaban: Positif " + "x" * 1_000_000,
    "untagged": "Positif",
    "english": "I really do not know what I am supposed to say about this sentence here.",
}


@pytest.mark.parametrize(
    ("name", "counts", "score"),
    [
        ("empty", {"empty", "unextractable"}, 0),
        ("endless", {"truncated", "looping"}, 1),
        ("echo", {"echoed", "unextractable"}, 0),
        ("emoji", {"wordless", "unextractable"}, 0),
        ("hebrew", {"right_to_left"}, 1),
        ("nul", {"control_characters"}, 1),
        ("surrogate", {"control_characters"}, 1),
        ("contradiction", {"contradictory"}, 1),
        ("megabyte", {"oversized"}, 1),
        ("untagged", {"untagged"}, 1),
        ("english", {"unextractable", "wrong_language"}, 0),
    ],
)
def test_every_odd_response_has_its_own_counter(bench, sampler, name, counts, score):
    class Long(sampler):
        def sample(self, requests):
            for request in requests:
                text = self.answer(request.prompt[-1].content)
                finish = "length" if name == "endless" else "stop"
                yield Completion(request.id, 0, (), text, finish, Usage(1, 1))

    bench.sampler = Long
    results = bench.run({"m": lambda prompt: ODD[name]}, tasks=("sentiment",), languages=("id",))
    cell = results["models"]["m"]["tasks"]["sentiment"]["id"]
    assert set(cell["counts"]) == counts, cell["counts"]
    assert set(cell["counts"].values()) == {4}
    assert cell["plain_accuracy"] == score * 75
    row = bench.rows("m", "sentiment.id")[0]
    assert row["runs"][0]["odd"] and row["runs"][0]["response"][:16] == ODD[name][:16]


def test_both_readings_are_reported(bench):
    results = bench.run(
        {"m": lambda prompt: "Jawaban: (Positif)"}, tasks=("sentiment",), languages=("id",)
    )
    cell = results["models"]["m"]["tasks"]["sentiment"]["id"]
    assert (cell["plain_accuracy"], cell["robust"], cell["disagreements"]) == (0, 50, 1)
    shown = bench.rows("m", "sentiment.id")[0]["runs"][0]
    assert (shown["answer"], shown["robust"]) == (None, "positive")
    careful = bench.run(
        {"m": lambda prompt: "Jawaban: (Positif)"},
        tasks=("sentiment",),
        languages=("id",),
        protocol={"extraction": "robust"},
    )
    assert careful["models"]["m"]["tasks"]["sentiment"]["id"]["plain_accuracy"] == 75


def test_rows_that_cannot_be_used_are_told_in_the_results(bench, pack):
    with (pack / "data" / "translation.jsonl").open("a") as file:
        file.write("{\n" + json.dumps({"id": "t0", "reference": "x", "source": "y"}) + "\n")
    results = bench.run(ANSWERS)
    about = results["tasks"]["translation-a"]["languages"]["id"]
    assert about["row_problems"] == {"not_json": 1, "duplicate_id": 1}
    assert about["rows_left_out"] == 1
    assert "line 3" in about["first_problems"][0]
    cell = results["models"]["sft"]["tasks"]["translation-a"]["id"]
    assert cell["n"] == 3 and cell["row_problems"] == {"not_json": 1, "duplicate_id": 1}


def test_a_bad_pack_or_choice_is_refused_before_a_model_is_opened(bench, pack):
    with pytest.raises(RecipeError, match="no task"):
        bench.run(ANSWERS, tasks=("nothing",))
    (pack / "data" / "translation.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="no row can be used"):
        bench.run(ANSWERS)
    assert bench.opened == []


def test_a_limit_keeps_the_level_of_chance(bench):
    results = bench.run({"sft": answer_tuned}, limit=1)
    cell = results["models"]["sft"]["tasks"]["sentiment"]["id"]
    assert (cell["n"], cell["chance"], cell["normalised"]) == (1, 50.0, 100.0)


def test_results_name_no_folder(bench, tmp_path):
    bench.run(ANSWERS)
    for name, data in bench.files().items():
        assert str(tmp_path).encode() not in data, name


def test_names_with_any_character_are_safe_and_shown(bench):
    models = {"a/../b|c": answer_base, ".hidden": answer_tuned, "ครู " * 80: answer_base}
    results = bench.run(models)
    assert list(results["models"]) == list(models)
    folders = [p.name for p in (bench.work.path / "responses").iterdir()]
    assert len(folders) == 3
    assert not any(name.startswith(".") for name in folders)
    text = (bench.work.path / "results" / "results.md").read_text("utf-8")
    assert "a/../b\\|c" in text


@given(st.text(min_size=1).filter(lambda t: t.isprintable()), st.text(min_size=1))
def test_folder_names_are_safe_and_distinct(one, other):
    try:
        other.encode()
    except UnicodeEncodeError:
        return
    for name in (folder_name(one), folder_name(other)):
        assert "/" not in name and "\0" not in name and not name.startswith(".")
        assert 0 < len(name) <= 120
    assert (folder_name(one) == folder_name(other)) == (one == other)


def test_results_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_results(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "results.json").write_text('{"format": 99}')
    with pytest.raises(ArtifactError, match="format 99"):
        load_results(tmp_path)


def test_the_label_of_highest_logprob_is_chosen(tmp_path, pack, tiny_model):
    """With a real tokenizer: the answer's tokens follow the prompt's, and only they are summed."""
    from singalaut.artifact import Work
    from singalaut.evals.config import EvaluateConfig
    from singalaut.evals.evaluate import Subject, run_evaluate
    from singalaut.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(tiny_model)
    wanted = tokenizer.encode("Jawaban: Positif")
    asked = []

    class Scorer:
        identity = "scorer"

        def sleep(self):
            pass

        def sample(self, requests):
            for request in requests:
                asked.append(request)
                ids = list(request.prompt)
                assert request.sampling.prompt_logprobs and request.sampling.max_tokens == 0
                good = ids[-len(wanted) :] == wanted
                tail = [-0.5] * len(wanted) if good else [-2.0] * len(wanted)
                rest = len(ids) - len(tail)
                logprobs = (None, *([-99.0] * (rest - 1)), *tail)
                yield Completion(
                    request.id, 0, (), "", "length", Usage(len(ids), 0), prompt_logprobs=logprobs
                )

        def statistics(self):
            return {}

    work = Work(tmp_path / "work")
    work.path.mkdir()
    run_evaluate(
        EvaluateConfig(
            models=("m",),
            tasks=("sentiment",),
            languages=("id",),
            protocol={"logprobs": True, "resamples": 100},
        ),
        subjects={"m": Subject("scorer", Scorer, tiny_model)},
        pack=pack,
        work=work,
        seed=1,
        store=tmp_path / "store.sqlite",
    )
    cell = load_results(work.path)["models"]["m"]["tasks"]["sentiment"]["id"]
    assert len(asked) == 4 * 2
    assert (cell["n"], cell["score"]) == (4, 50.0)
    assert 50 < cell["gold_probability"] < 100
    rows = (work.path / "responses" / "m" / "sentiment.id.jsonl").read_text("utf-8")
    first = json.loads(rows.split("\n")[0])["runs"][0]
    assert first["answer"] == "positive"
    assert set(first["logprobs"]) == {"positive", "negative"}
    assert first["logprobs"]["positive"] == pytest.approx(-0.5 * len(wanted))


def test_base_models_read_plain_text_with_examples(tmp_path, pack, tiny_model):
    from singalaut.artifact import Work
    from singalaut.evals.config import EvaluateConfig
    from singalaut.evals.evaluate import Subject, run_evaluate
    from singalaut.text.tokenizer import Tokenizer

    rows = [{"id": f"e{i}", "label": "negative", "text": f"contoh {i}"} for i in range(6)]
    (pack / "data" / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = pack / "sentiment.toml"
    file.write_text(
        file.read_text("utf-8").replace("prompt =", 'examples = "data/e.jsonl"\nprompt =', 1),
        "utf-8",
    )
    asked = []

    class Echo:
        identity = "base"

        def sleep(self):
            pass

        def sample(self, requests):
            for request in requests:
                asked.append(request)
                yield Completion(request.id, 0, (), "Jawaban: Positif", "stop", Usage(1, 1))

        def statistics(self):
            return {}

    work = Work(tmp_path / "work")
    work.path.mkdir()
    run_evaluate(
        EvaluateConfig(
            models=("m",),
            tasks=("sentiment",),
            languages=("id",),
            protocol={"base": True, "resamples": 100, "seeds": 1},
        ),
        subjects={"m": Subject("base", Echo, tiny_model)},
        pack=pack,
        work=work,
        seed=1,
        store=tmp_path / "store.sqlite",
    )
    text = Tokenizer.load(tiny_model).decode(asked[0].prompt)
    assert text.count("contoh") == 5 and text.count("Jawaban: Negatif\n\n") == 5
    assert text.endswith("{text}\n\n")
    assert asked[0].sampling.stop == ("\n\n",)
    with pytest.raises(RecipeError, match="tokenizer is not known"):
        run_evaluate(
            EvaluateConfig(models=("m",), protocol={"base": True}),
            subjects={"m": Subject("base", Echo)},
            pack=pack,
            work=work,
            seed=1,
            store=tmp_path / "store.sqlite",
        )
