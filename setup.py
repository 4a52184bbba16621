"""The packages, found in their folders: all else stands in pyproject.toml."""

import tomllib
from pathlib import Path

from setuptools import find_packages, setup

folders = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["package-dir"].values()
setup(packages=[f"irpipe.{name}" for folder in folders for name in find_packages(include=[folder, f"{folder}.*"])])
