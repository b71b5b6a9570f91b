"""The images of requests: decoded once, and their embeddings kept while they are likely to return.

An embedding costs as much as prefilling thousands of tokens, and a conversation sends its images
again at every turn; so the last ones are kept, by the hash of their pixels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from singalaut.contracts import Message
from singalaut.errors import DataError, RequestError
from singalaut.generate.ranks import ALONE, Ranks
from singalaut.model.config import VisionConfig
from singalaut.model.images import Picture, load_pictures, normalise
from singalaut.text.parts import ImageTokens, image_sources

if TYPE_CHECKING:
    from torch import Tensor

    from singalaut.model.gemma3 import Gemma3

MAX_EMBEDDINGS = 64  # at most 180 MB with the widest model in bfloat16
BATCH = 8  # images that go through the tower together


@dataclass(frozen=True)
class PromptImages:
    """The pictures of one prompt in the order of their tokens, and how they become tokens."""

    pictures: tuple[Picture, ...]
    tokens: ImageTokens


def read_images(
    messages: Sequence[Message], vision: VisionConfig, pan_and_scan: bool
) -> PromptImages | None:
    """Decode the images of a conversation; None where there are none.

    Raises: DataError or RequestError for what cannot be decoded.
    """
    sources = image_sources(messages)
    if not sources:
        return None
    pictures: list[Picture] = []
    crops = []
    for number, source in enumerate(sources, start=1):
        if source is None:
            raise RequestError(
                "an image part without an image",
                where=f"image {number}",
                hint='add it as "image": bytes, a `data:` URI or a pathlib.Path',
            )
        try:
            found = load_pictures(source, vision.image_size, crop=pan_and_scan)
        except DataError as error:
            where = f"image {number}: {error.where}"
            raise DataError(error.what, where=where, hint=error.hint) from error
        pictures += found
        crops.append(len(found) - 1)
    return PromptImages(tuple(pictures), ImageTokens(tuple(crops), vision.image_tokens))


class ImageEmbeddings:
    """What the vision part makes of pictures, the least recently used forgotten first."""

    def __init__(self, model: Gemma3, ranks: Ranks = ALONE, together: int = BATCH):
        self._together = together
        self._model, self._ranks = model, ranks
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self.computed = self.reused = 0

    def of(self, pictures: Sequence[Picture]) -> Tensor:
        """Embeddings [N, I, W] of the pictures, in order; the first process makes them for all."""
        if self._ranks.is_first:
            return self._ranks.share(self._find(pictures))
        config, weight = self._model.config, self._model.embedding.weight
        assert config.vision is not None
        shape = (len(pictures), config.vision.image_tokens, config.hidden_size)
        return self._ranks.share(weight.new_empty(shape))

    def clear(self) -> None:
        """Forget everything: the weights have changed, or the memory is needed."""
        self._kept.clear()

    def _find(self, pictures: Sequence[Picture]) -> Tensor:
        new = {p.digest: p for p in pictures if p.digest not in self._kept}
        found = {p.digest: self._kept[p.digest] for p in pictures if p.digest in self._kept}
        fresh = list(new.values())
        assert self._model.vision is not None
        for first in range(0, len(fresh), self._together):
            batch = fresh[first : first + self._together]
            made = self._model.vision(normalise(batch))
            # copies: a view would keep the whole batch in memory
            found |= {p.digest: tensor.clone() for p, tensor in zip(batch, made, strict=True)}
        self.computed += len(fresh)
        self.reused += len(pictures) - len(fresh)
        for picture in pictures:
            self._kept[picture.digest] = found[picture.digest]
            self._kept.move_to_end(picture.digest)
        while len(self._kept) > MAX_EMBEDDINGS:
            self._kept.popitem(last=False)
        return torch.stack([found[picture.digest] for picture in pictures])
