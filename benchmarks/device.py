"""What the measurements on a device share: random networks in real shapes, times, memory."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import torch

from singalaut.model.config import Gemma3Config
from singalaut.model.gemma3 import Gemma3

BF16 = torch.bfloat16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TABLES = Path(__file__).parents[1] / "docs" / "performance.md"


def build(config: Gemma3Config) -> Gemma3:
    """A network on the device with random weights."""
    torch.set_default_dtype(BF16)
    with torch.device(DEVICE):
        model = Gemma3(config)
    torch.set_default_dtype(torch.float32)
    return randomise(model).eval().requires_grad_(False)


@torch.no_grad()
def randomise(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        weight.normal_(0, 0.1 if name.endswith("norm.weight") else weight.shape[-1] ** -0.5)
    return model


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        wait()
        begin = time.perf_counter()
        run()
        wait()
        found.append(time.perf_counter() - begin)
    return found


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def allocated() -> int:
    """Bytes on the device now; its peak is counted from here."""
    if DEVICE != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def write_section(part: str, lines: list[str]) -> None:
    """Print a table, and put it where docs/performance.md has a place for this part and device."""
    device = torch.cuda.get_device_name()
    head = f"{device}; torch {torch.__version__}; {time.strftime('%Y-%m-%d')}."
    text = "\n".join([head, "", *lines])
    print(text)
    name = re.sub(r"\W+", "-", f"{part} {device}".strip().lower())
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.compile(f"{begin}.*{end}", re.S)
    if pattern.search(TABLES.read_text()):
        TABLES.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", TABLES.read_text()))
