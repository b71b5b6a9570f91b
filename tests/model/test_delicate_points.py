"""Rules of Gemma 3 that are easy to get wrong: for each, the tests that fail when it is broken.

`POINTS` names them, here and in other files. The tests in this file break the rule themselves and
expect the comparison to notice.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reduced_shapes import VISION, WINDOW, reduced

from singalaut.contracts import Request, SamplingParams
from singalaut.errors import CheckpointError
from singalaut.loss.logprobs import CHUNK_ROWS, negative_log_likelihood
from singalaut.model.attention import Dense, Packed, Similar, causal_attention, image_groups
from singalaut.model.config import SIZES, Gemma3Config
from singalaut.model.gemma3 import Gemma3, initialise, rotate, rotation
from singalaut.model.hf import load_model, save_model
from singalaut.model.norm import RmsNorm
from singalaut.model.paged import KINDS, PAGE_TOKENS, PagedCache, PagedPlan, Span

TESTS = Path(__file__).parents[1]
POINTS = {
    "embedding normaliser": [
        "model/test_delicate_points.py::test_embeddings_are_scaled_by_the_rounded_root",
        "model/test_delicate_points.py::test_float32_embeddings_are_scaled_by_the_exact_root",
    ],
    "image embeddings": [
        "model/test_vision.py::test_the_comparison_notices_scaled_image_embeddings",
    ],
    "RMSNorm": [
        "model/test_delicate_points.py::test_norms_are_the_bits_of_transformers",
        "train/test_sft.py::test_norms_and_embeddings_are_not_decayed",
        "model/test_vision.py::test_the_projector_norm_multiplies_by_one_more_than_its_weight",
    ],
    "residual stream": [
        "model/test_delicate_points.py::test_float16_is_refused_with_the_reason",
    ],
    "RoPE": [
        "model/test_delicate_points.py::test_angles_are_float32_at_long_positions",
        "model/test_delicate_points.py::test_rotations_are_the_bits_of_transformers",
        "model/test_gemma3.py::test_the_comparison_notices_a_wrong_constant",
    ],
    "softmax": [
        "model/test_delicate_points.py::test_softmax_is_float32",
    ],
    "sliding window": [
        "model/test_delicate_points.py::test_the_mask_of_whole_rows",
        "model/test_delicate_points.py::test_the_mask_of_packed_documents",
        "model/test_delicate_points.py::test_the_mask_of_reading_and_decoding_in_pages",
        "model/test_gemma3.py::test_logits_match_transformers",
    ],
    "KV retention": [
        "model/test_delicate_points.py::test_the_mask_of_reading_and_decoding_in_pages",
        "model/test_paged.py::test_any_mix_of_chunks_equals_whole_passes",
    ],
    "image attention": [
        "model/test_vision.py::test_the_comparison_notices_a_wrong_mask",
        "model/test_vision.py::test_an_image_longer_than_the_window",
        "model/test_delicate_points.py::test_the_mask_of_whole_rows",
        "model/test_delicate_points.py::test_the_mask_of_packed_documents",
    ],
    "token_type_ids": [
        "train/test_sft_vision.py::test_loss_and_gradients_equal_transformers",
    ],
    "vocabulary of 262,208 rows": [
        "model/test_delicate_points.py::test_rows_beyond_the_vocabulary_are_never_sampled",
        "checkpoint/test_mmproj.py::test_rows_without_a_token_are_no_tokens",
        "checkpoint/test_to_gguf.py::test_what_is_lost_is_said",
    ],
    "logits": [
        "model/test_delicate_points.py::test_log_probabilities_are_float32_of_chunks",
        "loss/test_sft_loss.py::test_loss_and_gradients_match_cross_entropy",
    ],
}


@pytest.mark.parametrize("point", POINTS)
def test_every_point_has_its_tests(point):
    for name in POINTS[point]:
        file, _, test = name.partition("::")
        assert re.search(rf"^def {test}\(", (TESTS / file).read_text("utf-8"), re.M), name


ROOTS = {"270m": 25.25, "1b": 34.0, "4b": 50.5, "12b": 62.0, "27b": 73.5}


def first_input(model: Gemma3, tokens: list[int]) -> torch.Tensor:
    """What the first layer receives."""
    seen = []
    model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(torch.tensor([tokens]))
    return seen[0][0]


def narrow(size: str) -> Gemma3:
    """A model of one small layer that is as wide as a published size."""
    config = replace(
        reduced(size), hidden_size=SIZES[size].hidden_size, num_layers=1, num_heads=1,
        num_kv_heads=1, head_dim=8, intermediate_size=8,
    )  # fmt: skip
    return initialise(Gemma3(config), seed=0)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_embeddings_are_scaled_by_the_rounded_root(size):
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

    model = narrow(size).bfloat16()
    width = model.config.hidden_size
    tokens = list(range(40))
    found = first_input(model, tokens)
    theirs = Gemma3TextScaledWordEmbedding(300, width, 0, embed_scale=width**0.5).bfloat16()
    theirs.weight.copy_(model.embedding.weight)
    assert torch.equal(found, theirs(torch.tensor(tokens)))
    weight = model.embedding.weight[tokens]
    assert torch.equal(found, weight * ROOTS[size])
    assert not torch.equal(found, (weight.float() * width**0.5).bfloat16())


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_float32_embeddings_are_scaled_by_the_exact_root(size):
    model = narrow(size)
    found = first_input(model, [7, 8])
    weight = model.embedding.weight[[7, 8]]
    assert torch.equal(found, weight * torch.tensor(model.config.hidden_size**0.5))
    assert not torch.equal(found, weight * ROOTS[size])


def test_norms_are_the_bits_of_transformers():
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

    ours, theirs = RmsNorm(640, 1e-6), Gemma3RMSNorm(640, 1e-6)
    values = torch.randn(640, generator=torch.Generator().manual_seed(0)) * 0.3
    ours.weight.data, theirs.weight.data = values.bfloat16(), values.bfloat16()
    x = torch.randn(64, 640, generator=torch.Generator().manual_seed(1)).bfloat16() * 30
    found = ours(x)
    assert found.dtype == torch.bfloat16
    agree = (found == theirs(x)).float().mean()
    assert agree > 0.999  # the library's fused reduction may round a sum otherwise
    normal = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    llama = normal.bfloat16() * (1 + values.bfloat16())  # cast before the product
    assert (llama == theirs(x)).float().mean() < 0.9
    without = (normal * values.bfloat16().float()).bfloat16()
    assert (without == theirs(x)).float().mean() < 0.1


def test_float16_is_refused_with_the_reason(tiny_model):
    with pytest.raises(CheckpointError, match="residual stream overflows float16") as caught:
        load_model(tiny_model, torch.float16)
    assert caught.value.hint == "use bfloat16 or float32"


FAR = torch.tensor([[0, 1, 1023, 32_768, 100_001, 131_071]])


@pytest.mark.parametrize(("theta", "factor"), [(1e6, 8.0), (1e4, 1.0)])
def test_angles_are_float32_at_long_positions(theta, factor):
    cos, sin = rotation(FAR, 256, theta, factor, torch.bfloat16)
    exponent = torch.arange(0, 256, 2, dtype=torch.float64) / 256
    angle = FAR[0, :, None].double() / factor * theta**-exponent
    exact = torch.cat((angle, angle), -1)
    for found, wanted in ((cos, exact.cos()), (sin, exact.sin())):
        assert found.dtype == torch.bfloat16
        assert (found[0, 0].double() - wanted).abs().max() < 0.02
    rough = (FAR[0, :, None].bfloat16() / factor * (theta**-exponent).bfloat16()).float()
    assert (rough.cos() - angle.cos()).abs().max() > 1


def test_rotations_are_the_bits_of_transformers():
    import transformers
    from transformers.models.gemma3.modeling_gemma3 import (
        Gemma3RotaryEmbedding,
        apply_rotary_pos_emb,
    )

    from singalaut.model.hf import config_to_hf

    config = replace(reduced("4b"), max_positions=131_072)
    raw = config_to_hf(config, torch.bfloat16)
    theirs = Gemma3RotaryEmbedding(transformers.Gemma3TextConfig.from_dict(raw))
    x = torch.randn(1, 4, 6, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    for kind, theta, factor in (
        ("full_attention", 1e6, 8.0),
        ("sliding_attention", 1e4, 1.0),
    ):
        cos, sin = theirs(x, FAR, kind)
        ours = rotation(FAR, 256, theta, factor, torch.bfloat16)
        for mine, other in zip(ours, (cos, sin), strict=True):
            assert (mine[:, 0] == other).float().mean() > 0.999
        wanted = apply_rotary_pos_emb(x, x, cos, sin)[0]
        assert torch.equal(rotate(x, (cos[:, None], sin[:, None])), wanted)
        late = (x.float() * cos[:, None].float()).bfloat16() != x * cos[:, None]
        assert not late.any()  # a product of two is rounded once in any order …
        halves = torch.cat((-x[..., 128:], x[..., :128]), -1).float()
        kept = (x.float() * cos[:, None].float() + halves * sin[:, None].float()).bfloat16()
        assert not torch.equal(kept, wanted)  # … but the sum of products is not


def test_softmax_is_float32():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 200, 64, generator=generator).bfloat16() for _ in range(3))
    hidden = torch.ones(200, 200, dtype=torch.bool).triu(1)

    def eager(dtype, scores_dtype):
        scores = (q.to(dtype) @ k.to(dtype).transpose(-1, -2) * 0.3).masked_fill(hidden, -math.inf)
        weights = scores.softmax(-1, dtype=scores_dtype).to(dtype)
        return (weights @ v.to(dtype)).double()

    exact = eager(torch.float64, torch.float64)

    def error(found):
        return (found.double() - exact).abs().mean().item()

    ours = error(causal_attention(q, k, v, 0.3, None))
    assert ours <= 1.05 * error(eager(torch.bfloat16, torch.float32))
    sums = (q @ k.transpose(-1, -2) * 0.3).masked_fill(hidden, -math.inf).exp()
    low = sums / sums.cumsum(-1)[..., -1:]  # exponentials and their sum in bfloat16
    assert ours < 0.5 * error(low @ v)


def seen_by(plan, total, window, layer=0, kept=None) -> torch.Tensor:
    """Which keys each query of a plan sees: with equal scores, values of one key each show it."""
    queries = torch.zeros(1, 1, total, total)
    values = torch.eye(total)[None, None] if kept is None else kept
    return plan.attend(layer, queries, torch.zeros_like(queries), values, 1.0, window)[0, 0] > 0


def by_sentence(groups, documents, window) -> torch.Tensor:
    """A key is seen if it is of the same document, not later or in the same image, and near."""
    total = len(groups)
    return torch.tensor(
        [
            [
                documents[q] == documents[k]
                and (k <= q or groups[q] == groups[k] >= 0)
                and (window is None or q - k < window)
                for k in range(total)
            ]
            for q in range(total)
        ]
    )


LENGTHS = (WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 1)


def row_with_images(total: int) -> torch.Tensor:
    tokens = torch.full((1, total), 7)
    for start in (2, total - 6):
        tokens[0, start : start + 4] = VISION.image_id
    return image_groups(tokens, VISION.image_id)[0]


@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("total", LENGTHS)
def test_the_mask_of_whole_rows(total, window, with_images):
    groups = row_with_images(total) if with_images else torch.full((total,), -1)
    plan = Dense(groups[None] if with_images else None)
    found = seen_by(plan, total, window)
    assert torch.equal(found, by_sentence(groups.tolist(), [0] * total, window))
    if window is not None and total > window:
        assert not torch.equal(found, by_sentence(groups.tolist(), [0] * total, window - 1))
        assert not torch.equal(found, by_sentence(groups.tolist(), [0] * total, window + 1))


@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize("window", [None, WINDOW])
@pytest.mark.parametrize("total", LENGTHS)
def test_the_mask_of_packed_documents(total, window, with_images):
    lengths = (5, total, 1, WINDOW + 2)
    images = row_with_images(sum(lengths))
    images[5:11] = -1
    groups = images if with_images else torch.full((sum(lengths),), -1)
    documents = [number for number, length in enumerate(lengths) for _ in range(length)]
    found = seen_by(Packed(lengths, groups if with_images else None), sum(lengths), window)
    assert torch.equal(found, by_sentence(groups.tolist(), documents, window))
    assert not torch.equal(found, by_sentence(groups.tolist(), [0] * len(documents), window))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(1, 4 * WINDOW), min_size=2, max_size=9), st.sampled_from([None, WINDOW])
)
def test_documents_in_groups_of_similar_length_see_the_same(lengths, window):
    heads = torch.randn(8, sum(lengths), 8, generator=torch.Generator().manual_seed(sum(lengths)))

    def attended(attend, *first):
        given = [part[None].clone().requires_grad_() for part in heads.split((4, 2, 2))]
        out = attend(*first, *given, 0.3, window)
        weights = torch.arange(out.numel()).view_as(out).sin()
        return [out, *torch.autograd.grad((out * weights).sum(), given)]

    expected = attended(Packed(tuple(lengths)).attend, 0)
    torch.testing.assert_close(attended(Similar.of(lengths, "cpu").attend), expected)
    if max(lengths) > 1:
        moved = [lengths[0] + 1, lengths[1] - 1, *lengths[2:]]
        wrong = attended(Similar.of([n for n in moved if n], "cpu").attend)
        assert not torch.allclose(wrong[0], expected[0])


@pytest.mark.parametrize("chunk", [WINDOW // 2, 5 * WINDOW])
@pytest.mark.parametrize("total", [*LENGTHS, 3 * WINDOW])
def test_the_mask_of_reading_and_decoding_in_pages(total, chunk):
    """Pages left of the window are gone when a later token is computed: filled with a mark here."""
    width = total + WINDOW + 3
    config = Gemma3Config(8, 8, 2, 1, 1, width, 1.0, WINDOW, 512, 10, global_every=2)
    cache = PagedCache(config, dict.fromkeys(KINDS, width), torch.float32, "cpu")
    tables = {kind: np.arange(1, width, dtype=np.int32) for kind in KINDS}
    ends = [*range(chunk, total, chunk), total, *range(total + 1, width + 1)]
    for start, end in zip([0, *ends], ends, strict=False):
        gone = range(1, max(0, start - WINDOW + 1) // PAGE_TOKENS + 1)
        cache.stores["window"][:, :, :, list(gone)] = 100.0
        plan = PagedPlan(cache, [Span(tables, start, end - start)])
        for layer, window in ((0, WINDOW), (1, None)):
            queries = torch.zeros(1, 1, end - start, width)
            values = torch.eye(width)[None, None, start:end]
            found = plan.attend(layer, queries, queries, values, 1.0, window)[0, 0]
            wanted = by_sentence([-1] * width, [0] * width, window)[start:end]
            assert torch.equal(found > 0, wanted), (start, end)
            torch.testing.assert_close(found, wanted / wanted.sum(-1, keepdim=True))


def test_rows_beyond_the_vocabulary_are_never_sampled(tmp_path, seeing_config, seeing_tokenizer):
    """Rows without a token get the largest logits, and so does the image token."""
    from singalaut.generate.engine import open_engine

    model = initialise(Gemma3(seeing_config), seed=0)
    rows = model.embedding.weight.data
    rows[seeing_config.vision.image_id :] = rows[150] * 20
    save_model(model, tmp_path, torch.float32)
    seeing_tokenizer.save(tmp_path)
    with torch.no_grad():
        best = model.logits(model(torch.arange(120, 150)[None])).argmax(-1)
    vocabulary = seeing_tokenizer.vocab_size
    assert ((best >= vocabulary - 1).float().mean()) > 0.1
    engine = open_engine(tmp_path, batch_size=2)
    for temperature in (0.0, 5.0):
        params = SamplingParams(max_tokens=30, temperature=temperature, seed=1, ignore_eos=True)
        requests = [Request(list(range(120, 150)), params, str(i)) for i in range(2)]
        tokens = [t for answer in engine.sample(requests) for t in answer.token_ids]
        assert len(tokens) == 60 and max(tokens) < vocabulary - 1


def test_log_probabilities_are_float32_of_chunks():
    from torch.utils._python_dispatch import TorchDispatchMode

    generator = torch.Generator().manual_seed(0)
    rows, vocabulary = 3 * CHUNK_ROWS, 5000
    hidden = torch.randn(rows, 32, generator=generator).bfloat16()
    weight = torch.randn(vocabulary, 32, generator=generator).bfloat16()
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            out = op(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    self.numbers = max(self.numbers, tensor.numel())
            return out

    with Largest() as largest, torch.no_grad():
        found, _ = negative_log_likelihood(hidden, weight, targets)
    assert largest.numbers <= CHUNK_ROWS * vocabulary
    logits = hidden @ weight.T
    exact = -logits.double().log_softmax(-1).gather(1, targets[:, None]).sum()
    assert found.dtype == torch.float32
    assert abs(found.item() - exact) <= 1e-5 * exact
    low = -logits.log_softmax(-1).gather(1, targets[:, None]).sum(dtype=torch.float64)
    assert abs(low - exact) > 1e-5 * exact
