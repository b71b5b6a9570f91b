"""Checkpoints on disk: pieces of any form, a full disk, and directories made of them."""

from __future__ import annotations

import errno
import json
import os
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from singalaut.artifact import Work
from singalaut.errors import DataError, MachineError, RecipeError
from singalaut.model.hf import load_model
from singalaut.model.lora import add_adapter, load_adapter
from singalaut.model.tensors import TensorReader, TensorSpec, write_tensors
from singalaut.train import sft
from singalaut.train.checkpoint import Checkpoints
from singalaut.train.config import SftConfig
from singalaut.train.export import export_checkpoint
from singalaut.train.optim import adamw
from singalaut.train.parallel import World
from singalaut.train.pieces import Parts


def write_parts(folder, pieces):
    """A checkpoint of one tensor `x`, in a file for each piece and where it begins."""
    for rank, (place, piece) in enumerate(pieces):
        file = folder / f"part-{rank}-of-{len(pieces)}.safetensors"
        spec = TensorSpec("x", tuple(piece.shape), piece.dtype)
        write_tensors(file, [spec], [piece], {"places": json.dumps({"x": place})})
    (folder / "step.json").write_text(json.dumps({"step": 1, "parts": len(pieces)}))
    return Parts(folder)


cuts = st.lists(st.integers(0, 9), max_size=3).map(lambda at: sorted({0, *at, 9}))


@settings(max_examples=40, deadline=None)
@given(cuts, cuts, cuts, cuts)
def test_any_box_is_read_from_any_boxes(tmp_path_factory, rows, columns, other_rows, other_columns):
    whole = torch.arange(81.0).view(9, 9)
    boxes = [((a, c), whole[a:b, c:d]) for a, b in pairwise(rows) for c, d in pairwise(columns)]
    parts = write_parts(tmp_path_factory.mktemp("parts"), boxes)
    assert torch.equal(parts.whole("x", torch.float32), whole)
    for a, b in pairwise(other_rows):
        for c, d in pairwise(other_columns):
            mine = torch.full((b - a, d - c), -1.0)
            parts.read_into(mine, "x", (a, c))
            assert torch.equal(mine, whole[a:b, c:d])


