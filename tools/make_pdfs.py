"""Build the PDFs of the invented company's collections from their Markdown.

Run it as `make pdfs` after a change to a source with `format: pdf`, and commit both. The same
source gives the same bytes, with any platform and Python: only the fonts that every PDF reader has,
no compression, dates from the source, and pictures (`tools/make_pictures.py`) as the JPEG files
that they are. `--check` writes nothing and tells what differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fpdf import FPDF, FontFace
from fpdf.enums import TableBordersLayout, TableCellFillMode, TableHeadingsDisplay
from fpdf.errors import FPDFException
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from nim_cookbook.corpus import Source, load_folder
from nim_cookbook.errors import CookbookError

ROOT = Path(__file__).resolve().parent.parent
PICTURES = ROOT / "data" / "tables" / "pictures"
COMPANY = "Tarnfeld Hydrometrics"
# Not strftime: a locale must not change the bytes.
MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
BULLET = "\x95"  # where the core fonts' encoding has its bullet
INK = (34, 34, 34)
GREY = (110, 110, 110)
PALE = (241, 244, 246)
LINE = (200, 206, 211)
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Layout:
    """How one kind of paper looks; lengths in millimetres, `size` in points.

    Attributes:
        label: What the header calls this kind.
        font: The family of the text; headings are always in Helvetica.
        size: The size of the text.
        line: The height of a line of text.
        gap: The space below a paragraph, list or table.
        margin: The space left and right of the text.
        accent: The colour of titles, headings and lines.
        band: Whether the header stands in a filled band, as brochures have it.
        flows: Whether a table goes on over the page, where its heading is not repeated.
        borders: Which lines a table has.
    """

    label: str
    font: str
    size: float
    line: float
    gap: float
    margin: float
    accent: tuple[int, int, int]
    band: bool = False
    flows: bool = False
    borders: TableBordersLayout = TableBordersLayout.HORIZONTAL_LINES


LAYOUTS = {
    "report": Layout("Quarterly report", "Times", 11, 7.0, 5.5, 32, (24, 62, 92)),
    "incident": Layout("Incident report", "Times", 11, 6.0, 3.5, 27, (122, 44, 30)),
    "datasheet": Layout("Data sheet", "Helvetica", 9.5, 4.7, 2.4, 20, (0, 88, 104), band=True),
    "list": Layout(
        *("List", "Helvetica", 9.5, 5.4, 3, 20, (58, 70, 40)),
        flows=True,
        borders=TableBordersLayout.ALL,
    ),
    "scan": Layout("Form", "Helvetica", 12, 7.0, 5, 20, (20, 20, 20)),
}


class Paper(FPDF):
    """A company paper: header, footer, and blocks that no page break cuts in two."""

    def __init__(self, source: Source, pictures: Path) -> None:
        super().__init__(format="A4", unit="mm")
        self.source = source
        self.pictures = pictures
        if source.kind not in LAYOUTS:
            raise ValueError(f"no layout for the kind {source.kind!r}")
        self.layout = LAYOUTS[source.kind]
        date = datetime.fromisoformat(source.date).replace(tzinfo=UTC)
        self.date = f"{date.day} {MONTHS[date.month - 1]} {date.year}"
        self.set_compression(False)  # so that git shows what changed
        self.c_margin = 0  # text begins where the lines begin
        self.set_margins(self.layout.margin, 34, self.layout.margin)
        self.set_auto_page_break(True, margin=26)
        self.set_title(source.title)
        self.set_subject(self.layout.label)
        self.set_author(COMPANY)
        self.set_lang("en-GB")
        self.set_creation_date(date)
        self.set_producer("fpdf2")  # without its version

    def header(self) -> None:
        """Draw the company's name and the kind of paper."""
        layout = self.layout
        if layout.band:
            self.set_fill_color(*layout.accent)
            self.rect(0, 0, self.w, 22, style="F")
        self.set_y(9 if layout.band else 14)
        self.set_text_color(*(WHITE if layout.band else layout.accent))
        self.set_font("Helvetica", "B", 11)
        self.cell(self.epw / 2, 6, COMPANY)
        self.set_font("Helvetica", "", 9)
        self.cell(self.epw / 2, 6, layout.label, align="R")
        if not layout.band:
            self.rule(22)
        self.set_y(self.t_margin)

    def footer(self) -> None:
        """Draw the number of the page and the document's id."""
        self.rule(self.h - 18)
        self.set_y(-17)
        self.set_text_color(*GREY)
        self.set_font("Helvetica", "", 8)
        # The number stands left: flush right, {nb} would leave its own width and not the number's.
        self.cell(self.epw / 2, 6, f"Page {self.page_no()} of {{nb}}")
        self.cell(self.epw / 2, 6, self.source.id, align="R")

    def rule(self, y: float) -> None:
        """Draw a thin line across the text's width at that height."""
        self.set_draw_color(*self.layout.accent)
        self.set_line_width(0.3)
        self.line(self.l_margin, y, self.w - self.r_margin, y)

    def draw(self, node: SyntaxTreeNode) -> None:
        """Draw one block of the document.

        Raises:
            ValueError: The block, or what stands in it, is of a kind that these papers lack.
        """
        match node.type:
            case "heading" if node.tag == "h1":
                self.title_block(plain(node))
            case "heading":
                self.heading(plain(node))
            case "paragraph" if (image := picture(node)) is not None:
                self.figure(image)
            case "paragraph":
                self.paragraph(plain(node))
            case "bullet_list" | "ordered_list":
                self.listing(node)
            case "table":
                rows = [row for part in node.children for row in part.children]
                self.grid([[plain(cell) for cell in row.children] for row in rows])
            case _:
                raise ValueError(f"no layout for a block of the kind {node.type!r}")

    def title_block(self, text: str) -> None:
        """Draw the title with the date below."""
        self.set_text_color(*self.layout.accent)
        self.set_font("Helvetica", "B", 18)
        self.multi_cell(0, 8.5, text, align="L", new_x="LMARGIN", new_y="NEXT")
        self.set_text_color(*GREY)
        self.set_font("Helvetica", "", 9.5)
        self.cell(0, 7, self.date, new_x="LMARGIN", new_y="NEXT")
        self.ln(self.layout.gap)

    def heading(self, text: str) -> None:
        """Draw the heading of a section."""
        self.ln(self.layout.gap / 2)
        self.set_text_color(*self.layout.accent)
        self.set_font("Helvetica", "B", self.layout.size + 1.5)
        line = self.layout.line + 0.6
        self.multi_cell(0, line, text, align="L", new_x="LMARGIN", new_y="NEXT")
        self.ln(self.layout.gap / 3)

    def paragraph(self, text: str) -> None:
        """Draw a paragraph."""
        self.use_text_font()
        self.multi_cell(0, self.layout.line, text, align="L", new_x="LMARGIN", new_y="NEXT")
        self.ln(self.layout.gap)

    def figure(self, image: SyntaxTreeNode) -> None:
        """Draw a picture, with its alternative text for those who do not see it."""
        path = self.pictures / str(image.attrs["src"])
        alt = "".join(leaf.content for leaf in image.children)
        self.image(path, w=self.epw * 0.6, alt_text=alt)
        self.ln(self.layout.gap / 2)

    def listing(self, node: SyntaxTreeNode) -> None:
        """Draw a list with bullets or numbers."""
        self.use_text_font()
        first = int(node.attrs.get("start", 1))
        for number, item in enumerate(node.children, first):
            mark = BULLET if node.type == "bullet_list" else f"{number}."
            self.cell(6, self.layout.line, mark)
            text = " ".join(plain(paragraph) for paragraph in item.children)
            self.multi_cell(0, self.layout.line, text, align="L", new_x="LMARGIN", new_y="NEXT")
            self.ln(self.layout.gap / 4)
        self.ln(self.layout.gap * 3 / 4)

    def grid(self, rows: Sequence[Sequence[str]]) -> None:
        """Draw a table, its first row as the heading, with columns as wide as their longest cell.

        Args:
            rows: Texts, rows by columns.
        """
        self.use_text_font()
        self.set_draw_color(*LINE)
        self.set_line_width(0.2)
        columns = zip(*rows, strict=True)
        style = FontFace(
            family="Helvetica",
            emphasis="BOLD",
            size_pt=self.layout.size - 1,
            color=WHITE,
            fill_color=self.layout.accent,
        )
        with self.table(
            col_widths=tuple(max(map(self.get_string_width, c)) + 6 for c in columns),
            width=self.epw,
            align="LEFT",
            text_align="LEFT",
            line_height=self.layout.line - 0.5,
            padding=(0.5, 1.5),
            borders_layout=self.layout.borders,
            cell_fill_color=PALE,
            cell_fill_mode=TableCellFillMode.EVEN_ROWS,
            headings_style=style,
            repeat_headings=TableHeadingsDisplay(not self.layout.flows),
        ) as table:
            for row in rows:
                table.row(row)
        self.ln(self.layout.gap)

    def use_text_font(self) -> None:
        """Take the font and colour of the text."""
        self.set_text_color(*INK)
        self.set_font(self.layout.font, "", self.layout.size)


