"""The command `eval` and those below it, over recorded answers and an endpoint on this machine."""

from __future__ import annotations

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from singalaut.evals.examples import read_cell
from singalaut.evals.pack import load_pack
from singalaut.evals.tasks import choose

FEW = ("--task", "sentiment", "--language", "th", "--language", "id")


@pytest.fixture
def answers(tmp_path):
    """Right and wrong answers to the sentiment task of the embedded pack, as recordings."""
    right, wrong = [], []
    for task, spec in choose(load_pack("demo"), ("sentiment",)):
        cell = read_cell(task, spec)
        for example in cell.examples:
            label = spec.labels[example.gold]
            row = {"id": f"{cell.name}/{example.id}", "response": f"{spec.tag} {label}"}
            right.append(json.dumps(row))
            wrong.append(json.dumps(row | {"response": "?"}))
    for name, rows in (("right", right), ("wrong", wrong)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n", "utf-8")
    return tmp_path


def folder_of(result) -> Path:
    """The folder that a run of `eval` prints last."""
    assert result.exit_code == 0, result.stderr
    return Path(result.stdout.strip().split("\n")[-1])


@pytest.fixture
def evaluation(cli, answers):
    """Two recordings evaluated, in a folder of a fixed name."""
    both = ("--recorded", "right.jsonl", "--recorded", "wrong.jsonl")
    return folder_of(cli("eval", *both, *FEW, "--temperature", "0"))


def test_recorded_answers_are_scored(cli, evaluation):
    assert (evaluation / "results" / "results.json").is_file()
    names = {file.name for file in (evaluation / "results").iterdir()}
    assert names == {"results.json", "results.csv", "results.md", "report.html"}
    results = json.loads((evaluation / "results" / "results.json").read_text("utf-8"))
    scores = {m: found["overall"]["normalised"] for m, found in results["models"].items()}
    assert scores == {"right": 100, "wrong": 0}


def test_evaluations_are_compared(cli, evaluation):
    sides = (f"{evaluation}:right", f"{evaluation}:wrong")
    shown = cli("eval", "compare", *sides)
    assert shown.exit_code == 0, shown.stderr
    assert re.search(r"sentiment\.th +100\.0 +0\.0 +-100\.0 +\[-100\.0, -100\.0\]", shown.stdout)
    found = json.loads(cli("eval", "compare", *sides, "--json").stdout)
    assert {row["difference"] for row in found["rows"]} == {-100}
    refused = cli("eval", "compare", str(evaluation), str(evaluation))
    assert refused.exit_code == 2 and "choose one, as in" in refused.stderr


def test_a_report_is_written_with_more_answers(cli, evaluation, tmp_path):
    shown = cli("eval", "report", str(evaluation), "--output", "page.html", "--answers", "3")
    assert shown.exit_code == 0 and shown.stdout.strip() == "page.html"
    assert "Evaluation" in (tmp_path / "page.html").read_text("utf-8")
    refused = cli("eval", "report", "nowhere")
    assert refused.exit_code in (1, 2) and "error: " in refused.stderr


def test_packs_are_shown_with_what_they_cover(cli):
    shown = cli("eval", "tasks")
    assert shown.exit_code == 0, shown.stderr
    coverage = shown.stdout.split("\n\n")[1].strip().split("\n")
    assert len(coverage) == 12 and coverage[0].split()[-2:] == ["not", "covered"]
    assert all(len(line.split()) == 7 and "0" not in line.split() for line in coverage[1:])
    found = json.loads(
        cli("eval", "tasks", "--task", "causal", "--language", "my", "--json").stdout
    )
    assert [(t["task"], t["language"], t["rows"]) for t in found["tasks"]] == [("causal", "my", 8)]
    prompt = cli("eval", "tasks", "--task", "sentiment", "--language", "vi", "--prompt").stdout
    assert prompt.startswith("=== sentiment.vi\n--- user\nCâu dưới đây")


def test_rows_that_cannot_be_used_end_in_exit_code_2(cli, pack_folder):
    shown = cli("eval", "tasks", "--pack", str(pack_folder))
    assert shown.exit_code == 2
    assert "1 not json, 1 unknown label, 1 duplicate id" in shown.stdout
    assert "2 rows cannot be used" in shown.stderr


@pytest.fixture
def pack_folder(tmp_path):
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "t.toml").write_text(
        'name = "t"\nversion = 1\ncompetency = "nlu"\nmetric = "accuracy"\nmax_tokens = 4\n'
        'licence = "CC0-1.0"\n[languages.id]\ntag = "Jawaban:"\nprompt = "{text}"\n'
        'labels = { a = "Ya", b = "Tidak" }\ndata = "rows.jsonl"\n'
    )
    rows = [("1", "a"), ("2", "c"), ("1", "b")]
    lines = [json.dumps({"id": i, "label": label, "text": f"teks {i}"}) for i, label in rows]
    (folder / "rows.jsonl").write_text("\n".join([*lines, "{"]) + "\n")
    return folder


