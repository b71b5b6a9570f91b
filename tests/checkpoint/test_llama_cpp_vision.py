"""llama.cpp as the reader of our projector files: embeddings, and logits of text and images."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from singalaut.checkpoint.convert import convert
from singalaut.model.hf import load_model
from singalaut.model.images import Picture, normalise
from singalaut.model.mmproj import FORMATS

llama_cpp = pytest.importorskip("llama_cpp")
mtmd = pytest.importorskip("llama_cpp.mtmd_cpp")
SIDE = 56


def picture(seed: int) -> Picture:
    values = np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return Picture(values)  # of the tower's size, so that nobody resizes it


@contextmanager
def opened(text, projector):
    """Both parts of a model in llama.cpp."""
    llama = llama_cpp.Llama(
        str(text), n_ctx=256, n_batch=256, n_threads=1, logits_all=True, verbose=False
    )
    params = mtmd.mtmd_context_params_default()
    params.use_gpu = params.print_timings = params.warmup = False
    params.n_threads = 1
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = mtmd.mtmd_init_from_file(str(projector).encode(), llama.model, params)
    assert context and mtmd.mtmd_support_vision(context)
    try:
        yield llama, context
    finally:
        mtmd.mtmd_free(context)
        llama.close()


@contextmanager
def chunks_of(context, text: str, picture: Picture):
    """The prompt as llama.cpp cuts it into text and image."""
    data = np.ascontiguousarray(picture.pixels).tobytes()
    pixels = (ctypes.c_uint8 * len(data)).from_buffer_copy(data)
    bitmap = mtmd.mtmd_bitmap_init(SIDE, SIDE, pixels)
    asked = mtmd.mtmd_input_text()
    asked.text = text.replace("<image>", mtmd.mtmd_default_marker().decode()).encode()
    asked.text_len = len(asked.text)
    asked.add_special = asked.parse_special = True
    chunks = mtmd.mtmd_input_chunks_init()
    bitmaps = (mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
    assert mtmd.mtmd_tokenize(context, chunks, ctypes.byref(asked), bitmaps, 1) == 0
    try:
        count = mtmd.mtmd_input_chunks_size(chunks)
        yield [mtmd.mtmd_input_chunks_get(chunks, i) for i in range(count)]
    finally:
        mtmd.mtmd_input_chunks_free(chunks)
        mtmd.mtmd_bitmap_free(bitmap)


def is_image(chunk) -> bool:
    return mtmd.mtmd_input_chunk_get_type(chunk) == mtmd.MTMD_INPUT_CHUNK_TYPE_IMAGE


def their_embeddings(context, seen: Picture, width: int) -> torch.Tensor:
    with chunks_of(context, "<image>", seen) as chunks:
        chunk = next(filter(is_image, chunks))
        count = mtmd.mtmd_input_chunk_get_n_tokens(chunk)
        assert mtmd.mtmd_encode_chunk(context, chunk) == 0
        values = np.ctypeslib.as_array(mtmd.mtmd_get_output_embd(context), (count * width,))
        return torch.from_numpy(values.reshape(count, width).copy())


@pytest.mark.parametrize("quant", FORMATS)
@torch.no_grad()
def test_embeddings_are_those_of_llama_cpp(quant, gguf_seeing_model, tmp_path):
    convert(gguf_seeing_model, tmp_path / "m.gguf", quant="F32")
    convert(gguf_seeing_model, tmp_path / "mmproj-x.gguf", quant=quant)
    convert(tmp_path / "m.gguf", tmp_path / "back", mmproj=tmp_path / "mmproj-x.gguf")
    ours = load_model(tmp_path / "back")
    with opened(tmp_path / "m.gguf", tmp_path / "mmproj-x.gguf") as (_, context):
        for seed in range(2):
            wanted = ours.vision(normalise([picture(seed)]))[0]
            found = their_embeddings(context, picture(seed), wanted.shape[1])
            # its GELU is a table in half precision, and it rounds activations too
            assert (found - wanted).abs().max() <= 3e-3 * wanted.abs().max()
            other = ours.vision(normalise([picture(seed + 1)]))[0]
            assert (found - other).abs().max() > 0.1 * wanted.abs().max()


@torch.no_grad()
def test_logits_of_text_with_an_image_are_those_of_llama_cpp(gguf_seeing_model, tmp_path):
    convert(gguf_seeing_model, tmp_path / "m.gguf", quant="F32")
    model = load_model(gguf_seeing_model)
    ids: list[int] = []
    with (
        opened(tmp_path / "m.gguf", tmp_path / "mmproj-m.gguf") as (llama, context),
        chunks_of(context, "in the <image> that is", picture(3)) as chunks,
    ):
        for chunk in chunks:
            size = ctypes.c_size_t(mtmd.mtmd_input_chunk_get_n_tokens(chunk))
            if is_image(chunk):
                ids += [model.config.vision.image_id] * size.value
            else:
                tokens = mtmd.mtmd_input_chunk_get_tokens_text(chunk, ctypes.byref(size))
                ids += tokens[: size.value]
            place = llama_cpp.llama_pos(len(ids) - size.value)
            after = llama_cpp.llama_pos(place.value)
            arguments = (context, llama._ctx.ctx, chunk, place, llama_cpp.llama_seq_id(0), 256)
            assert not mtmd.mtmd_helper_eval_chunk_single(*arguments, True, ctypes.byref(after))
            assert after.value == len(ids)
        row = llama_cpp.llama_get_logits_ith(llama._ctx.ctx, -1)
        found = torch.from_numpy(np.ctypeslib.as_array(row, (llama.n_vocab(),)).copy())
    images = model.vision(normalise([picture(3)]))
    tokens = torch.tensor([ids])
    wanted = model.logits(model(tokens, images=images))[0, -1, : len(found)]
    assert (found - wanted).abs().max() <= 5e-3 * wanted.abs().max()
    other = model.vision(normalise([picture(4)]))
    blind = model.logits(model(tokens, images=other))[0, -1, : len(found)]
    assert (found - blind).abs().max() > 0.02 * wanted.abs().max()