def plain(node: SyntaxTreeNode) -> str:
    """Return the words of a block that holds nothing but words.

    Raises:
        ValueError: It holds something else, such as a link, which these papers lack.
    """
    words = {"text": lambda n: n.content, "softbreak": lambda n: " "}
    leaves = [leaf for inline in node.children for leaf in inline.children]
    for leaf in leaves:
        if leaf.type not in words:
            raise ValueError(f"no layout for words of the kind {leaf.type!r}")
    return "".join(words[leaf.type](leaf) for leaf in leaves)


def picture(node: SyntaxTreeNode) -> SyntaxTreeNode | None:
    """Return the picture that a paragraph is, if it is nothing else."""
    leaves = [leaf for inline in node.children for leaf in inline.children]
    return leaves[0] if [leaf.type for leaf in leaves] == ["image"] else None


def groups(body: SyntaxTreeNode) -> Iterator[list[SyntaxTreeNode]]:
    """Yield the blocks of a document; a heading or a picture comes with the block below it."""
    group: list[SyntaxTreeNode] = []
    for node in body.children:
        group.append(node)
        if node.type != "heading" and picture(node) is None:
            yield group
            group = []
    if group:
        yield group


def build(source: Source, pictures: Path = PICTURES) -> bytes:
    """Return the PDF of a source.

    A page begins before a group of blocks that does not fit: header and footer then never stand
    in the midst of a paragraph, list or table, and the words of a quote stay in a row. Only a table
    of a layout that flows is cut, between two rows. Of a scan the only page is a picture.
    """
    try:
        paper = Paper(source, pictures)
        if source.kind == "scan":
            return scan(paper)
        paper.add_page()
        body = SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(source.text))
        for group in groups(body):
            with paper.offset_rendering() as trial:
                for node in group:
                    trial.draw(node)
            cut = paper.layout.flows and group[-1].type == "table"
            if trial.page_break_triggered and not cut:
                paper.add_page()
            for node in group:
                paper.draw(node)
        return bytes(paper.output())
    except (ValueError, FPDFException) as error:
        sys.exit(f"{source.id}.md cannot become a PDF ({error}): write it more plainly.")


