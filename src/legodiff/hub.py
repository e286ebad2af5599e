"""The Hugging Face Hub: files that come from it, and files that go to it.

A name is ``owner/name`` or ``owner/name@revision``: a branch, a tag or a commit. A commit whose
needed files are in the cache is taken from there. Of anything else the Hub is asked what it holds,
once and with little patience; if it does not answer, what is in the cache will do.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./+-]*))?", re.ASCII)
COMMIT, SHA256 = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}")
FETCHED = (".safetensors", ".json")
"""Endings of all that is ever fetched."""
LARGEST_JSON = 2**26  # bytes; larger ones are neither fetched nor read
PATIENCE = 5.0  # seconds for the Hub to say which commit a name means


class Snapshot(NamedTuple):
    """Files of a commit, in the cache."""

    repo: str
    commit: str
    folder: Path


class Pushed(NamedTuple):
    """A commit that was made."""

    commit: str
    url: str


@dataclass(frozen=True)
class Origin:
    """Where weights were downloaded. Raises ValueError for what cannot be."""

    repo: str
    commit: str
    sha256: str
    """Of the file of weights."""

    def __post_init__(self) -> None:
        for name, form in (("repo", NAME), ("commit", COMMIT), ("sha256", SHA256)):
            value = getattr(self, name)
            if not isinstance(value, str) or not form.fullmatch(value):
                raise ValueError(f"origin: {name} cannot be {value!r}")

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit}"


def parse(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """Repository and revision of a name. Raises ValueError for what is none."""
    found = NAME.fullmatch(name)
    if not found:
        raise ValueError(
            f"{name} is neither a folder nor a Hub id of the form owner/name or owner/name@revision"
        )
    if revision is not None and found[2] is not None:
        raise ValueError(f"{name} names a revision already; leave out {revision}")
    asked = found[2] if revision is None else revision
    if asked is not None and (not NAME.fullmatch(f"a/b@{asked}") or ".." in asked):
        raise ValueError(f"{found[1]}: the revision {asked!r} is no branch, tag or commit")
    return found[1], asked


def branch(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """Repository and branch to upload to. Raises ValueError for what cannot be one."""
    if not NAME.fullmatch(name):
        raise ValueError(f"{name} is no name to upload to; write owner/name")
    repo, asked = parse(name, revision)
    if asked is not None and COMMIT.fullmatch(asked):
        raise ValueError(f"{asked} is a commit; name a branch to upload to")
    return repo, asked


def fetch(
    name: str, revision: str | None, needed: Sequence[str], wanted: Sequence[str] = ()
) -> Snapshot:
    """Files of a repository, downloaded unless they are in the cache.

    Args:
        name: owner/name or owner/name@revision.
        revision: branch, tag or commit, unless the name says it; by default the main branch.
        needed: names of files that must be there.
        wanted: patterns of files that may be there.

    Raises ValueError, in one line, for what the Hub does not give, naming a file that is missing.
    """
    assert all(pattern.endswith(FETCHED) for pattern in (*needed, *wanted))
    from huggingface_hub import HfApi, snapshot_download  # imported here: slow, and rarely needed

    repo, revision = parse(name, revision)
    refused = f"no folder {_named(repo, revision)}, and the Hub did not give it"
    pinned = revision is not None and COMMIT.fullmatch(revision)
    # What is only wanted may be missing from the cache because an earlier download was broken off.
    if pinned and needed and (found := _cached(repo, revision, needed, wanted)):
        return found
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=PATIENCE)
    except Exception as error:  # the Hub client raises many kinds; the user needs one line
        if found := _cached(repo, revision, needed, wanted):
            return found
        missing = [file for file in needed if not _cached(repo, revision, [file])]
        cache = f" (not in the cache: {', '.join(missing)})" if missing else ""
        raise ValueError(f"{refused}: {_reason(error)}{cache}") from error
    _check(info, needed, wanted)
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=[*needed, *wanted]))
    except Exception as error:
        raise ValueError(f"{refused}: {_reason(error)}") from error
    return Snapshot(repo, folder.name, folder)


def check_login() -> None:
    """Raises ValueError, in one line, if nothing can be uploaded from here."""
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        raise ValueError("HF_HUB_OFFLINE is set: nothing can be uploaded; unset it")
    if get_token() is None:
        raise ValueError(
            "uploading needs a token of the Hugging Face Hub: run hf auth login, or set HF_TOKEN"
        )


def upload(
    folder: Path,
    repo: str,
    ours: re.Pattern[str],
    *,
    branch: str | None = None,
    private: bool = True,
    message: str = "A legodiff model",
) -> Pushed:
    """Uploads the files of a folder to a model repository, which is made if there is none.

    It is one commit: all files or none. Files whose names match ``ours`` and that are no longer in
    the folder are removed; others are left alone. ``private`` matters for a new repository only.
    Raises ValueError, in one line, if the Hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    names = sorted(path.name for path in folder.iterdir())
    assert all(map(ours.fullmatch, names))
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        if branch is not None:
            api.create_branch(repo, branch=branch, exist_ok=True)
        old = [name for name in api.list_repo_files(repo, revision=branch) if ours.fullmatch(name)]
        done = api.create_commit(
            repo,
            [
                *(CommitOperationAdd(name, folder / name) for name in names),
                *(CommitOperationDelete(name) for name in old if name not in names),
            ],
            commit_message=message,
            revision=branch,
        )
    except Exception as error:  # of many kinds
        raise ValueError(f"{_named(repo, branch)} was not uploaded: {_reason(error)}") from error
    return Pushed(done.oid, done.commit_url)


def _cached(
    repo: str, revision: str | None, needed: Sequence[str], wanted: Sequence[str] = ()
) -> Snapshot | None:
    """The files, if the cache holds all of them."""
    from huggingface_hub import snapshot_download

    patterns = [*needed, *wanted]
    try:
        folder = Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=patterns, local_files_only=True
            )
        )
    except Exception:  # the Hub client raises many kinds; they all mean that it is not there
        return None
    if not all((folder / name).is_file() for name in needed):
        return None
    return Snapshot(repo, folder.name, folder)


def _check(info: Any, needed: Sequence[str], wanted: Sequence[str]) -> None:
    """Raises ValueError, in one line, if what a repository lists is not to be fetched."""
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    where = f"{info.id} at commit {info.sha}"
    if missing := [name for name in needed if name not in sizes]:
        raise ValueError(f"{where} holds no {' and no '.join(missing)}; is it a legodiff model?")
    for name, size in sizes.items():
        if not any(fnmatch(name, pattern) for pattern in (*needed, *wanted)):
            continue
        if ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise ValueError(f"{where} holds {name!r}, which lies outside of it")
        if name.endswith(".json") and size > LARGEST_JSON:
            raise ValueError(f"{where}: {name} is too large to be meant ({size / 1e6:,.0f} MB)")


def _named(repo: str, revision: str | None) -> str:
    return repo if revision is None else f"{repo}@{revision}"


def _reason(error: Exception) -> str:
    """What went wrong with the Hub, in one line."""
    from huggingface_hub import errors

    known = {
        errors.OfflineModeIsEnabled: "HF_HUB_OFFLINE is set",
        errors.GatedRepoError: "ask for access on its page, then run hf auth login",
        errors.RepositoryNotFoundError: "there is none, or it is private and needs hf auth login",
        errors.RevisionNotFoundError: "it has no such branch, tag or commit",
    }
    for kind, text in known.items():
        if isinstance(error, kind):
            return text
    return " ".join((str(error).strip() or repr(error)).split())[:300]
