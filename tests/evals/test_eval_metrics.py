"""Metrics agree with independent implementations on thousands of ordinary and odd texts."""

from __future__ import annotations

import random
import string
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.evals.chrf import SIGNATURE, Chrf, chrf_score, corpus_chrf
from singalaut.evals.measure import point, strata_of
from singalaut.evals.metrics import (
    accuracy,
    balanced_accuracy,
    bootstrap_median,
    chance_normalised,
    exact_match,
    mean,
    rouge_l,
    token_f1,
)
from singalaut.evals.words import LONGEST_THAI, burmese_syllables, f1_words, pieces, rouge_words

COUNT = 2000
LABELS = ("x", "y", "z")
PAIRS = st.lists(
    st.tuples(st.sampled_from([*LABELS, None]), st.sampled_from(LABELS)), min_size=1, max_size=30
)
SENTENCES = [
    *("Harga beras naik lagi bulan ini.", "ราคาข้าวขึ้นอีกแล้วในเดือนนี้", "Giá gạo lại tăng, tháng này."),
    *("တွင် ဆန်ဈေး ထပ်တက်သည်။", "ລາຄາເຂົ້າເພີ່ມຂຶ້ນອີກ", "តម្លៃអង្ករឡើងថ្លៃម្ដងទៀត។"),
    *("அரிசி விலை மீண்டும் உயர்ந்தது.", "Tumaas muli ang presyo ng bigas.", "米价这个月又涨了。"),
    *("(satu, dua!) — 'tiga'…", "x", "", "The price (of rice) rose 3.5% in 2024-25"),
]
ODD = "ကခဂ့်္ါိုူေဲံးျြွှာ၊။"
ODD += "\u200b\u200c\u200d\u00a0\u2028é\u0301½²१२①😀🏽\ufe0f\u20e3，。、！ａ１％￭▁│■"
ODD += "\x00\x07\ufffd\u202eא\t\n"
ALPHABET = [*map(chr, range(0x20, 0x7F)), *ODD]


def texts(seed: int, count: int = COUNT) -> list[tuple[str, str]]:
    """Pairs of a response and a reference: alike, unlike, cut, jumbled, and of odd characters."""
    generator = random.Random(seed)

    def odd() -> str:
        return "".join(generator.choices(ALPHABET, k=generator.randint(0, 60)))

    made = []
    for _ in range(count):
        reference = generator.choice(SENTENCES) if generator.random() < 0.7 else odd()
        kind = generator.random()
        if kind < 0.5:
            response = reference[: generator.randint(0, len(reference))] + odd()[:8]
        elif kind < 0.7:
            response = "".join(generator.sample(reference, len(reference)))
        else:
            response = generator.choice(SENTENCES) if kind < 0.85 else odd()
        made.append((response, reference))
    return made


def test_balanced_accuracy_is_that_of_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score

    generator = random.Random(0)
    for _ in range(20):
        gold = generator.choices("abcd", weights=(5, 1, 3, 1), k=COUNT)
        predictions = [
            g if generator.random() < 0.5 else generator.choice([*"abcd", None]) for g in gold
        ]
        named = [p or "null" for p in predictions]
        wanted = balanced_accuracy_score(gold, named)
        assert balanced_accuracy(predictions, gold, "abcd") == pytest.approx(wanted, abs=1e-12)
        hits = np.array([[float(p == g) for p, g in zip(predictions, gold, strict=True)]])
        assert point(strata_of(hits, gold))[0] == pytest.approx(wanted, abs=1e-12)
        normal = point(strata_of(hits, gold, chance=0.25))[1]
        assert normal == pytest.approx((wanted - 0.25) / 0.75, abs=1e-12)
        assert accuracy(predictions, gold) != pytest.approx(wanted, abs=1e-6)


def test_chrf_is_that_of_sacrebleu():
    from sacrebleu.metrics import CHRF

    metric = CHRF(word_order=2)
    pairs = texts(seed=1)
    hypotheses, references = map(list, zip(*pairs, strict=True))
    wanted = metric.corpus_score(hypotheses, [references])
    assert str(metric.get_signature()).startswith(SIGNATURE + "|")
    statistics = Chrf([[r] for r in references]).statistics(hypotheses)
    assert float(chrf_score(statistics.sum(0))) == pytest.approx(wanted.score, abs=1e-9)
    assert corpus_chrf(hypotheses, [[r] for r in references]) == pytest.approx(wanted.score)
    singly = [metric.sentence_score(h, [r]).score for h, r in pairs]
    np.testing.assert_allclose(chrf_score(statistics), singly, atol=1e-9)
    other = CHRF(word_order=1).corpus_score(hypotheses, [references]).score
    assert abs(other - wanted.score) > 1e-3


