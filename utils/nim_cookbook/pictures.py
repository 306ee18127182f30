"""Pictures with alt text, and what all plots share: figures, a palette, small files."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING, Any

from nim_cookbook.explain import needing_extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that people with any colour vision tell apart: Okabe and Ito, "Color Universal Design"
# (https://jfly.uni-koeln.de/color/); markers and words say the same as they do.
BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, GOLD, GREY = "#56B4E9", "#E69F00", "#B8B8B8"
STYLES = [
    (BLUE, "o"), (GOLD, "s"), (GREEN, "^"), (PINK, "D"), (SKY, "v"), ("#5E4C5F", "P"),
    (ORANGE, "X"), ("#999999", "<"),
]  # fmt: skip
# Stored notebooks carry no picture over 200 kB; base64 makes four bytes out of three.
MAX_PNG_BYTES = 140_000
_COLOURS = 64


class Picture:
    """A PNG picture with alt text, which is also its plain-text form.

    Attributes:
        png: The file's bytes.
        alt: What the picture shows, in words.
        width: Width in CSS pixels, or None for the picture's own.
    """

    def __init__(self, png: bytes, alt: str, width: int | None = None) -> None:
        """Take a finished picture."""
        self.png = png
        self.alt = alt
        self.width = width

    def __repr__(self) -> str:
        """Return the alt text."""
        return self.alt

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        # As HTML: of a plain PNG output neither JupyterLab nor nbconvert's page shows the alt text.
        width = "" if self.width is None else f' width="{self.width}"'
        source = f"data:image/png;base64,{base64.b64encode(self.png).decode()}"
        image = f'<img alt="{escape(self.alt)}"{width} src="{source}">'
        return {"text/html": image, "text/plain": self.alt}


def figure_of(
    size: tuple[float, float], panels: int = 0, *, shared: bool = True
) -> tuple[Any, Any]:
    """Return a figure and its axes; with panels, a row of them, with one vertical axis if shared.

    A figure of its own, not pyplot's: no global state, and nothing is shown twice.
    """
    with needing_extra():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    row = list(figure.subplots(1, max(1, panels), sharey=shared, squeeze=False)[0])
    for axes in row:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, row if panels else row[0]


def png_of(figure: Figure) -> bytes:
    """Return a figure as a small PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return small_png(buffer.getvalue())


def finished(figure: Figure, alt: str) -> Picture:
    """Return a figure as a picture with alt text."""
    png = png_of(figure)
    return Picture(png, alt, width=png_width(png) * 3 // 4)


def small_png(png: bytes) -> bytes:
    """Reduce a picture's colours: line drawings look the same at a quarter of the size."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.convert("RGB").quantize(_COLOURS).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def png_width(png: bytes) -> int:
    """Return a PNG's width in its own pixels."""
    return int.from_bytes(png[16:20], "big")  # the header's first field
