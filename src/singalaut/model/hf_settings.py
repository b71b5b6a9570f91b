"""Settings of `config.json` that two dialects say in their own way, and those with one right value.

Where both dialects speak, they must agree: readers differ in which one they believe.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from singalaut.errors import CheckpointError
from singalaut.model.config import Gemma3Config

FULL, SLIDING = "full_attention", "sliding_attention"
ROPE_TYPES = ("default", "linear")
ONE_VALUE = {  # what Gemma 3 never changes, and what would silently change the result
    "hidden_activation": (None, "gelu_pytorch_tanh"),
    "attention_bias": (None, False),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (None, False),
    "tie_word_embeddings": (None, True),
}
COUNTS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "window": "sliding_window",
    "max_positions": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "global_every": "sliding_window_pattern",
}
NUMBERS = {
    "query_scalar": "query_pre_attn_scalar",
    "rope_factor": "rope_scaling.factor",
    "rope_theta": "rope_theta",
    "rope_local_theta": "rope_local_base_freq",
    "norm_eps": "rms_norm_eps",
}


class Rope(NamedTuple):
    """Rotary positions: the linear factor and base of global layers, and the base of the others."""

    factor: float
    theta: float
    local_theta: float


def read_rope(text: dict[str, Any], where: Path | str) -> Rope:
    """From either dialect. Raises: CheckpointError for other kinds, or where both disagree."""
    new, scaling = text.get("rope_parameters") or {}, text.get("rope_scaling") or {}
    if new and FULL not in new:
        raise CheckpointError(
            f"`rope_parameters` has no `{FULL}`",
            where=where,
            hint="take `config.json` from the original",
        )
    full, sliding = new.get(FULL, {}), new.get(SLIDING, {})
    for name, part in (("rope_scaling", scaling), (FULL, full), (SLIDING, sliding)):
        kind = part.get("rope_type", part.get("type", "default"))
        if kind not in ROPE_TYPES or (name == SLIDING and part.get("factor", 1.0) != 1.0):
            raise CheckpointError(
                f"the RoPE of `{name}` is {json.dumps(part)}; Gemma 3 has linear scaling, on "
                "global layers only",
                where=where,
                hint="this checkpoint is of another architecture",
            )
    both = (
        ("rope_scaling.factor", _factor(scaling), _factor(full), 1.0),
        ("rope_theta", text.get("rope_theta"), full.get("rope_theta"), 1e6),
        ("rope_local_base_freq", text.get("rope_local_base_freq"), sliding.get("rope_theta"), 1e4),
    )
    return Rope(*(_agreed(*entry, where) for entry in both))


def read_pattern(text: dict[str, Any], where: Path | str) -> Any:
    """The distance of global layers; a layout that is not regular is refused."""
    kinds, pattern = text.get("layer_types"), text.get("sliding_window_pattern")
    if not kinds:
        return 6 if pattern is None else pattern
    if isinstance(kinds, list) and len(kinds) != text.get("num_hidden_layers"):
        raise CheckpointError(
            f"`num_hidden_layers` is {text.get('num_hidden_layers')}, but `layer_types` has "
            f"{len(kinds)} entries",
            where=where,
            hint="take `config.json` from the original",
        )
    every = kinds.index(FULL) + 1 if FULL in kinds else len(kinds) + 1
    if kinds != _kinds(every, len(kinds)):
        raise CheckpointError(
            "`layer_types` is not one global layer after a fixed number of window layers",
            where=where,
            hint="only Gemma 3's regular pattern is supported",
        )
    if isinstance(pattern, int) and pattern > 0 and _kinds(pattern, len(kinds)) != kinds:
        raise CheckpointError(
            f"`sliding_window_pattern` is {pattern}, but `layer_types` has every layer number "
            f"{every} global",
            where=where,
            hint="readers differ in which one they believe; remove the wrong one",
        )
    return every


def refuse_unsupported(text: dict[str, Any], where: Path | str) -> None:
    """Settings that Gemma 3 never uses and that would silently change the result."""
    for key, allowed in ONE_VALUE.items():
        if text.get(key) not in allowed:
            raise CheckpointError(
                f"`{key}` is {json.dumps(text[key])}; Gemma 3 has {json.dumps(allowed[-1])}",
                where=where,
                hint="this checkpoint is of another architecture",
            )


def check_values(config: Gemma3Config, where: Path | str) -> None:
    """Raise CheckpointError for a number that no network can have."""
    for fields, kinds, needed in (
        (COUNTS, int, "a whole number above 0"),
        (NUMBERS, int | float, "a number above 0"),
    ):
        for ours, theirs in fields.items():
            value = getattr(config, ours)
            if not isinstance(value, kinds) or isinstance(value, bool) or not value > 0:
                raise CheckpointError(
                    f"`{theirs}` is {value!r}, {needed} is needed",
                    where=where,
                    hint="take `config.json` from the original",
                )
    ids = (config.pad_id, config.bos_id, *config.eos_ids)
    wrong = [i for i in ids if not isinstance(i, int) or not 0 <= i < config.vocab_size]
    if wrong or not config.eos_ids or config.num_heads % config.num_kv_heads:
        fact = (
            f"the token id {wrong[0]!r} is not one of {config.vocab_size} (`vocab_size`)"
            if wrong
            else "`eos_token_id` is empty: no answer would end"
            if not config.eos_ids
            else f"`num_key_value_heads` {config.num_kv_heads} does not divide "
            f"`num_attention_heads` {config.num_heads}"
        )
        raise CheckpointError(fact, where=where, hint="take `config.json` from the original")


def _kinds(every: int, layers: int) -> list[str]:
    return [FULL if (i + 1) % every == 0 else SLIDING for i in range(layers)]


def _factor(rope: dict[str, Any]) -> Any:
    """The linear factor that a dialect states, 1 without scaling, None where it says nothing."""
    if not rope:
        return None
    return rope.get("factor", 1.0) if rope.get("rope_type", rope.get("type")) == "linear" else 1.0


def _agreed(name: str, old: Any, new: Any, default: float, where: Path | str) -> float:
    """What either dialect says, or both."""
    if old is not None and new is not None and old != new:
        raise CheckpointError(
            f"`{name}` is {old}, but `rope_parameters` says {new}",
            where=where,
            hint="readers differ in which one they believe; remove the wrong one",
        )
    found = new if new is not None else old
    return default if found is None else found
