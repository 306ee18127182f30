"""Draw the pictures of data/tables: the figures, and the pages that a scanner would make.

Run it by hand after a change, then `make pdfs`: JPEG encoders differ, so the pictures are committed
and only the PDFs are rebuilt byte for byte. A scan is the page of its Markdown, drawn at 150 dots
an inch, turned by a degree or less, blurred, unevenly lit and noisy, all from a fixed seed.

It needs matplotlib and pypdfium2, which the extras `measure` and `tables` bring.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pypdfium2
from make_pdfs import PICTURES, Paper, groups
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Rectangle
from PIL import Image, ImageFilter

from nim_cookbook.corpus import Source, load_folder

DPI = 150
INK = "#2f4a5c"


def scanned(source: Source) -> Image.Image:
    """Return the page of a source as a scanner would make it, 8 bits of grey a pixel."""
    paper = Paper(source, PICTURES)
    paper.add_page()
    body = SyntaxTreeNode(MarkdownIt("commonmark").enable("table").parse(source.text))
    for group in groups(body):
        for node in group:
            paper.draw(node)
    page = pypdfium2.PdfDocument(bytes(paper.output()))[0]
    image = page.render(scale=DPI / 72, grayscale=True).to_pil()
    random = np.random.default_rng(zlib.crc32(source.id.encode()))
    degrees = random.uniform(0.4, 1.0) * random.choice([-1, 1])
    image = image.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=255)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(0.8)), dtype=float)
    across = np.linspace(0, 1, pixels.shape[1])
    pixels = 40 + pixels * 0.78 - 25 * across + random.normal(0, 7, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype("uint8"))


def solar(axes: Axes) -> None:
    yields = [2.4, 5.0, 8.3, 11.4, 16.3, 17.0, 17.0, 14.4, 10.5, 7.4, 3.9, 2.6]
    bars = axes.bar(list("JFMAMJJASOND"[i] + " " * i for i in range(12)), yields, color=INK)
    bars[4].set(hatch="//", facecolor="white", edgecolor=INK)
    axes.set_ylabel("MWh")


def day(axes: Axes) -> None:
    hours = [0, 5.5, 6.5, 12, 12.5, 13.2, 14.5, 15.2, 17.5, 19, 24]
    axes.plot(hours, [62, 64, 210, 214, 150, 212, 220, 303, 296, 90, 64], color=INK)
    axes.set(xlabel="hour", ylabel="kW")


def flood(axes: Axes) -> None:
    hours = np.linspace(0, 48, 200)
    crest = 1.2 + 2.64 * np.exp(-(((hours - 20) / 9) ** 2))
    late = np.interp(hours - 0.5, hours, crest)
    late[(hours > 26) & (hours < 30)] = late[hours > 26][0]
    axes.plot(hours, crest, color=INK, label="sonde")
    axes.plot(hours, late, "--", color="#b4552d", label="float")
    axes.set(xlabel="hours", ylabel="m")
    axes.legend()


def scatter(axes: Axes) -> None:
    random = np.random.default_rng(2)
    staff = random.uniform(0.6, 3.8, 118)
    off = random.normal(0, 0.02, 118) * np.where(staff > 2, 4, 1)
    off *= 0.19 / abs(off).max()
    axes.plot([0.5, 4], [0.5, 4], color="#999999")
    axes.plot(staff, staff + off, ".", color=INK)
    far = np.argsort(-abs(off))[:7]
    axes.plot(staff[far], (staff + off)[far], "o", mfc="none", color="red", ms=10)
    axes.set(xlabel="staff gauge (m)", ylabel="sonde (m)")


def well(axes: Axes) -> None:
    axes.add_patch(Rectangle((4, 1), 2, 8, fill=False, lw=2))
    axes.plot([0.5, 4], [2, 3.2], [0.5, 4], [2.6, 3.8], color="black")
    axes.plot([5, 5], [9, 2.6], color=INK)
    axes.add_patch(Rectangle((4.8, 1.6), 0.4, 1.2, color=INK))
    axes.fill_between([4, 6], 1, 1.3, color="#8a6d3b")
    axes.plot([0.4, 0.4], [1.8, 2.8], lw=6, color="#777777")
    axes.set(xlim=(0, 8), ylim=(0, 10), xticks=[], yticks=[])


def battery(axes: Axes) -> None:
    weeks = [0, 8, 8.2, 9.1, 9.3, 10.2, 10.4, 11.5]
    axes.step(weeks, [3.6, 3.6, 3.45, 3.45, 3.32, 3.32, 3.18, 3.18], color=INK, where="post")
    axes.axhline(3.15, color="red", ls=":")
    axes.set(xlabel="week", ylabel="V")


def rivers(axes: Axes) -> None:
    random = np.random.default_rng(5)
    for number, end in enumerate([(1, 9), (3.5, 9.5), (6, 9.3), (8.5, 8)]):
        x, y = (np.linspace(a, b, 40) for a, b in zip((5, 2), end, strict=True))
        axes.plot(x + 0.2 * np.sin(y * 2 + number), y, color="#4c86b5")
        at = random.choice(40, 6, replace=False)
        axes.plot((x + 0.2 * np.sin(y * 2 + number))[at], y[at], "o", color="black")
        if number < 3:
            axes.plot(x[20], y[20], "o", mfc="white", color="black", ms=8)
    axes.add_patch(Circle((5, 9.9), 0.7, color="#4c86b5"))
    axes.set(xlim=(0, 10), ylim=(0, 11), xticks=[], yticks=[])


def cabinet(axes: Axes) -> None:
    axes.add_patch(Rectangle((2, 1), 5, 8, fill=False, lw=3))
    axes.add_patch(Rectangle((3, 1.5), 3, 2.5, color="#777777"))
    axes.add_patch(Circle((4.5, 4.6), 0.9, color="#8a6d3b"))
    axes.plot([2, 7], [7.2, 7.8], color="#e8c31a", lw=8)
    axes.set(xlim=(0, 9), ylim=(0, 10), xticks=[], yticks=[])


FIGURES = {
    "energy-solar": solar,
    "energy-day": day,
    "trial-flood": flood,
    "trial-scatter": scatter,
    "trial-well": well,
    "trial-battery": battery,
    "stations-map": rivers,
    "stations-cabinet": cabinet,
}


def main() -> None:
    """Write all pictures."""
    PICTURES.mkdir(exist_ok=True)
    mpl.use("agg")
    for name, draw in FIGURES.items():
        figure, axes = plt.subplots(figsize=(4.8, 2.7), dpi=110, layout="constrained")
        draw(axes)
        figure.savefig(PICTURES / f"{name}.jpg", pil_kwargs={"quality": 60})
        plt.close(figure)
    for source in load_folder(PICTURES.parent / "documents").sources:
        if source.kind == "scan":
            scanned(source).save(PICTURES / f"{source.id}.jpg", quality=30)
    for path in sorted(PICTURES.iterdir()):
        print(f"{Path(path).name}  {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
