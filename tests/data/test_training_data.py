"""Rows to batches: refusals, quotas, and that packing loses nothing."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from singalaut.data.batches import Example, TrainingData, load_training_data, micro_batches
from singalaut.data.config import DataSource
from singalaut.data.sources import read_samples
from singalaut.errors import DataError, MachineError

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def write(path, *rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", "not valid JSON"),
        ("[1, 2]", "no list `messages` .found: list"),
        ({"text": "x"}, "no list `messages` .found: text"),
        ({"messages": [{"role": "user", "content": "x"}]}, "no assistant turn"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "role 'boss'"),
        ({"messages": [{"role": "user", "content": 3}]}, "no text in `content`"),
        ({"messages": ["hello"]}, "role 'hello'"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(row, message, tmp_path):
    file = write(tmp_path / "rows.jsonl", GOOD, "", row)
    with pytest.raises(DataError, match=message) as caught:
        read_samples(file)
    assert caught.value.where.endswith("rows.jsonl, line 3")


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(MachineError, match="no such file"):
        read_samples(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no rows"):
        read_samples(write(tmp_path / "empty.jsonl"))


def test_rows_keep_their_provenance(tmp_path):
    extra = {"license": "MIT", "language": "th", "topic": "rice"}
    first, second = read_samples(write(tmp_path / "a.jsonl", GOOD, GOOD | extra), "id")
    assert (first.language, first.source, first.licence, first.id) == ("id", "a", None, "a:1")
    assert (second.language, second.licence, second.meta) == ("th", "MIT", {"topic": "rice"})


def test_conversations_become_tokens_and_masks(tmp_path, tiny_model):
    long = {"messages": [{"role": "user", "content": "x" * 500}, *GOOD["messages"][1:]]}
    file = write(tmp_path / "a.jsonl", GOOD | {"language": "th"}, long)
    data = load_training_data([file], (DataSource(path="a"),), tiny_model, max_tokens=100)
    assert len(data.examples) == 1
    assert data.provenance == [
        {"source": "a", "language": "th", "licence": "not stated", "rows": 1}
    ]
    example = data.examples[0]
    learned = example.tokens[example.mask]
    assert learned[-1] == data.end_of_turn and 0 < len(learned) < len(example.tokens)
    with pytest.raises(DataError, match="longer than 5 tokens"):
        load_training_data([file], (DataSource(path="a"),), tiny_model, max_tokens=5)


def example(tokens: int, source: int = 0) -> Example:
    mask = np.ones(tokens, dtype=bool)
    return Example(np.arange(tokens) + 1000 * source, mask, "th", source)


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    weights=st.lists(st.floats(0.2, 3), min_size=3, max_size=3),
    seed=st.integers(0, 99),
)
def test_mixing_meets_its_quotas_in_every_pass(sizes, weights, seed):
    rows = [example(3, source) for source, count in enumerate(sizes) for _ in range(count)]
    data = TrainingData(rows, tuple(weights[: len(sizes)]), 106, [])
    for epoch in range(2):
        order = data.order(epoch, seed)
        drawn = Counter(rows[i].source for i in order)
        for source, count in enumerate(sizes):
            assert drawn[source] == max(1, round(count * weights[source]))
        repeats = Counter(order.tolist())
        for source, count in enumerate(sizes):
            used = [repeats[i] for i, row in enumerate(rows) if row.source == source]
            assert max(used) - min(used) <= 1, (count, used)
        assert np.array_equal(order, data.order(epoch, seed))


def test_batches_go_through_the_passes_in_order():
    rows = [example(i + 1) for i in range(7)]
    data = TrainingData(rows, (1.0,), 106, [])
    seen = [e for step in range(7) for e in data.batch(step, 3, seed=1)]
    lengths = [len(e.tokens) for e in seen]
    assert [sorted(lengths[i : i + 7]) for i in (0, 7, 14)] == [[1, 2, 3, 4, 5, 6, 7]] * 3
    assert lengths[:7] != lengths[7:14]


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), room=st.integers(1, 40))
def test_packing_loses_no_token(lengths, room):
    batch = [example(n, i) for i, n in enumerate(lengths)]
    micros = micro_batches(batch, room)
    tokens = np.concatenate([m.tokens[0].numpy() for m in micros])
    assert sorted(tokens.tolist()) == sorted(t for e in batch for t in e.tokens.tolist())
    for micro in micros:
        assert sum(micro.lengths) == micro.tokens.shape[1]
        assert sum(micro.lengths) <= room or len(micro.lengths) == 1
        begins = np.cumsum((0, *micro.lengths[:-1]))
        assert not micro.mask[0, begins].any()
        assert micro.mask.sum() == micro.tokens.numel() - len(micro.lengths)
