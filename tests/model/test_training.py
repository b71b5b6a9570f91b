"""Layers that recompute or are compiled against plain ones: gradients, memory, graphs."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from reduced_shapes import VISION, reduced, reduced_seeing
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from singalaut.model.attention import Dense, Packed
from singalaut.model.branched import Branched
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.lora import add_adapter
from singalaut.model.training import ATTENTION, checkpoint_layers, compile_layers, restore_layers

LENGTHS = (25, 39, 16)
IMAGE = [VISION.start_id, *[VISION.image_id] * VISION.image_tokens, VISION.end_id]


@pytest.fixture(scope="module")
def plain() -> Gemma3:
    return initialise(Gemma3(reduced("4b")), seed=0)


@pytest.fixture(scope="module")
def seeing() -> Gemma3:
    return initialise(Gemma3(reduced_seeing("4b")), seed=0)


@pytest.fixture(autouse=True)
def no_graphs_of_others():
    torch._dynamo.reset()


def batch(model: Gemma3, kind: str, lengths=LENGTHS):
    """Tokens, positions, plan and images."""
    generator = torch.Generator().manual_seed(sum(lengths))
    tokens = torch.randint(0, 290, (1, sum(lengths)), generator=generator)
    if kind == "dense":
        return tokens.view(2, -1), None, Dense(), None
    if kind == "packed":
        plan = Packed(lengths)
        return tokens, plan.positions(), plan, None
    if kind == "branched":
        plan = Branched((lengths[:1], lengths[1:]) if len(lengths) > 4 else (lengths,))
        return tokens, plan.positions(), plan, None
    tokens[0, 3 : 3 + len(IMAGE)] = tokens[0, 40 : 40 + len(IMAGE)] = torch.tensor(IMAGE)
    plan = Packed(lengths, model.image_groups(tokens)[0])
    images = torch.randn(2, VISION.image_tokens, model.config.hidden_size, generator=generator)
    return tokens, plan.positions(), plan, images


def gradients(model: Gemma3, *inputs) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(*inputs).square().mean().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert found
    return found


def difference(one, other) -> float:
    """Relative, over all gradients."""
    assert one.keys() == other.keys()
    apart = sum((one[name] - other[name]).square().sum() for name in one)
    return (apart / sum(g.square().sum() for g in one.values())).sqrt().item()


@pytest.mark.parametrize("kind", ["dense", "packed", "branched", "images"])
@pytest.mark.parametrize("keep", ["inputs", "attention", "products"])
def test_recomputed_gradients_are_the_same_bits(keep, kind, seeing):
    inputs = batch(seeing, kind)
    wanted = gradients(seeing, *inputs)
    found = gradients(checkpoint_layers(copy.deepcopy(seeing), keep), *inputs)
    assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())


@pytest.mark.parametrize("kind", ["dense", "packed", "branched", "images"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_gradients_are_the_same(backend, kind, seeing):
    inputs = batch(seeing, kind)
    model = compile_layers(copy.deepcopy(seeing), backend)
    assert difference(gradients(seeing, *inputs), gradients(model, *inputs)) <= 1e-6


@pytest.mark.parametrize("keep", ["inputs", "attention", "products"])
def test_both_together(keep, plain):
    inputs = batch(plain, "packed")
    model = compile_layers(checkpoint_layers(copy.deepcopy(plain), keep), "aot_eager")
    assert difference(gradients(plain, *inputs), gradients(model, *inputs)) <= 1e-6


def test_a_wrong_mask_would_be_noticed(plain):
    tokens, positions, _, _ = inputs = batch(plain, "packed")
    wrong = (tokens, positions, Packed((25, 38, 17)), None)
    assert difference(gradients(plain, *inputs), gradients(plain, *wrong)) > 1e-3


def saved_bytes(model: Gemma3, *inputs) -> int:
    """What autograd keeps for the backward pass, parameters left out."""
    kept = {p.untyped_storage().data_ptr() for p in model.parameters()}
    total = 0

    def pack(tensor):
        nonlocal total
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept:
            kept.add(storage.data_ptr())
            total += storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model(*inputs)
    assert hidden.requires_grad
    return total


def test_a_checkpointed_layer_keeps_its_input_only(plain):
    inputs = batch(plain, "packed")
    model = checkpoint_layers(copy.deepcopy(plain))
    layer_input = 4 * sum(LENGTHS) * plain.config.hidden_size
    rest = saved_bytes(checkpoint_layers(copy.deepcopy(plain)), *inputs)
    assert rest <= layer_input * (plain.config.num_layers + 8)  # the final norm keeps something too
    assert saved_bytes(plain, *inputs) > 20 * rest
    every_other = checkpoint_layers(copy.deepcopy(plain), every=2)
    assert rest < saved_bytes(every_other, *inputs) < saved_bytes(plain, *inputs)
    assert restore_layers(model).layers[0].forward.__self__ is model.layers[0]
    assert saved_bytes(model, *inputs) > 20 * rest


class Counting(TorchDispatchMode):
    """Counts kernels by name."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.counts[op.name().partition(".")[0]] += 1
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("keep", "attention", "products"), [("inputs", 2, 2), ("attention", 1, 2), ("products", 1, 1)]
)
def test_what_is_kept_is_not_computed_twice(keep, attention, products, plain):
    inputs = batch(plain, "packed", (16,))
    model = checkpoint_layers(copy.deepcopy(plain), keep)
    with Counting() as once:
        hidden = plain(*inputs)
    with Counting() as whole:
        model(*inputs).square().mean().backward()
    with Counting() as usual:
        hidden.square().mean().backward()
    for names, times in ((ATTENTION, attention), (("aten::mm",), products)):
        ran = sum(whole.counts[name] - usual.counts[name] for name in names)
        assert ran == times * sum(once.counts[name] for name in names) > 0


@pytest.mark.parametrize("kind", ["packed", "branched"])
def test_lengths_of_documents_make_no_new_graphs(kind, plain):
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    model = compile_layers(copy.deepcopy(plain), backend)
    many = ((5, 9, 20), (7, 8, 19), (30, 2), (40,), (3, 3, 3, 3, 3), (64, 65), (1, 1), (9, 4, 4))
    for lengths in many:
        inputs = batch(plain, kind, lengths)
        torch.testing.assert_close(model(*inputs), plain(*inputs), rtol=1e-4, atol=1e-5)
    assert len(graphs) <= 4  # window and global layers, of one length and of any


def test_a_graph_break_is_an_error(plain):
    class Breaking(Dense):
        def attend(self, layer, queries, keys, values, scale, window):
            torch._dynamo.graph_break()
            return Dense.attend(self, layer, queries, keys, values, scale, window)

    model = compile_layers(copy.deepcopy(plain), "eager")
    tokens = batch(plain, "packed")[0]
    with pytest.raises(torch._dynamo.exc.Unsupported):
        model(tokens, plan=Breaking())


def test_adapters_learn_behind_compiled_and_checkpointed_layers(seeing):
    inputs = batch(seeing, "images")
    plain = add_adapter(copy.deepcopy(seeing), 4, 8.0, ("query", "down"), seed=1)
    for name, parameter in plain.named_parameters():
        if name.endswith(".b"):
            parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    wanted = gradients(plain, *inputs)
    assert all(name.endswith((".a", ".b")) for name in wanted)
    model = compile_layers(checkpoint_layers(copy.deepcopy(plain), "attention"), "aot_eager")
    assert difference(wanted, gradients(model, *inputs)) <= 1e-6
    assert model.state_dict().keys() == plain.state_dict().keys()
