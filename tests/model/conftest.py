"""The independent implementation that the network is held to."""

from __future__ import annotations

import pytest
import torch
from reduced_shapes import oracle_name


@pytest.fixture(scope="session")
def oracle():
    """Build `transformers`' network for a configuration, with our weights in it."""

    def build(model, dtype=torch.float32):
        import transformers

        from singalaut.model.hf import config_to_hf

        raw = config_to_hf(model.config, dtype)
        if model.config.vision:
            config = transformers.Gemma3Config.from_dict(raw)
            theirs = transformers.Gemma3ForConditionalGeneration(config)
        else:
            config = transformers.Gemma3TextConfig.from_dict(raw)
            theirs = transformers.Gemma3ForCausalLM(config)
        theirs = theirs.to(dtype).eval()
        state = {oracle_name(n, model.config): p.clone() for n, p in model.state_dict().items()}
        missing, unexpected = theirs.load_state_dict(state, strict=False)
        assert set(missing) <= {"lm_head.weight"} and not unexpected
        theirs.tie_weights()
        return theirs

    return build