def test_a_tensor_with_a_hole_is_refused(tmp_path):
    whole = torch.arange(81.0).view(9, 9)
    parts = write_parts(tmp_path, [((0, 0), whole[:4]), ((5, 0), whole[5:])])
    with pytest.raises(DataError, match="has 72 of 81 numbers of `x`"):
        parts.whole("x", torch.float32)
    (tmp_path / "part-1-of-2.safetensors").write_bytes(b"cut")
    with pytest.raises(DataError, match=r"damaged \(part-1-of-2[\s\S]*remove this folder"):
        Parts(tmp_path)
    (tmp_path / "part-1-of-2.safetensors").unlink()
    with pytest.raises(DataError, match="1 of 2 parts of the checkpoint are missing"):
        Parts(tmp_path)
    (tmp_path / "step.json").write_text("{")
    with pytest.raises(DataError, match=r"step.json cannot be read[\s\S]*remove this folder"):
        Parts(tmp_path)


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, tiny_model, monkeypatch):
    model = load_model(tiny_model).requires_grad_(True)
    optimizer = adamw(model, 1e-2, 0.0)
    checkpoints = Checkpoints(tmp_path, model, optimizer, World(), keep=2)

    def step():
        model(torch.arange(20)[None]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    checkpoints.save(1)
    kept = [p.detach().clone() for p in model.parameters()]
    step()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(MachineError, match=r"after step 2 .*no space .*step-00000001 is whole"):
            checkpoints.save(2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    again = load_model(tiny_model).requires_grad_(True)
    assert Checkpoints(tmp_path, again, adamw(again, 1e-2, 0.0), World()).load() == 1
    assert all(torch.equal(a, b) for a, b in zip(kept, again.parameters(), strict=True))
    checkpoints.save(3)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    file.write_text((json.dumps({"messages": turns, "language": "en"}) + "\n") * 6)
    return file


def train(tmp_path, model, rows, **more):
    """A run whose checkpoints after steps 2, 4 and 6 are still there."""
    config = SftConfig(
        data=({"path": "rows"},), steps=6, batch_size=2, save_every=2, keep_checkpoints=3,
        learning_rate=1e-2, **more,
    )  # fmt: skip
    work = Work(tmp_path / "stage.partial")
    work.path.mkdir()
    sft.run_sft(config, model=model, data=[rows], work=work, seed=3)
    return tmp_path / "stage"


def weights(folder):
    with TensorReader.open(folder) as reader:
        return {name: reader.read(name).clone() for name in reader}


@pytest.mark.parametrize(
    "more",
    [{}, {"ema": 0.8, "optimizer": "muon"}, {"adapter": {"rank": 3, "targets": ("up", "query")}}],
    ids=["all", "average", "adapter"],
)
def test_a_directory_of_the_last_step_is_what_the_stage_writes(tmp_path, tiny_model, rows, more):
    stage = train(tmp_path, tiny_model, rows, **more)
    export_checkpoint(stage, tmp_path / "last")
    found, wanted = weights(tmp_path / "last"), weights(tmp_path / "stage.partial" / "model")
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], rtol=0, atol=1e-7, msg=name)
    model = tmp_path / "stage.partial" / "model"
    assert {p.name for p in (tmp_path / "last").iterdir()} == {p.name for p in model.iterdir()}
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        assert (tmp_path / "last" / name).read_bytes() == (model / name).read_bytes()
    export_checkpoint(stage, tmp_path / "second", step=2, dtype="bfloat16")
    earlier = weights(tmp_path / "second")
    assert not all(torch.allclose(earlier[name].float(), wanted[name]) for name in wanted)
    assert {tensor.dtype for tensor in earlier.values()} == {torch.bfloat16}


def test_an_adapter_alone_is_what_the_stage_writes(tmp_path, tiny_model, rows):
    stage = train(tmp_path, tiny_model, rows, adapter={"rank": 3})
    export_checkpoint(stage, tmp_path / "alone", adapter_only=True)
    theirs, ours = (
        dict(load_adapter(load_model(tiny_model), folder).named_parameters())
        for folder in (tmp_path / "stage.partial" / "adapter", tmp_path / "alone")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    fresh = dict(add_adapter(load_model(tiny_model), 3, 32.0, ("up",), 0).named_parameters())
    assert not torch.equal(ours["layers.0.mlp.up.a"], fresh["layers.0.mlp.up.a"])


def test_what_cannot_be_exported_is_refused(tmp_path, tiny_model, rows):
    stage = train(tmp_path, tiny_model, rows)
    with pytest.raises(RecipeError, match="no checkpoint after step 3") as refused:
        export_checkpoint(stage, tmp_path / "out", step=3)
    assert "there are 2, 4, 6" in str(refused.value)
    with pytest.raises(RecipeError, match="there is no adapter"):
        export_checkpoint(stage, tmp_path / "out", adapter_only=True)
    with pytest.raises(RecipeError, match="no checkpoint of a training run"):
        export_checkpoint(tiny_model, tmp_path / "out")
    moved = next((tmp_path / "stage.partial" / ".work").glob("step-*6")) / "step.json"
    about = json.loads(moved.read_text()) | {"base": str(tmp_path / "nowhere")}
    moved.write_text(json.dumps(about))
    with pytest.raises(RecipeError, match="is not where it was"):
        export_checkpoint(stage, tmp_path / "out")
    assert export_checkpoint(stage, tmp_path / "out", base=tiny_model).exists()
    with pytest.raises(RecipeError, match="exists already"):
        export_checkpoint(stage, tmp_path / "out", base=tiny_model)
