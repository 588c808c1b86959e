"""For MkDocs: takes away the words that only `tests/test_docs.py` reads, and puts committed results in."""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
NONE = "*No results are committed yet.*"


def on_page_markdown(markdown: str, page: object, **_: object) -> str:
    """The page with plain fences, and results in place of `<!-- results: FILE [JOBS] -->`."""
    # MkDocs knows no bare options.
    markdown = re.sub(r"^([ \t]*```\w+) notest[ \t]*$", r"\1", markdown, flags=re.MULTILINE)
    up = "../" * page.file.src_uri.count("/")
    return re.sub(r"<!-- results: (\S+?)(?: (\S+))? -->", lambda m: results(m[1], m[2] or "", up), markdown)


def on_files(files: Files, config: MkDocsConfig, **_: object) -> Files:
    """The results' pictures as files of the site."""
    for picture in sorted(RESULTS.glob("*.png")):
        files.append(File.generated(config, f"results/{picture.name}", abs_src_path=str(picture)))
    return files


def results(name: str, jobs: str, up: str) -> str:
    """A results file's sections, of the jobs whose names begin so, one heading level down."""
    path = RESULTS / name
    if not path.exists():
        return NONE
    head, *sections = re.split(r"^## ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    head = head.partition("\n")[2]  # without the title
    chosen = [f"### {section}" for section in sections if section.startswith(jobs)]
    if jobs and not chosen:
        return NONE
    text = "\n".join([head.strip(), "", *chosen])
    return re.sub(r"\]\(([\w.-]+\.png)\)", rf"]({up}results/\1)", text)
