"""The independent implementation that the network is held to."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def oracle():
    """Build `transformers`' network for a configuration, with our weights in it."""

    def build(model, dtype=torch.float32):
        from transformers import Gemma3ForCausalLM, Gemma3TextConfig

        from singalaut.model.hf import config_to_hf, hf_name

        config = Gemma3TextConfig.from_dict(config_to_hf(model.config, dtype))
        theirs = Gemma3ForCausalLM(config).to(dtype).eval()
        state = {hf_name(name): p.detach().clone() for name, p in model.named_parameters()}
        missing, unexpected = theirs.load_state_dict(state, strict=False)
        assert set(missing) <= {"lm_head.weight"} and not unexpected
        theirs.tie_weights()
        return theirs

    return build
