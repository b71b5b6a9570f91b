"""Trackers: what reaches them, and that none can end a run."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from singalaut.artifact import Work
from singalaut.errors import MachineError
from singalaut.watch.config import WatchConfig
from singalaut.watch.trackers import Trackers, flat_numbers
from singalaut.watch.watch import Watch

LINE = {"step": 3, "loss": 1.5, "loss_by_language": {"th": 2.0}, "left_out": True, "note": "x"}
NUMBERS = {"loss": 1.5, "loss_by_language/th": 2.0, "left_out": 1.0}


class Fake(ModuleType):
    """A module like W&B's and Trackio's."""

    def __init__(self, name, fails_at=None):
        super().__init__(name)
        self.told, self.began, self.ended, self.fails_at = [], None, False, fails_at

    def init(self, **given):
        self.began = given

    def log(self, numbers, step):
        if self.fails_at is not None and step >= self.fails_at:
            raise ConnectionError("no network")
        self.told.append((step, numbers))

    def finish(self):
        self.ended = True


def test_tensorboard_reads_what_was_written(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trackers = Trackers(("tensorboard",), tmp_path, "run", {})
    for number in range(4):
        trackers.add({**LINE, "step": number, "loss": float(number)})
    (told,) = trackers.close()
    assert told == {"name": "tensorboard", "sent": 4, "failed": 0, "error": ""}
    # a resumed run writes steps 2 and 3 again; those of before are hidden
    trackers = Trackers(("tensorboard",), tmp_path, "run", {}, start=2)
    trackers.add({**LINE, "step": 2, "loss": 20.0})
    trackers.close()
    events = EventAccumulator(str(tmp_path / "trackers" / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == set(NUMBERS)
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(0, 0.0), (1, 1.0), (2, 20.0)]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_sessions_are_told_and_ended(tmp_path, monkeypatch, name):
    module = Fake(name)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    trackers = Trackers((name,), tmp_path, "sft-1", {"learning_rate": 1e-4})
    trackers.add(LINE)
    trackers.add({"prompts": 3})  # no step: nothing for a curve
    trackers.close()
    assert module.told == [(3, NUMBERS)] and module.ended
    assert module.began["config"] == {"learning_rate": 1e-4} and module.began["name"] == "sft-1"
    assert name != "wandb" or module.began["mode"] == "offline"


def test_a_tracker_that_fails_is_counted_and_named(tmp_path, monkeypatch, caplog):
    module = Fake("wandb", fails_at=2)
    monkeypatch.setitem(sys.modules, "wandb", module)
    work = Work(tmp_path)
    config = WatchConfig.model_validate({"trackers": ["wandb"]})
    watch = Watch(config, work, kind="sft", steps=5)
    with caplog.at_level("WARNING", "singalaut"):
        for number in range(5):
            work.log(step=number, loss=1.0, gradient_norm=1.0)
            watch.saved()
        watch.finish()
    assert len(work.metrics()) == 5 and len(module.told) == 2
    assert "wandb refused 3 calls and took 2; the first time: ConnectionError" in caplog.text
    page = (tmp_path / "report" / "report.html").read_text()
    assert "lines refused" in page and "no network" in page
    work.log(step=5, loss=1.0)  # nobody listens any more
    assert len(module.told) == 2


def test_one_that_is_not_installed_is_an_error_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MachineError, match="`trackio` is not installed") as caught:
        Trackers(("trackio",), tmp_path, "run", {})
    assert "singalaut[trackio]" in str(caught.value)


def test_one_that_does_not_begin_is_an_error_before_training(tmp_path, monkeypatch):
    module = Fake("wandb")
    module.init = lambda **_: (_ for _ in ()).throw(ValueError("no key"))
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(MachineError, match="does not begin: ValueError: no key"):
        Trackers(("wandb",), tmp_path, "run", {})


def test_groups_become_names():
    assert flat_numbers({k: v for k, v in LINE.items() if k != "step"}) == NUMBERS
