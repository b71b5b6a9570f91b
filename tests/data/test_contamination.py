"""Copies of evaluation texts in training rows: found in disguise, not confused with wording."""

from __future__ import annotations

import json

import pytest

from singalaut.data.contamination import EvaluationTexts, read_evaluation_texts
from singalaut.errors import DataError

QUESTION = "The committee postponed its decision on the new harbour until the following spring."
THAI = "คณะกรรมการเลื่อนการตัดสินใจเกี่ยวกับท่าเรือใหม่ออกไปจนถึงฤดูใบไม้ผลิปีหน้า"
CHINESE = "委员会把关于新港口的决定推迟到了明年春天才做出。"
SHORT = "Where is the old harbour?"
WORDING = "Answer the question below with one of the given letters and nothing else."
OTHER = "A quite different sentence about rice, rivers and the weather in the mountains of Laos."


@pytest.fixture(scope="module")
def evaluation():
    questions = [
        f"{WORDING} Question number {i}: {'abcdefghijklmnop'[i % 16] * 30}" for i in range(40)
    ]
    return EvaluationTexts.build(
        [QUESTION, THAI, CHINESE, SHORT, *["positive " * 4] * 30, *questions]
    )


def found(evaluation, row, share=0.6):
    return [evaluation.texts[hit.text] for hit in evaluation.find([OTHER, row], share)]


@pytest.mark.parametrize("text", [QUESTION, THAI, CHINESE])
def test_copies_are_found_in_disguise(evaluation, text):
    disguises = [
        text,
        f"Translate:\n\n{text}\nThank you.",
        text.upper().replace(" ", "\n"),
        "- " + "*".join(text),
        text[: int(len(text) * 0.85)],
        f"{OTHER}{text}{OTHER}",
    ]
    for disguise in disguises:
        assert found(evaluation, disguise) == [text], disguise
    assert found(evaluation, text[: len(text) // 2]) == []
    assert found(evaluation, text[: len(text) // 2], share=0.2) == [text]


def test_short_texts_are_found_as_lines(evaluation):
    assert found(evaluation, f"Hello!\n{SHORT.lower()}\n") == [SHORT]
    assert found(evaluation, f"Tell me. {SHORT}") == []


def test_labels_and_wording_are_not_questions(evaluation):
    assert found(evaluation, WORDING) == []
    assert found(evaluation, "positive " * 4) == []
    assert found(evaluation, OTHER) == []


def test_the_share_is_that_of_a_plain_count(evaluation):
    """Runs of 20 letters by a loop; and the comparison fails for runs of another size."""
    part = QUESTION[:70]

    def runs(text, size):
        letters = [c.lower() for c in text if c.isalnum()]
        return {tuple(letters[i : i + size]) for i in range(len(letters) - size + 1)}

    (hit,) = evaluation.find([part], 0.1)
    assert hit.share == pytest.approx(len(runs(part, 20)) / len(runs(QUESTION, 20)))
    assert hit.share != pytest.approx(len(runs(part, 8)) / len(runs(QUESTION, 8)))


def test_an_index_is_the_same_when_it_is_read_back(evaluation, tmp_path):
    evaluation.save(tmp_path)
    again = EvaluationTexts.load(tmp_path)
    rows = [QUESTION, OTHER, CHINESE, SHORT, "", "\ud800" + THAI]
    assert again.find(rows, 0.5) == evaluation.find(rows, 0.5)
    assert [hit.document for hit in again.find(rows, 0.5)] == [0, 2, 3, 5]
    assert EvaluationTexts.build([]).find(rows, 0.5) == []


def test_every_text_of_a_folder_is_read(tmp_path):
    (tmp_path / "data").mkdir()
    rows = [{"question": "a", "choices": ["b", {"text": "c"}], "n": 1}]
    (tmp_path / "data" / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "notes.txt").write_text("d")
    assert sorted(read_evaluation_texts([tmp_path])) == ["a", "b", "c", "d"]
    (tmp_path / "data" / "a.jsonl").write_text("{no")
    with pytest.raises(DataError, match="not valid JSON"):
        read_evaluation_texts([tmp_path])
