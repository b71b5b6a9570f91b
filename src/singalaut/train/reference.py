"""Log-probabilities of answers under the reference: computed once, kept in safetensors files.

The reference is the model as it is before its first step, with an adapter or without, so no
second model is held in memory; or another model, which is dropped before training begins.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from singalaut.data.pair_batches import pack_pairs
from singalaut.data.preference import Pairs
from singalaut.model.gemma3 import Gemma3
from singalaut.model.tensors import TensorReader, TensorSpec, write_tensors
from singalaut.progress import progress
from singalaut.train.pairs import reference_logprobs
from singalaut.train.parallel import World, put_away

log = logging.getLogger("singalaut")
PART = 1024  # pairs of a file; a killed run repeats at most so many


def reference_table(
    open_reference: Callable[[], Gemma3],
    pairs: Pairs,
    used: np.ndarray,
    row_tokens: int,
    folder: Path,
    world: World,
) -> np.ndarray:
    """[pairs, 2]: log-probabilities in nats of both answers of the `used` pairs, NaN for others.

    What is in `folder` is read, what is missing is computed and written there.
    """
    table = np.full((len(pairs), 2), np.nan, dtype=np.float32)
    parts = [used[start : start + PART] for start in range(0, len(used), PART)]
    files = [folder / f"part-{number:05d}.safetensors" for number in range(len(parts))]
    known = [file.exists() for file in files]
    world.wait()  # all look before the first one writes
    folder.mkdir(parents=True, exist_ok=True)
    model = None if all(known) else open_reference()
    with progress("reference", len(used), "pair") as bar:
        for part, file, is_known in zip(parts, files, known, strict=True):
            if is_known:
                with TensorReader([file]) as reader:
                    table[part] = reader.read("logprobs").numpy()
            else:
                assert model is not None
                rows = pack_pairs(pairs, part, row_tokens)
                table[part] = reference_logprobs(model, rows, len(part), world)
                if world.is_first:
                    values = torch.from_numpy(table[part])
                    spec = TensorSpec("logprobs", tuple(values.shape), values.dtype)
                    write_tensors(file, [spec], [values])
            bar.advance(len(part))
    if model is not None:
        put_away(model)
    return table