def scan(paper: Paper) -> bytes:
    """Return a PDF whose only page is the picture of that name, as a scanner writes it."""
    paper.set_auto_page_break(False)
    paper.header = paper.footer = lambda: None  # type: ignore[method-assign]
    paper.add_page()
    paper.image(paper.pictures / f"{paper.source.id}.jpg", 0, 0, paper.w, paper.h)
    return bytes(paper.output())


def main(arguments: Sequence[str] | None = None) -> None:
    """Build the PDFs of a collection, or compare them with what the sources give."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, tell what differs")
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "data" / "company",
        help="the collection; its documents/ are read and its pdf/ is written",
    )
    given = parser.parse_args(arguments)
    folder: Path = given.folder / "pdf"
    try:
        sources = load_folder(given.folder / "documents").sources
    except CookbookError as error:
        sys.exit(str(error))
    pictures = given.folder / "pictures"
    built = {f"{s.id}.pdf": build(s, pictures) for s in sources if s.format == "pdf"}
    there = {path.name: path.read_bytes() for path in folder.glob("*.pdf")}
    changed = sorted(name for name in built if built[name] != there.get(name))
    gone = sorted(there.keys() - built.keys())
    if given.check:
        if changed or gone:
            names = ", ".join(changed + gone)
            sys.exit(f"These PDFs are not what their sources give, run `make pdfs`: {names}.")
        print(f"All {len(built)} PDFs are what their sources give.")
        return
    folder.mkdir(exist_ok=True)
    for name in changed:
        part = folder / f"{name}.part"
        part.write_bytes(built[name])
        part.replace(folder / name)
    for name in gone:
        (folder / name).unlink()
    print(f"{len(built)} PDFs: {len(changed)} written, {len(gone)} removed, the others unchanged.")


if __name__ == "__main__":
    main()
