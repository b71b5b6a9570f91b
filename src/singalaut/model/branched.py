"""Sequences with a common beginning in one row, the beginning computed once.

Several answers to a prompt, or both answers of a pair, are a tree: a trunk, and branches that each
see the trunk and themselves. A token of the trunk sees no branch, so all its numbers are those it
has in any of the sequences, and its gradient is the sum of theirs. Only attention has to know:
everything else is a function of one token and its position. CUDA's kernel gets the keys that each
piece sees; compiled code without that kernel a mask; a CPU goes piece by piece.

Shapes: T tokens of the row, S tokens of the keys, U tokens of all sequences written out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from singalaut.model.attention import Packed, causal_attention, visible
from singalaut.model.flash import Spans, attend_spans, can_flash

Tree = tuple[int, ...]  # tokens of the trunk, then of each branch


@dataclass(frozen=True)
class Branched:
    """One row of trees end to end, of each the trunk and then its branches, none of them empty.

    What compiled code and CUDA's kernel need on the `device` is made here, once for all layers.
    `keys` are, for each trunk and branch, the places it sees; `trees_of` and `branches_of` say of
    each token to which tree it belongs, and to which branch of it, 0 being the trunk.
    """

    trees: tuple[Tree, ...]
    device: torch.device | str = "cpu"
    places: Int[Tensor, " T"] = field(init=False, repr=False)
    trees_of: Int[Tensor, " T"] = field(init=False, repr=False)
    branches_of: Int[Tensor, " T"] = field(init=False, repr=False)
    keys: Int[Tensor, " S"] = field(init=False, repr=False)
    query_spans: Spans = field(init=False, repr=False)
    key_spans: Spans = field(init=False, repr=False)

    def __post_init__(self) -> None:
        pieces = list(_pieces(self.trees))
        seen = [len(trunk) + len(own) for trunk, own in pieces]
        counts = torch.tensor([len(own) for _, own in pieces])
        numbers = [(t, b) for t, tree in enumerate(self.trees) for b in range(len(tree))]
        trees, branches = torch.tensor(numbers).repeat_interleave(counts, dim=0).unbind(1)
        places = [torch.arange(len(trunk), len(trunk) + len(own)) for trunk, own in pieces]
        made = {
            "places": torch.cat(places).to(self.device),
            "trees_of": trees.to(self.device),
            "branches_of": branches.to(self.device),
            "keys": _joined(pieces).to(self.device),
            "query_spans": Spans.of(counts.tolist(), self.device),
            "key_spans": Spans.of(seen, self.device),
        }
        for name, value in made.items():
            object.__setattr__(self, name, value)

    def attend(
        self,
        layer: int,
        queries: Float[Tensor, "1 H T D"],
        keys: Float[Tensor, "1 K T D"],
        values: Float[Tensor, "1 K T D"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "1 H T D"]:
        if can_flash(queries):
            keys, values = keys.index_select(2, self.keys), values.index_select(2, self.keys)
            return attend_spans(
                queries, keys, values, scale, window, self.query_spans, self.key_spans
            )
        if torch.compiler.is_compiling():
            return scaled_dot_product_attention(
                queries, keys, values, attn_mask=self.mask(window), scale=scale, enable_gqa=True
            )
        if queries.is_cuda:
            return self.written_out.attend(queries, keys, values, scale, window)
        pieces = []
        for trunk, own in _pieces(self.trees):
            around = [slice(each.start, each.stop) for each in (trunk, own) if each]
            k, v = (torch.cat([x[:, :, at] for at in around], 2) for x in (keys, values))
            q = queries[:, :, own.start : own.stop]
            pieces.append(causal_attention(q, k, v, scale, window))
        return torch.cat(pieces, dim=2)

    def mask(self, window: int | None) -> Bool[Tensor, "T T"]:
        """True where query t sees key s: `visible` by position, in its own branch or the trunk."""
        is_near = (self.branches_of == 0) | (self.branches_of[:, None] == self.branches_of)
        is_near = is_near & (self.trees_of[:, None] == self.trees_of)
        return is_near & visible(self.places, self.places, window)

    @cached_property
    def written_out(self) -> WrittenOut:
        """All sequences whole, for devices without that kernel where a call costs much."""
        return WrittenOut.of(self.trees, self.device)

    def positions(self) -> Int[Tensor, "1 T"]:
        """Positions of the row's tokens: a branch goes on where its trunk ends."""
        return self.places[None]


@dataclass(frozen=True)
class WrittenOut:
    """The sequences of trees, each with its trunk, as documents of a longer row.

    `places` are those of the row; `back` has for each token of the row a place among these.
    """

    whole: Packed
    places: Int[Tensor, " U"]
    back: Int[Tensor, " T"]

    @classmethod
    def of(cls, trees: Sequence[Tree], device: torch.device | str) -> WrittenOut:
        is_whole = [b > 0 or len(tree) == 1 for tree in trees for b in range(len(tree))]
        pieces = [p for p, keep in zip(_pieces(trees), is_whole, strict=True) if keep]
        places = _joined(pieces)
        back = torch.empty(sum(map(sum, trees)), dtype=torch.int64)
        back[places.flip(0)] = torch.arange(len(places)).flip(0)  # the first of several
        lengths = tuple(len(trunk) + len(own) for trunk, own in pieces)
        return cls(Packed(lengths, None, device), places.to(device), back.to(device))

    def attend(
        self,
        queries: Float[Tensor, "1 H T D"],
        keys: Float[Tensor, "1 K T D"],
        values: Float[Tensor, "1 K T D"],
        scale: float,
        window: int | None,
    ) -> Float[Tensor, "1 H T D"]:
        """Causal attention within each sequence."""
        q, k, v = (each.index_select(2, self.places) for each in (queries, keys, values))
        return self.whole.attend(0, q, k, v, scale, window).index_select(2, self.back)


def _pieces(trees: Sequence[Tree]) -> Iterator[tuple[range, range]]:
    """Of each trunk and branch in order: the places before it that it sees, and its own."""
    for start, tree in zip(accumulate(map(sum, trees), initial=0), trees, strict=False):
        trunk = range(start, start + tree[0])
        yield range(0), trunk
        for end, length in zip(accumulate(tree), tree[1:], strict=False):
            yield trunk, range(start + end, start + end + length)


def _joined(pieces: Sequence[tuple[range, range]]) -> Int[Tensor, " S"]:
    """All places that pieces see, one piece after the other."""
    both = [each for piece in pieces for each in piece if each]
    return torch.cat([torch.arange(each.start, each.stop) for each in both])