def test_chrf_takes_the_best_of_several_references_as_sacrebleu_does():
    from sacrebleu.metrics import CHRF

    metric = CHRF(word_order=2)
    pairs = texts(seed=2, count=400)
    references = [[r, SENTENCES[i % 13], r[::-1]] for i, (_, r) in enumerate(pairs)]
    hypotheses = [h for h, _ in pairs]
    streams = [[row[k] for row in references] for k in range(3)]
    wanted = metric.corpus_score(hypotheses, streams).score
    assert corpus_chrf(hypotheses, references) == pytest.approx(wanted, abs=1e-9)
    alone = corpus_chrf(hypotheses, [row[:1] for row in references])
    assert alone != pytest.approx(wanted, abs=1e-3)


def test_chrf_of_more_pairs_than_are_counted_at_once(monkeypatch):
    pairs = texts(seed=3, count=300)
    hypotheses, references = zip(*pairs, strict=True)
    whole = Chrf([[r] for r in references]).statistics(hypotheses)
    monkeypatch.setattr("singalaut.evals.chrf.CHUNK", 7)
    pieces_of = Chrf([[r] for r in references]).statistics(hypotheses)
    np.testing.assert_array_equal(whole, pieces_of)


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=4))
def test_chrf_stays_in_range(pairs):
    hypotheses, references = zip(*pairs, strict=True)
    assert 0 <= corpus_chrf(hypotheses, [[r] for r in references]) <= 100 + 1e-9


