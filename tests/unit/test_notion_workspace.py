"""The Notion stand-in's workspace: Markdown to blocks, properties, ids, and mistakes in files."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local_endpoints.notion.limits import RateLimit
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
  Size: number
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
    return Target("page", "an-id", "Other", "https://www.notion.so/anid", {"id": "an-id"})


def parse(source: str) -> list[Block]:
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
    (item,) = parse("1. do\n\n   ```sh\n   ls\n   ```\n   - deeper\n     - deepest")
    assert text(item) == "do"
    assert [child.type for child in item.children] == ["code", "bulleted_list_item"]
    assert item.children[0].content["language"] == "shell"
    assert text(item.children[1].children[0]) == "deepest"


def test_a_list_that_starts_later_says_so():
    first, second = parse("3. c\n4. d")
    assert first.content["list_start_index"] == 3
    assert "list_start_index" not in second.content


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


def test_an_unknown_language_is_plain_text():
    assert parse("```klingon\nx\n```")[0].content["language"] == "plain text"


@given(st.integers(1, 3 * MAX_TEXT))
def test_long_code_is_split_where_notion_splits(length):
    (block,) = parse(f"```\n{'x' * length}\n```")
    parts = [len(item["plain_text"]) for item in block.content["rich_text"]]
    assert max(parts) <= MAX_TEXT
    assert sum(parts) == length


def _check(block: Block) -> None:
    for item in block.content.get("rich_text", ()):
        assert 0 < len(item["plain_text"]) <= MAX_TEXT
    if block.type == "table":
        assert all(len(r.content["cells"]) == block.content["table_width"] for r in block.children)
    for child in block.children:
        _check(child)


_MARKS = ["- ", "1. ", "> ", "# ", "[ ] ", "```", "\n", "\n\n", "    ", "|", "--|--\n", "**", "`"]
_TAGS = [
    "<details>\n<summary>",
    "</summary>\n\n",
    "</details>\n\n",
    "<u>",
    "<!--",
    "---\n",
    "&amp;",
]
_REST = [
    "[a](b.md)",
    "![",
    "](",
    ")",
    "~~",
    "$$",
    "[!NOTE]",
    "\\",
    "wörter",
    "\x00",
    "\u2028",
    "😀",
]
_PIECES = st.sampled_from([*_MARKS, *_TAGS, *_REST])


@settings(max_examples=300, deadline=None)
@given(st.lists(_PIECES | st.text(max_size=5), max_size=40).map("".join))
def test_any_markdown_gives_sound_blocks(source):
    for block in parse(source):
        _check(block)


@given(st.lists(st.text("abcdefgh ", min_size=1).map(str.strip).filter(bool), min_size=1))
def test_no_word_is_lost(paragraphs):
    found = parse("\n\n".join(paragraphs))
    assert [text(block) for block in found] == paragraphs


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(head=st.lists(_PIECES | st.text(max_size=8), max_size=10).map("".join))
def test_any_front_matter_is_read_or_refused(tmp_path, head):
    make(tmp_path, page=f"---\ntitle: A\ncreated: 2026-01-02\n{head}\n---\nwords\n")
    try:
        space = load_workspace(tmp_path)
    except DataError as error:
        assert "page" in str(error)
    else:
        assert len(space.pages) == 1


def test_ids_are_the_same_at_every_start_and_all_different(wiki):
    again = load_workspace(data_path("notion"))
    assert list(again.pages) == list(wiki.pages)
    assert list(again.blocks) == list(wiki.blocks)
    sources = [page.source_id for page in wiki.pages.values() if page.is_database]
    everything = [*wiki.pages, *wiki.blocks, *sources]
    assert len(everything) == len(set(everything))


def test_editing_one_page_leaves_the_ids_of_others(tmp_path):
    before = load_workspace(make(tmp_path, a=HEAD + "one", b=HEAD + "two"))
    after = load_workspace(make(tmp_path, a=HEAD + "more\n\nof it", b=HEAD + "two"))
    assert after.by_path("b").blocks == before.by_path("b").blocks
    assert len(after.by_path("a").blocks) == 2


def test_front_matter_can_give_the_id(tmp_path):
    fixed = "11111111-2222-4333-8444-555555555555"
    head = HEAD.replace("title", f"id: {fixed.replace('-', '')}\ntitle")
    assert load_workspace(make(tmp_path, a=head)).by_path("a").id == fixed


def test_what_lies_below_an_unshared_page_is_not_shared(wiki):
    closed = {page.path for page in wiki.pages.values() if not page.shared}
    sealed = "engineering/runbooks/control-rooms"
    assert closed == {sealed, f"{sealed}/night-list"}


def test_values_of_entries(tmp_path):
    entry = "---\ntitle: E\ncreated: 2026-01-02\nproperties: {Size: 3, State: done}\n---\n"
    page = load_workspace(make(tmp_path, t=DATABASE, t__e=entry)).by_path("t/e")
    assert page.values == {"Size": 3, "State": "done"}


@pytest.mark.parametrize(
    ("pages", "words"),
    [
        ({"a": "no front matter"}, "does not begin with front matter"),
        ({"a": "---\ntitle: [\n---\n"}, "is no YAML"),
        ({"a": "---\ncreated: 2026-01-02\n---\n"}, "needs a title"),
        ({"a": "---\ntitle: 7\ncreated: 2026-01-02\n---\n"}, "needs a title"),
        ({"a": "---\ntitle: A\n---\n"}, "'created'"),
        ({"a": HEAD.replace("created", "colour: red\ncreated")}, "'colour'"),
        ({"a": HEAD.replace("created", "author: bob\ncreated")}, "'bob'"),
        ({"a": HEAD.replace("created", "shared: perhaps\ncreated")}, "true or false"),
        ({"a": HEAD.replace("created", "id: seven\ncreated")}, "no UUID"),
        ({"a": HEAD + "[x](missing.md)"}, "'missing.md'"),
        ({"a": HEAD + "[x](user:bob)"}, "'bob'"),
        ({"a__b": HEAD}, "wiki/a.md"),
        ({"a": HEAD.replace("created", "properties: {X: 1}\ncreated")}, "in no database"),
        ({"t": DATABASE + "words"}, "holds no text"),
        ({"t": DATABASE.replace("title\n  S", "number\n  S")}, "'title'"),
        ({"t": DATABASE, "t__e": HEAD.replace("created", "properties: {X: 1}\ncreated")}, "among"),
        (
            {"t": DATABASE, "t__e": HEAD.replace("created", "properties: {Size: x}\ncreated")},
            "number",
        ),
        (
            {"t": DATABASE, "t__e": HEAD.replace("created", "properties: {State: x}\ncreated")},
            "'x'",
        ),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path, pages, words):
    with pytest.raises(DataError) as caught:
        load_workspace(make(tmp_path, **pages))
    assert words in str(caught.value)
    assert "wiki/" in str(caught.value)


def test_two_pages_with_one_id_are_refused(tmp_path):
    head = HEAD.replace("title", "id: 11111111-2222-4333-8444-555555555555\ntitle")
    with pytest.raises(DataError, match="same id"):
        load_workspace(make(tmp_path, a=head, b=head))


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


def test_the_rate_limit_is_a_token_bucket():
    now = 0.0
    limit = RateLimit(per_second=2, burst=3, clock=lambda: now)
    assert [limit.take() for _ in range(4)] == [0, 0, 0, 1]
    now = 0.5
    assert [limit.take(), limit.take()] == [0, 1]
    now = 100.0
    assert [limit.take() for _ in range(4)] == [0, 0, 0, 1]
    slow = RateLimit(per_second=0.25, burst=1, clock=lambda: now)
    assert [slow.take(), slow.take()] == [0, 4]


@pytest.mark.parametrize(
    ("per_second", "burst"), [(0, 1), (-1, 1), (float("nan"), 1), (float("inf"), 1), (1, 0)]
)
def test_a_rate_limit_that_lets_nothing_pass_is_refused(per_second, burst):
    with pytest.raises(ValueError, match="per_second"):
        RateLimit(per_second, burst)
