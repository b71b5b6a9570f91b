"""Directories of models that see: what we write, `transformers` reads, and the reverse."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from singalaut.contracts import Message
from singalaut.errors import CheckpointError
from singalaut.model.config import SIZES, VisionConfig
from singalaut.model.hf import (
    config_from_hf,
    config_to_hf,
    load_model,
    read_config,
    save_model,
)
from singalaut.model.images import load_pictures, normalise
from singalaut.model.lora import add_adapter, load_adapter, save_adapter
from singalaut.model.tensors import TensorReader, TensorSpec, write_tensors
from singalaut.text.chat import ChatFormat, ImageTokens
from singalaut.text.tokenizer import Tokenizer


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    with TensorReader.open(folder) as reader:
        return {name: reader.read(name).clone() for name in reader}


def rewrite(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    specs = [TensorSpec(name, tuple(t.shape), t.dtype) for name, t in tensors.items()]
    write_tensors(folder / "model.safetensors", specs, tensors.values())


def their_model(folder: Path):
    from transformers import Gemma3ForConditionalGeneration

    return Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def copied(seeing_model, tmp_path) -> Path:
    return shutil.copytree(seeing_model, tmp_path / "copied")


def test_the_old_hub_layout_is_written(seeing_model):
    names = set(tensors_of(seeing_model))
    assert {
        "language_model.model.embed_tokens.weight",
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "vision_tower.vision_model.embeddings.patch_embedding.bias",
        "vision_tower.vision_model.encoder.layers.1.mlp.fc1.weight",
        "vision_tower.vision_model.post_layernorm.bias",
        "multi_modal_projector.mm_input_projection_weight",
        "multi_modal_projector.mm_soft_emb_norm.weight",
    } <= names
    assert not any("lm_head" in name or "head" in name for name in names)


@torch.no_grad()
def test_transformers_sees_the_same(seeing_model, tmp_path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    theirs = AutoModelForImageTextToText.from_pretrained(seeing_model, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(seeing_model)
    values = np.random.default_rng(0).integers(0, 255, (40, 90, 3), np.uint8)
    file = tmp_path / "a.png"
    Image.fromarray(values).save(file)
    asked = [{"type": "image", "path": str(file)}, {"type": "text", "text": "what?"}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": asked}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    ours = load_model(seeing_model)
    vision = ours.config.vision
    chat = ChatFormat.load(seeing_model, Tokenizer.load(seeing_model))
    message = Message("user", [{"type": "image", "image": file}, asked[1]])
    ids = chat.encode([message], images=ImageTokens((0,), vision.image_tokens))
    assert ids == inputs["input_ids"][0].tolist()
    pixels = normalise(load_pictures(file, vision.image_size))
    torch.testing.assert_close(pixels, inputs["pixel_values"].float(), atol=2 / 255, rtol=0)
    found = ours.logits(ours(torch.tensor([ids]), images=ours.vision(pixels)))
    assert (found - theirs(**inputs).logits).abs().max() <= 1e-4


def test_round_trip_is_exact(seeing_model, tmp_path):
    first = tensors_of(seeing_model)
    their_model(seeing_model).save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    save_model(ours, tmp_path / "ours", torch.float32)
    again = tensors_of(tmp_path / "ours")
    assert list(again) == list(first)
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())
    for file in ("config.json", "preprocessor_config.json", "processor_config.json"):
        ours_file = (tmp_path / "ours" / file).read_text()
        assert json.loads(ours_file) == json.loads((seeing_model / file).read_text()), file
    their_model(tmp_path / "ours").save_pretrained(tmp_path / "last")
    before, after = tensors_of(tmp_path / "theirs"), tensors_of(tmp_path / "last")
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("text", "tower", "projector"),
    [
        ("model.language_model.", "model.vision_tower.", "model.multi_modal_projector."),
        (
            "model.language_model.",
            "model.vision_tower.vision_model.",
            "model.multi_modal_projector.",
        ),
        ("language_model.model.", "vision_tower.", "multi_modal_projector."),
    ],
)
def test_other_layouts_give_the_same_model(text, tower, projector, copied):
    wanted = load_model(copied).state_dict()
    renamed = {
        name.replace("language_model.model.", text)
        .replace("vision_tower.vision_model.", tower)
        .replace("multi_modal_projector.", projector): tensor
        for name, tensor in tensors_of(copied).items()
    }
    renamed["lm_head.weight"] = torch.zeros(3)
    rewrite(copied, renamed)
    found = load_model(copied).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_the_text_decoder_alone(seeing_model, seeing_config):
    whole, text = load_model(seeing_model), load_model(seeing_model, vision=False)
    assert text.vision is None and text.config.vision is None
    assert read_config(seeing_model) == seeing_config
    state = whole.state_dict()
    assert all(torch.equal(state[n], p) for n, p in text.state_dict().items())
    assert {n for n in state if not n.startswith("vision.")} == set(text.state_dict())


def test_both_config_dialects_describe_the_vision_part(copied, seeing_config):
    file = copied / "config.json"
    raw = json.loads(file.read_text())
    for dialect in ("rope_parameters", "layer_types", "dtype"), ("rope_theta", "rope_scaling"):
        text = {k: v for k, v in raw["text_config"].items() if k not in dialect}
        file.write_text(json.dumps({**raw, "text_config": text}))
        assert read_config(copied) == seeing_config


@pytest.mark.parametrize(
    ("size", "text"),
    [
        ("4b", {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34}),
        (
            "12b",
            {
                "hidden_size": 3840,
                "intermediate_size": 15360,
                "num_hidden_layers": 48,
                "num_attention_heads": 16,
                "num_key_value_heads": 8,
            },
        ),
        (
            "27b",
            {
                "hidden_size": 5376,
                "intermediate_size": 21504,
                "num_hidden_layers": 62,
                "num_attention_heads": 32,
                "num_key_value_heads": 16,
                "head_dim": 128,
                "query_pre_attn_scalar": 168,
            },
        ),
    ],
)
def test_published_settings_leave_defaults_out(size, text):
    vision = {"hidden_size": 1152, "image_size": 896, "intermediate_size": 4304, "patch_size": 14}
    vision |= {"num_attention_heads": 16, "num_hidden_layers": 27, "vision_use_head": False}
    scaling = {"factor": 8.0, "rope_type": "linear"}
    raw = {
        "model_type": "gemma3",
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "mm_tokens_per_image": 256,
        "text_config": {**text, "rope_scaling": scaling, "sliding_window": 1024},
        "vision_config": {**vision, "model_type": "siglip_vision_model"},
    }
    config = config_from_hf(raw, "config.json")
    assert config == replace(SIZES[size], eos_ids=(1, 106), vision=VisionConfig())
    assert config.size_name == size
    whole = config_from_hf(config_to_hf(config, torch.bfloat16), "written")
    assert whole == config


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("vision_config", {"hidden_size": 26}, "`vision_config.hidden_size` is 26"),
        ("vision_config", {"intermediate_size": 33}, "`vision_config.intermediate_size` is 33"),
        ("vision_config", {"num_hidden_layers": 1}, "`vision_config.num_hidden_layers` is 1"),
        ("vision_config", {"num_hidden_layers": 3}, "layers.2.layer_norm1.weight` is missing"),
        ("vision_config", {"patch_size": 14, "image_size": 56}, "`vision_config.patch_size` is 14"),
        ("vision_config", {"image_size": 42}, "`mm_tokens_per_image` is 4, but 6 × 6|patch_size"),
        ("vision_config", {"num_attention_heads": 5}, "does not divide"),
        ("vision_config", {"vision_use_head": True}, "vision_use_head"),
        ("vision_config", {"model_type": "clip"}, "clip"),
        ("vision_config", {"patch_size": None}, "`vision_config.patch_size` is missing"),
        ("text_config", {"hidden_size": 48}, "`hidden_size` is 48"),
        ("text_config", {"intermediate_size": 65}, "`intermediate_size` is 65"),
        ("text_config", {"num_attention_heads": 6}, "`num_attention_heads × head_dim` is 96"),
        ("text_config", {"vocab_size": 519}, "`vocab_size` is 519"),
        (None, {"mm_tokens_per_image": 5}, "`mm_tokens_per_image` is 5"),
        (None, {"mm_tokens_per_image": 0}, "`mm_tokens_per_image` is 0, a whole number"),
        ("vision_config", {"image_size": "28"}, '`vision_config.image_size` is "28", a whole'),
        ("vision_config", {"num_attention_heads": 0}, "`vision_config.num_attention_heads` is 0"),
    ],
)
def test_settings_that_contradict_the_weights_are_named(part, change, message, copied):
    file = copied / "config.json"
    raw = json.loads(file.read_text())
    section = raw if part is None else raw[part]
    section |= change
    for key in [key for key, value in change.items() if value is None]:
        del section[key]
    file.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError) as caught:
        load_model(copied)
    import re

    assert re.search(message, str(caught.value)), str(caught.value)
    assert caught.value.hint


def test_fewer_layers_than_the_weights_have_are_named(copied):
    file = copied / "config.json"
    raw = json.loads(file.read_text())
    raw["text_config"] |= {
        "num_hidden_layers": 3,
        "layer_types": raw["text_config"]["layer_types"][:3],
    }
    file.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="`num_hidden_layers` is 3, but there is a tensor"):
        load_model(copied)


def test_a_tower_that_is_announced_but_missing(copied):
    text = {n: t for n, t in tensors_of(copied).items() if n.startswith("language_model")}
    rewrite(copied, text)
    with pytest.raises(CheckpointError, match="no weights of a vision tower"):
        load_model(copied)
    assert load_model(copied, vision=False).vision is None


@torch.no_grad()
def test_peft_reads_our_adapter_and_we_read_peft(seeing_model, tmp_path):
    from peft import PeftModel

    ours = add_adapter(load_model(seeing_model), 4, 8.0, ("query", "down"), seed=3)
    trained = [n for n, p in ours.named_parameters() if p.requires_grad]
    assert trained and not any(name.startswith("vision") for name in trained)
    for name in trained:
        parameter = ours.get_parameter(name)
        parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    save_adapter(ours, tmp_path / "adapter", "base")
    theirs = PeftModel.from_pretrained(their_model(seeing_model), tmp_path / "adapter")
    tokens = torch.arange(150, 180)[None]
    wanted = ours.logits(ours(tokens))
    assert (theirs(tokens).logits - wanted).abs().max() <= 1e-4
    theirs.save_pretrained(tmp_path / "again")
    for vision in (True, False):
        back = load_adapter(load_model(seeing_model, vision=vision), tmp_path / "again")
        assert torch.equal(back.logits(back(tokens)), wanted)
    file = tmp_path / "again" / "adapter_model.safetensors"
    with TensorReader([file]) as reader:
        tensors = {name: reader.read(name).clone() for name in reader}
    name = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_A.weight"
    tensors[name] = torch.zeros(4, 24)
    specs = [TensorSpec(n, tuple(t.shape), t.dtype) for n, t in tensors.items()]
    write_tensors(file, specs, tensors.values())
    with pytest.raises(CheckpointError, match="changes the vision tower"):
        load_adapter(load_model(seeing_model), tmp_path / "again")
