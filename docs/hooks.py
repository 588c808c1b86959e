"""For MkDocs: takes away the words that only `tests/test_docs.py` reads."""

import re


def on_page_markdown(markdown: str, **_: object) -> str:
    """The page with its "```python notest" fences as plain "```python": MkDocs knows no bare options."""
    return re.sub(r"^([ \t]*```\w+) notest[ \t]*$", r"\1", markdown, flags=re.MULTILINE)
