"""What a frozen vision part makes of the pictures of a training step.

Each picture of a step goes through the tower once, without gradients, however many conversations
show it; what comes out stands at the image tokens of their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from singalaut.data.tokenise import Sight
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import read_config
from singalaut.model.images import load_pictures, normalise

Source = bytes | str | Path
PICTURES_AT_ONCE = 8  # through the tower; bounds its memory


@torch.no_grad()
def embed_pictures(model: Gemma3, sources: Sequence[Source]) -> Float[Tensor, "N I W"]:
    """Embeddings of pictures, in order; `sources` are bytes of files, `data:` URIs or paths.

    Raises: DataError for what cannot be decoded.
    """
    assert model.vision is not None and model.config.vision is not None
    size = model.config.vision.image_size
    places = {source: place for place, source in enumerate(dict.fromkeys(sources))}
    distinct = list(places)
    embedded = []
    for start in range(0, len(distinct), PICTURES_AT_ONCE):
        pictures = [load_pictures(s, size)[0] for s in distinct[start : start + PICTURES_AT_ONCE]]
        embedded.append(model.vision(normalise(pictures)))
    order = torch.tensor([places[source] for source in sources], device=embedded[0].device)
    return torch.cat(embedded)[order]


def sight_of(model: Path) -> Sight | None:
    """How the pictures of rows become tokens for a model; None for one that cannot see."""
    vision = read_config(model).vision
    return None if vision is None else Sight(vision.image_tokens, check_picture)


def check_picture(picture: bytes) -> None:
    """Refuse a picture that cannot be decoded. Raises: DataError."""
    load_pictures(picture, 1)
