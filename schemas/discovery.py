"""Which files of a folder from outside are data, and of which split each is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from irpipe.pipeline.endings import ending_of
from irpipe.pipeline.errors import InputError

_NAMED = 3
# The words of Hugging Face's hub, https://huggingface.co/docs/hub/datasets-file-names-and-splits
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


@dataclass(frozen=True)
class Found:
    """The data files of a folder, by their paths, and the others by the reason why they were left out."""

    files: Sequence[Path]
    left_out: Mapping[str, Sequence[str]]

    def left_out_lines(self) -> list[str]:
        """A line for each reason why files were left out."""
        lines = []
        for reason, names in self.left_out.items():
            more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
            lines.append(f"  left out, {reason}: {', '.join(names[:_NAMED])}{more}")
        return lines


def is_hidden(path: PurePath) -> bool:
    """Whether a path below a root is what tools leave behind: hidden files and folders, and those of macOS and Jupyter."""
    return any((part.startswith(".") and part.strip(".")) or part == "__MACOSX" for part in path.parts)


def files_below(root: Path, endings: Collection[str]) -> list[Path]:
    """The files below a folder that have one of some endings, in any case, and are not hidden, in the order of their paths."""
    files = [file for file in sorted(root.rglob("*")) if file.suffix.lower() in endings and file.is_file()]
    return [file for file in files if not is_hidden(file.relative_to(root))]


def data_files(root: Path, endings: Collection[str], where: str) -> Found:
    """The files below a folder that have one of some endings, in any case, compressed or not.

    Args:
        where: the setting that names the folder.

    Raises:
        InputError: there is none.
    """
    files: list[Path] = []
    left_out: dict[str, list[str]] = {}
    for file in sorted(root.rglob("*")):
        name = file.relative_to(root)
        if file.is_dir() and file.is_symlink():
            left_out.setdefault("a linked folder", []).append(str(name))
        if not file.is_file():
            continue
        if is_hidden(name):
            left_out.setdefault("hidden", []).append(str(name))
        elif ending_of(file) in endings:
            files.append(file)
        else:
            left_out.setdefault(f"no {' or '.join(sorted(endings))} file", []).append(str(name))
    if not files:
        others = Counter(ending_of(root / name) or "no ending" for names in left_out.values() for name in names)
        held = ", ".join(f"{count:,} of {ending}" for ending, count in others.most_common(_NAMED)) or "nothing"
        raise InputError(f"{root} holds no {' or '.join(sorted(endings))} file, but {held}", where=where)
    return Found(files, left_out)


def split_of(path: PurePath) -> str | None:
    """The split that a path below a root tells: its name (`data-train-00000-of-00002.parquet`), or else its nearest folder.

    Raises:
        InputError: a name tells two.
    """
    for part in (path.name, *(folder.name for folder in path.parents)):
        splits = {_SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", part.lower()) if word in _SPLIT_WORDS}
        if len(splits) > 1:
            raise InputError(f"{path} tells two splits: {' and '.join(sorted(splits))}", fix="name it for one of them")
        if splits:
            return splits.pop()
    return None


def splits_of(files: Iterable[Path], root: Path) -> dict[Path, str | None]:
    """The split of each data file of a folder; of none where no name tells one.

    Raises:
        InputError: some files tell a split, and others do not.
    """
    splits = {file: split_of(file.relative_to(root)) for file in files}
    silent = [str(file.relative_to(root)) for file, split in splits.items() if split is None]
    if silent and len(silent) < len(splits):
        telling = next(str(file.relative_to(root)) for file, split in splits.items() if split is not None)
        raise InputError(
            f"{silent[0]} tells no split, and {telling} does",
            where=str(root),
            expected="train, validation or test in the names of all files (or their folders), or of none",
            fix=f"put {', '.join(silent[:_NAMED])} into a folder named for a split, or into another folder",
        )
    return splits
