"""Training rows that hold questions of a pack are found, others are not."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.errors import DataError, MachineError
from singalaut.evals.contamination import check, letters, piece_length, window_hashes
from singalaut.evals.pack import load_pack
from singalaut.evals.tasks import choose

LONG = (
    "Pagi tadi kakek berjalan ke sawah sambil membawa keranjang penuh ubi untuk tetangga yang "
    "baru pindah dari kota."
)
THAI = "เมื่อเช้านี้คุณตาเดินไปทุ่งนาพร้อมตะกร้าใส่มันเทศเต็มใบเพื่อนำไปให้เพื่อนบ้านที่เพิ่งย้ายมา"


@pytest.fixture
def cells(pack):
    rows = [
        {"id": "long", "label": "positive", "text": LONG},
        {"id": "short", "label": "negative", "text": "Saya suka."},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (pack / "data" / "sentiment.id.jsonl").write_text(text, "utf-8")
    thai = json.dumps({"id": "thai", "label": "positive", "text": THAI}, ensure_ascii=False)
    (pack / "data" / "sentiment.th.jsonl").write_text(thai + "\n", "utf-8")
    return choose(load_pack(pack), tasks=("sentiment",))


def found_in(cells, tmp_path, *texts):
    file = tmp_path / "training.jsonl"
    rows = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), "utf-8")
    report = check(cells, [file])
    assert report["rows"] == len(texts)
    return {cell["cell"]: (cell["whole"], cell["pieces"]) for cell in report["cells"]}


NONE = {"sentiment.id": (0, 0), "sentiment.th": (0, 0)}


def test_copies_are_found_whatever_their_spaces_and_marks(cells, tmp_path):
    assert found_in(cells, tmp_path, "Apa kabar?", "Saya suka.", LONG[:40]) == NONE
    copy = "  " + LONG.upper().replace(" ", "\n ", 3).replace(",", " — ")
    assert found_in(cells, tmp_path, copy)["sentiment.id"] == (1, 1)
    assert found_in(cells, tmp_path, f"Nilai kalimat ini:\n{LONG}\nJawaban:") == {
        "sentiment.id": (1, 1),
        "sentiment.th": (0, 0),
    }


def test_pieces_are_found_in_scripts_with_and_without_spaces(cells, tmp_path):
    piece = "Dulu " + LONG[10:90].lower() + " itu."
    assert found_in(cells, tmp_path, piece)["sentiment.id"] == (0, 1)
    assert found_in(cells, tmp_path, "ก่อน" + THAI[5:60] + "นะ")["sentiment.th"] == (0, 1)
    other = LONG[:45] + " bukan " + LONG[45:80]  # no window of the text is left whole
    assert found_in(cells, tmp_path, other[:40] + other[45:])["sentiment.id"] == (0, 0)


def test_short_questions_are_found_inside_and_very_short_ones_as_lines(cells, pack, tmp_path):
    texts = {"half": "Buku itu sangat tebal dan mahal.", "tiny": "Dia datang pagi."}
    rows = [{"id": name, "label": "positive", "text": text} for name, text in texts.items()]
    file = pack / "data" / "sentiment.id.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    def whole(text):
        return found_in(cells, tmp_path, text)["sentiment.id"][0]

    assert whole(f"Nilai: {texts['half']} Jawaban: Positif") == 1
    assert whole(f"Nilai: {texts['half'][:-8]} Jawaban: Positif") == 0
    assert whole(f"Nilai: {texts['tiny']} Jawaban: Positif") == 0
    assert whole(f"Nilai:\n{texts['tiny']}\nJawaban: Positif") == 1


def test_where_is_told(cells, tmp_path):
    file = tmp_path / "training.jsonl"
    file.write_text(json.dumps({"text": "x"}) + "\n\n" + json.dumps({"text": LONG}) + "\n")
    report = check(cells, [file])
    assert report["cells"][0]["examples"] == [
        {"question": "long", "where": "training.jsonl, line 3", "whole": True, "text": LONG}
    ]


def test_files_that_are_none_are_refused(cells, tmp_path):
    file = tmp_path / "training.jsonl"
    file.write_text('{"text": "a"}\n{"text": \n')
    with pytest.raises(DataError, match="not JSON") as caught:
        check(cells, [file])
    assert "line 2" in str(caught.value.where)
    with pytest.raises((DataError, MachineError)):
        check(cells, [tmp_path / "none.jsonl"])


@given(st.text(min_size=4, max_size=60), st.integers(1, 4))
def test_windows_are_equal_exactly_where_their_texts_are(text, length):
    hashes = window_hashes(text, length)
    windows = [text[i : i + length] for i in range(len(text) - length + 1)]
    assert len(hashes) == len(windows)
    by_text: dict[str, int] = {}
    for window, value in zip(windows, hashes.tolist(), strict=True):
        assert by_text.setdefault(window, value) == value
    assert len(set(by_text.values())) == len(by_text)


def test_windows_do_not_depend_on_what_stands_around():
    long = "x" * 5000 + "rumah di tepi sungai" + "y" * 5000
    inside = window_hashes(long, 12).tolist()
    assert inside[5000] == window_hashes("rumah di tepi sungai", 12).tolist()[0]


def test_pieces_are_as_long_as_the_script_asks():
    assert piece_length(letters("我喜欢在河边看书")) < piece_length(letters(THAI))
    assert piece_length(letters(THAI)) < piece_length(letters(LONG))
    assert letters("Ｈａｌｏ, “Dunia” 2！") == "halodunia2"
    assert "่" in letters("ไม่")
