"""Adapts pages that are written for a checkout to the site, which holds the pages of docs/ alone."""

import re

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./([^)#]+)(?:#[^)]*)?\)")  # a link to a file above docs/


def on_page_markdown(markdown, **_):
    """Names the files that the site does not hold in place of links to them, and drops the tests' mark `no-run`."""

    def name(link):
        text, path = link.groups()
        return text if path in text else f"{text} (`{path}`)"

    return OUTSIDE.sub(name, markdown).replace("```python no-run", "```python")
