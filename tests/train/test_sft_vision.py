"""Fine-tuning of a model that sees: the decoder learns, the vision part is left as it is."""

from __future__ import annotations

import json

import pytest
import torch
from test_sft import run, weights

from singalaut.errors import DataError
from singalaut.model.hf import load_model


def row(*content) -> str:
    answer = {"role": "assistant", "content": "a cat"}
    return json.dumps({"messages": [{"role": "user", "content": list(content)}, answer]}) + "\n"


@pytest.mark.parametrize("adapter", [None, {"rank": 4}])
def test_vision_weights_are_written_unchanged(adapter, tmp_path, seeing_model):
    file = tmp_path / "rows.jsonl"
    file.write_text(row({"type": "text", "text": "what?"}) * 8)
    work = run(tmp_path, seeing_model, file, adapter=adapter, steps=3, weight_decay=0.1)
    before, after = weights(seeing_model), weights(work.path / "model")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("language_model.") for name in changed)
    assert load_model(work.path / "model").config.vision == load_model(seeing_model).config.vision
    assert (work.path / "model" / "preprocessor_config.json").exists()


def test_rows_with_images_are_named(tmp_path, seeing_model):
    file = tmp_path / "rows.jsonl"
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    file.write_text(row({"type": "text", "text": "a"}) + row(image))
    with pytest.raises(DataError, match=r"has images; training takes text only[\s\S]*rows:2"):
        run(tmp_path, seeing_model, file)
