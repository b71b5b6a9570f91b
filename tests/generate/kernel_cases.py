"""Each kernel against plain PyTorch, on any device; interpreted where there is no GPU."""

from __future__ import annotations

from multiprocessing import get_context

import torch
from torch import Tensor

from singalaut.model.attention import visible
from singalaut.model.gemma3 import rotate, rotation
from singalaut.model.norm import RmsNorm
from singalaut.model.paged import PAGE_TOKENS

EPS = 1e-6


def close(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    tolerance = (
        {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}
    )
    torch.testing.assert_close(found.float(), wanted.float(), **tolerance)


def draw(*shape: int, dtype: torch.dtype, device: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(device, dtype)


def norm(weight: Tensor) -> RmsNorm:
    module = RmsNorm(len(weight), EPS)
    module.weight = torch.nn.Parameter(weight, requires_grad=False)
    return module


def check_sum_of_peers(size: int, count: int, rounds: int) -> None:
    """Processes on a CPU, interpreted, whose memory all of them see."""
    from singalaut.generate.kernels.peers import sum_parts

    half, programs, near_the_end = 4096, 3, 2**31 - 3
    memory = torch.zeros(size, 2 * half + 256, dtype=torch.uint8).share_memory_()
    memory[:, 2 * half :].view(torch.int32).fill_(near_the_end)
    places = torch.tensor([each.data_ptr() for each in memory])
    drawn = draw(rounds, size, count, dtype=torch.float32, device="cpu").share_memory_()
    wanted = drawn.sum(1)

    def work(rank: int) -> None:
        counts = torch.full((programs,), near_the_end, dtype=torch.int32)
        for turn in range(rounds):
            sum_parts[programs,](
                drawn[turn, rank], places, counts, count, HALF=half * (turn % 2), RANK=rank,
                SIZE=size, BLOCK=64, FLAGS=2 * half, OVERLAP=False, num_warps=1,
            )  # fmt: skip

    others = [get_context("fork").Process(target=work, args=(rank,)) for rank in range(size)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
        assert other.exitcode == 0
    for rank in range(size):
        close(drawn[:, rank], wanted, torch.float32)
        assert torch.equal(drawn[:, rank], drawn[:, 0])


def check_embed(device: str, dtype: torch.dtype, width: int = 96) -> None:
    from singalaut.generate.kernels.elementwise import embed

    table, weight = (
        draw(50, width, dtype=dtype, device=device),
        draw(width, dtype=dtype, device=device, seed=1),
    )
    last = torch.tensor([7, 9, 11, 49], dtype=torch.int32, device=device)
    slots = torch.tensor([3, 0], dtype=torch.int32, device=device)
    x = torch.empty(2, width, device=device)
    h = torch.empty(2, width, dtype=dtype, device=device)
    scale = float(torch.tensor(width**0.5, dtype=dtype))
    embed(last, slots, table, scale, weight, EPS, x, h)
    wanted = table[[49, 7]] * torch.tensor(scale, dtype=dtype, device=device)
    assert torch.equal(x, wanted.float())
    close(h, norm(weight)(wanted), dtype)
    embed(last[:2], None, table, scale, weight, EPS, x, h)
    assert torch.equal(x, (table[[7, 9]] * torch.tensor(scale, dtype=dtype, device=device)).float())


def check_add_norms(device: str, dtype: torch.dtype, width: int = 96) -> None:
    from singalaut.generate.kernels.elementwise import add_norms

    x = draw(5, width, dtype=torch.float32, device=device)
    y, h = (draw(5, width, dtype=dtype, device=device, seed=i) for i in (1, 2))
    post, following = (draw(width, dtype=dtype, device=device, seed=i) for i in (3, 4))
    wanted = x + norm(post)(y, torch.float32)
    add_norms(x, y, post, following, EPS, h)
    close(x, wanted, torch.float32)
    close(h, norm(following)(wanted), dtype)


def check_gelu_mul(device: str, dtype: torch.dtype, inner: int = 200) -> None:
    from singalaut.generate.kernels.elementwise import gelu_mul

    gate_up = draw(3, 2 * inner, dtype=dtype, device=device) * 3
    out = torch.empty(3, inner, dtype=dtype, device=device)
    gelu_mul(gate_up, out)
    gate, up = gate_up.chunk(2, dim=-1)
    close(out, torch.nn.functional.gelu(gate, approximate="tanh") * up, dtype)


class Paged:
    """Random sequences in pages, in a random order."""

    def __init__(
        self, lengths: list[int], key_heads: int, width: int, dtype: torch.dtype, device: str
    ):
        self.lengths, self.device, self.dtype = lengths, device, dtype
        pages = -(-max(lengths) // PAGE_TOKENS)
        count = len(lengths) * pages + 1
        order = torch.randperm(count - 1, generator=torch.Generator().manual_seed(5)) + 1
        self.table = torch.zeros(len(lengths) + 1, pages + 2, dtype=torch.int32)
        self.table[: len(lengths), :pages] = order.view(len(lengths), pages)
        self.table = self.table.to(device)
        self.store = draw(
            2, key_heads, count, PAGE_TOKENS, width, dtype=dtype, device=device, seed=2
        )
        self.slots = torch.arange(len(lengths), dtype=torch.int32, device=device)
        self.positions = torch.tensor([n - 1 for n in lengths], dtype=torch.int32, device=device)

    def dense(self, row: int) -> tuple[Tensor, Tensor]:
        length = self.lengths[row]
        pages = self.table[row, : -(-length // PAGE_TOKENS)].long()
        keys, values = (s[:, pages].flatten(1, 2)[:, :length] for s in self.store)
        return keys, values


def check_attention(
    device: str,
    dtype: torch.dtype,
    lengths: list[int],
    splits: int,
    window: int | None,
    key_heads: int = 2,
    group: int = 2,
    width: int = 32,
) -> None:
    from singalaut.generate.kernels.attention import AttentionScratch, attend

    paged = Paged(lengths, key_heads, width, dtype, device)
    heads = key_heads * group
    qkv = draw(len(lengths), (heads + 2 * key_heads) * width, dtype=dtype, device=device, seed=7)
    out = torch.full((len(lengths), heads * width), float("nan"), dtype=dtype, device=device)
    scratch = AttentionScratch(len(lengths) * key_heads * splits, width, torch.device(device))
    for _ in range(2):  # counters must be back at zero
        attend(
            qkv,
            *paged.store,
            out,
            scratch,
            paged.positions,
            paged.slots,
            paged.table,
            width**-0.5,
            window,
            splits,
            positions_by_slot=False,
        )
    assert not scratch.counters.any()
    for row, length in enumerate(lengths):
        keys, values = (t.float().repeat_interleave(group, 0) for t in paged.dense(row))
        q = qkv[row, : heads * width].float().view(heads, 1, width)
        mask = visible(torch.tensor([length - 1]), torch.arange(length), window).to(device)
        scores = (q @ keys.transpose(1, 2) * width**-0.5).masked_fill(~mask, float("-inf"))
        close(out[row], (scores.softmax(-1) @ values).flatten(), dtype)


def check_finish_qkv(device: str, dtype: torch.dtype) -> None:
    from singalaut.generate.kernels.elementwise import finish_qkv

    key_heads, heads, width = 2, 4, 32
    paged = Paged([20, 33, 1], key_heads, width, dtype, device)
    before = paged.store.clone()
    qkv = draw(3, (heads + 2 * key_heads) * width, dtype=dtype, device=device, seed=3)
    weights = [draw(width, dtype=dtype, device=device, seed=i) for i in (4, 5)]
    cos, sin = (
        t[0, 0, :, : width // 2].contiguous()
        for t in rotation(torch.arange(64, device=device)[None], width, 1e4, 8.0, dtype)
    )
    parts = qkv.view(3, -1, width).split([heads, key_heads, key_heads], 1)
    turn = rotation(paged.positions[:, None], width, 1e4, 8.0, dtype)
    wanted_q, wanted_k = (
        rotate(norm(w)(part)[:, :, None], turn)[:, :, 0]
        for part, w in zip(parts, weights, strict=False)
    )
    wanted_v = parts[2].clone()
    finish_qkv(
        qkv,
        *weights,
        EPS,
        cos,
        sin,
        paged.positions,
        paged.slots,
        paged.table,
        *paged.store,
        heads,
        positions_by_slot=False,
    )
    found = qkv.view(3, -1, width).split([heads, key_heads, key_heads], 1)
    close(found[0], wanted_q, dtype)
    close(found[1], wanted_k, dtype)
    for row in range(3):
        keys, values = paged.dense(row)
        assert torch.equal(keys[:, -1], found[1][row]) and torch.equal(values[:, -1], wanted_v[row])
    assert (paged.store != before).sum() <= 3 * 2 * key_heads * width


def check_set_pages(device: str) -> None:
    from singalaut.generate.kernels.elementwise import set_pages

    tables = tuple(torch.zeros(4, 9, dtype=torch.int32, device=device) for _ in range(2))
    changes = [(0, 1, 2, 5), (1, 3, 8, 6), (0, 0, 0, 7)]
    set_pages(torch.tensor(changes, dtype=torch.int32, device=device), tables)
    for kind, slot, index, page in changes:
        assert tables[kind][slot, index] == page
    assert sum(int((t != 0).sum()) for t in tables) == 3


def check_sampling(device: str, vocab: int = 9000, rows: int = 40) -> None:
    """Tokens and log-probabilities of the device's sampler against the host's."""

    from singalaut.contracts import SamplingParams
    from singalaut.generate import sampling
    from singalaut.generate.kernels.sampling import Picked, SlotState, sample

    generator = torch.Generator().manual_seed(9)
    logits = torch.randn(rows, vocab, generator=generator) * 3
    logits[4] = logits[4].round()  # ties
    kinds = [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.0, "top_k": 64, "top_p": 0.95},
        {"temperature": 1.3, "top_k": 5, "min_p": 0.1},
    ]
    params = [SamplingParams(max_tokens=99, logprobs=True, **kinds[i % 5]) for i in range(rows)]
    answers = []
    for row, each in enumerate(params):
        prompt = [1] * (1 + row % 7)
        answers.append(_answer(prompt, each, key=1000 + row, written=row % 3))
    hidden_id = 8000
    host = logits.clone()
    host[:, hidden_id] = float("-inf")
    wanted = sampling.sample(host, answers)
    state = SlotState.empty(rows + 1, device)
    slots = torch.randperm(rows, generator=generator).to(torch.int32)
    for row, answer in enumerate(answers):
        slot = int(slots[row])
        state.position[slot] = len(answer.tokens) - 1
        state.prompt[slot] = answer.num_prompt
        state.key[slot] = answer.seed
        p = params[row]
        state.temperature[slot], state.top_k[slot] = p.temperature, p.top_k
        state.top_p[slot], state.min_p[slot] = p.top_p, p.min_p
    picked = Picked.empty(rows, vocab, device)
    before = state.position.clone()
    sample(logits.to(device), slots.to(device), state, picked, hidden_id, filtered=True)
    same = (picked.tokens.cpu() == wanted.tokens).float().mean()
    assert same > 0.95, same  # a share may fall between two tokens' rounding
    equal = picked.tokens.cpu() == wanted.tokens
    torch.testing.assert_close(
        picked.logprobs.cpu()[equal], wanted.logprobs[equal], rtol=1e-4, atol=1e-4
    )
    assert torch.equal(state.token[slots.long().to(device)], picked.tokens)
    assert torch.equal(state.position[:rows], before[:rows] + 1) and state.position[rows] == 0
    spoiled = logits.to(device).clone()
    spoiled[3, 17] = float("nan")
    spoiled[5] = float("-inf")
    sample(spoiled, slots.to(device), state, picked, hidden_id, filtered=True)
    assert (picked.tokens == -1).nonzero().flatten().tolist() == [3, 5]
    assert state.token.min() >= 0


def _answer(prompt: list[int], params, key: int, written: int):
    from array import array

    from singalaut.contracts import Request
    from singalaut.generate.answer import Answer

    return Answer(
        request=Request(prompt, params), index=0, tokens=array("i", prompt + [2] * written),
        num_prompt=len(prompt), marked=array("q", prompt), images=None, image_runs=[], seed=key,
        limit=99, stop_ids=frozenset(), order=(0, 0), deadline=None, listener=lambda _: None,
        decoder=None, under_way=1,
    )  # fmt: skip


def check_single(device: str, dtype: torch.dtype, width: int = 160, inner: int = 96) -> None:
    from singalaut.generate.kernels import single

    x = draw(width, dtype=torch.float32, device=device)
    y = draw(width, dtype=dtype, device=device, seed=1)
    post, following = (draw(width, dtype=dtype, device=device, seed=i) for i in (2, 3))
    weight = draw(2 * inner, width, dtype=dtype, device=device, seed=4) / width**0.5
    new_x = x + norm(post)(y, torch.float32)
    h = norm(following)(new_x)
    for gated in (False, True):
        count = inner if gated else 2 * inner
        out = torch.empty(count, dtype=dtype, device=device)
        found_x = torch.empty_like(x)
        single.norm_matvec(x, y, post, following, EPS, found_x, weight, out, gated=gated)
        wanted = weight @ h
        if gated:
            gate, up = wanted.chunk(2)
            wanted = torch.nn.functional.gelu(gate, approximate="tanh") * up
        close(found_x, new_x, torch.float32)
        close(out, wanted, dtype)
    found_h = torch.empty_like(h)
    single.add_norms_row(x, y, post, following, EPS, found_x, found_h)
    close(found_h, h, dtype)
    logits = torch.empty(2 * inner, dtype=torch.float32, device=device)
    single.matvec(weight, h, logits)
    close(logits, weight.float() @ h.float(), dtype)


def check_attend_row(
    device: str,
    dtype: torch.dtype,
    length: int,
    splits: int,
    window: int | None,
    key_heads: int = 2,
    group: int = 2,
    width: int = 32,
) -> None:
    """The fused kernel of one row against the separate ones."""
    from singalaut.generate.kernels.attention import AttentionScratch, attend
    from singalaut.generate.kernels.elementwise import finish_qkv
    from singalaut.generate.kernels.single import attend_row

    paged = Paged([length], key_heads, width, dtype, device)
    heads = key_heads * group
    qkv = draw(1, (heads + 2 * key_heads) * width, dtype=dtype, device=device, seed=3)
    weights = [draw(width, dtype=dtype, device=device, seed=i) for i in (4, 5)]
    cos, sin = (
        t[0, 0, :, : width // 2].contiguous()
        for t in rotation(torch.arange(length + 1, device=device)[None], width, 1e4, 1.0, dtype)
    )
    scratch = AttentionScratch(key_heads * splits, width, torch.device(device))
    found = torch.empty(1, heads * width, dtype=dtype, device=device)
    store, before_store, before = paged.store.clone(), paged.store.clone(), qkv.clone()
    where = (paged.positions, paged.slots, paged.table)
    for _ in range(2):
        attend_row(
            before,
            *weights,
            EPS,
            cos,
            sin,
            *where,
            *store,
            found,
            scratch,
            width**-0.5,
            window,
            splits,
        )
    assert torch.equal(qkv, before) and not scratch.counters.any()
    finish_qkv(qkv, *weights, EPS, cos, sin, *where, *paged.store, heads, positions_by_slot=True)
    wanted = torch.empty_like(found)
    attend(qkv, *paged.store, wanted, None, *where, width**-0.5, window, 1, positions_by_slot=True)
    torch.testing.assert_close(store, paged.store)  # in float32 sums may be taken in another order
    assert (store != before_store).sum() <= 2 * key_heads * width
    close(found, wanted, dtype)


def check_product(
    device: str, dtype: torch.dtype, count: int = 70, width: int = 100, rows: int = 70
) -> None:
    """Tiled products with weights of every kind; a row's bits do not depend on its company."""
    from singalaut.generate.kernels.matmul import Quantised, product

    x = draw(rows, width, dtype=dtype, device=device)
    weight = draw(count, width, dtype=dtype, device=device, seed=1) / width**0.5
    kinds = [weight, Quantised.of(weight, "int8"), Quantised.of(weight, "fp8")]
    for kind, matrix in enumerate(kinds):
        plain = matrix.dequantised() if isinstance(matrix, Quantised) else weight.float()
        whole = product(x, matrix, torch.float32)
        close(whole, x.float() @ plain.T, dtype)
        assert (plain - weight.float()).abs().max() <= plain.abs().max() * (0, 0.005, 0.04)[kind]
        for some in (slice(0, 1), slice(3, 20), slice(rows - 1, rows)):
            assert torch.equal(product(x[some], matrix, torch.float32), whole[some])


def check_narrow_product(
    device: str, dtype: torch.dtype, count: int = 70, width: int = 520, rows: int = 20
) -> None:
    """Products that widen the weight, divided in every way; scratch is clean for the next one."""
    from singalaut.generate.kernels.matmul import Quantised
    from singalaut.generate.kernels.narrow import SharesScratch, Tiling, narrow_product

    scratch = SharesScratch(torch.device(device))
    weight = draw(count, width, dtype=dtype, device=device, seed=1) / width**0.5
    for kind in ("int8", "fp8"):
        matrix = Quantised.of(weight, kind)
        for some in (1, rows, rows):
            x = draw(some, width, dtype=dtype, device=device, seed=some)
            found = narrow_product(x, matrix, scratch, torch.float32)
            close(found, x.float() @ matrix.dequantised().T, dtype)
            if Tiling.of(some, count, width, dtype).splits > 1:
                assert not scratch.counters.any()


def check_eight_bits_of_one_row(device: str, dtype: torch.dtype, width: int = 160) -> None:
    from singalaut.generate.kernels import single
    from singalaut.generate.kernels.matmul import Quantised

    inner = 96
    x = draw(width, dtype=torch.float32, device=device)
    y = draw(width, dtype=dtype, device=device, seed=1)
    post, following = (draw(width, dtype=dtype, device=device, seed=i) for i in (2, 3))
    h = norm(following)(x + norm(post)(y, torch.float32))
    for kind in ("int8", "fp8"):
        weight = draw(2 * inner, width, dtype=dtype, device=device, seed=4) / width**0.5
        matrix = Quantised.of(weight, kind)
        factor = h.float()
        if kind == "int8":  # the row is rounded to 15 bits of its largest entry
            step = factor.abs().max() / 127
            factor = (factor / step * 254).round() / 254 * step
            assert (factor - h.float()).abs().max() <= step / 500
        wanted = matrix.dequantised() @ factor
        logits = torch.empty(2 * inner, dtype=torch.float32, device=device)
        single.matvec(matrix, h, logits)
        close(logits, wanted, dtype)
        spoiled = h.clone()
        spoiled[3] = float("nan")
        single.matvec(matrix, spoiled, logits)
        assert logits.isnan().all()
        out = torch.empty(inner, dtype=dtype, device=device)
        found_x = torch.empty_like(x)
        single.norm_matvec(x, y, post, following, EPS, found_x, matrix, out, gated=True)
        gate, up = wanted.to(dtype).chunk(2)
        close(out, torch.nn.functional.gelu(gate, approximate="tanh") * up, dtype)


def check_narrow_rows(device: str, dtype: torch.dtype, width: int = 160) -> None:
    from singalaut.generate.kernels.matmul import narrow_rows

    x = draw(5, width, dtype=dtype, device=device) * 30
    narrow = torch.empty(5, width, dtype=torch.float8_e4m3fn, device=device)
    scales = torch.empty(5, 1, dtype=torch.float32, device=device)
    narrow_rows(x, narrow, scales)
    found, wanted = narrow.float() * scales, x.float()
    assert ((found - wanted).abs() <= wanted.abs() / 15 + scales / 500).all()
    assert (found.abs().amax(1) - wanted.abs().amax(1)).abs().max() < 1e-3 * wanted.abs().max()
