"""What a training step costs before it is run: operations, and memory by part.

Operations are those that the mathematics asks for: what is computed twice to save memory is not
counted. Shapes: W hidden width, I inner width, H query heads, K key heads, D head width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from singalaut.errors import MachineError
from singalaut.loss.logprobs import CHUNK_BYTES
from singalaut.model.config import Gemma3Config
from singalaut.train.adamw import Moments, Precision
from singalaut.train.moments import BLOCK
from singalaut.train.optim import Rule

Keep = Literal["all", "products", "attention", "inputs"]
GIB = 2**30
# bytes of one weight (its gradient has as many), of its float32 copy, and of a moment
WEIGHT_BYTES: dict[Precision, tuple[int, int, int]] = {
    "float32": (4, 0, 4),
    "master": (2, 4, 4),
    "rounded": (2, 0, 2),
}
MOMENTS: dict[Rule, int] = {"adamw": 2, "muon": 1}


def layer_weights(config: Gemma3Config) -> int:
    """Weights in the matrices of one layer: W D (2 H + 2 K) + 3 W I."""
    heads = 2 * config.num_heads + 2 * config.num_kv_heads
    return config.hidden_size * (heads * config.head_dim + 3 * config.intermediate_size)


def step_flops(config: Gemma3Config, lengths: Iterable[int], adapter: bool = False) -> float:
    """Floating-point operations of forward and backward over documents of these lengths.

    Two for each weight and token forward and four backward (two where weights are frozen), and
    4 H D for each query and key that meet, three times as much with the backward pass.
    """
    lengths = list(lengths)
    weights = config.num_layers * layer_weights(config) + config.vocab_size * config.hidden_size
    products = (4 if adapter else 6) * weights * sum(lengths)
    pairs = 0
    for index in range(config.num_layers):
        window = None if config.is_global(index) else config.window
        pairs += sum(_pairs(length, window) for length in lengths)
    return products + 12 * config.num_heads * config.head_dim * pairs


def _pairs(length: int, window: int | None) -> int:
    """Queries and keys that meet in a document under a causal mask."""
    if window is None or length <= window:
        return length * (length + 1) // 2
    return window * (window + 1) // 2 + (length - window) * window


def memory_plan(
    config: Gemma3Config,
    tokens: int,
    *,
    precision: Precision,
    keep: Keep,
    accumulates: bool = True,
    learned: int | None = None,
    processes: int = 1,
    rule: Rule = "adamw",
    moments: Moments = "full",
    has_average: bool = False,
    replicas: int = 1,
    tensor: int = 1,
) -> dict[str, int]:
    """Bytes on one device at the fullest moment of a step of `tokens` a pass, by part.

    `learned` is how many weights have gradients, all if None; `accumulates` whether gradients are
    kept from one pass to the next; `tensor` how many of the processes compute one pass together.
    The fullest moment is the end of the forward pass, when all that layers keep is there and the
    head's logits are made, or the end of the backward pass, when all gradients are, or a step of
    Muon. Checked against measurements: within 5 % where layers are compiled and keep `all`.
    """
    layer, head = layer_weights(config), config.vocab_size * config.hidden_size
    weights = config.num_layers * layer + head
    size, _, _ = WEIGHT_BYTES[precision]
    trained = weights if learned is None else learned
    parts = processes // replicas
    kept = optimiser_bytes(
        trained, trained - head if learned is None else 0, precision, rule, moments
    )
    plan = {
        "weights": weights * size // parts,
        "optimiser": kept // parts,
        "average": trained * 4 // parts if has_average else 0,
        "gradients": trained * size // parts if accumulates else 0,
        "kept for the backward pass": tokens
        * config.num_layers
        * _kept(config, keep, size, tensor),
        "logits": min(CHUNK_BYTES, tokens * config.vocab_size * size),
        "gradient of the head": head * size if learned is None else 0,
    }
    if keep != "all":
        plan["one layer computed again"] = 2 * tokens * _kept(config, "all", size, tensor)
    if processes > 1:
        plan["put together"] = (2 * layer // tensor + head) * size
    fixed = ("weights", "optimiser", "average", "gradient of the head")
    last = {name: plan[name] for name in fixed}
    last["gradients"] = trained * size // parts
    if processes > 1:  # the head's gradient is summed last, in float32
        last |= {"put together": head * size, "gradient of the head": head * 4}
    stepping = {name: plan[name] for name in ("weights", "optimiser", "average")}
    stepping["gradients"] = trained * size // parts
    if rule == "muon":
        stepping["made orthogonal"] = muon_bytes(config, moments, processes // replicas // tensor)
    return max(plan, last, stepping, key=lambda each: sum(each.values()))


def muon_bytes(config: Gemma3Config, moments: Moments, parts: int) -> int:
    """Bytes that one step of the largest matrix takes: products of the whole, in bfloat16, and
    float32 numbers of this process's rows, more of them where they become codes of 8 bits.
    """
    largest = config.hidden_size * config.intermediate_size
    return largest * 8 + largest * (40 if moments == "int8" else 16) // parts


def optimiser_bytes(
    trained: int, hidden: int, precision: Precision, rule: Rule, moments: Moments
) -> int:
    """Bytes that the optimiser keeps of `trained` weights, `hidden` of them in layers' matrices."""
    _, copy, moment = WEIGHT_BYTES[precision]
    each = moment if moments == "full" else 1 + 4 / BLOCK
    muon = hidden if rule == "muon" else 0
    numbers = MOMENTS["muon"] * muon + MOMENTS["adamw"] * (trained - muon)
    return int(trained * copy + numbers * each)


