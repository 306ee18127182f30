"""Markdown to Notion blocks and rich text, by markdown-it's syntax tree.

Sources: https://developers.notion.com/reference/block and /reference/rich-text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

Json = dict[str, Any]

MAX_TEXT = 2000  # characters of one rich text object
ALERTS = {  # GitHub's alerts become callouts
    "NOTE": ("ℹ️", "gray_background"),
    "TIP": ("💡", "green_background"),
    "IMPORTANT": ("❗", "blue_background"),
    "WARNING": ("⚠️", "yellow_background"),
    "CAUTION": ("🛑", "red_background"),
}
_LANGUAGE_NAMES = """
    abap arduino bash basic c clojure coffeescript c++ c# css dart diff docker elixir elm erlang
    flow fortran f# gherkin glsl go graphql groovy haskell html java javascript json julia
    kotlin latex less lisp livescript lua makefile markdown markup matlab mermaid nix
    objective-c ocaml pascal perl php powershell prolog protobuf python r reason ruby rust sass
    scala scheme scss shell sql swift toml typescript vb.net verilog vhdl visual-basic
    webassembly xml yaml
"""
LANGUAGES = frozenset(_LANGUAGE_NAMES.split())
LANGUAGE_ALIASES = {"sh": "shell", "console": "shell", "py": "python", "yml": "yaml"}

_ALERT = re.compile(r"\[!(NOTE|TIP|IMPORTANT|WARNING|CAUTION)\]\s*")
_TASK = re.compile(r"\[([ xX])\]\s+")
_OPEN = re.compile(r"\s*<details>\s*<summary>(.*?)</summary>\s*", re.DOTALL)
_CLOSE = re.compile(r"\s*</details>\s*")
_COMMENT = re.compile(r"\s*<!--.*-->\s*", re.DOTALL)
_EXTERNAL = re.compile(r"(?:https?|mailto|tel):", re.IGNORECASE)

_parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@dataclass(frozen=True, slots=True)
class Block:
    """A block without its place: `content` is what stands under the key named by `type`."""

    type: str
    content: Json
    children: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """Where a link inside the workspace leads.

    Attributes:
        kind: `page`, `database` or `user`.
        id: Its id, with dashes.
        title: Its title, or the user's name.
        url: Its address, None for a user.
        mention: What stands under `mention[kind]`.
    """

    kind: str
    id: str
    title: str
    url: str | None
    mention: Json


Resolve = Callable[[str], Target]


@dataclass(frozen=True, slots=True)
class _Style:
    """What applies to a run of text."""

    bold: bool = False
    italic: bool = False
    strikethrough: bool = False
    underline: bool = False
    code: bool = False
    href: str | None = None

    def annotations(self) -> Json:
        return {
            "bold": self.bold,
            "italic": self.italic,
            "strikethrough": self.strikethrough,
            "underline": self.underline,
            "code": self.code,
            "color": "default",
        }


def text_item(content: str, style: _Style | None = None) -> Json:
    """Return one rich text object of at most `MAX_TEXT` characters."""
    style = style or _Style()
    return {
        "type": "text",
        "text": {"content": content, "link": {"url": style.href} if style.href else None},
        "annotations": style.annotations(),
        "plain_text": content,
        "href": style.href,
    }


def plain(content: str) -> list[Json]:
    """Return unstyled rich text, split where it is longer than an object may be."""
    return [text_item(content[i : i + MAX_TEXT]) for i in range(0, len(content), MAX_TEXT)]


def plain_text(items: Sequence[Json]) -> str:
    """Return the text of rich text objects."""
    return "".join(str(item["plain_text"]) for item in items)


def _mention(target: Target, style: _Style) -> Json:
    kind = target.kind
    return {
        "type": "mention",
        "mention": {"type": kind, kind: target.mention},
        "annotations": style.annotations(),
        "plain_text": f"@{target.title}" if kind == "user" else target.title,
        "href": target.url,
    }


class _Inline:
    """Collects the rich text of one inline node, merging runs of the same style."""

    def __init__(self, resolve: Resolve) -> None:
        self.resolve = resolve
        self.runs: list[tuple[str, _Style] | Json] = []
        self.underline = False

    def add(self, text: str, style: _Style) -> None:
        if self.underline:
            style = replace(style, underline=True)
        last = self.runs[-1] if self.runs else None
        if isinstance(last, tuple) and last[1] == style:
            self.runs[-1] = (last[0] + text, style)
        elif text:
            self.runs.append((text, style))

    def link(self, node: SyntaxTreeNode, style: _Style) -> None:
        href = str(node.attrs.get("href", ""))
        if not href or _EXTERNAL.match(href) or href.startswith("#"):
            # A fragment leads nowhere in Notion; its words stay.
            external = href if _EXTERNAL.match(href) else None
            self.walk(node.children, replace(style, href=external))
            return
        target = self.resolve(href)
        words = _text_of(node)
        if target.kind == "user" or words == target.title:
            self.runs.append(_mention(target, style))
        else:
            self.walk(node.children, replace(style, href=target.url))

    def walk(self, nodes: Sequence[SyntaxTreeNode], style: _Style) -> None:
        for node in nodes:
            if node.type == "text":
                self.add(node.content, style)
            elif node.type == "strong":
                self.walk(node.children, replace(style, bold=True))
            elif node.type == "em":
                self.walk(node.children, replace(style, italic=True))
            elif node.type == "s":
                self.walk(node.children, replace(style, strikethrough=True))
            elif node.type == "code_inline":
                self.add(node.content, replace(style, code=True))
            elif node.type == "link":
                self.link(node, style)
            elif node.type == "softbreak":
                self.add(" ", style)
            elif node.type == "hardbreak":
                self.add("\n", style)
            elif node.type == "html_inline" and node.content.lower() in ("<u>", "</u>"):
                self.underline = node.content.lower() == "<u>"
            elif node.type == "image":  # a picture inside a line cannot stand in Notion's text
                self.add(_text_of(node) or str(node.attrs.get("src", "")), style)
            else:
                self.add(node.content, style)

    def items(self) -> list[Json]:
        found: list[Json] = []
        for run in self.runs:
            if isinstance(run, tuple):
                text, style = run
                for start in range(0, len(text), MAX_TEXT):
                    found.append(text_item(text[start : start + MAX_TEXT], style))
            else:
                found.append(run)
        return found


def _text_of(node: SyntaxTreeNode) -> str:
    return "".join(
        leaf.content for leaf in node.walk() if not leaf.children and leaf.type != "root"
    )


def _inline(node: SyntaxTreeNode) -> Sequence[SyntaxTreeNode]:
    """Return the inline nodes of a paragraph, heading or cell."""
    return node.children[0].children if node.children else ()


def _rich(nodes: Sequence[SyntaxTreeNode], resolve: Resolve) -> list[Json]:
    inline = _Inline(resolve)
    inline.walk(nodes, _Style())
    return inline.items()


def _cut(items: list[Json], pattern: re.Pattern[str]) -> tuple[re.Match[str] | None, list[Json]]:
    """Match and remove a marker at the start of rich text."""
    if not items or items[0]["type"] != "text" or items[0]["annotations"]["code"]:
        return None, items
    first = items[0]
    match = pattern.match(first["plain_text"])
    if match is None:
        return None, items
    rest = first["plain_text"][match.end() :]
    kept = {**first, "plain_text": rest, "text": {**first["text"], "content": rest}}
    return match, ([kept] if rest else []) + items[1:]


class _Blocks:
    """Turns block nodes into blocks."""

    def __init__(self, resolve: Resolve) -> None:
        self.resolve = resolve

    def all(self, nodes: Sequence[SyntaxTreeNode]) -> list[Block]:
        """Return the blocks of siblings; HTML `details` hold what stands between their tags."""
        open_toggles: list[tuple[str, list[Block]]] = []
        top: list[Block] = []
        for node in nodes:
            current = open_toggles[-1][1] if open_toggles else top
            if node.type != "html_block":
                current.extend(self.one(node))
            elif match := _OPEN.fullmatch(node.content):
                open_toggles.append((match.group(1).strip(), []))
            elif _CLOSE.fullmatch(node.content) and open_toggles:
                self._close(open_toggles, top)
            elif not _COMMENT.fullmatch(node.content):
                current.append(Block("paragraph", _text(plain(node.content.strip()))))
        while open_toggles:
            self._close(open_toggles, top)
        return top

    def _close(self, toggles: list[tuple[str, list[Block]]], top: list[Block]) -> None:
        summary, children = toggles.pop()
        inline = _parser.parseInline(summary)
        items = _rich(SyntaxTreeNode(inline).children[0].children, self.resolve) if summary else []
        (toggles[-1][1] if toggles else top).append(Block("toggle", _text(items), tuple(children)))

    def one(self, node: SyntaxTreeNode) -> Iterator[Block]:
        """Return the blocks of one node; a list gives one an item."""
        if node.type == "paragraph":
            yield self.paragraph(node)
        elif node.type == "heading":
            level = min(int(node.tag[1]), 3)
            content = {**_text(self.rich(node)), "is_toggleable": False}
            yield Block(f"heading_{level}", content)
        elif node.type in ("bullet_list", "ordered_list"):
            for index, item in enumerate(node.children):
                yield self.item(item, node, index)
        elif node.type in ("fence", "code_block"):
            yield _code(node)
        elif node.type == "blockquote":
            yield self.quote(node)
        elif node.type == "table":
            yield self.table(node)
        elif node.type == "hr":
            yield Block("divider", {})

    def rich(self, node: SyntaxTreeNode) -> list[Json]:
        """Return the rich text of a paragraph, heading or cell."""
        return _rich(_inline(node), self.resolve)

    def paragraph(self, node: SyntaxTreeNode) -> Block:
        """Return a paragraph, or the bookmark or picture that is all it holds."""
        inline = _inline(node)
        if len(inline) == 1 and inline[0].type == "image":
            source = str(inline[0].attrs.get("src", ""))
            if source.startswith(("http://", "https://")):
                caption = plain(_text_of(inline[0]))
                picture = {"caption": caption, "type": "external", "external": {"url": source}}
                return Block("image", picture)
        if len(inline) == 1 and inline[0].type == "link":
            href = str(inline[0].attrs.get("href", ""))
            if inline[0].markup == "autolink" and href.startswith(("http://", "https://")):
                return Block("bookmark", {"caption": [], "url": href})
        return Block("paragraph", _text(self.rich(node)))

    def _head(self, node: SyntaxTreeNode) -> tuple[list[Json], Sequence[SyntaxTreeNode]]:
        """Return the rich text of a container's first paragraph, and the nodes after it."""
        children = node.children
        if children and children[0].type == "paragraph":
            return self.rich(children[0]), children[1:]
        return [], children

    def item(self, node: SyntaxTreeNode, parent: SyntaxTreeNode, index: int) -> Block:
        """Return a list item or task with its nested blocks."""
        items, rest = self._head(node)
        children = tuple(self.all(rest))
        if parent.type == "ordered_list":
            content = _text(items)
            start = int(parent.attrs.get("start", 1))
            if index == 0 and start != 1:
                content["list_start_index"] = start
            return Block("numbered_list_item", content, children)
        task, items = _cut(items, _TASK)
        if task is None:
            return Block("bulleted_list_item", _text(items), children)
        return Block("to_do", {**_text(items), "checked": task.group(1) != " "}, children)

    def quote(self, node: SyntaxTreeNode) -> Block:
        """Return a quotation, or the callout of an alert."""
        items, rest = self._head(node)
        alert, items = _cut(items, _ALERT)
        children = tuple(self.all(rest))
        if alert is None:
            return Block("quote", _text(items), children)
        emoji, colour = ALERTS[alert.group(1)]
        content = {**_text(items), "icon": {"type": "emoji", "emoji": emoji}, "color": colour}
        return Block("callout", content, children)

    def table(self, node: SyntaxTreeNode) -> Block:
        """Return a table with its rows as children."""
        rows = [row for part in node.children for row in part.children]
        children = tuple(
            Block("table_row", {"cells": [self.rich(cell) for cell in row.children]})
            for row in rows
        )
        content = {
            "table_width": len(rows[0].children),
            "has_column_header": True,
            "has_row_header": False,
        }
        return Block("table", content, children)


def _text(items: list[Json]) -> Json:
    return {"rich_text": items, "color": "default"}


def _code(node: SyntaxTreeNode) -> Block:
    words = node.info.split()
    language = words[0].lower() if words else ""
    language = LANGUAGE_ALIASES.get(language, language)
    text = node.content.removesuffix("\n")
    if language == "math":  # as on GitHub
        return Block("equation", {"expression": text})
    known = language if language in LANGUAGES else "plain text"
    return Block("code", {"caption": [], "rich_text": plain(text), "language": known})


def blocks(source: str, resolve: Resolve) -> list[Block]:
    """Return the blocks of a page.

    Args:
        source: Markdown: CommonMark with tables, strikethrough, task items, GitHub's alerts
            (callouts), `details` (toggles) and `math` fences (equations).
        resolve: Gives the target of a link that is neither `https:` nor `mailto:`.

    Raises:
        DataError: By `resolve`, for a link that leads nowhere.
    """
    tree = SyntaxTreeNode(_parser.parse(source))
    return _Blocks(resolve).all(tree.children)
