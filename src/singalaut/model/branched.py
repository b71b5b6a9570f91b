"""Sequences with a common beginning in one row, the beginning computed once.

Several answers to a prompt, or both answers of a pair, are a tree: a trunk, and branches that each
see the trunk and themselves. A token of the trunk sees no branch, so all its numbers are those it
has in any of the sequences, and its gradient is the sum of theirs. Only attention has to know:
everything else is a function of one token and its position.

Shapes: T tokens of the row, S tokens of the keys, U tokens of all sequences written out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from jaxtyping import Float, Int
from torch import Tensor

from singalaut.model.attention import Packed
from singalaut.model.flash import Spans, attend_spans, can_flash

Tree = tuple[int, ...]  # tokens of the trunk, then of each branch


@dataclass(frozen=True)
class Branched:
    """One row of trees end to end, of each the trunk and then its branches, none of them empty.

    CUDA's kernel reads queries from the row and, for each branch, keys of trunk and branch;
    elsewhere all sequences are written out for attention alone, which is the smaller part there.
    """

    trees: tuple[Tree, ...]
    device: torch.device | str = "cpu"
    keys: Int[Tensor, " S"] = field(init=False, repr=False)
    query_spans: Spans = field(init=False, repr=False)
    key_spans: Spans = field(init=False, repr=False)
    whole: Packed = field(init=False, repr=False)
    written_out: Int[Tensor, " U"] = field(init=False, repr=False)
    back: Int[Tensor, " T"] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        pieces = list(_pieces(self.trees))
        seen = [[*trunk, *branch] for trunk, branch in pieces]
        whole = [places for places, (trunk, _) in zip(seen, pieces, strict=True) if trunk]
        whole += [list(trunk) for trunk in _bare(self.trees)]
        written_out = torch.tensor([place for places in whole for place in places])
        back = torch.empty(sum(map(sum, self.trees)), dtype=torch.int64)
        back[written_out.flip(0)] = torch.arange(len(written_out)).flip(0)  # the first of several
        made = {
            "keys": torch.tensor([place for places in seen for place in places]).to(self.device),
            "query_spans": Spans.of([len(branch) for _, branch in pieces], self.device),
            "key_spans": Spans.of([len(places) for places in seen], self.device),
            "whole": Packed(tuple(len(places) for places in whole), None, self.device),
            "written_out": written_out.to(self.device),
            "back": back.to(self.device),
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
        q, k, v = (each.index_select(2, self.written_out) for each in (queries, keys, values))
        return self.whole.attend(layer, q, k, v, scale, window).index_select(2, self.back)

    def positions(self) -> Int[Tensor, "1 T"]:
        """Positions of the row's tokens: a branch goes on where its trunk ends."""
        places = [
            torch.arange(len(trunk), len(trunk) + len(branch))
            for trunk, branch in _pieces(self.trees)
        ]
        return torch.cat(places)[None].to(self.device)


def _pieces(trees: Sequence[Tree]) -> Iterator[tuple[range, range]]:
    """Of each trunk and branch in order: the places before it that it sees, and its own."""
    for start, tree in zip(accumulate(map(sum, trees), initial=0), trees, strict=False):
        trunk = range(start, start + tree[0])
        yield range(0), trunk
        for end, length in zip(accumulate(tree), tree[1:], strict=False):
            yield trunk, range(start + end, start + end + length)


def _bare(trees: Sequence[Tree]) -> Iterator[range]:
    """The places of trunks without a branch."""
    for start, tree in zip(accumulate(map(sum, trees), initial=0), trees, strict=False):
        if len(tree) == 1:
            yield range(start, start + tree[0])
