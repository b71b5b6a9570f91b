"""The HTML report: what it holds, and what a browser makes of it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

from singalaut.errors import ArtifactError
from singalaut.evals.output import load_results
from singalaut.evals.report import report_data, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
EVIL = "</script><!--<script>alert(1)</script> <img src=x onerror=alert(2)> \u2028 &amp; “ไทย”"


def answer_first(prompt: str) -> str:
    if "คำตอบ" in prompt:
        return "คำตอบ: แง่บวก"
    if "Jawaban" in prompt:
        return f"Jawaban: Positif {EVIL}" if "negative" in prompt else "Jawaban: Positif"
    return f"Terjemahan: teks nomor {prompt[-1]}"


def answer_second(prompt: str) -> str:
    return "tidak tahu"


@pytest.fixture
def page(bench, tmp_path):
    bench.run({"first": answer_first, "second": answer_second})
    folder = bench.work.path
    write_report(folder, load_results(folder), tmp_path / "report.html", answers=50)
    return tmp_path / "report.html"


def seen(page, view=""):
    """The document after its script has run, as a browser has it."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    address = page.resolve().as_uri() + ("#" + view if view else "")
    shown = subprocess.run([*command, address], capture_output=True, timeout=120, check=True)
    return shown.stdout.decode()


def texts(document, pattern):
    return [html.unescape(re.sub("<[^>]+>", "", found)) for found in re.findall(pattern, document)]


def test_the_page_needs_nothing_else_and_no_text_can_break_out(page):
    source = page.read_text("utf-8")
    fixed = re.sub(r"^const data = .*;$", "", source, flags=re.M)
    assert not re.search(r"(src|href)\s*=|https?://(?!www\.w3\.org/2000/svg)|@import|url\(", fixed)
    assert source.count("<script>") == source.count("</script>") == 1
    data = re.search(r"^const data = (.*);$", source, re.M)
    assert data is not None and "<" not in data[1]
    answers = [
        answer["response"]
        for cell in json.loads(data[1])["cells"]
        for question in cell["questions"]
        for answer in question["answers"].values()
    ]
    assert any(EVIL in answer for answer in answers)


def test_histograms_count_every_answer_and_questions_are_side_by_side(bench):
    bench.run(
        {"first": answer_first, "second": answer_second}, temperature=1.0, protocol={"seeds": 2}
    )
    folder = bench.work.path
    data = report_data(folder, load_results(folder), answers=3)
    cell = next(c for c in data["cells"] if (c["task"], c["language"]) == ("sentiment", "id"))
    assert sum(cell["figures"]["first"]["distribution"]) == 4 * 2
    assert cell["figures"]["second"]["distribution"] == [8, *[0] * 9]
    assert len(cell["questions"]) == 3
    assert set(cell["questions"][0]["answers"]) == {"first", "second"}
    odd = cell["questions"][0]["answers"]["second"]["odd"]
    assert "unextractable" in odd


def test_answers_that_are_gone_are_told_of(bench, tmp_path):
    bench.run({"first": answer_first})
    folder = bench.work.path
    next((folder / "responses" / "first").iterdir()).unlink()
    with pytest.raises(ArtifactError, match="answers cannot be read"):
        write_report(folder, load_results(folder), tmp_path / "r.html", answers=5)
    assert not (tmp_path / "r.html").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_the_figures_and_the_answers(page):
    document = seen(page)
    assert texts(document, r"<h1[^>]*>.*?</h1>") == ["Evaluation on synthetic"]
    rows = texts(document, r"<tr data-cell=.*?</tr>")
    assert len(rows) == 4 and document.count("<svg") == 4 * 2
    assert rows[0].startswith("sentimentidaccuracy4")
    assert "alert" not in "".join(re.findall(r"<img[^>]*>", document))
    assert texts(document, r'<p class="note" id="count">.*?</p>')[0].startswith("10 questions")
    assert len(re.findall(r'<div class="question">', document)) == 10


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
@pytest.mark.parametrize(
    ("view", "ids"),
    [
        ("task=sentiment&language=th", ["s0", "s1"]),
        ("task=sentiment&language=id&show=right", []),
        ("task=sentiment&language=id&show=wrong", ["s0", "s1", "s2", "s3"]),
        ("text=kalimat%20negative", ["s1"]),
        ("language=th&odd=unextractable", ["s0", "s1"]),
    ],
)
def test_a_view_is_named_by_its_address(page, view, ids):
    document = seen(page, view)
    shown = texts(document, r'<div class="question"><header><strong>.*?</strong>')
    assert [text.split(" · ")[-1] for text in shown] == ids
