"""Builds the BPE tokenizer that a SentencePiece vocabulary describes: merges from scores.

A GGUF file stores tokens, scores and token types but no merges. Here they become the same
`tokenizers` object that Gemma's own `tokenizer.json` holds, without the control tokens being
reachable by merges. Encoding and decoding are `tokenizer.py`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from singalaut.errors import CheckpointError

UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(2, 7)  # GGUF token types; 1 is normal
SPACE = "\u2581"
NAMES = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"
IMAGE_TOKENS = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
# Control tokens whatever type a file gives them: some label them user-defined or normal.
ALWAYS_CONTROL = frozenset({*NAMES.values(), START_OF_TURN, END_OF_TURN, *IMAGE_TOKENS.values()})


def build(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> Any:
    """A `tokenizers.Tokenizer` from the three arrays of a GGUF vocabulary, indexed by token id.

    Raises: CheckpointError if the arrays differ in length or a token comes twice.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    if not len(tokens) == len(scores) == len(types):
        raise CheckpointError(
            f"{len(tokens)} tokens, {len(scores)} scores and {len(types)} token types",
            where="tokenizer.ggml",
            hint="the three arrays need one entry for each token; the file is damaged",
        )
    spelled = [spell(token) for token in tokens]
    kinds = [
        CONTROL if token in ALWAYS_CONTROL else int(kind)
        for token, kind in zip(tokens, types, strict=True)
    ]
    vocabulary = {token: index for index, token in enumerate(spelled)}
    if len(vocabulary) < len(spelled):
        raise CheckpointError("a token comes twice", where="tokenizer.ggml.tokens")
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=build_merges(spelled, scores, kinds),
            unk_token=NAMES["unk_token"],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Replace(" ", SPACE)
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    _add_tokens(backend, tokens, kinds)
    _prepend_bos(backend, vocabulary)
    return backend


def spell(token: str) -> str:
    """A run of spaces as the text has it after normalisation."""
    return SPACE * len(token) if token and not token.strip(" ") else token


def build_merges(
    tokens: Sequence[str], scores: Sequence[float], kinds: Sequence[int]
) -> list[tuple[str, str]]:
    """Every way to join two tokens into a third, the best-scored result first.

    SentencePiece joins the pair whose result scores highest. User-defined tokens come first, in
    the order of their ids, because there they are matched before any merge; where a result can
    be split in several ways, the longest left part comes first. Control, byte and unused tokens
    take part in none.
    """
    joinable = {
        token: (True, -float(score), index) if kind != USER_DEFINED else (False, 0.0, index)
        for index, (token, score, kind) in enumerate(zip(tokens, scores, kinds, strict=True))
        if kind not in (UNKNOWN, CONTROL, UNUSED, BYTE)
    }
    return [
        (token[:cut], token[cut:])
        for token in sorted(joinable, key=joinable.__getitem__)
        for cut in range(len(token) - 1, 0, -1)
        if token[:cut] in joinable and token[cut:] in joinable
    ]


def _add_tokens(backend: Any, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Register control tokens as special, user-defined ones as matched before any merge.

    Runs of spaces are left to the merges, which come to the same up to the longest run.
    """
    from tokenizers import AddedToken

    special = [t for t, kind in zip(tokens, kinds, strict=True) if kind in (UNKNOWN, CONTROL)]
    plain = [
        token
        for token, kind in zip(tokens, kinds, strict=True)
        if kind == USER_DEFINED and token.strip(" ")
    ]
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    backend.add_tokens([AddedToken(t, normalized=False, special=False) for t in plain])


def _prepend_bos(backend: Any, vocabulary: dict[str, int]) -> None:
    """Let other readers of the saved file put BOS first; nothing in this package asks for it."""
    from tokenizers import processors

    bos = NAMES["bos_token"]
    if bos in vocabulary:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, vocabulary[bos])],
        )
