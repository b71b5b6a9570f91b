"""Comparisons of finished evaluations: what is matched, what differs, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from singalaut.errors import ArtifactError, RecipeError
from singalaut.evals.compare import compare, open_side
from singalaut.evals.output import load_results

ROWS = 60


def answering(right: float):
    """Right on a share of the questions, by the number at their end."""

    def answer(prompt: str) -> str:
        number = int(prompt.split()[-1])
        good = (number * 37 % 100) / 100 < right
        return f"Jawaban: {'Positif' if (number % 2 == 0) == good else 'Negatif'}"

    return answer


@pytest.fixture
def pack(pack):
    """One task of sixty questions, half of each label."""
    for file in pack.glob("translation*.toml"):
        file.unlink()
    rows = [
        {"id": f"s{i}", "label": ("positive", "negative")[i % 2], "text": f"kalimat {i}"}
        for i in range(ROWS)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (pack / "data" / "sentiment.id.jsonl").write_text(text, "utf-8")
    return pack


def evaluated(bench, share, **settings):
    bench.run({"m": answering(share)}, tasks=("sentiment",), languages=("id",), **settings)
    return bench.work.path


def test_a_difference_is_found_and_nothing_is_not(new_bench):
    good = evaluated(new_bench("good"), 0.9)
    bad = evaluated(new_bench("bad"), 0.6)
    found = compare(open_side(str(bad)), open_side(f"{good}:m"))
    row = found["rows"][0]
    assert (row["kind"], row["name"], row["n"]) == ("cell", "sentiment.id", ROWS)
    scores = [load_results(p)["models"]["m"]["tasks"]["sentiment"]["id"] for p in (bad, good)]
    assert row["first"] == pytest.approx(scores[0]["normalised"])
    assert row["difference"] == pytest.approx(scores[1]["normalised"] - scores[0]["normalised"])
    low, high = row["interval"]
    assert 0 < low < row["difference"] < high and row["p"] < 0.01
    kinds = [r["kind"] for r in found["rows"]]
    assert kinds == ["cell", "language", "competency", "overall"]
    same = compare(open_side(str(good)), open_side(str(good)))["rows"][0]
    assert (same["difference"], same["interval"], same["p"]) == (0, [0, 0], 1)


def test_intervals_are_of_paired_differences(new_bench):
    """Two models that differ in one question: far narrower than if drawn apart."""
    one = evaluated(new_bench("one"), 0.50)
    two = evaluated(new_bench("two"), 0.53)
    row = compare(open_side(str(one)), open_side(str(two)))["rows"][0]
    generator = np.random.default_rng(0)
    share = row["first"] / 200 + 0.5
    apart = np.diff(generator.binomial(ROWS, share, (2, 2000)), axis=0) / ROWS * 200
    assert np.ptp(row["interval"]) < np.ptp(np.quantile(apart, [0.025, 0.975])) / 2


def test_questions_are_matched_by_their_text_too(new_bench, pack):
    old = evaluated(new_bench("old"), 0.9)
    file = pack / "data" / "sentiment.id.jsonl"
    lines = file.read_text("utf-8").replace('kalimat 7"', 'kalimat 107"').split("\n")
    file.write_text("\n".join(lines[5:]), "utf-8")
    new = evaluated(new_bench("new"), 0.9)
    found = compare(open_side(str(old)), open_side(str(new)))
    assert found["questions_only_in"] == {"first": 6, "second": 1}
    assert found["rows"][0]["n"] == ROWS - 6


def test_scores_of_whole_answer_sets_are_resampled_too(new_bench):
    def good(prompt):
        return f"Terjemahan: teks nomor {prompt[-1]}"

    benches = [new_bench("a"), new_bench("b")]
    for bench, answer in zip(benches, (good, lambda p: "Terjemahan: lain"), strict=True):
        _with_translation(bench.pack)
        bench.run({"m": answer}, tasks=("translation",))
    sides = [open_side(str(bench.work.path)) for bench in benches]
    row = compare(*sides)["rows"][0]
    assert row["first"] == pytest.approx(100) and row["difference"] < -80 and row["p"] < 0.05


def _with_translation(pack):
    (pack / "translation.toml").write_text(
        """
name = "translation"
version = 1
competency = "nlg"
metric = "chrf++"
max_tokens = 32
licence = "CC0-1.0"
[languages.id]
tag = "Terjemahan:"
prompt = "Terjemahkan: {source}"
data = "data/translation.id.jsonl"
""",
        "utf-8",
    )
    rows = [
        {"id": f"t{i}", "reference": f"teks nomor {i}", "source": f"text {i}"} for i in range(10)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (pack / "data" / "translation.id.jsonl").write_text(text, "utf-8")


def test_sides_that_cannot_be_compared_are_refused(new_bench, tmp_path):
    both = new_bench("both")
    two = {"m": answering(0.5), "n": answering(0.5)}
    both.run(two, tasks=("sentiment",), languages=("id",))
    with pytest.raises(RecipeError, match="has 2 models"):
        open_side(str(both.work.path))
    with pytest.raises(RecipeError, match="no model `x`"):
        open_side(f"{both.work.path}:x")
    with pytest.raises(ArtifactError):
        open_side(str(tmp_path / "nowhere"))
    thai = new_bench("thai")
    thai.run({"m": lambda p: "คำตอบ: แง่บวก"}, tasks=("sentiment",), languages=("th",))
    indonesian = evaluated(new_bench("indonesian"), 0.5)
    with pytest.raises(RecipeError, match="no scored question in common"):
        compare(open_side(str(thai.work.path)), open_side(str(indonesian)))
    next((indonesian / "responses" / "m").iterdir()).write_text("{broken", "utf-8")
    with pytest.raises(ArtifactError, match="cannot be read"):
        compare(open_side(str(indonesian)), open_side(str(indonesian)))


def test_what_nobody_scored_is_named_and_left_out(new_bench):
    """Such as conversations without a judge."""
    bench = new_bench("both")
    bench.run({"m": lambda prompt: "Jawaban: Positif"}, tasks=("sentiment",))
    file = bench.work.path / "responses" / "m" / "sentiment.th.jsonl"
    rows = bench.rows("m", "sentiment.th")
    for row in rows:
        row["runs"] = [run | {"score": None} for run in row["runs"]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    side = open_side(str(bench.work.path))
    found = compare(side, side)
    assert found["cells_not_comparable"] == ["sentiment.th"]
    assert [row["name"] for row in found["rows"] if row["kind"] == "cell"] == ["sentiment.id"]
