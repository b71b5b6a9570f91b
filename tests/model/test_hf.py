"""Hugging Face directories: what we write, `transformers` and `peft` read, and the reverse."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from reduced_shapes import reduced

from singalaut.errors import CheckpointError
from singalaut.model import tensors
from singalaut.model.gemma3 import Gemma3, initialise
from singalaut.model.hf import (
    config_from_hf,
    config_to_hf,
    copy_companions,
    hf_name,
    load_model,
    read_config,
    save_model,
    stored_dtype,
)
from singalaut.model.lora import add_adapter, load_adapter, merge_adapter, save_adapter
from singalaut.model.tensors import TensorReader, TensorSpec, write_tensors

TOKENS = torch.arange(40)[None]


@pytest.fixture
def saved(tmp_path):
    model = initialise(Gemma3(reduced("4b")), seed=1)
    save_model(model, tmp_path / "model", torch.float32)
    return model, tmp_path / "model"


def test_transformers_loads_what_we_write(saved):
    from transformers import AutoModelForCausalLM

    model, folder = saved
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(TOKENS).logits, model.logits(model(TOKENS)), rtol=1e-4, atol=1e-4
        )
    assert "lm_head.weight" not in TensorReader.open(folder)


def test_we_load_what_transformers_writes(saved, tmp_path):
    from transformers import AutoModelForCausalLM

    model, folder = saved
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_model(tmp_path / "theirs")
    assert again.config == model.config
    for name, parameter in model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter.bfloat16().float()), name
    assert stored_dtype(tmp_path / "theirs") == torch.bfloat16


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_multimodal_layouts_give_the_text_decoder(prefix, saved):
    model, folder = saved
    state = {prefix + hf_name(n).removeprefix("model."): p for n, p in model.named_parameters()}
    state["vision_tower.vision_model.post_layernorm.weight"] = torch.zeros(3)
    specs = [TensorSpec(name, tuple(t.shape), t.dtype) for name, t in state.items()]
    write_tensors(folder / "model.safetensors", specs, state.values())
    text = config_to_hf(model.config, torch.float32)
    outer = {"model_type": "gemma3", "text_config": text, "vision_config": {}}
    (folder / "config.json").write_text(json.dumps(outer))
    again = load_model(folder)
    assert all(torch.equal(again.get_parameter(n), p) for n, p in model.named_parameters())


def test_shards_hold_the_same_model(saved, tmp_path, monkeypatch):
    model = saved[0]
    monkeypatch.setattr(tensors, "MAX_SHARD_BYTES", 60_000)
    save_model(model, tmp_path / "sharded", torch.float32)
    assert len(list((tmp_path / "sharded").glob("model-*.safetensors"))) > 2
    again = load_model(tmp_path / "sharded")
    assert all(torch.equal(again.get_parameter(n), p) for n, p in model.named_parameters())
    shard = next((tmp_path / "sharded").glob("model-00002-*"))
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"shard `{shard.name}`"):
        load_model(tmp_path / "sharded")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_float_is_read(dtype, saved, tmp_path):
    model, folder = saved
    state = {hf_name(n): p.detach().to(dtype) for n, p in model.named_parameters()}
    specs = [TensorSpec(name, tuple(t.shape), dtype) for name, t in state.items()]
    write_tensors(folder / "model.safetensors", specs, state.values())
    again = load_model(folder)
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, state[hf_name(name)].float()), name
    # a descendant of half precision is bfloat16: the network cannot run in the other
    assert stored_dtype(folder) == (torch.float32 if dtype == torch.float32 else torch.bfloat16)


def test_a_factor_without_linear_scaling_is_none():
    raw = config_to_hf(reduced("1b"), torch.bfloat16)
    raw["rope_parameters"]["full_attention"] |= {"factor": 8.0}
    assert config_from_hf(raw, "x").rope_factor == 1.0


def test_both_config_dialects_mean_the_same():
    for size in ("1b", "27b"):
        config = reduced(size)
        full = config_to_hf(config, torch.bfloat16)
        old = {
            k: v for k, v in full.items() if k not in ("rope_parameters", "layer_types", "dtype")
        }
        legacy = ("rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window_pattern")
        new = {k: v for k, v in full.items() if k not in legacy}
        assert config_from_hf(old, "old") == config_from_hf(new, "new") == config


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json", "nowhere"])
def test_the_chat_template_is_copied_to_both_places(where, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir(), target.mkdir()
    settings = {"bos_token": "<bos>"}
    if where == "chat_template.jinja":
        (source / where).write_text("{{ 'ที่' }}")
    elif where == "tokenizer_config.json":
        settings["chat_template"] = "{{ 'ที่' }}"
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    copy_companions(source, target)
    found = json.loads((target / "tokenizer_config.json").read_text())
    if where == "nowhere":
        assert found == settings and not (target / "chat_template.jinja").exists()
    else:
        assert found == {"bos_token": "<bos>", "chat_template": "{{ 'ที่' }}"}
        assert (target / "chat_template.jinja").read_text() == "{{ 'ที่' }}"


def test_an_adapters_own_template_comes_first(tmp_path):
    for name, place in (("base", "chat_template.jinja"), ("adapter", "tokenizer_config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer_config.json").write_text("{}")
        text = name if place.endswith("jinja") else json.dumps({"chat_template": name})
        (tmp_path / name / place).write_text(text)
    (tmp_path / "target").mkdir()
    for name in ("base", "adapter"):
        copy_companions(tmp_path / name, tmp_path / "target")
    assert (tmp_path / "target" / "chat_template.jinja").read_text() == "adapter"


def test_float16_is_refused(saved):
    with pytest.raises(CheckpointError, match="float16"):
        load_model(saved[1], torch.float16)


def test_a_truncated_file_is_named(saved):
    file = saved[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="not a whole safetensors file") as caught:
        load_model(saved[1])
    assert caught.value.where == "model.safetensors" and caught.value.hint


def test_a_missing_and_a_misshapen_tensor_are_named(saved):
    model, folder = saved
    state = {hf_name(n): p.detach() for n, p in model.named_parameters()}
    gone = "model.layers.3.mlp.up_proj.weight"
    rest = {n: t for n, t in state.items() if n != gone}
    write_tensors(
        folder / "model.safetensors",
        [TensorSpec(n, tuple(t.shape), t.dtype) for n, t in rest.items()],
        rest.values(),
    )
    with pytest.raises(CheckpointError, match=gone):
        load_model(folder)
    state[gone] = state[gone][:-1]
    write_tensors(
        folder / "model.safetensors",
        [TensorSpec(n, tuple(t.shape), t.dtype) for n, t in state.items()],
        state.values(),
    )
    with pytest.raises(CheckpointError, match=r"shape \[127, 64\].*\[128, 64\]"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "`model_type` is `llama`"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"hidden_size": None}, "hidden_size"),
        ({"layer_types": ["full_attention", "full_attention", "sliding_attention"]}, "layer_types"),
        ({"sliding_window": 0}, "`sliding_window` is 0, a whole number above 0"),
        ({"sliding_window": "8"}, "`sliding_window` is '8'"),
        ({"hidden_size": 2.5}, "`hidden_size` is 2.5, a whole number"),
        ({"layer_types": [], "sliding_window_pattern": 0}, "`sliding_window_pattern` is 0"),
        ({"sliding_window_pattern": 3}, "`sliding_window_pattern` is 3, but `layer_types` has"),
        ({"rms_norm_eps": "x"}, "`rms_norm_eps` is 'x', a number above 0"),
        ({"query_pre_attn_scalar": 0}, "`query_pre_attn_scalar` is 0"),
        ({"num_key_value_heads": 3}, "`num_key_value_heads` 3 does not divide"),
        ({"rope_theta": 5e5}, "`rope_theta` is 500000.0, but `rope_parameters` says 1000000.0"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "`rope_scaling.factor` is 4.0"),
        ({"rope_scaling": {"type": "yarn", "factor": 8.0}}, "RoPE of `rope_scaling` is .*yarn"),
        ({"rope_parameters": {"rope_type": "linear"}}, "`rope_parameters` has no `full_att"),
        ({"rope_parameters": [1]}, "`rope_parameters` has no|wrong kind of value"),
        ({"rope_parameters": {"full_attention": 3}}, "wrong kind of value"),
        ({"eos_token_id": []}, "`eos_token_id` is empty"),
        ({"eos_token_id": [1, 10**6]}, "the token id 1000000 is not one of 300"),
        ({"bos_token_id": "2"}, "the token id '2' is not one of 300"),
    ],
)
def test_configurations_that_cannot_be_run(change, message, saved):
    file = saved[1] / "config.json"
    raw = json.loads(file.read_text()) | change
    file.write_text(
        json.dumps({k: v for k, v in raw.items() if v is not None or k != "hidden_size"})
    )
    with pytest.raises(CheckpointError, match=message):
        read_config(saved[1])


@pytest.mark.parametrize("text", ["[]", '{"model_type": "gemma3", "text_config": null}'])
def test_a_configuration_that_is_no_object(text, saved):
    (saved[1] / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="not a JSON object"):
        read_config(saved[1])


def test_a_pickled_checkpoint_is_never_read(saved):
    (saved[1] / "model.safetensors").unlink()
    (saved[1] / "pytorch_model.bin").write_bytes(b"anything")
    with pytest.raises(CheckpointError, match="neither"):
        load_model(saved[1])


def randomise(model: Gemma3) -> Gemma3:
    for name, parameter in model.named_parameters():
        if name.endswith((".a", ".b")):
            parameter.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    return model


def test_peft_reads_our_adapter_and_we_read_peft(saved, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = saved[1]
    targets = ("query", "value", "down")
    ours = randomise(add_adapter(load_model(folder), 4, 8.0, targets, seed=3))
    save_adapter(ours, tmp_path / "adapter", "base")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, tmp_path / "adapter")
    with torch.no_grad():
        wanted = ours.logits(ours(TOKENS))
        torch.testing.assert_close(theirs(TOKENS).logits, wanted, rtol=1e-4, atol=1e-4)
        theirs.save_pretrained(tmp_path / "again")
        back = load_adapter(load_model(folder), tmp_path / "again")
        assert torch.equal(back.logits(back(TOKENS)), wanted)
        merged = merge_adapter(back)
        torch.testing.assert_close(merged.logits(merged(TOKENS)), wanted, rtol=1e-4, atol=1e-4)
        plain = load_model(folder)
        assert (plain.logits(plain(TOKENS)) - wanted).abs().max() > 0.01


def test_adapters_we_do_not_have_are_refused(saved, tmp_path):
    add = randomise(add_adapter(load_model(saved[1]), 4, 8.0, ("query",), seed=3))
    save_adapter(add, tmp_path / "adapter", "base")
    file = tmp_path / "adapter" / "adapter_config.json"
    raw = json.loads(file.read_text())
    for change, message in (
        ({"use_dora": True}, "use_dora"),
        ({"target_modules": ["lm_head"]}, "lm_head"),
        ({"r": 5}, "needed"),
    ):
        file.write_text(json.dumps(raw | change))
        with pytest.raises(CheckpointError, match=message):
            load_adapter(load_model(saved[1]), tmp_path / "adapter")
    shutil.rmtree(tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="adapter_config"):
        load_adapter(load_model(saved[1]), tmp_path / "adapter")
