"""The Notion stand-in's workspace: Markdown to blocks, properties, ids, and mistakes in files."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from local_endpoints.notion.markdown import MAX_TEXT, Block, Target, blocks, plain_text
from local_endpoints.notion.workspace import Workspace, load_workspace
from nim_cookbook.corpus import load_company
from nim_cookbook.data import data_path
from nim_cookbook.errors import DataError

SETTINGS = """
id = "6f1c1a52-0d5e-5b7c-9a53-2f6d1c0e7a11"
name = "Test"
integration = "Bot"
[people.ann]
name = "Ann Example"
email = "ann@example.org"
"""
HEAD = "---\ntitle: A page\ncreated: 2026-01-02\n---\n"
DATABASE = """---
title: Table
type: database
created: 2026-01-02
properties:
  Name: title
  When: date
  State: {type: select, options: [open, done]}
---
"""


def make(folder: Path, **pages: str) -> Path:
    """Write a workspace; `__` in a name stands for a folder."""
    (folder / "workspace.toml").write_text(SETTINGS, encoding="utf-8")
    for name, text in pages.items():
        path = folder / "wiki" / f"{name.replace('__', '/')}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def target(href: str) -> Target:
    """Resolve every link to one page."""
    return Target("page", "Other", "https://www.notion.so/anid", {"id": "an-id"})


def parse(source: str) -> tuple[Block, ...]:
    return blocks(source, target)


def text(block: Block) -> str:
    return plain_text(block.content["rich_text"])


@pytest.fixture(scope="module")
def wiki() -> Workspace:
    return load_workspace(data_path("notion"))


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("words", "paragraph"),
        ("# One", "heading_1"),
        ("## Two", "heading_2"),
        ("### Three", "heading_3"),
        ("##### Five", "heading_3"),
        ("- item", "bulleted_list_item"),
        ("1. item", "numbered_list_item"),
        ("- [ ] task", "to_do"),
        ("> said", "quote"),
        ("> [!WARNING]\n> hot", "callout"),
        ("```python\nx = 1\n```", "code"),
        ("```math\nx^2\n```", "equation"),
        ("a | b\n--|--\n1 | 2", "table"),
        ("---", "divider"),
        ("<https://example.org/>", "bookmark"),
        ("![A weir](https://example.org/weir.png)", "image"),
        ("<details>\n<summary>More</summary>\n\nwords\n\n</details>", "toggle"),
    ],
)
def test_markdown_gives_the_block_type(source, kind):
    assert [block.type for block in parse(source)] == [kind]


def test_tasks_lose_their_mark_and_keep_their_state():
    first, second = parse("- [x] **done**\n- [ ] open")
    assert (first.content["checked"], text(first)) == (True, "done")
    assert (second.content["checked"], text(second)) == (False, "open")


def test_lists_nest_and_hold_code():
    (item,) = parse("1. do\n\n   ```bash\n   ls\n   ```\n   - deeper\n     - deepest")
    assert text(item) == "do"
    assert [child.type for child in item.children] == ["code", "bulleted_list_item"]
    assert item.children[0].content["language"] == "bash"
    assert text(item.children[1].children[0]) == "deepest"


def test_rich_text_carries_annotations_and_links():
    (block,) = parse("a **b** *c* ~~d~~ `e` <u>f</u> [g](https://example.org/)")
    styles = {
        item["plain_text"]: {k for k, v in item["annotations"].items() if v is True}
        for item in block.content["rich_text"]
        if item["plain_text"].strip()
    }
    assert styles == {
        "a ": set(),
        "b": {"bold"},
        "c": {"italic"},
        "d": {"strikethrough"},
        "e": {"code"},
        "f": {"underline"},
        "g": set(),
    }
    last = block.content["rich_text"][-1]
    assert last["href"] == last["text"]["link"]["url"] == "https://example.org/"


def test_a_link_with_the_title_is_a_mention_and_another_a_link():
    (block,) = parse("[Other](other.md) and [elsewhere](other.md)")
    first, _, last = block.content["rich_text"]
    assert first["mention"] == {"type": "page", "page": {"id": "an-id"}}
    assert (last["type"], last["href"]) == ("text", "https://www.notion.so/anid")


def test_a_toggle_holds_what_stands_between_its_tags():
    toggle, after = parse("<details>\n<summary>A *b*</summary>\n\n- c\n\n</details>\n\nafter")
    assert text(toggle) == "A b"
    assert [text(child) for child in toggle.children] == ["c"]
    assert text(after) == "after"


def test_a_table_has_its_cells():
    (table,) = parse("a | b\n--|--\n1 | **2**")
    cells = [[plain_text(c) for c in row.content["cells"]] for row in table.children]
    assert cells == [["a", "b"], ["1", "2"]]
    assert table.content["table_width"] == 2


def test_long_code_is_split_where_notion_splits():
    (block,) = parse(f"```\n{'x' * (2 * MAX_TEXT + 1)}\n```")
    assert block.content["language"] == "plain text"
    assert [len(item["plain_text"]) for item in block.content["rich_text"]] == [2000, 2000, 1]


def test_ids_are_the_same_at_every_start_and_all_different(wiki):
    again = load_workspace(data_path("notion"))
    assert list(again.pages) == list(wiki.pages)
    assert list(again.blocks) == list(wiki.blocks)
    sources = [page.source_id for page in wiki.pages.values() if page.is_database]
    everything = [*wiki.pages, *wiki.blocks, *sources]
    assert len(everything) == len(set(everything))


def test_pages_below_an_unshared_page_are_not_shared(wiki):
    closed = {page.path for page in wiki.pages.values() if not page.shared}
    sealed = "engineering/runbooks/control-rooms"
    assert closed == {sealed, f"{sealed}/night-list"}


def test_values_of_entries(tmp_path):
    entry = "---\ntitle: E\ncreated: 2026-01-02\nproperties: {When: 2026-01-03, State: done}\n---\n"
    page = load_workspace(make(tmp_path, t=DATABASE, t__e=entry)).by_path("t/e")
    assert page.properties["When"]["date"]["start"] == "2026-01-03"
    assert page.properties["State"]["select"]["name"] == "done"
    assert plain_text(page.properties["Name"]["title"]) == "E"


def with_key(line: str) -> str:
    return HEAD.replace("created", f"{line}\ncreated")


@pytest.mark.parametrize(
    ("pages", "words"),
    [
        ({"a": "no front matter"}, "must begin with front matter"),
        ({"a": "---\ntitle: [\n---\n"}, "flow node"),
        ({"a": "---\ncreated: 2026-01-02\n---\n"}, "title"),
        ({"a": "---\ntitle: A\n---\n"}, "created"),
        ({"a": with_key("colour: red")}, "colour"),
        ({"a": with_key("author: bob")}, "'bob'"),
        ({"a": HEAD + "[x](missing.md)"}, "'missing.md'"),
        ({"a": HEAD + "[x](user:bob)"}, "'user:bob'"),
        ({"a__b": HEAD}, "wiki/a.md"),
        ({"a": with_key("properties: {X: 1}")}, "no column 'X'"),
        ({"t": DATABASE + "words"}, "holds no text"),
        ({"t": DATABASE.replace("Name: title", "Name: date")}, "'title'"),
        ({"t": DATABASE.replace("When: date", "When: formula")}, "'When'"),
        ({"t": DATABASE, "t__e": with_key("properties: {When: x}")}, "date"),
        ({"t": DATABASE, "t__e": with_key("properties: {State: x}")}, "'x'"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path, pages, words):
    with pytest.raises(DataError) as caught:
        load_workspace(make(tmp_path, **pages))
    assert words in str(caught.value)
    assert "wiki/" in str(caught.value)


def test_a_folder_without_a_workspace_is_named(tmp_path):
    with pytest.raises(DataError, match=r"workspace\.toml"):
        load_workspace(tmp_path)


def test_the_wiki_uses_every_block_type(wiki):
    found = {placed.block.type for placed in wiki.blocks.values()}
    assert found >= {
        "paragraph",
        "heading_2",
        "heading_3",
        "bulleted_list_item",
        "numbered_list_item",
        "to_do",
        "toggle",
        "quote",
        "callout",
        "code",
        "table",
        "table_row",
        "divider",
        "bookmark",
        "image",
        "equation",
    }


def test_the_wiki_shares_no_long_passage_with_the_companys_papers(wiki):
    def sequences(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[i : i + 12]) for i in range(len(words) - 11)}

    papers = set().union(*(sequences(s.text.lower().split()) for s in load_company().sources))
    folder = data_path("notion/wiki")
    for file in folder.rglob("*.md"):
        shared = sequences(file.read_text(encoding="utf-8").lower().split()) & papers
        assert not shared, file.name


def test_the_steps_for_a_custom_component_work(wiki):
    """The page's code, block after block, as a reader would run it."""
    page = wiki.by_path("engineering/eddy/custom-component")
    code = [
        plain_text(wiki.blocks[i].block.content["rich_text"])
        for i in page.blocks
        if wiki.blocks[i].block.type == "code"
    ]
    assert len(code) == 4
    module = types.ModuleType("eddy_example")
    sys.modules["eddy_example"] = module
    try:
        for block in code:
            exec(compile(block, "custom-component.md", "exec"), module.__dict__)
    finally:
        del sys.modules["eddy_example"]
    assert module.__dict__["answer"]["prompt"]["prompt"] == (
        "Parts: SP-4428, SP-4410. Question: Does SP-4428 fit SP-4410?"
    )
