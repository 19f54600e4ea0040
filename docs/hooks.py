"""For mkdocs: pages of the repository that lie outside docs/, and links between all of them.

On the repository's own pages links are paths of files. Here those to pages become links to pages, those to other
files links to the repository.
"""

import pathlib
import posixpath
import re
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).parents[1]
# What becomes a page besides docs/, by its path in the repository, and where.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
LINK = re.compile(r"(\]\()(?!\w+:|#)([^)#\s]+)")


def on_files(files: Files, config: Any) -> Files:
    """Adds those pages, and all of results/ that they show."""
    shown = [path for path in (ROOT / "results").rglob("*") if path.suffix in (".md", ".png")]
    more = PAGES | {str(path.relative_to(ROOT)): str(path.relative_to(ROOT)) for path in shown}
    for path, uri in more.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns paths of files into links."""
    uri = page.file.src_uri
    here = posixpath.dirname(_path_of(uri))
    of_site = {_path_of(file.src_uri): file.src_uri for file in files}

    def link(found: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(here, found[2]))
        if path in of_site:
            return found[1] + posixpath.relpath(of_site[path], posixpath.dirname(uri) or ".")
        if not (ROOT / path).exists():
            return found[0]
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{found[1]}{config.repo_url}/{kind}/main/{path}"

    return LINK.sub(link, markdown)


def _path_of(uri: str) -> str:
    """The path in the repository of what the site calls so."""
    lies = uri if uri.startswith("results/") else f"docs/{uri}"
    return next((path for path, other in PAGES.items() if other == uri), lies)
