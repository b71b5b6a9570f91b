"""Google's Gemma 3 270M through our network and engine, and through `transformers`."""

from __future__ import annotations

import pytest
import torch

from singalaut.contracts import Message, Request, SamplingParams
from singalaut.evals.examples import read_cell
from singalaut.evals.pack import load_pack
from singalaut.evals.tasks import choose
from singalaut.generate.engine import open_engine
from singalaut.text.languages import LANGUAGES

pytestmark = pytest.mark.real
WINDOW = 512


@pytest.fixture(scope="module")
def engine(real_model):
    return open_engine(real_model, batch_size=2)


@pytest.fixture(scope="module")
def network(engine):
    """The network with its plain weights; the engine decodes with packed copies of them."""
    engine.sleep()
    yield engine.model
    engine.wake()


@pytest.fixture(scope="module")
def theirs(real_model):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    """64 prompts of the demonstration pack, at least five in each language."""
    by_language = {code: [] for code in LANGUAGES}
    for task, spec in choose(load_pack("demo")):
        by_language[spec.language] += [e.prompt for e in read_cell(task, spec).examples]
    taken = [rows[i] for i in range(6) for rows in by_language.values()]
    return taken[:64]


def largest_difference(network, theirs, ids: list[int], every: int) -> float:
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        ours = network.logits(network(tokens)[:, ::every])
        hidden = theirs.model(tokens).last_hidden_state[:, ::every]
        return (ours - theirs.lm_head(hidden)).abs().max().item()


def test_logits_match_in_eleven_languages(engine, network, theirs, prompts):
    assert len(prompts) == 64
    for prompt in prompts:
        ids = engine.chat.encode([Message("user", prompt)])
        assert largest_difference(network, theirs, ids, every=4) <= 1e-4, prompt


@pytest.mark.parametrize("length", [WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 1])
def test_logits_match_around_the_window(engine, network, theirs, prompts, length):
    ids = [2, *engine.tokenizer.encode("\n".join(prompts))][:length]
    assert len(ids) == length
    assert largest_difference(network, theirs, ids, every=16) <= 1e-4


def test_packed_weights_only_round_differently(engine, network, prompts):
    tokens = torch.tensor([engine.chat.encode([Message("user", prompts[0])])[:40]])
    with torch.inference_mode():
        plain = network.logits(network(tokens))
        engine.wake()
        packed = network.logits(network(tokens))
        engine.sleep()
    assert (packed - plain).abs().max() <= 1e-5 * plain.abs().max()


def test_greedy_text_is_the_same(engine, theirs):
    engine.wake()
    greedy = SamplingParams(max_tokens=100, temperature=0, ignore_eos=True)
    texts = ("The capital of Thailand is", "ประเทศไทยมีเมืองหลวงชื่อ")
    requests = [
        Request([2, *engine.tokenizer.encode(text)], greedy, str(i)) for i, text in enumerate(texts)
    ]
    answers = {c.request_id: c for c in engine.sample(requests)}
    for request in requests:
        ids = torch.tensor([list(request.prompt)])
        wanted = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=100,
            do_sample=False,
            eos_token_id=-1,
        )
        assert list(answers[request.id].token_ids) == wanted[0, ids.shape[1] :].tolist()
