"""`rewards check`: scores of answers from a file, and what it refuses."""

from __future__ import annotations

import json


def test_the_command_line(cli, tmp_path):
    rows = [
        {"prompt": "6 * 7?", "answer": "42", "response": "Answer: 42"},
        {"prompt": "6 * 7?", "answer": "42", "response": "Answer: 41"},
    ]
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    shown = cli("rewards", "check", str(file), "--part", "maths")
    assert shown.exit_code == 0 and "2 answers, 2 scored, mean 0.500" in shown.stdout
    assert "is the reference" in shown.stdout
    wrong = cli("rewards", "check", str(file), "--part", "poetry")
    assert wrong.exit_code == 2 and "`poetry`" in wrong.stderr
    file.write_text('{"prompt": "?", "answer": "1"}')
    lacking = cli("rewards", "check", str(file))
    assert lacking.exit_code == 2 and "row 1" in lacking.stderr


def test_rows_that_cannot_be_used_are_named_and_the_others_scored(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("def half(response, prompt, sample): return 0.5\n")
    rows = ["no json", "[1]", '{"prompt": "?", "answer": "1", "response": null}']
    rows += ['{"prompt": "?", "language": "xx", "response": "1"}']
    file = tmp_path / "answers.jsonl"
    file.write_text("\n".join([*rows, '{"prompt": "?", "answer": "1", "response": "Answer: 1"}']))
    shown = cli("rewards", "check", str(file), "--part", "maths", "--part", "own:half")
    assert shown.exit_code == 0 and "1 scored, mean 0.750, 4 rows left out" in shown.stdout
    assert "row 1 is left out: it is no JSON" in shown.stderr and "`xx`" in shown.stderr
    file.write_text("")
    assert "the file is empty" in cli("rewards", "check", str(file)).stderr
    both = cli("rewards", "check", str(file), "--part", "maths", "--recipe", "r.toml")
    assert both.exit_code == 2 and "`--recipe`" in both.stderr
    close = cli("rewards", "check", str(file), "--part", "lenght")
    assert "did you mean `length`?" in close.stderr