def _kept(config: Gemma3Config, keep: Keep, size: int, tensor: int) -> int:
    """Bytes that a layer keeps of each token; its input and middle are float32.

    What lies between the matrices that neighbours have parts of is divided among them.
    """
    width, inner = config.hidden_size, config.intermediate_size // tensor
    queries = config.num_heads * config.head_dim // tensor
    key_heads = max(1, config.num_kv_heads // tensor)
    projected = queries + 2 * key_heads * config.head_dim
    if keep == "inputs":
        return 4 * width
    if keep == "attention":
        return 4 * width + size * queries
    if keep == "products":
        return 4 * width + size * (queries + projected + 2 * inner + 2 * width)
    return 8 * width + size * (4 * width + 2 * projected + queries + 3 * inner)


def remedies(plan: Mapping[str, int], room: int, settings: Mapping[str, Any]) -> list[str]:
    """What would help a step that takes more than `room` bytes, of what `settings` could have."""
    known = [
        ("keep", "inputs", 'set `keep = "inputs"`'),
        ("micro_tokens", 1, "lower `micro_tokens`"),
    ]
    fixed = sum(plan.get(name, 0) for name in ("weights", "optimiser", "average", "gradients"))
    if fixed > 0.8 * room:
        known = [
            ("precision", "rounded", 'set `precision = "rounded"`'),
            ("moments", "int8", 'set `moments = "int8"`'),
        ]
    helps = [
        text for name, value, text in known if not settings or settings.get(name, value) != value
    ]
    if fixed > 0.8 * room:
        helps += [] if settings.get("adapter") else ["train an `adapter`"]
        helps.append("use more GPUs by `torchrun`")
        if settings.get("sharded") is False:
            helps[-1] += " and `sharded = true`"
    elif "prompts_per_step" in settings:
        helps.append("ask for fewer or shorter answers")
    return helps


def check_memory(
    plan: dict[str, int], room: int, where: str, settings: Mapping[str, Any] | None = None
) -> None:
    """Refuse what cannot fit. Raises: MachineError with the parts and what would help."""
    total = sum(plan.values())
    if total <= room:
        return
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in plan.items() if size)
    raise MachineError(
        f"a step needs about {total / GIB:.1f} GiB ({parts}); the device has {room / GIB:.1f}",
        where=where,
        hint=" or ".join(remedies(plan, room, settings or {})),
    )
