"""The recipes that come with irpipe: TOML files."""

from __future__ import annotations

from importlib.resources import files


def shipped_recipes() -> list[str]:
    """Their names."""
    return sorted(entry.name.removesuffix(".toml") for entry in files(__name__).iterdir() if entry.name.endswith(".toml"))
