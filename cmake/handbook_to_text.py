#!/usr/bin/env python3
"""Turn the HTML of The Debian Administrator's Handbook into plain prose.

usage: handbook_to_text.py HTML_DIR OUT_FILE

The chapters in reading order, one paragraph a line, an empty line between two. Navigation, tables of
contents, the legal notice, code listings, screens, tables and the index are left out. Standard library only.
"""

import html.parser
import pathlib
import re
import sys

HEADINGS = {"h1", "h2", "h3", "h4", "h5"}
VOID = {"br", "col", "hr", "img", "input", "link", "meta"}
SKIPPED_TAGS = {"head", "pre", "script", "style", "table", "dl"}
SKIPPED_CLASSES = {"docnav", "toc", "url", "mediaobject", "calloutlist", "legalnotice", "copyright"}
SKIPPED_IDS = {"banner", "title"}
# "6.3. " or "Chapter 6. " before a heading: numbers of the layout, not of the language.
NUMBERING = re.compile(
    r"^(?:(?:Chapter|Appendix)\s+\w+\.|[\dA-Z]+(?:\.\d+)+\.|(?:Figure|Table|Example)\s+\S+)\s*"
)


class Page(html.parser.HTMLParser):
    """One page's paragraphs, and the page that follows it."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.paragraphs = []
        self.next_page = None
        # For each open element: (tag, is skipped, starts a paragraph). A paragraph may hold another
        # (a list inside of a sentence); the outer text up to there then stands alone.
        self.open_elements = []
        self.text = []

    def flush(self):
        text = " ".join("".join(self.text).split())
        self.text = []
        if any(c.isalpha() for c in text):
            self.paragraphs.append(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "link" and attributes.get("rel") == "next":
            self.next_page = attributes.get("href", "").partition("#")[0]
        if tag in VOID:
            return
        classes = (attributes.get("class") or "").split()
        skipped = (
            tag in SKIPPED_TAGS
            or attributes.get("id") in SKIPPED_IDS
            or not SKIPPED_CLASSES.isdisjoint(classes)
        )
        starts_block = tag in HEADINGS or tag in {"p", "div", "li", "ul", "ol"}
        if starts_block:
            self.flush()
        self.open_elements.append((tag, skipped, starts_block))

    def handle_endtag(self, tag):
        # XHTML from a generator: well nested, so the innermost element is the one that ends.
        if tag in VOID or not self.open_elements:
            return
        _, _, starts_block = self.open_elements.pop()
        if starts_block:
            if tag in HEADINGS or tag == "p":  # figures and sidebars have their title in a <p>
                self.text = [NUMBERING.sub("", " ".join("".join(self.text).split()))]
            self.flush()

    def handle_startendtag(self, tag, attributes):
        if tag in VOID:
            self.handle_starttag(tag, attributes)

    def handle_data(self, data):
        if not any(skipped for _, skipped, _ in self.open_elements):
            self.text.append(data)


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder, out_file = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    paragraphs = []
    name, seen = "preface.html", set()  # index.html before it is the title and the legal notice
    while name and name not in seen:
        seen.add(name)
        page = Page()
        try:
            page.feed((folder / name).read_text(encoding="utf-8"))
        except OSError as error:
            sys.exit(f"handbook_to_text: {error}")
        paragraphs += page.paragraphs
        name = page.next_page
    if not paragraphs:
        sys.exit(f"handbook_to_text: no prose in {folder}")
    out_file.write_text("\n\n".join(paragraphs) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