def plain_lcs(first: list[str], second: list[str]) -> int:
    table = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]
    for i, left in enumerate(first):
        for j, right in enumerate(second):
            same = table[i][j] + 1 if left == right else 0
            table[i + 1][j + 1] = max(same, table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def multilingual_words(language: str):
    """The tokenizer of the multilingual ROUGE of XL-Sum, as its parts are described."""
    import unicodedata

    import pyonmttok
    from pythainlp.tokenize import word_tokenize

    aggressive = pyonmttok.Tokenizer("aggressive")

    def words(text: str) -> list[str]:
        cleaned = ""
        for character in text.lower().strip():
            category = unicodedata.category(character)
            if character in " \t\n\r" or category == "Zs":
                cleaned += " "
            elif character == "\ufffd" or category.startswith("C"):
                continue
            elif character in string.punctuation or category.startswith("P"):
                cleaned += " "
            else:
                cleaned += character
        cleaned = " ".join(cleaned.split())
        if language == "th":
            found = word_tokenize(cleaned, engine="newmm") if cleaned else []
        elif language == "my":
            found = plain_syllables(cleaned)
        else:
            found = []
        if not found and cleaned:
            spaced = ""
            for character in " ".join(aggressive.tokenize(cleaned)[0]):
                han = "\u4e00" <= character <= "\u9fff" or "\u3400" <= character <= "\u4dbf"
                spaced += f" {character} " if han else character
            found = spaced.split()
        return [word for word in found if word]

    return words


def plain_syllables(text: str) -> list[str]:
    """Burmese syllables by three passes over a list of characters."""
    text = text.replace("\u200c", " ").replace("\u1037\u103a", "\u103a\u1037")
    units: list[str] = []
    dependent = {*map(chr, range(0x102B, 0x1033)), *map(chr, range(0x1036, 0x1039))}
    dependent |= {*map(chr, range(0x103B, 0x103F)), "\u103a"}
    for character in "".join(text.lower().split()):
        if units and character in dependent:
            units[-1] += character
        else:
            units.append(character)
    for place in range(1, len(units)):
        if "\u103a" in units[place] and len(units[place]) < 4:
            units[place - 1], units[place] = units[place - 1] + units[place], ""
    joined = " ".join(filter(None, units)).replace(" \u1039 ", "\u1039")
    return joined.split()


@pytest.mark.parametrize("language", ["id", "th", "my", "ta", "zh", "km"])
def test_rouge_is_the_multilingual_one(language):
    theirs, ours = multilingual_words(language), rouge_words(language)
    scores, differences = [], 0
    for response, reference in texts(seed=len(language) + ord(language[0]), count=COUNT // 4):
        gold, given = theirs(reference), theirs(response)
        common = plain_lcs(gold, given)
        wanted = 0.0
        if common:
            precision, recall = common / len(given), common / len(gold)
            wanted = 2 * precision * recall / (precision + recall)
        score = rouge_l(ours(response), ours(reference))
        assert score == pytest.approx(wanted, abs=1e-9), (response, reference)
        scores.append(score)
        differences += score != rouge_l(response.split(), reference.split())
    assert differences > 50
    assert bootstrap_median(scores) == pytest.approx(published_median(scores), abs=1e-9)


def published_median(scores: list[float]) -> float:
    """The bootstrap of the published scorer, in its own words: one seed, a thousand resamples."""
    matrix = np.vstack([[s, s, s] for s in scores])
    np.random.seed(4156)
    means = np.zeros((1000, 3))
    for i in range(1000):
        index = np.random.choice(np.arange(len(matrix)), size=len(matrix))
        means[i, :] = np.mean(matrix[index, :], axis=0)
    return float(np.percentile(means, 50, axis=0)[2])


def test_pieces_are_those_of_the_tokenizer_behind_the_published_scores():
    import pyonmttok

    aggressive = pyonmttok.Tokenizer("aggressive")
    for response, reference in texts(seed=9):
        for text in (response, reference):
            cleaned = " ".join(rouge_clean(text).split())
            assert pieces(cleaned) == aggressive.tokenize(cleaned)[0], repr(cleaned)


def rouge_clean(text: str) -> str:
    from singalaut.evals.words import _clean

    return _clean(text)


@given(st.text(st.sampled_from("ကခ့်္ါိုူေဲံးျြ \u200cab"), max_size=25))
def test_burmese_syllables_are_those_of_three_passes(text):
    assert burmese_syllables(text) == plain_syllables(text)


@pytest.mark.parametrize("language", ["id", "th", "vi"])
def test_token_f1_is_that_of_the_published_rule(language):
    from pythainlp.tokenize import word_tokenize

    def normal(text: str) -> list[str]:
        if language == "th":
            text = " ".join(word_tokenize(text, engine="newmm"))
        kept = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return " ".join(kept.split()).split()

    cut = f1_words(language)
    for response, reference in texts(seed=5):
        golds = [reference, SENTENCES[0]]
        best = 0.0
        for gold in golds:
            common = sum((Counter(normal(response)) & Counter(normal(gold))).values())
            if common:
                p, r = common / len(normal(response)), common / len(normal(gold))
                best = max(best, 2 * p * r / (p + r))
        words = [cut(gold) for gold in golds]
        assert token_f1(cut(response), words) == pytest.approx(best, abs=1e-12)
        same = any(normal(response) == normal(gold) for gold in golds)
        assert exact_match(cut(response), words) == float(same)
    assert token_f1(["a", "b"], [["b", "c"]]) == 0.5 != exact_match(["a", "b"], [["b", "c"]])


def test_thai_of_any_length_is_cut_without_loss():
    text = "ประเทศไทย" * (LONGEST_THAI // 9) + "x" * 3 * LONGEST_THAI
    found = f1_words("th")(text)
    assert "".join(found) == text and found[:4] == f1_words("th")("ประเทศไทย" * 4)[:4]
    assert f1_words("th")("") == []


@given(PAIRS, st.randoms())
def test_the_order_of_rows_and_labels_does_not_matter(pairs, generator):
    shuffled = generator.sample(pairs, len(pairs))
    labels = generator.sample(LABELS, len(LABELS))
    before = balanced_accuracy(*zip(*pairs, strict=True), LABELS)
    assert balanced_accuracy(*zip(*shuffled, strict=True), labels) == pytest.approx(before)


def test_no_answer_is_wrong_and_no_class():
    gold = ["x", "x", "y", "y"]
    assert balanced_accuracy(["x", None, "y", None], gold, LABELS) == 0.5
    assert balanced_accuracy(["x", "x", "x", None], gold, LABELS) == 0.5
    assert accuracy(["x", "x", "x", None], gold) == 0.5
    uneven = ["x", "x", "x", "y"]
    assert balanced_accuracy(["x"] * 4, uneven, LABELS) == 0.5 != accuracy(["x"] * 4, uneven)


def test_chance_is_zero_and_perfection_one():
    assert chance_normalised(0.5, 0.5) == 0
    assert chance_normalised(1, 1 / 3) == 1
    assert chance_normalised(0.1, 0.5) == 0
    assert chance_normalised(0.75, 0.5) == 0.5


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="1 hypotheses for 2 references"):
        Chrf([["x"], ["y"]]).statistics(["x"])
    with pytest.raises(ValueError, match="no sentences"):
        corpus_chrf([], [])
    with pytest.raises(ValueError, match="longer"):
        accuracy(["x"], ["x", "y"])
    with pytest.raises(ValueError, match="no values"):
        mean([])
