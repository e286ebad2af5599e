"""Model folders: weights in safetensors, everything else in one JSON file.

A folder holds ``model.safetensors`` and ``config.json``. The JSON always has a "stack" (what the
network is); a pipeline adds "codec", "class_names" and the like, a run adds "run". So a run is a
pipeline, and both can be opened as a bare stack. Nothing read here can execute anything.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from legodiff import hub

WEIGHTS, RAW, CONFIG = "model.safetensors", "raw.safetensors", "config.json"
PLANS = "plans.json"
KINDS = {"ema": WEIGHTS, "raw": RAW}
"""Files of the average of the weights, and of the weights as they are."""
FORMAT = "legodiff-1"


Built = TypeVar("Built")


def build(kind: type[Built], what: str, values: Any) -> Built:
    """A dataclass from JSON data. Raises ValueError for unknown or missing keys of ``what``."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{what}: {values!r} is not a set of named values")
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"{what}: unknown key {key!r}; {hint}")
    try:
        return kind(**values)
    except TypeError as error:  # __init__() missing 1 required positional argument: 'x'
        raise ValueError(f"{what}: {str(error).split('() ')[-1]}") from error


def make_folder(path: Path) -> None:
    """Makes a folder and those above it. Raises ValueError if a file is in the way."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{path} cannot be a folder: a file is in the way") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file whole or not at all: a temporary neighbour, fsync, rename."""
    make_folder(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp made it private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder that appears, in place of what is there, when the block ends without an error.

    Yields the temporary neighbour to write into. Raises ValueError if a file is in the way.
    """
    if os.path.lexists(path) and not path.is_dir():
        raise ValueError(f"{path} cannot be a folder: a file is in the way; choose another name")
    make_folder(path.parent)
    near = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    new, old = near / "new", near / "old"
    try:
        new.mkdir()  # as the umask has it; mkdtemp makes a private one
        yield new
        sync_folder(new)
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
        sync_folder(path.parent)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(near, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Makes sure that the names in a folder survive a power cut, where the system can."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_weights(
    path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None
) -> None:
    """Writes tensors from any device as one safetensors file, whole or not at all.

    ``about`` goes into its metadata.
    """
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(cpu, metadata={"format": "pt", **(about or {})}))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Raises ValueError if the file is missing or is not safetensors."""
    if not path.is_file():
        raise ValueError(f"{path.parent} holds no {path.name}; is it a model or run folder?")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from error


def read_about(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file. Raises ValueError if it is none."""
    file: Any
    try:
        with safe_open(path, framework="numpy") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error})") from error


def weights_file(kind: str) -> str:
    """The file of "ema" or "raw" weights. Raises ValueError for others."""
    if kind not in KINDS:
        raise ValueError(f"weights is {kind!r}; choose from {', '.join(KINDS)}")
    return KINDS[kind]


def sha256(*paths: Path) -> str:
    """Of the files one after the other; of a single file, the one that the Hub shows."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    """Raises ValueError if a file is not JSON, or too large to be meant."""
    if (size := path.stat().st_size) > hub.LARGEST_JSON:
        raise ValueError(f"{path} is too large to be meant ({size / 1e6:,.0f} MB)")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes ``config.json``, whole or not at all."""
    text = json.dumps({"format": FORMAT, **config}, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(folder / CONFIG, text.encode() + b"\n")


def read_config(folder: Path) -> dict[str, Any]:
    """Raises ValueError if the file is missing, is not JSON, or was written by something else."""
    path = folder / CONFIG
    if not path.is_file():
        raise ValueError(f"{folder} holds no {CONFIG}; is it a model or run folder?")
    config = read_json(path)
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT or "stack" not in config:
        raise ValueError(f'{path} has format {found!r}; this version reads "{FORMAT}"')
    return dict(config)


def locate(
    folder_or_hub_id: str | os.PathLike[str],
    revision: str | None = None,
    needed: Sequence[str] = (CONFIG, WEIGHTS),
    wanted: Sequence[str] = (PLANS,),
) -> Path:
    """A local folder as it is, or a Hugging Face Hub id downloaded to the cache.

    Args:
        folder_or_hub_id: a folder, owner/name, or owner/name@revision.
        revision: branch, tag or commit of a Hub id, unless it is named there.
        needed: files that are fetched, and must be there.
        wanted: patterns of files that are fetched if they are there.

    Only safetensors and JSON are ever fetched. Raises ValueError, in one line, if there is neither.
    """
    return find(folder_or_hub_id, revision, needed, wanted)[0]


def find(
    folder_or_hub_id: str | os.PathLike[str],
    revision: str | None = None,
    needed: Sequence[str] = (CONFIG, WEIGHTS),
    wanted: Sequence[str] = (PLANS,),
) -> tuple[Path, hub.Snapshot | None]:
    """As ``locate``, and the snapshot if it came from the Hub."""
    folder, name = Path(folder_or_hub_id), str(folder_or_hub_id)
    if folder.is_dir():
        if revision is not None:
            raise ValueError(f"{name} is a folder; a revision is for Hub ids, leave out {revision}")
        return folder, None
    if folder.exists():
        raise ValueError(f"{name} is neither a folder nor a Hub id of the form owner/name")
    snapshot = hub.fetch(name, revision, needed, wanted)
    return snapshot.folder, snapshot
