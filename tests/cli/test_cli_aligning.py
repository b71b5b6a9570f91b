"""Selecting, making pairs and aligning, as on the command line."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from singalaut.contracts import Completion, Usage


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def model(tiny_model):
    return ("--model", str(tiny_model))


def test_pairs_are_aligned_with(cli, tmp_path, model):
    rows = [{"prompt": f"{i}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(6)]
    write(tmp_path / "rows.jsonl", [*rows, {"prompt": "x", "chosen": "y", "rejected": "y"}])
    words = ("--data", "rows.jsonl", "--steps", "2", "--batch-size", "3", "--rank", "2")
    result = cli("apo", *model, *words, "--loss", "dpo")
    assert result.exit_code == 0, result.stderr
    assert "6 of 7 rows are pairs" in result.stderr and "identical" in result.stderr
    folder = tmp_path / result.stdout.strip()
    assert (folder / "model" / "config.json").exists() and (folder / "adapter").exists()
    assert "finished before" in cli("apo", *model, *words, "--loss", "dpo").stderr
    bad = cli("apo", *model, *words, "--loss", "orpo")
    assert bad.exit_code == 2 and "apo-zero" in bad.stderr
    assert cli("apo", *model, *words, "--loss", "simpo").exit_code == 2


def test_prompts_that_give_no_pair_are_told(cli, tmp_path, model):
    write(tmp_path / "p.jsonl", [{"prompt": "Say something.", "language": "en"}, {"odd": 1}])
    small = ("--set", "pairs.sampling.max_tokens=4")
    result = cli("pairs", *model, "--prompts", "p.jsonl", *small)
    assert result.exit_code == 2, result.stderr
    assert "no prompt became a pair" in result.stderr and "1 rows left out" in result.stderr
    neither = cli("pairs", *model, "--prompts", "p.jsonl", "--method", "rewrite")
    assert neither.exit_code == 2 and "needs a `rewriter`" in neither.stderr


def test_what_is_selected_is_tuned_on(cli, tmp_path, model):
    def turns(i):
        pair = (("user", f"{i}?"), ("assistant", f"{i}!" * (1 + i % 3)))
        return {"messages": [{"role": r, "content": c} for r, c in pair], "language": "en"}

    write(tmp_path / "rows.jsonl", [turns(i) for i in range(8)])
    write(tmp_path / "th.jsonl", [turns(i) for i in range(20, 22)])
    words = ("--data", "rows.jsonl", "--target", "th=th.jsonl", "--count", "4")
    few = ("--set", "select.warmup_steps=2", "--set", "select.dimensions=64")
    result = cli("select", *model, *words, *few)
    assert result.exit_code == 0, result.stderr
    folder = result.stdout.strip()
    tuned = cli("sft", *model, "--data", folder, "--epochs", "1", "--batch-size", "4")
    assert tuned.exit_code == 0, tuned.stderr
    assert "4 conversations in a pass" in tuned.stderr
    refused = cli("select", *model, "--data", "rows.jsonl", "--count", "4")
    assert refused.exit_code == 2 and "`targets`" in refused.stderr


def test_pairs_are_selected(cli, tmp_path, model):
    rows = [{"prompt": f"{i}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(6)]
    write(tmp_path / "rows.jsonl", rows)
    result = cli("select", *model, "--pairs", "rows.jsonl", "--method", "random", "--count", "3")
    assert result.exit_code == 0, result.stderr
    aligned = cli("apo", *model, "--data", result.stdout.strip(), "--steps", "1", "--rank", "2")
    assert aligned.exit_code == 0 and "3 of 3 rows are pairs" in aligned.stderr, aligned.stderr
    again = cli("select", *model, "--pairs", result.stdout.strip(), "--count", "2")
    assert again.exit_code == 2 and "`targets` with the method `influence`" in again.stderr
    both = cli("select", *model, "--pairs", "rows.jsonl", "--data", "rows.jsonl", "--count", "2")
    assert both.exit_code == 2 and "one of `--data`, `--pairs`" in both.stderr


def test_prompts_are_selected_learned_from_and_made_pairs_of(cli, tmp_path, model):
    rows = [{"prompt": f"Say {i}, please.", "language": "en"} for i in range(8)]
    write(tmp_path / "p.jsonl", rows)
    write(tmp_path / "t.jsonl", rows[:2])
    words = ("--prompts", "p.jsonl", "--count", "4", "--reward", "language")
    result = cli("select", *model, *words, "--method", "random")
    assert result.exit_code == 0, result.stderr
    folder = result.stdout.strip()
    assert len((tmp_path / folder / "data" / "prompts.jsonl").read_text().splitlines()) == 4
    small = ("--set", "rl.held_out=0", "--set", "rl.max_tokens=4", "--set", "rl.samples=2")
    learned = cli(
        *("rl", *model, "--prompts", folder, "--reward", "language", "--steps", "1"), *small
    )
    assert learned.exit_code == 0, learned.stderr
    pairs = cli("pairs", *model, "--prompts", folder, "--set", "pairs.sampling.max_tokens=4")
    assert pairs.exit_code == 2 and "0 pairs from 4 prompts" in pairs.stderr
    few = ("--set", "select_prompts.samples=2", "--set", "select_prompts.max_tokens=4")
    flat = cli("select", *model, *words, "--target", "t=t.jsonl", *few)
    assert flat.exit_code == 2 and "nothing can be learned from `t`" in flat.stderr
    nothing = cli("select", *model, "--prompts", "p.jsonl", "--count", "4", "--method", "random")
    assert nothing.exit_code == 2 and "reward" in nothing.stderr


def test_a_recipe_selects_prompts(cli, tmp_path, tiny_model):
    write(tmp_path / "p.jsonl", [{"prompt": f"Say {i}.", "language": "en"} for i in range(8)])
    recipe = f"""name = "r"
