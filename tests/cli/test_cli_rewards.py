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
    assert wrong.exit_code == 2
    file.write_text('{"prompt": "?", "answer": "1"}')
    lacking = cli("rewards", "check", str(file))
    assert lacking.exit_code == 2 and "row 1" in lacking.stderr
