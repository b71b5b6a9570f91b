"""Metrics agree with independent formulas, and hold what they promise on any input."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from singalaut.evals.metrics import (
    CHRF_SIGNATURE,
    accuracy,
    balanced_accuracy,
    chance_normalised,
    chrf_plus_plus,
    mean,
)

LABELS = ("x", "y", "z")
PAIRS = st.lists(
    st.tuples(st.sampled_from([*LABELS, None]), st.sampled_from(LABELS)), min_size=1, max_size=30
)
SENTENCES = [
    ("Harga beras naik lagi.", "Harga beras naik lagi bulan ini."),
    ("ราคาข้าวขึ้นอีก", "ราคาข้าวขึ้นอีกแล้ว"),
    ("", "Giá gạo lại tăng."),
    ("(satu, dua!)", "satu, dua?"),
    ("x", "ចម្លើយ៖ ក"),
]


def confusion_balanced(predictions, gold):
    """Mean over the classes of gold of diagonal over row sum, from the confusion matrix."""
    matrix = Counter(zip(gold, predictions, strict=True))
    recalls = []
    for label in set(gold):
        row = sum(count for (g, _), count in matrix.items() if g == label)
        recalls.append(matrix[label, label] / row)
    return sum(recalls) / len(recalls)


@given(PAIRS)
def test_accuracies_agree_with_the_confusion_matrix(pairs):
    predictions, gold = zip(*pairs, strict=True)
    assert balanced_accuracy(predictions, gold, LABELS) == pytest.approx(
        confusion_balanced(predictions, gold), abs=1e-12
    )
    assert accuracy(predictions, gold) == sum(p == g for p, g in pairs) / len(pairs)
    assert 0 <= balanced_accuracy(predictions, gold, LABELS) <= 1
    assert 0 <= accuracy(predictions, gold) <= 1


@given(PAIRS, st.randoms())
def test_the_order_of_rows_and_labels_does_not_matter(pairs, random):
    shuffled = random.sample(pairs, len(pairs))
    labels = random.sample(LABELS, len(LABELS))
    before = balanced_accuracy(*zip(*pairs, strict=True), LABELS)
    assert balanced_accuracy(*zip(*shuffled, strict=True), labels) == pytest.approx(before)


def test_no_answer_is_wrong_and_no_class():
    gold = ["x", "x", "y", "y"]
    assert balanced_accuracy(["x", None, "y", None], gold, LABELS) == 0.5
    assert balanced_accuracy(["x", "x", "x", None], gold, LABELS) == 0.5
    assert accuracy(["x", "x", "x", None], gold) == 0.5
    assert (
        balanced_accuracy(["x"] * 4, ["x", "x", "x", "y"], LABELS)
        == 0.5
        != accuracy(["x"] * 4, ["x", "x", "x", "y"])
    )


def test_chance_is_zero_and_perfection_one():
    assert chance_normalised(0.5, 0.5) == 0
    assert chance_normalised(1, 1 / 3) == 1
    assert chance_normalised(0.1, 0.5) == 0
    assert chance_normalised(0.75, 0.5) == 0.5


def chrf_by_loops(pairs, word_order=2, beta=2):
    """chrF++ from its definition: mean precision and recall over the orders, then F-beta."""

    def words(text):
        out = []
        for word in text.split():
            marks = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
            if len(word) > 1 and word[-1] in marks:
                out += [word[:-1], word[-1]]
            elif len(word) > 1 and word[0] in marks:
                out += [word[0], word[1:]]
            else:
                out.append(word)
        return out

    def grams(items, n):
        return Counter(tuple(items[i : i + n]) for i in range(len(items) - n + 1))

    precisions, recalls = [], []
    for kind, n in [("c", n) for n in range(1, 7)] + [("w", n) for n in range(1, word_order + 1)]:
        matched = made = wanted = 0
        for hypothesis, reference in pairs:
            split = (lambda t: list("".join(t.split()))) if kind == "c" else words
            ours, theirs = grams(split(hypothesis), n), grams(split(reference), n)
            matched += sum((ours & theirs).values())
            made += sum(ours.values()) if theirs else 0
            wanted += sum(theirs.values())
        if made and wanted:
            precisions.append(matched / made)
            recalls.append(matched / wanted)
    p, r = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 100 * (1 + beta**2) * p * r / (beta**2 * p + r)


def test_chrf_agrees_with_its_definition():
    ours = chrf_plus_plus(*zip(*SENTENCES, strict=True))
    assert ours == pytest.approx(chrf_by_loops(SENTENCES), abs=1e-9)
    assert ours != pytest.approx(chrf_by_loops(SENTENCES, word_order=0), abs=1e-3)
    assert ours != pytest.approx(chrf_by_loops(SENTENCES, beta=1), abs=1e-3)


def test_chrf_has_the_promised_signature_and_is_of_the_corpus():
    from sacrebleu.metrics import CHRF

    metric = CHRF(word_order=2)
    score = metric.corpus_score(*[[h for h, _ in SENTENCES], [[r for _, r in SENTENCES]]]).score
    assert str(metric.get_signature()).startswith(CHRF_SIGNATURE + "|")
    assert chrf_plus_plus(*zip(*SENTENCES, strict=True)) == score
    assert score != pytest.approx(mean(chrf_plus_plus([h], [r]) for h, r in SENTENCES))


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=4))
def test_chrf_stays_in_range(pairs):
    assert 0 <= chrf_plus_plus(*zip(*pairs, strict=True)) <= 100 + 1e-9


def test_lists_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="1 hypotheses for 2 references"):
        chrf_plus_plus(["x"], ["x", "y"])
    with pytest.raises(ValueError, match="longer"):
        accuracy(["x"], ["x", "y"])
    with pytest.raises(ValueError, match="no values"):
        mean([])