[model]
base = "{tiny_model}"
[[stage]]
kind = "select_prompts"
prompts = [{{ path = "p.jsonl" }}]
reward = {{ parts = [{{ kind = "language" }}] }}
method = "random"
count = 5
[[stage]]
kind = "rl"
prompts = [{{ stage = "select_prompts" }}, {{ generate = 1 }}]
reward = {{ parts = [{{ kind = "language" }}] }}
steps = 1
samples = 2
max_tokens = 4
held_out = 0
"""
    (tmp_path / "r.toml").write_text(recipe)
    result = cli("run", "r.toml")
    assert result.exit_code == 0, result.stderr
    manifest = json.loads(next(tmp_path.glob("**/rl-*/manifest.json")).read_bytes())
    assert manifest["prompts"]["rows"] == [
        {"source": "generated", "language": "en", "rows": 1},
        {"source": "p", "language": "en", "rows": 5},
    ]
    one = cli("select", "--recipe", "r.toml")
    assert one.exit_code == 0 and "finished before" in one.stderr
    (tmp_path / "r.toml").write_text(recipe.replace('stage = "select_prompts"', 'stage = "base"'))
    result = cli("run", "r.toml")
    assert result.exit_code == 2
    assert "needs chosen prompts, and `base` gives a model" in result.stderr


def test_a_recipe_selects_makes_pairs_and_aligns(cli, tmp_path, tiny_model):
    (tmp_path / "r.toml").write_text(
        f"""name = "r"
[model]
base = "{tiny_model}"
[[stage]]
kind = "pairs"
prompts = [{{ generate = 2 }}]
[[stage]]
kind = "apo"
pairs = "pairs"
epochs = 1
[[stage]]
kind = "apo"
name = "second"
pairs = "apo"
epochs = 1
"""
    )
    result = cli("run", "r.toml")
    assert result.exit_code == 2 and "needs pairs, and `apo` gives a model" in result.stderr


def test_pairs_of_several_stages_are_learned_together(cli, tmp_path, tiny_model, monkeypatch):
    monkeypatch.setattr("singalaut.generate.engine.open_engine", lambda *_: Speaks())
    comma = {"instruction_id": "punctuation:no_comma", "parameters": {}}
    for name in ("one", "two"):
        rows = [
            {
                "prompt": f"Tell me about river {i}, {name}.",
                "language": "en",
                "constraints": [comma],
            }
            for i in range(2)
        ]
        write(tmp_path / f"{name}.jsonl", rows)
    recipe = f"""name = "r"
