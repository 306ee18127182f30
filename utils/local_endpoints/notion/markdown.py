"""Markdown to Notion blocks and rich text, by markdown-it's syntax tree.

Sources: https://developers.notion.com/reference/block and /reference/rich-text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

Json = dict[str, Any]

MAX_TEXT = 2000  # characters of one rich text object
ALERTS = {"NOTE": "ℹ️", "TIP": "💡", "IMPORTANT": "❗", "WARNING": "⚠️", "CAUTION": "🛑"}

_ALERT = re.compile(rf"\[!({'|'.join(ALERTS)})\]\s*")
_TASK = re.compile(r"\[([ xX])\]\s+")
_OPEN = re.compile(r"\s*<details>\s*<summary>(.*?)</summary>\s*", re.DOTALL)
_CLOSE = re.compile(r"\s*</details>\s*")
_EXTERNAL = re.compile(r"(?:https?|mailto|tel):", re.IGNORECASE)

_parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@dataclass(frozen=True, slots=True)
class Block:
    """A block without its place: `content` is the value of the key named by `type`."""

    type: str
    content: Json
    children: tuple[Block, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """The page, database or user that a link inside the workspace leads to.

    Attributes:
        kind: `page`, `database` or `user`.
        title: Its title, or the user's name.
        url: Its address, None for a user.
        mention: The value of `mention[kind]`.
    """

    kind: str
    title: str
    url: str | None
    mention: Json


Resolve = Callable[[str], Target]


@dataclass(frozen=True, slots=True)
class _Style:
    """The formatting of a run of text."""

    bold: bool = False
    italic: bool = False
    strikethrough: bool = False
    underline: bool = False
    code: bool = False
    href: str | None = None

    def annotations(self) -> Json:
        names = ("bold", "italic", "strikethrough", "underline", "code")
        return {**{name: getattr(self, name) for name in names}, "color": "default"}


_STYLES = {"strong": "bold", "em": "italic", "s": "strikethrough"}


def plain(content: str, style: _Style = _Style()) -> list[Json]:
    """Return rich text of one style, split into objects of at most `MAX_TEXT` characters."""
    return [
        {
            "type": "text",
            "text": {"content": part, "link": {"url": style.href} if style.href else None},
            "annotations": style.annotations(),
            "plain_text": part,
            "href": style.href,
        }
        for start in range(0, len(content), MAX_TEXT)
        for part in [content[start : start + MAX_TEXT]]
    ]


def plain_text(items: Sequence[Json]) -> str:
    """Return the text of rich text objects."""
    return "".join(str(item["plain_text"]) for item in items)


def _mention(target: Target, style: _Style) -> Json:
    return {
        "type": "mention",
        "mention": {"type": target.kind, target.kind: target.mention},
        "annotations": style.annotations(),
        "plain_text": f"@{target.title}" if target.kind == "user" else target.title,
        "href": target.url,
    }


class _Inline:
    """Collects the rich text of inline nodes; neighbouring runs of one style become one."""

    def __init__(self, resolve: Resolve) -> None:
        self.resolve = resolve
        self.runs: list[tuple[str, _Style] | Json] = []
        self.underline = False

    def add(self, text: str, style: _Style) -> None:
        style = replace(style, underline=self.underline)
        last = self.runs[-1] if self.runs else None
        if isinstance(last, tuple) and last[1] == style:
            self.runs[-1] = (last[0] + text, style)
        elif text:
            self.runs.append((text, style))

    def link(self, node: SyntaxTreeNode, style: _Style) -> None:
        href = str(node.attrs.get("href", ""))
        if not href or href.startswith("#"):  # Notion has no anchors: the text stays
            self.walk(node.children, style)
        elif _EXTERNAL.match(href):
            self.walk(node.children, replace(style, href=href))
        else:
            target = self.resolve(href)
            if target.kind == "user" or _text_of(node) == target.title:
                self.runs.append(_mention(target, style))
            else:
                self.walk(node.children, replace(style, href=target.url))

    def walk(self, nodes: Iterable[SyntaxTreeNode], style: _Style) -> None:
        for node in nodes:
            if node.type in _STYLES:
                change: dict[str, Any] = {_STYLES[node.type]: True}
                self.walk(node.children, replace(style, **change))
            elif node.type == "code_inline":
                self.add(node.content, replace(style, code=True))
            elif node.type == "link":
                self.link(node, style)
            elif node.type in ("softbreak", "hardbreak"):
                self.add(" " if node.type == "softbreak" else "\n", style)
            elif node.type == "html_inline" and node.content in ("<u>", "</u>"):
                self.underline = node.content == "<u>"
            elif node.type == "image":  # rich text holds no image: its caption stays
                self.add(_text_of(node) or str(node.attrs.get("src", "")), style)
            else:
                self.add(node.content, style)

    def items(self) -> list[Json]:
        return [
            item for run in self.runs for item in (plain(*run) if isinstance(run, tuple) else [run])
        ]


def _text_of(node: SyntaxTreeNode) -> str:
    return "".join(leaf.content for leaf in node.walk() if not leaf.children)


def _inline(node: SyntaxTreeNode) -> list[SyntaxTreeNode]:
    """Return the inline nodes of a paragraph, heading or cell."""
    return list(node.children[0].children) if node.children else []


def _cut(
    nodes: list[SyntaxTreeNode], pattern: re.Pattern[str]
) -> tuple[re.Match[str] | None, list[SyntaxTreeNode]]:
    """Remove a marker such as `[x]` from the start of inline nodes; return its match."""
    match = pattern.match(nodes[0].content) if nodes and nodes[0].type == "text" else None
    if match is None:
        return None, nodes
    rest = nodes[0].content[match.end() :]
    if nodes[0].token is not None:
        nodes[0].token.content = rest
    if rest or len(nodes) == 1 or nodes[1].type != "softbreak":
        return match, nodes
    return match, nodes[2:]


class _Blocks:
    """Turns block nodes into blocks."""

    def __init__(self, resolve: Resolve) -> None:
        self.resolve = resolve

    def all(self, nodes: Iterator[SyntaxTreeNode], in_toggle: bool = False) -> tuple[Block, ...]:
        """Return the blocks of siblings; a toggle takes those up to its `</details>`."""
        found: list[Block] = []
        for node in nodes:
            if node.type != "html_block":
                found.extend(self.one(node))
            elif match := _OPEN.fullmatch(node.content):
                summary = SyntaxTreeNode(_parser.parseInline(match[1].strip()))
                text = self.rich(_inline(summary))
                found.append(Block("toggle", text, self.all(nodes, in_toggle=True)))
            elif in_toggle and _CLOSE.fullmatch(node.content):
                break
            else:
                found.append(Block("paragraph", _text(plain(node.content.strip()))))
        return tuple(found)

    def one(self, node: SyntaxTreeNode) -> Iterator[Block]:
        """Yield the blocks of one node; a list gives one for each item."""
        if node.type == "paragraph":
            yield self.paragraph(node)
        elif node.type == "heading":
            yield Block(f"heading_{min(int(node.tag[1]), 3)}", self.rich(_inline(node)))
        elif node.type in ("bullet_list", "ordered_list"):
            for item in node.children:
                yield self.item(item, ordered=node.type == "ordered_list")
        elif node.type in ("fence", "code_block"):
            yield _code(node)
        elif node.type == "blockquote":
            yield self.quote(node)
        elif node.type == "table":
            yield self.table(node)
        elif node.type == "hr":
            yield Block("divider", {})

    def rich(self, nodes: Sequence[SyntaxTreeNode]) -> Json:
        """Return the content of a block that holds text alone."""
        inline = _Inline(self.resolve)
        inline.walk(nodes, _Style())
        return _text(inline.items())

    def paragraph(self, node: SyntaxTreeNode) -> Block:
        """Return a paragraph, or the bookmark or image that is its whole content."""
        nodes = _inline(node)
        only = nodes[0] if len(nodes) == 1 else None
        address = str(only.attrs.get("src") or only.attrs.get("href", "")) if only else ""
        if only and address.startswith(("http://", "https://")):
            if only.type == "image":
                image = {"type": "external", "external": {"url": address}}
                return Block("image", {"caption": plain(_text_of(only)), **image})
            if only.type == "link" and only.markup == "autolink":
                return Block("bookmark", {"caption": [], "url": address})
        return Block("paragraph", self.rich(nodes))

    def head(self, node: SyntaxTreeNode) -> tuple[list[SyntaxTreeNode], Iterator[SyntaxTreeNode]]:
        """Return the inline nodes of a container's first paragraph, and the nodes after it."""
        rest = iter(node.children)
        if node.children and node.children[0].type == "paragraph":
            return _inline(next(rest)), rest
        return [], rest

    def item(self, node: SyntaxTreeNode, *, ordered: bool) -> Block:
        """Return a list item or task with its nested blocks."""
        nodes, rest = self.head(node)
        if ordered:
            return Block("numbered_list_item", self.rich(nodes), self.all(rest))
        task, nodes = _cut(nodes, _TASK)
        if task is None:
            return Block("bulleted_list_item", self.rich(nodes), self.all(rest))
        return Block("to_do", {**self.rich(nodes), "checked": task[1] != " "}, self.all(rest))

    def quote(self, node: SyntaxTreeNode) -> Block:
        """Return a quotation, or the callout of an alert."""
        nodes, rest = self.head(node)
        alert, nodes = _cut(nodes, _ALERT)
        if alert is None:
            return Block("quote", self.rich(nodes), self.all(rest))
        icon = {"type": "emoji", "emoji": ALERTS[alert[1]]}
        return Block("callout", {**self.rich(nodes), "icon": icon}, self.all(rest))

    def table(self, node: SyntaxTreeNode) -> Block:
        """Return a table with its rows as children."""
        rows = [row for part in node.children for row in part.children]
        children = tuple(
            Block(
                "table_row",
                {"cells": [self.rich(_inline(cell))["rich_text"] for cell in row.children]},
            )
            for row in rows
        )
        shape = {"table_width": len(rows[0].children), "has_column_header": True}
        return Block("table", {**shape, "has_row_header": False}, children)


def _text(items: list[Json]) -> Json:
    return {"rich_text": items, "color": "default"}


def _code(node: SyntaxTreeNode) -> Block:
    language = (node.info.split() or ["plain text"])[0].lower()
    text = node.content.removesuffix("\n")
    if language == "math":  # as on GitHub
        return Block("equation", {"expression": text})
    return Block("code", {"caption": [], "rich_text": plain(text), "language": language})


def blocks(source: str, resolve: Resolve) -> tuple[Block, ...]:
    """Return the blocks of a page.

    Args:
        source: Markdown: CommonMark with tables, strikethrough, task items, GitHub's alerts
            (callouts), `details` (toggles) and `math` fences (equations).
        resolve: Gives the target of a link that is neither `https:` nor `mailto:`.

    Raises:
        DataError: By `resolve`, for a link to a page that does not exist.
    """
    tree = SyntaxTreeNode(_parser.parse(source))
    return _Blocks(resolve).all(iter(tree.children))