def test_training_rows_are_looked_through(cli, tmp_path):
    task, spec = choose(load_pack("demo"), ("sentiment",), ("en",))[0]
    prompt = read_cell(task, spec).examples[0].prompt
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": prompt}) + "\n{}\n")
    shown = cli("eval", "contamination", "train.jsonl", "--task", "sentiment")
    assert shown.exit_code == 0, shown.stderr
    assert "train.jsonl, line 1" in shown.stdout
    assert shown.stdout.strip().endswith("1 of 88 questions occur in 2 rows")
    found = json.loads(cli("eval", "contamination", "train.jsonl", "--json").stdout)
    assert sum(cell["whole"] for cell in found["cells"]) == 1


@pytest.fixture
def endpoint():
    """Answers everything with the same label, and counts what it was asked."""
    asked: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            message = {"role": "assistant", "content": "คำตอบ: แง่บวก"}
            body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
            raw = json.dumps(body).encode()
            self.send_response(200 if self.path.endswith("/chat/completions") else 404)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1", asked
    server.shutdown()
    server.server_close()


def test_an_endpoint_is_evaluated_and_asked_once(cli, endpoint):
    url, asked = endpoint
    words = ("eval", "--endpoint", f"{url}#org/model", "--task", "sentiment", "--language", "th")
    folder = folder_of(cli(*words, "--seeds", "2"))
    results = json.loads((folder / "results" / "results.json").read_text("utf-8"))
    assert results["models"]["model"]["tasks"]["sentiment"]["th"]["score"] == 50
    assert len(asked) == 16 and {body["model"] for body in asked} == {"org/model"}
    assert "temperature" not in asked[0]  # the model's own settings
    assert "127.0.0.1" not in json.dumps(results)
    folder_of(cli(*words, "--seeds", "2", "--limit", "4"))
    assert len(asked) == 16  # the rest comes from the store


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("eval", "name one with `--model`, `--endpoint` or `--recorded`"),
        ("eval --endpoint http://x/v1", "does not name a model"),
        ("eval --endpoint x#m", "http"),
        ("eval --recorded ok.jsonl --judge http://x/v1", "where: --judge"),
        ("eval --recorded none.jsonl", "none.jsonl"),
        ("eval --recorded bad.jsonl", "a recorded answer needs `response`"),
        ("eval --recorded ok.jsonl --profile v9", "v9"),
        ("eval --recorded ok.jsonl --task sentimen", "did you mean `sentiment`?"),
        ("eval --recorded ok.jsonl --language xx", "no language `xx`"),
        ("eval --recorded ok.jsonl --pack none", "none"),
        ("eval --recorded ok.jsonl --limit 0", "limit"),
        ("eval --recorded ok.jsonl --metricx none", "none"),
        ("eval tasks --profile v9", "there is no profile `v9`"),
        ("eval tasks --pack none", "is not a folder"),
        ("eval contamination none.jsonl", "none.jsonl"),
        ("eval fetch out --pack demo --task x", "has no task `x`"),
        ("eval fetch out --pack demo", "none of these tasks has rows on the hub"),
    ],
)
def test_bad_input_is_told_with_exit_code_2(cli, tmp_path, words, message):
    (tmp_path / "bad.jsonl").write_text('{"id": 1}\n')
    (tmp_path / "ok.jsonl").write_text('{"id": "x", "response": "y"}\n')
    result = cli(*words.split())
    assert result.exit_code == 2, result.stdout
    assert result.stderr.count("error: ") == 1 and message in result.stderr
    assert "Traceback" not in result.stderr and result.stdout == ""


def test_answers_that_are_missing_fail_the_run_unless_allowed(cli, answers):
    rows = (answers / "right.jsonl").read_text("utf-8").split("\n")
    (answers / "some.jsonl").write_text("\n".join(rows[9:]), "utf-8")
    words = ("eval", "--recorded", "some.jsonl", "--task", "sentiment", "--language", "en")
    refused = cli(*words)
    assert refused.exit_code == 2 and "requests to `some` failed" in refused.stderr
    allowed = cli(*words, "--set", "evaluate.protocol.allowed_failures=1")
    results = json.loads((folder_of(allowed) / "results" / "results.json").read_text("utf-8"))
    assert results["models"]["some"]["tasks"]["sentiment"]["en"]["failed"] >= 1


def test_settings_that_change_nothing_are_told_of(cli, answers):
    words = ("eval", "--recorded", "right.jsonl", "--language", "th", "--seeds", "1")
    judge = ("--judge", "http://x/v1#m", "--metricx", str(answers), "--task", "sentiment")
    shots = ("--set", "evaluate.protocol.shots=2")
    told = cli(*words, *judge, *shots).stderr
    assert "none of these tasks needs the judge" in told
    assert "none of these tasks is scored by MetricX" in told
    assert "asked without worked examples, as there are none: sentiment.th" in told


def test_a_task_without_any_answer_has_no_score(cli, answers):
    (answers / "none.jsonl").write_text('{"id": "x", "response": "y"}\n')
    tasks = [word for name in ("sentiment", "translation-en-xx") for word in ("--task", name)]
    allowed = ("--set", "evaluate.protocol.allowed_failures=1")
    ran = cli("eval", "--recorded", "none.jsonl", *tasks, "--language", "th", *allowed)
    results = json.loads((folder_of(ran) / "results" / "results.json").read_text("utf-8"))
    found = results["models"]["none"]
    cells = [found["tasks"][name]["th"] for name in ("sentiment", "translation-en-xx")]
    assert [cell["score"] for cell in cells] == [None, None] and found["overall"] == {"n": 0}
    assert "RuntimeWarning" not in ran.stderr
