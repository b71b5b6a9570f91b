"""The errors a user can meet: each says what was found and needed, where, and what to do."""

from __future__ import annotations

from pathlib import Path


class SingalautError(Exception):
    """A refusal that the user can act on; the command line prints it without a traceback.

    `what` is the fact, `where` the file, line, tensor or key it is about, `hint` the remedy.
    `exit_code` is 2 where the user's input is at fault and 1 where the machine or we are.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str | Path | None = None, hint: str | None = None):
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


class RecipeError(SingalautError):
    """A recipe, a setting or a command-line value that cannot be used."""


class CheckpointError(SingalautError):
    """A model, adapter or tokenizer file that is missing, damaged or of the wrong shape."""


class DataError(SingalautError):
    """A row of training or evaluation data that cannot be used."""


class ArtifactError(SingalautError):
    """A run folder whose contents do not agree with its manifest."""


class RequestError(SingalautError):
    """A generation request that the model cannot serve."""


class BusyError(SingalautError):
    """More requests are waiting than a sampler takes; to be tried again later."""

    exit_code = 1


class MachineError(SingalautError):
    """No disk space, no permission, no memory: the machine is in the way."""

    exit_code = 1


class PathError(MachineError):
    """A path that leads nowhere: refused by the machine, but to be corrected by the user."""

    exit_code = 2


def from_os_error(error: OSError) -> MachineError:
    """Say what the operating system refused, and what to do about it.

    A path that leads nowhere is the user's mistake, anything else the machine's.
    """
    import errno

    where = error.filename
    if error.errno == errno.ENOSPC:
        return MachineError(
            "no space is left on the disk",
            where=where,
            hint="free some space, or set `output` (for what is cached, $SINGALAUT_HOME) to "
            "another disk; finished stages are kept",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return MachineError(
            "permission denied", where=where, hint="choose a folder that you may write to"
        )
    if error.errno == errno.ENOENT:
        return PathError("no such file or directory", where=where, hint="check the path")
    if error.errno in (errno.EISDIR, errno.ENOTDIR):
        needed = "a file" if error.errno == errno.EISDIR else "a directory"
        return PathError(f"{needed} is needed here", where=where, hint="check the path")
    return MachineError(error.strerror or str(error), where=where)
