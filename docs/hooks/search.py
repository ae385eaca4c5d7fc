"""What the search finds, and in which order.

Guides come before the API's entries, which are ten times as many, and both before pages about the
project.

The theme's search is lunr 2.3, which merges nodes of its set of words that only look alike: it
writes a node down as its letters and numbers without anything between them, so that letter 1 to
node 23 is the same as letter 12 to node 3. On a site full of numbers whole words were lost, among
them DDIM and DDPM. Here a comma goes between them.
"""

import logging
import pathlib


log = logging.getLogger("mkdocs.hooks.search")

_BOOST = {"api/": 0.5, "changelog": 0.1, "citing": 0.5, "contributing": 0.1, "site": 0.1}

_AMBIGUOUS, _CLEAR = "e=e+s+o.id}return e}", 'e=e+s+o.id+","}return e}'


def on_page_markdown(markdown, page, config, files):
    """A MkDocs event: a page's Markdown, before it is rendered."""
    for start, boost in _BOOST.items():
        if page.url.startswith(start):
            page.meta.setdefault("search", {}).setdefault("boost", boost)
    return markdown


def on_post_build(config):
    """A MkDocs event: the site is on disk."""
    workers = pathlib.Path(config.site_dir, "assets/javascripts/workers").glob("search.*.js")
    for worker in workers:
        script = worker.read_text(encoding="utf-8")
        if _AMBIGUOUS not in script:
            log.warning("%s is not the lunr that this hook mends", worker.name)
        worker.write_text(script.replace(_AMBIGUOUS, _CLEAR), encoding="utf-8")
