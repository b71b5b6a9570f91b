"""What is known of GPUs: the peak their makers state, memory, power, and what training reached.

Torch-free, so that a plan can be made on a machine without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """`peak_flops` is of dense bfloat16 products, `memory_bytes` what a process finds free,
    `power_watts` the most that the board takes."""

    name: str
    peak_flops: float
    memory_bytes: int
    power_watts: float


GIB = 2**30
# by what the driver calls them, the longer name first where one begins another
DEVICES: dict[str, Device] = {
    "NVIDIA H200": Device("H200", 989e12, int(139.8 * GIB), 700),
    "NVIDIA H100 PCIe": Device("H100 PCIe", 756e12, int(79.1 * GIB), 350),
    "NVIDIA H100": Device("H100", 989e12, int(79.2 * GIB), 700),
    "NVIDIA B200": Device("B200", 2250e12, int(178 * GIB), 1000),
    "NVIDIA A100-SXM4-80GB": Device("A100 80GB", 312e12, int(79.2 * GIB), 400),
    "NVIDIA A100 80GB PCIe": Device("A100 80GB PCIe", 312e12, int(79.2 * GIB), 300),
    "NVIDIA A100": Device("A100 40GB", 312e12, int(39.4 * GIB), 400),
    "NVIDIA L40S": Device("L40S", 362e12, int(44.5 * GIB), 350),
    "NVIDIA GeForce RTX 4090": Device("RTX 4090", 165e12, int(23.6 * GIB), 450),
}

# Operations a second of one device that fine-tuning reached, by shape: measurements of
# docs/performance.md, with which a test compares these. 27B was trained on two H200, the others on
# one H100; both have the same peak.
TRAINING_FLOPS: dict[str, float] = {
    "270m": 0.439 * 781e12,
    "1b": 0.543 * 781e12,
    "4b": 0.634 * 781e12,
    "27b": 0.445 * 781e12,
}
MEASURED_TOGETHER = ("27b",)  # where what devices say to each other is in the figure already
# Tokens a second that the engine wrote on one of them, 64 prompts × 8 answers, 256 → 512 tokens
# (27B: 64 requests, 128 → 256 tokens, on an H200).
ENGINE_TOKENS: dict[str, float] = {
    "270m": 164_487,
    "1b": 100_922,
    "4b": 29_798,
    "27b": 3_192,
}
MEASURED_ON = ("H100", "H200")
MEASURED_PEAK_FLOPS = 989e12  # of both, as their maker states it


def device_of(name: str) -> Device | None:
    """The device with a driver's name, or with ours in any case; None where it is not known."""
    for driver, device in DEVICES.items():
        if name.startswith(driver):
            return device
    wanted = name.lower().replace("-", " ")
    return next((device for device in DEVICES.values() if device.name.lower() == wanted), None)
