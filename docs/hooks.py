"""What the site is made of besides the pages in docs/.

CONTRIBUTING.md, CHANGELOG.md and the figures in results/ come from outside. Links in all pages are written for a reader
of the repository; here they become the site's. Examples in docstrings become blocks of code.
"""

import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {"contributing.md": ROOT / "CONTRIBUTING.md", "changelog.md": ROOT / "CHANGELOG.md"}
FIGURES = ("results/mini/figures/*.svg", "results/bottleneck/*.png")


def on_files(files, config):
    outside = {path.relative_to(ROOT).as_posix(): path for pattern in FIGURES for path in ROOT.glob(pattern)}
    for name, path in {**PAGES, **outside}.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    markdown = re.sub(r"\]\((?:docs/|\.\./(?=results/))", "](", markdown)
    for name, path in PAGES.items():
        markdown = re.sub(rf"\]\((?:\.\./)?{re.escape(path.name)}", f"]({name}", markdown)
    return markdown


class Doctests(griffe.Extension):
    def on_object(self, *, obj, **kwargs):
        if obj.docstring is not None:
            text = re.sub(r"^(>>> .*(?:\n.*\S.*)*)", r"```pycon\n\1\n```", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"  # doctest: .*", "", text)
