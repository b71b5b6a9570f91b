"""Instructions that can be checked: what counts, what is told beside it, and what is left out."""

from __future__ import annotations

import json

import pytest

TASK = """
name = "follow"
version = 1
competency = "instruction-following"
metric = "instructions"
max_tokens = 200
licence = "CC0-1.0"
[languages.id]
prompt = "{text}"
data = "data/follow.jsonl"
"""
BULLETS = {"type": "detectable_format:number_bullet_lists", "num_bullets": 2}
END = {"type": "startend:end_checker", "end_phrase": "Sekian dari saya."}
FIRST = "* Makanlah sayur dan buah setiap hari.\n* Tidurlah lebih awal setiap malam."
LATE = "Saya suka membaca buku di rumah. Sekian dari saya.\nTerima kasih banyak."
ENGLISH = "* You should eat vegetables every day.\n* You should sleep early every night."
ANSWERS = {"satu": FIRST, "dua": LATE, "tiga": ENGLISH, "empat": FIRST, "lima": ""}


@pytest.fixture
def follow(pack):
    rows = [
        {"id": "satu", "text": "satu", "constraints": [BULLETS]},
        {"id": "dua", "text": "dua", "constraints": [END]},
        {"id": "tiga", "text": "tiga", "constraints": [BULLETS]},
        {"id": "empat", "text": "empat", "constraints": [{"type": "dance:polka"}]},
        {"id": "lima", "text": "lima", "constraints": [BULLETS]},
        {"id": "enam", "text": "enam", "constraints": "two bullets"},
    ]
    (pack / "follow.toml").write_text(TASK, "utf-8")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (pack / "data" / "follow.jsonl").write_text(text, "utf-8")
    return pack


def test_what_is_followed_in_the_right_language_counts(bench, follow):
    results = bench.run({"m": ANSWERS.__getitem__}, tasks=("follow",))
    cell = results["models"]["m"]["tasks"]["follow"]["id"]
    assert cell["n"] == 5 and cell["rules"] == "native"
    assert cell["score"] == pytest.approx(100 / 4)  # one followed, of four that can be checked
    assert cell["followed"] == pytest.approx(100 * 2 / 4)  # whatever the language
    assert cell["loose"] == pytest.approx(100 * 2 / 4)  # without its last line `dua` passes
    assert cell["counts"]["unchecked"] == 1
    assert cell["counts"]["wrong_language"] >= 1 and cell["counts"]["empty"] == 1
    assert "sea_ifeval" in cell
    rows = {row["id"]: row["runs"][0] for row in bench.rows("m", "follow.id")}
    assert rows["satu"]["score"] == 1 and rows["empat"]["score"] is None
    assert any("language" in reason for reason in rows["tiga"]["reasons"])
    asked = results["tasks"]["follow"]["languages"]["id"]
    assert (asked["rows_left_out"], asked["row_problems"]) == (1, {"missing_field": 1})
