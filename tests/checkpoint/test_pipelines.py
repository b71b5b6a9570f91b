"""Directories that we write in the pipelines of `transformers`, as model cards show them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

SYSTEM = {"role": "system", "content": [{"type": "text", "text": "You are a helpful assistant."}]}
QUESTION = "Write a poem on southeast asian countries in Indonesian."


@pytest.mark.parametrize("kind", ["tiny_model", "seeing_model"])
def test_text_generation(kind, request):
    """The snippet of a model card; the library takes the messages by position, not as `text`."""
    from transformers import pipeline

    pipe = pipeline(
        "text-generation",
        model=str(request.getfixturevalue(kind)),
        device="cpu",
        torch_dtype=torch.bfloat16,
    )
    messages = [SYSTEM, {"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
    output = pipe(messages, max_new_tokens=8)
    answer = output[0]["generated_text"][-1]
    assert answer["role"] == "assistant" and isinstance(answer["content"], str)
    ids = pipe.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids.count(pipe.tokenizer.bos_token_id) == 1


def test_image_text_to_text(seeing_model, tmp_path):
    """By the library's image processor for Pillow: torchvision is not needed."""
    from transformers import pipeline

    values = np.random.default_rng(0).integers(0, 255, (40, 90, 3), np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    pipe = pipeline(
        "image-text-to-text", model=str(seeing_model), device="cpu", dtype=torch.bfloat16
    )
    content = [
        {"type": "image", "path": str(tmp_path / "a.png")},
        {"type": "text", "text": "What is this?"},
    ]
    output = pipe(text=[SYSTEM, {"role": "user", "content": content}], max_new_tokens=8)
    answer = output[0]["generated_text"][-1]
    assert answer["role"] == "assistant" and isinstance(answer["content"], str)
