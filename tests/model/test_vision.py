"""Text with images against `transformers`, and each rule of the vision part broken on purpose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reduced_shapes import SEEING, VISION, WINDOW, oracle_name, reduced, reduced_seeing

from singalaut.errors import DataError
from singalaut.model import attention
from singalaut.model.attention import Dense, Packed, causal_attention, image_groups, visible
from singalaut.model.config import SIZES, VisionConfig
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.hf import parameter_shapes
from singalaut.model.paged import KINDS, PagedCache, PagedPlan, Span
from singalaut.model.vision import Vision

IMAGE = [VISION.start_id, *[VISION.image_id] * VISION.image_tokens, VISION.end_id]


def text(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(length + 1000 * seed)
    return torch.randint(0, 290, (length,), generator=generator).tolist()


ROWS = {
    "text": text(2 * WINDOW + 5),
    "one image": [*text(7), *IMAGE, *text(WINDOW)],
    "image first": [*IMAGE, *text(3)],
    "three images": [*text(3), *IMAGE, *text(20), *IMAGE, *IMAGE, *text(9)],
    "pan and scan": [*text(5), *IMAGE, *text(4), *IMAGE, 7, *IMAGE, 7, *IMAGE, *text(6)],
}


def pixels(rows: list[list[int]], config: VisionConfig = VISION) -> torch.Tensor | None:
    """An image for each image in the rows, noise in [-1, 1]."""
    count = sum(row.count(config.image_id) for row in rows) // config.image_tokens
    generator = torch.Generator().manual_seed(count)
    size = config.image_size
    return torch.rand(count, 3, size, size, generator=generator) * 2 - 1 if count else None


def ours_of(model: Gemma3, rows, plan=None, change=lambda images: images) -> torch.Tensor:
    seen = pixels(rows, model.config.vision)
    images = None if seen is None else change(model.vision(seen))
    return model.logits(model(torch.tensor(rows), plan=plan, images=images))


def theirs_of(model, rows, config: VisionConfig = VISION) -> torch.Tensor:
    tokens = torch.tensor(rows)
    types = (tokens == config.image_id).long()
    return model(tokens, pixel_values=pixels(rows, config), token_type_ids=types).logits


@pytest.fixture(scope="module", params=SEEING)
def pair(request, oracle):
    ours = initialise(Gemma3(reduced_seeing(request.param)), seed=1)
    return ours, oracle(ours)


@pytest.mark.parametrize("kind", ROWS)
@torch.no_grad()
def test_logits_match_transformers(kind, pair):
    ours, theirs = pair
    assert (ours_of(ours, [ROWS[kind]]) - theirs_of(theirs, [ROWS[kind]])).abs().max() <= 1e-4


@torch.no_grad()
def test_rows_of_a_batch_have_their_own_images(pair):
    ours, theirs = pair
    rows = [[*text(7), *IMAGE, *text(20), *IMAGE], [*IMAGE, *text(33, 1)]]
    assert (ours_of(ours, rows) - theirs_of(theirs, rows)).abs().max() <= 1e-4


@torch.no_grad()
def test_an_image_longer_than_the_window(oracle):
    vision = replace(VISION, image_tokens=16)
    ours = initialise(Gemma3(replace(reduced("4b"), window=8, vision=vision)), seed=2)
    row = [*text(5), vision.start_id, *[vision.image_id] * 16, vision.end_id, *text(9)]
    found, wanted = ours_of(ours, [row]), theirs_of(oracle(ours), [row], vision)
    assert (found - wanted).abs().max() <= 1e-4


def test_gradients_match_transformers(oracle):
    ours = initialise(Gemma3(reduced_seeing("4b")), seed=2)
    theirs = oracle(ours)
    rows = [ROWS["three images"]]
    ours_of(ours, rows).square().mean().backward()
    theirs_of(theirs, rows).square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        wanted = expected[oracle_name(name, ours.config)].grad
        # a bias of keys moves all scores of a query alike, so its gradient is zero but for rounding
        floor = 1e-7 if name.endswith("attention.key.bias") else 0.0
        error = (parameter.grad - wanted).norm()
        assert error <= 1e-4 * wanted.norm() + floor, name


@torch.no_grad()
def test_bfloat16_stays_as_close_as_the_library_to_itself(oracle):
    ours = initialise(Gemma3(reduced_seeing("4b")), seed=3)
    exact = oracle(ours)
    theirs = oracle(ours.bfloat16(), torch.bfloat16)
    rows = [ROWS["three images"], [*text(20, 2), *IMAGE, *IMAGE, *IMAGE, *text(12, 3)]]
    wanted = theirs_of(exact, rows).log_softmax(-1)
    our_error = (ours_of(ours, rows).float().log_softmax(-1) - wanted).abs().mean()
    their_error = (theirs_of(theirs, rows).float().log_softmax(-1) - wanted).abs().mean()
    assert our_error <= 1.2 * their_error


def only_in(kind: str) -> type:
    """A plan that forgets images in the layers of one kind."""

    class Plan(Dense):
        def attend(self, layer, queries, keys, values, scale, window):
            whole = self if (window is None) == (kind == "global") else Dense()
            return Dense(whole.images).attend(layer, queries, keys, values, scale, window)

    return Plan


ROW = ROWS["three images"]
GROUPS = image_groups(torch.tensor([ROW]), VISION.image_id)
WRONG_PLANS = {
    "causal inside images": Dense(),
    "window layers only": only_in("window")(GROUPS),
    "global layers only": only_in("global")(GROUPS),
    "images see each other": Dense(torch.where(GROUPS < 0, GROUPS, 0)),
    "marks see the image": Dense(
        image_groups(torch.tensor([[VISION.image_id if i >= 290 else i for i in ROW]]), 292)
    ),
}


@pytest.mark.parametrize("rule", WRONG_PLANS)
@torch.no_grad()
def test_the_comparison_notices_a_wrong_mask(rule, pair):
    ours, theirs = pair
    assert (ours_of(ours, [ROW], WRONG_PLANS[rule]) - theirs_of(theirs, [ROW])).abs().max() > 1e-3


@torch.no_grad()
def test_the_comparison_notices_scaled_image_embeddings(pair):
    ours, theirs = pair
    root = ours.config.hidden_size**0.5
    found = ours_of(ours, [ROW], change=lambda images: images * root)
    assert (found - theirs_of(theirs, [ROW])).abs().max() > 1e-3


@torch.no_grad()
def test_the_comparison_notices_a_transposed_order_of_tokens(pair):
    ours, theirs = pair
    found = ours_of(ours, [ROW], change=lambda images: images[:, [0, 2, 1, 3]])
    assert (found - theirs_of(theirs, [ROW])).abs().max() > 1e-3


@pytest.mark.parametrize("change", [{"num_heads": 2}, {"norm_eps": 1e-2}])
@torch.no_grad()
def test_the_comparison_notices_a_wrong_tower(change, pair):
    ours, theirs = pair
    wrong = Gemma3(replace(ours.config, vision=replace(VISION, **change)))
    wrong.load_state_dict(ours.state_dict())
    assert (ours_of(wrong, [ROW]) - theirs_of(theirs, [ROW])).abs().max() > 1e-4


@torch.no_grad()
def test_the_projector_norm_multiplies_by_one_more_than_its_weight(pair):
    ours, theirs = pair
    wrong = Gemma3(ours.config)
    wrong.load_state_dict(ours.state_dict())
    wrong.vision.projector.norm.weight.sub_(1)
    assert (ours_of(wrong, [ROW]) - theirs_of(theirs, [ROW])).abs().max() > 1e-3


def test_images_and_image_tokens_must_agree():
    model = initialise(Gemma3(reduced_seeing("4b")), seed=1)
    images = torch.zeros(2, VISION.image_tokens, model.config.hidden_size)
    with pytest.raises(DataError, match="2 images need 8 image tokens, the text has 4"):
        model(torch.tensor([ROWS["one image"]]), images=images)
    blind = Gemma3(reduced("4b"))
    with pytest.raises(DataError, match="text-only"):
        blind(torch.tensor([ROWS["one image"]]), images=images)
    assert blind.vision is None


def test_published_parameter_counts():
    assert VisionConfig().num_parameters == 416_866_032
    assert (VisionConfig().num_patches, VisionConfig().pool_size) == (4096, 4)
    with torch.device("meta"):
        real = Vision(VisionConfig(), 2560)
    assert sum(p.numel() for p in real.tower.parameters()) == 416_866_032
    assert tuple(real.projector.weight.shape) == (1152, 2560)
    whole = replace(SIZES["4b"], vision=VisionConfig())
    assert whole.num_parameters + whole.num_vision_parameters == 4_300_079_472
    assert whole.size_name == "4b"
    tiny = Gemma3(reduced_seeing("4b"))
    found = {name: tuple(p.shape) for name, p in tiny.named_parameters()}
    assert list(found.items()) == list(parameter_shapes(tiny.config).items())
    counted = tiny.config.num_parameters + tiny.config.num_vision_parameters
    assert sum(p.numel() for p in tiny.parameters()) == counted


def brute_force(groups: list[int], window: int | None) -> torch.Tensor:
    """The mask by its sentence: a key is seen if it is not later or in the same image, and near."""
    total = len(groups)
    return torch.tensor(
        [
            [
                (k <= q or groups[q] == groups[k] >= 0) and (window is None or q - k < window)
                for k in range(total)
            ]
            for q in range(total)
        ]
    )


def groups_of(runs: list[tuple[bool, int]]) -> list[int]:
    tokens = [VISION.image_id if is_image else 1 for is_image, n in runs for _ in range(n)]
    groups = image_groups(torch.tensor([tokens]), VISION.image_id)[0].tolist()
    number, wanted = -1, []
    for i, token in enumerate(tokens):
        starts = token != 1 and (i == 0 or tokens[i - 1] == 1)
        number += starts
        wanted.append(number if token != 1 else -1)
    assert groups == wanted
    return groups


@settings(max_examples=60, deadline=None)
@given(
    runs=st.lists(st.tuples(st.booleans(), st.integers(1, 14)), min_size=1, max_size=6),
    window=st.one_of(st.none(), st.integers(1, 12)),
    shared=st.integers(0, 3),
    block=st.sampled_from([5, 2048]),
)
def test_attention_with_images_is_what_the_mask_says(runs, window, shared, block):
    groups = groups_of(runs)
    total = len(groups)
    mask = brute_force(groups, window)
    places, images = torch.arange(total), torch.tensor(groups)
    assert torch.equal(visible(places, places, window, images), mask)
    edges = [i for i in range(total) if i == 0 or groups[i] != groups[i - 1] or groups[i] < 0]
    first = edges[shared % len(edges)]  # a shared beginning ends between images
    generator = torch.Generator().manual_seed(total)
    q = torch.randn(1, 4, total, 8, generator=generator)
    k, v = torch.randn(2, 1, 2, total, 8, generator=generator).unbind(0)
    scores = (q @ k.repeat_interleave(2, 1).transpose(-1, -2)) * 0.3
    expected = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v.repeat_interleave(2, 1)
    attention.ONE_MASK_TOKENS = block
    try:
        found = causal_attention(q[:, :, first:], k, v, 0.3, window, images)
    finally:
        attention.ONE_MASK_TOKENS = 2048
    torch.testing.assert_close(found, expected[:, :, first:])


@torch.no_grad()
def test_packed_documents_keep_their_images():
    model = initialise(Gemma3(reduced_seeing("4b")), seed=4)
    rows = [ROWS["one image"], ROWS["text"], ROWS["three images"]]
    row = torch.tensor([[token for row in rows for token in row]])
    plan = Packed(tuple(map(len, rows)), model.image_groups(row)[0])
    images = model.vision(pixels(rows))
    packed = model(row, plan.positions(), plan, images)
    alone = [
        model(torch.tensor([rows[0]]), images=images[:1]),
        model(torch.tensor([rows[1]])),
        model(torch.tensor([rows[2]]), images=images[1:]),
    ]
    torch.testing.assert_close(packed, torch.cat(alone, 1), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_prefill_sees_images_and_shares_them():
    model = initialise(Gemma3(reduced_seeing("4b")), seed=5)
    start = [*text(2), *IMAGE, *text(2)]
    one, two = [*start, *text(3)], [*start, *text(9, 1), *IMAGE, *text(5)]
    images = model.vision(pixels([two]))
    pages = {"global": 8, "window": 8}
    cache = PagedCache(model.config, pages, torch.float32, "cpu")
    table = {kind: np.arange(1, 8, dtype=np.int32) for kind in KINDS}
    for row, shared, new in ((one, 0, images[:1]), (two, len(start), images[1:])):
        tokens = torch.tensor([row])
        groups = model.image_groups(tokens)[0]
        plan = PagedPlan(cache, [Span(table, shared, len(row) - shared, groups)])
        hidden = model(tokens[:, shared:], plan.positions, plan, new)
        whole = model(tokens, images=images[: row.count(VISION.start_id)])
        torch.testing.assert_close(hidden, whole[:, shared:], rtol=1e-4, atol=1e-4)
    plan = PagedPlan(cache, [Span(table, len(two), 1)])
    last = model(torch.tensor([[9]]), plan.positions, plan)
    wanted = model(torch.tensor([[*two, 9]]), images=images)[:, -1:]
    torch.testing.assert_close(last, wanted, rtol=1e-4, atol=1e-4)
