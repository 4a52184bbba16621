"""Publishing on the Hugging Face Hub: an export that names nobody and no place, uploaded by the Hub's own client."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from irpipe.exports import EXPORTERS
from irpipe.pipeline.errors import InputError
from irpipe.pipeline.manifest import Record
from irpipe.pipeline.store import Store

REPO_TYPES = {"hf-dataset": "dataset", "diffusers": "model", "reward-model": "model"}


@dataclass(frozen=True)
class Published:
    """What was published, or would be: the page, its files with their sizes in bytes, and whether it was uploaded."""

    page: str
    files: dict[str, int]
    uploaded: bool


def publish(store: Store, record: Record, repo: str, to: str, *, upload: bool, public: bool) -> Published:
    """Export an artifact without host, user, command lines, folders and names of annotators, and upload that on request.

    The client sends large files in parts and in several commits, and leaves out what is there: the same command goes on.

    Args:
        repo: `owner/name` on the Hub; made if it is not there.
        to: a layout of `REPO_TYPES`.

    Raises:
        InputError: the Hub refuses, or cannot be reached.
    """
    if repo.count("/") != 1 or not all(repo.split("/")):
        raise InputError(f"{repo!r} is no repository", expected="owner/name")
    kind = REPO_TYPES[to]
    (store.root / "work").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="publish-", dir=store.root / "work") as draft:
        folder = Path(draft, repo.split("/")[1])
        EXPORTERS[to](store, record, folder, hidden=True)
        files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
        page = _upload(folder, repo, kind, public) if upload else f"{'datasets/' if kind == 'dataset' else ''}{repo}"
    return Published(page, files, upload)


def _upload(folder: Path, repo: str, kind: str, public: bool) -> str:
    """Upload a folder; the address of its page."""
    api, errors = _client()
    try:
        made = api.create_repo(repo, repo_type=kind, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repo, repo_type=kind, folder_path=folder, commit_message="Published by irpipe")
    except errors as error:
        told = str(error).strip().splitlines()
        raise InputError(
            f"the Hub does not take {repo}: {told[0] if told else type(error).__name__}"[:400],
            fix="hf auth login with a token that may write there; the same command goes on",
        ) from None
    return str(made)


def _client() -> tuple[Any, tuple[type[Exception], ...]]:
    """The Hub's client, and the errors of its requests.

    Raises:
        InputError: it is not installed.
    """
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
    except ImportError as error:
        raise InputError(f"publishing needs the package {error.name}", fix="pip install 'irpipe[publish]'") from None
    return HfApi(), (HfHubHTTPError, LocalTokenNotFoundError, OSError, ValueError)
