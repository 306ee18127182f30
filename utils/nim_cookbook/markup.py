"""What Markdown and HTML files say of themselves: front matter, metadata, title, words.

And what of an HTML page its readers see: a text that nobody sees may be meant for the model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from typing import Any

import lxml.etree  # type: ignore[import-untyped]
import lxml.html  # type: ignore[import-untyped]

#: Pairs that front matter gives at most, and the characters of a key or value.
MOST, LONGEST = 50, 300

_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_PAIR = re.compile(r"([A-Za-z_][\w-]*):[ \t]*(.*)")
_LEFT_OUT = ("script", "style", "template", "noscript", "title", "nav")
#: What a page may hold and lxml does not write.
_NOT_XML = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_BREAK = "\ue000"  # of the private use area; XML allows it, and no page holds it
_BLOCK = re.compile(
    r"address|article|aside|blockquote|br|dd|div|dl|dt|figcaption|figure|footer|h[1-6r]|header|"
    r"li|main|ol|p|pre|section|table|tr|ul"
)

#: Styles of the element itself, without spaces, that leave nothing to read.
_UNSEEN = re.compile(
    r"(?:^|;)(?:display:none|visibility:(?:hidden|collapse)|opacity:0*(?:\.0*)?(?:;|!|$)"
    r"|font-size:0*(?:\.0*)?(?:[a-z%]+)?(?:;|!|$)|(?:left|top|text-indent|margin-left):-\d{3}"
    r"|color:(?:#fff|#ffffff|white|transparent)(?:;|!|$))"
)


def visible(text: str) -> str:
    """Return an HTML page without the elements that are hidden where they stand.

    Left out are elements with the attribute `hidden`, templates, and those whose own style does
    not display them, makes them transparent, gives them no size or white letters, or moves them off
    the page. Style sheets and scripts are not read: what they hide stays, and white letters go even
    where the page is dark. A page that hides nothing is returned as it is.
    """
    root = parsed_page(text).root
    hidden = [element for element in root.iterdescendants(lxml.etree.Element) if _hides(element)]
    for element in hidden:
        element.drop_tree()
    return str(lxml.html.tostring(root, encoding="unicode")) if hidden else text


def _hides(element: Any) -> bool:  # noqa: ANN401
    style = "".join((element.get("style") or "").lower().split())
    hidden = element.get("hidden") is not None or element.tag == "template"
    return hidden or _UNSEEN.search(style) is not None


def split_front_matter(text: str) -> tuple[dict[str, str], str]:
    """Part the front matter of a Markdown file, lines of `key: value`, from its body.

    Two rules around other text are no front matter. Keys and values are text, cut at `LONGEST`
    characters, and pairs beyond `MOST` are left out: each chunk of the file carries them.
    """
    head = _FRONT_MATTER.match(text)
    lines = [line for line in head[1].splitlines() if line.strip()] if head else []
    if head is None or not lines or not _PAIR.match(lines[0]):
        return {}, text
    pairs = (pair for line in lines if (pair := _PAIR.match(line)))
    meta = {
        pair[1][:LONGEST]: pair[2].strip().strip("\"'")[:LONGEST] for pair in islice(pairs, MOST)
    }
    return meta, text[head.end() :].lstrip("\r\n")


@dataclass(frozen=True, slots=True)
class Page:
    """An HTML page."""

    meta: dict[str, str]  # content of its `<meta name=...>` elements
    title: str  # its title, or an empty string
    heading: str  # its first heading of the first level, likewise
    root: Any  # its root element


def parsed_page(text: str) -> Page:
    """Parse an HTML page; a broken or empty one gives what there is."""
    # As bytes, because lxml refuses texts that declare an encoding.
    parser = lxml.html.HTMLParser(encoding="utf-8")
    root = lxml.html.document_fromstring(f"<html>{text}</html>".encode(), parser=parser)
    meta = {m.get("name"): m.get("content") or "" for m in root.iter("meta") if m.get("name")}
    found = (next(root.iter(tag), None) for tag in ("title", "h1"))
    title, heading = ("" if e is None else " ".join(e.text_content().split()) for e in found)
    return Page(meta, title, heading, root)


def page_words(page: Page) -> str:
    """Return the words of a page, a line to a block and a bar between the cells of a table.

    The page's elements are changed on the way.
    """
    lxml.etree.strip_elements(page.root, lxml.etree.Comment, *_LEFT_OUT, with_tail=False)
    for element in page.root.iter():
        before, after = "", ""
        if element.tag in ("td", "th"):
            before = " | "
        elif _BLOCK.fullmatch(str(element.tag)):
            before = after = _BREAK
        element.text = before + _NOT_XML.sub("", element.text or "")
        element.tail = after + _NOT_XML.sub("", element.tail or "")
    lines = (" ".join(line.split()) for line in page.root.text_content().split(_BREAK))
    return "\n".join(line.removeprefix("| ") for line in lines if line) + "\n"
