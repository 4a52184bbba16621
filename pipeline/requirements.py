"""What a run needs besides its inputs, looked at before anything runs: packages, models of the right class, downloads."""

from __future__ import annotations

import importlib
import re
import socket
from collections.abc import Callable, Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from irpipe.pipeline.errors import IrpipeError, ModelError, StageError
from irpipe.pipeline.external import Externals
from irpipe.pipeline.settings import check_of
from irpipe.pipeline.stage import Model
from irpipe.pipeline.wiring import Node

_REACHING_SECONDS = 5.0


def unmet(node: Node, externals: Externals) -> Iterator[IrpipeError]:
    """What keeps a node from running: packages that are not installed, and models that its setting cannot take."""
    extra = node.stage.extra_of(node.config)
    if missing := missing_packages(extra):
        yield StageError(
            f"{node.name} needs packages that are not installed: {', '.join(missing)}", fix=f"pip install 'irpipe[{extra}]'"
        )
    for name, models in externals.models.items():
        check = check_of(type(node.config), name)
        if check is None:
            continue
        for model in models:
            try:
                _function(check)(model)
            except IrpipeError as error:
                yield error


def _function(name: str) -> Callable[[Model], None]:
    module, _, function = name.partition(":")
    found: Callable[[Model], None] = getattr(importlib.import_module(module), function)
    return found


@cache
def missing_packages(extra: str | None) -> tuple[str, ...]:
    """The packages of one of irpipe's extras that are not installed."""
    if extra is None:
        return ()
    names = []
    for requirement in metadata.requires("irpipe") or ():
        package, _, marker = requirement.partition(";")
        if re.search(rf"""extra\s*==\s*["']{re.escape(extra)}["']""", marker):
            names.append(re.split(r"[\s\[<>=!~(]", package.strip())[0])
    return tuple(sorted(name for name in names if not _is_installed(name)))


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def folder_of(model: Model) -> Path | None:
    """Where a model's files lie; None for one of the hub that was not downloaded."""
    if model.folder is not None:
        return model.folder
    try:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name
    except ImportError:
        return None
    repository = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=model.name, repo_type="model"))
    snapshot = repository / "snapshots" / model.revision
    return snapshot if snapshot.is_dir() else None


def to_download(externals: Externals) -> list[Model]:
    """The models of the hub that were not downloaded yet."""
    return [model for models in externals.models.values() for model in models if folder_of(model) is None]


def not_reachable(model: Model) -> ModelError | None:
    """The error of a model that has to be downloaded and cannot be."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return None  # the stage names the extra that brings it
    if not constants.HF_HUB_OFFLINE and _reaches_hub(constants.ENDPOINT):
        return None
    return ModelError(
        f"{model.setting}: {model.shown} cannot be loaded: it was not downloaded yet, and the hub cannot be reached",
        fix=how_to_get(model),
    )


def how_to_get(model: Model) -> str:
    """What brings a model of the hub onto this machine."""
    get = f"hf download {model.name} --revision {model.revision}, or name a local folder that holds it"
    return f"{get}: --set {model.setting}=FOLDER" if model.setting else get


@cache
def _reaches_hub(endpoint: str) -> bool:
    return is_reachable(endpoint)


def is_reachable(address: str) -> bool:
    """Whether a server, or the proxy that leads to it, takes a connection."""
    there, proxies = urlsplit(address), getproxies()
    proxy = proxies.get(there.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(there.hostname or ""):
        there = urlsplit(proxy if "://" in proxy else f"//{proxy}")
    try:
        port = there.port or (443 if there.scheme == "https" else 80)
        with socket.create_connection((there.hostname or "", port), timeout=_REACHING_SECONDS):
            return True
    except OSError:
        return False
    except ValueError:
        return True  # what is written there is for the client to judge
