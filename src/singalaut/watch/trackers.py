"""Metrics for the trackers that people have: TensorBoard, Weights & Biases, Trackio.

None of them is needed. One that is asked for and not installed is an error before anything is
trained; one that fails later is counted and named, and training goes on. Nothing is sent over a
network unless its user said so: W&B runs offline without `WANDB_MODE`.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from singalaut.artifact import home
from singalaut.errors import MachineError

log = logging.getLogger("singalaut")
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio"}
LONGEST_REASON = 200  # characters of a tracker's complaint that are kept


class Tracker(Protocol):
    """What is told the numbers of a step."""

    def add(self, step: int, numbers: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the stage's folder; a resumed run hides the steps that it takes again.

    At the end their names lose the machine's, which the library puts there.
    """

    def __init__(self, folder: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._place = folder / "trackers" / "tensorboard"
        self._writer = SummaryWriter(str(self._place), purge_step=start or None)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
        files = sorted(self._place.glob("events.out.tfevents.*"))
        for number, file in enumerate(files):  # time, machine, process, count
            time = file.name.split(".")[3]
            file.replace(file.with_name(f"events.out.tfevents.{time}.{number:03}"))


class Session:
    """W&B or Trackio: modules with `init`, `log` and `finish`."""

    def __init__(self, module: Any, name: str, config: Mapping[str, Any], **more: Any) -> None:
        self._module = module
        project = os.environ.get(f"{module.__name__.upper()}_PROJECT", "singalaut")
        module.init(project=project, name=name, config=dict(config), **more)

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        self._module.log(dict(numbers), step=step)

    def flush(self) -> None:
        """Both keep what they were told by themselves."""

    def close(self) -> None:
        self._module.finish()


class Trackers:
    """Those that a stage has; what they fail at is counted by tracker."""

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        run_name: str,
        config: Mapping[str, Any],
        start: int = 0,
    ) -> None:
        """Open all of them. Raises: MachineError for one that is not there or does not begin."""
        self._open: dict[str, Tracker] = {}
        self._counts = {name: {"name": name, "sent": 0, "failed": 0, "error": ""} for name in names}
        for name in names:
            self._open[name] = _opened(name, folder, run_name, config, start)

    def add(self, line: Mapping[str, Any]) -> None:
        """Tell all of them the numbers of a line of metrics."""
        if not self._open or not isinstance(line.get("step"), int):
            return
        numbers = flat_numbers({key: value for key, value in line.items() if key != "step"})

        def told(tracker: Tracker) -> None:
            tracker.add(line["step"], numbers)

        self._each(told, count=True)

    def flush(self) -> None:
        self._each(lambda tracker: tracker.flush())

    def close(self) -> list[dict[str, Any]]:
        """End all of them; what each took and refused."""
        self._each(lambda tracker: tracker.close())
        self._open = {}
        for told in self._counts.values():
            if told["failed"]:
                log.warning(
                    "%s refused %d calls and took %d; the first time: %s",
                    *(told[key] for key in ("name", "failed", "sent", "error")),
                )
        return list(self._counts.values())

    def _each(self, call: Callable[[Tracker], None], *, count: bool = False) -> None:
        for name, tracker in self._open.items():
            told: dict[str, Any] = self._counts[name]
            try:
                call(tracker)
                told["sent"] += count
            except Exception as error:  # whatever it is, training is worth more
                told["failed"] += 1
                if not told["error"]:
                    told["error"] = f"{type(error).__name__}: {error}"[:LONGEST_REASON]
                    log.warning("%s: %s; training goes on", name, told["error"])


def flat_numbers(line: Mapping[str, Any], above: str = "") -> dict[str, float]:
    """All numbers of a line, those of groups by `group/name`."""
    found: dict[str, float] = {}
    for key, value in line.items():
        name = f"{above}/{key}" if above else key
        if isinstance(value, Mapping):
            found |= flat_numbers(value, name)
        elif isinstance(value, int | float):
            found[name] = float(value)
    return found


def _opened(
    name: str, folder: Path, run_name: str, config: Mapping[str, Any], start: int
) -> Tracker:
    try:
        module = importlib.import_module(PACKAGES[name])
        if name == "tensorboard":
            return TensorBoard(folder, start)
        if name == "wandb":
            place = home() / "trackers"  # what it notes of user and machine is not the stage's
            place.mkdir(parents=True, exist_ok=True)
            mode = os.environ.get("WANDB_MODE", "offline")
            return Session(module, run_name, config, dir=str(place), mode=mode, resume="allow")
        return Session(module, run_name, config)
    except ImportError as error:
        raise MachineError(
            f"the tracker `{name}` is not installed: {error}",
            where="watch.trackers",
            hint=f"`pip install 'singalaut[{name}]'`, or take it out of `trackers`",
        ) from error
    except Exception as error:
        raise MachineError(
            f"the tracker `{name}` does not begin: {type(error).__name__}: {error}",
            where="watch.trackers",
            hint="take it out of `trackers`, or look at its own settings",
        ) from error
