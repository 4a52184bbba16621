"""What MkDocs does besides: pages that lie outside docs/, and links to files that are no pages."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

REPOSITORY = Path(__file__).parents[1]
# Pages of the site that GitHub readers find elsewhere in the repository.
ELSEWHERE = {
    "ARCHITECTURE.md": "project/architecture.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "benchmarks/README.md": "project/benchmarks.md",
}
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#:]+)(#[^)\s]*)?\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from elsewhere."""
    for path, page in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(REPOSITORY / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead links to where their targets are on the site; a link to a file of code becomes its text."""
    here = page.file.src_uri
    origins = {site: path for path, site in ELSEWHERE.items()}
    folder = posixpath.dirname(origins.get(here, f"docs/{here}"))

    def lead(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        path = posixpath.normpath(posixpath.join(folder, target))
        site = ELSEWHERE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if site:
            return f"[{text}]({posixpath.relpath(site, posixpath.dirname(here) or '.')}{anchor})"
        return text if (REPOSITORY / path).exists() else link[0]

    # A table in a list is indented by two for GitHub, by four for Python-Markdown.
    return re.sub(r"^  (?=\|)", "    ", _LINK.sub(lead, markdown), flags=re.MULTILINE)
