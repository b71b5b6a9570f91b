"""Who answers with which weights: the engine over the trained ones, over a copy, or servers.

`renew` is called after every update, and before the first answer, by all processes of a job at the
same time: when it returns, answers come from the weights of now.
"""

from __future__ import annotations

import itertools
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from singalaut.contracts import Sampler
from singalaut.errors import RecipeError, from_os_error
from singalaut.model.gemma3 import Gemma3
from singalaut.model.hf import (
    copy_companions,
    load_model,
    parameter_shapes,
    save_weights,
    stored_dtype,
)
from singalaut.model.lora import LoraLinear, save_adapter
from singalaut.remote.endpoint import EndpointSampler
from singalaut.remote.weights import WeightCalls
from singalaut.rl.config import EngineConfig, RlConfig
from singalaut.rl.team import Team
from singalaut.train.parallel import whole

LINK = "model"  # what servers are started on, in the shared folder


@dataclass(frozen=True)
class Voice:
    """A Sampler, and how it gets new weights."""

    sampler: Sampler
    renew: Callable[[], None]


def voice_of(
    config: RlConfig,
    network: Gemma3,
    model: Path,
    engine_over: Callable[[Gemma3], Sampler],
    team: Team,
) -> Voice:
    """What the settings ask for; `engine_over` makes an engine over a network's own weights."""
    if config.engine.kind == "remote":
        return _served(config.engine, network, model, team)
    if config.overlap or (config.sharded and team.size > 1):
        return _over_copy(network, model, engine_over, team)
    sampler = engine_over(network)
    return Voice(sampler, sampler.weights_changed)


def _over_copy(
    network: Gemma3, model: Path, engine_over: Callable[[Gemma3], Sampler], team: Team
) -> Voice:
    """An engine over a copy: the trained weights are cut in pieces, or change while it answers."""
    copy = load_model(model, network.embedding.weight.dtype, team.world.device)
    copy.requires_grad_(False)
    copy.config = network.config
    sampler = engine_over(copy)

    @torch.no_grad()
    def renew() -> None:
        for name, weight in plain_weights(network):
            copy.get_parameter(name).copy_(weight)
        sampler.weights_changed()

    return Voice(sampler, renew)


def plain_weights(network: Gemma3) -> Iterator[tuple[str, Tensor]]:
    """Every weight by the name it has without an adapter: whole, the adapter folded in."""
    modules = dict(network.named_modules())
    for name in parameter_shapes(network.config):
        module_name, _, leaf = name.rpartition(".")
        module = modules[module_name]
        if isinstance(module, LoraLinear):
            weight, a, b = whole(module.base.weight), whole(module.a), whole(module.b)
            yield name, (weight.float() + module.scale * (b.float() @ a.float())).to(weight.dtype)
        else:
            yield name, whole(module.get_parameter(leaf))


def _served(settings: EngineConfig, network: Gemma3, model: Path, team: Team) -> Voice:
    """Servers that take new weights from a folder that they share with this machine."""
    sampler = EndpointSampler(settings.endpoint())
    calls = WeightCalls(settings.endpoint())
    folder = Path(settings.folder).expanduser().absolute()
    run = team.merge([secrets.token_hex(3)], str, str)[0]  # no name is used by two runs
    names = (f"{settings.model}-{run}-{number}" for number in itertools.count())
    known: list[str] = []
    publish = _publish_model if settings.update == "reload" else _publish_adapter

    @torch.no_grad()
    def renew() -> None:
        name = next(names)
        try:
            publish(network, model, folder / name, calls, known, team)
        except OSError as error:
            raise from_os_error(error) from error
        if settings.update == "adapter":
            sampler.use_model(name)
        known[:] = [name]
        team.world.wait()

    return Voice(sampler, renew)


def _publish_model(
    network: Gemma3, model: Path, target: Path, calls: WeightCalls, known: list[str], team: Team
) -> None:
    """Write the whole model, let the link lead to it, have it read, remove the one before."""
    weights = (weight for _, weight in plain_weights(network))
    if not team.is_first:
        for _ in weights:  # each is put together by all processes
            pass
        return
    link = target.parent / LINK
    if link.exists() and not link.is_symlink():
        raise RecipeError(
            "new weights are to lie here, but this is no link",
            where=link,
            hint=f"move it away, link to it (`ln -s … {LINK}`), and start the servers on the link",
        )
    save_weights(target, network.config, stored_dtype(model), weights)
    copy_companions(model, target)
    fresh = target.with_name(f".{target.name}")
    fresh.symlink_to(target.name)
    fresh.replace(link)
    calls.reload()
    for name in known:
        shutil.rmtree(target.parent / name)


def _publish_adapter(
    network: Gemma3, model: Path, target: Path, calls: WeightCalls, known: list[str], team: Team
) -> None:
    """Write the adapter under a name of its own, have it loaded, and the one before forgotten."""
    learned = {n: whole(p).cpu() for n, p in network.named_parameters() if p.requires_grad}
    if not team.is_first:
        return
    base = model.parent if model.name == "model" else model
    save_adapter(network, target, base.name, learned)
    calls.load_adapter(target.name, target)
    for name in known:
        calls.unload_adapter(name)
        shutil.rmtree(target.parent / name)