[model]
base = "{tiny_model}"
[[stage]]
kind = "pairs"
name = "one"
prompts = [{{ path = "one.jsonl" }}]
[[stage]]
kind = "pairs"
name = "two"
prompts = [{{ path = "two.jsonl" }}]
[[stage]]
kind = "apo"
pairs = ["one", "two"]
steps = 1
"""
    (tmp_path / "r.toml").write_text(recipe)
    result = cli("run", "r.toml")
    assert result.exit_code == 0, result.stderr
    assert "one: 2 of 2 rows are pairs" in result.stderr
    assert "two: 2 of 2 rows are pairs" in result.stderr
    manifest = json.loads(next(tmp_path.glob("**/apo-*/manifest.json")).read_bytes())
    assert set(manifest["inputs"]) >= {"pairs.0", "pairs.1"}
    for wrong, said in (('"three"', "names `three`"), ('"base"', "needs pairs, and `base` gives")):
        (tmp_path / "r.toml").write_text(recipe.replace('"two"]', f"{wrong}]"))
        result = cli("run", "r.toml")
        assert result.exit_code == 2 and f"`apo.pairs` {said}" in result.stderr, result.stderr
    faults = {"[]": "either `data` or `pairs`", '["one", "one"]': "each stage of `pairs` once"}
    for wrong, said in faults.items():
        (tmp_path / "r.toml").write_text(recipe.replace('["one", "two"]', wrong))
        assert said in cli("run", "r.toml").stderr


ANSWER = "The river is long, and people fish there. It is cold in the morning, they say."


class Asked(BaseHTTPRequestHandler):
    """An endpoint that takes the commas out of what it is given."""

    seen: ClassVar[list[str]] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = body["messages"][-1]["content"]
        self.seen.append(text)
        message = {"role": "assistant", "content": ANSWER.replace(",", " and so")}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        data = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 1}}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Asked)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


class Speaks:
    """Stands for the engine, as no tiny model says anything of use."""

    def sample(self, requests):
        for request in requests:
            yield Completion(request.id, 0, (), ANSWER, "stop", Usage(1, 1))


def test_a_rewriter_behind_an_endpoint(cli, tmp_path, model, endpoint, monkeypatch):
    monkeypatch.setattr("singalaut.generate.engine.open_engine", lambda *_: Speaks())
    comma = {"instruction_id": "punctuation:no_comma", "parameters": {}}
    rows = [
        {"prompt": f"Tell me about river {i}.", "language": "en", "constraints": [comma]}
        for i in range(3)
    ]
    write(tmp_path / "p.jsonl", rows)
    words = ("--prompts", "p.jsonl", "--rewriter", endpoint, "--rewriter-name", "better")
    result = cli("pairs", *model, *words)
    assert result.exit_code == 0, result.stderr
    assert "3 pairs from 3 prompts" in result.stderr
    assert len(Asked.seen) == 3 and all(ANSWER in text for text in Asked.seen)
    folder = tmp_path / result.stdout.strip()
    report = json.loads((folder / "report" / "pairs.json").read_bytes())
    assert report["rewriter"].startswith("better at endpoint ")
    again = cli("pairs", *model, *words, "--output", "again")
    assert again.exit_code == 0 and len(Asked.seen) == 3  # every answer is known
    pairs = (folder / "data" / "pairs.jsonl").read_bytes()
    other = tmp_path / again.stdout.strip()
    assert (other / "data" / "pairs.jsonl").read_bytes() == pairs
    tuned = cli("apo", *model, "--data", str(folder), "--steps", "1", "--batch-size", "2")
    assert tuned.exit_code == 0 and "3 of 3 rows are pairs" in tuned.stderr, tuned.stderr
    nobody = cli("pairs", *model, *words[:2], "--rewriter", "http://127.0.0.1:9/v1",
                 "--rewriter-name", "x", "--set", 'pairs.rewriter.endpoint.retries=0')  # fmt: skip
    assert nobody.exit_code in (1, 2) and "error:" in nobody.stderr


@pytest.mark.parametrize(
    "words", [("pairs", "--generate", "2"), ("eval", "--pack", "demo", "--limit", "1")]
)
def test_the_cache_of_engines_has_a_bound(words, cli, model):
    kind = "evaluate" if words[0] == "eval" else words[0]
    result = cli(words[0], *model, *words[1:], "--set", f"{kind}.cache_gib=0.000001")
    assert result.exit_code != 0 and "the cache may take 0.00102 MiB" in result.stderr
