"""What figures and JSON of different kinds share."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's palette without its yellow: tells apart under all common colour blindness.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")


def plain(value: Any) -> Any:
    """Python numbers, lists and dictionaries; non-finite numbers, which JSON lacks, as None."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def save_figure(canvas: "Figure", path: str | Path) -> tuple[Path, Path]:
    """Writes a figure as PNG and SVG, the same files for the same figure.

    Args:
        canvas: a figure of matplotlib.
        path: where to; its suffix is replaced, folders are created, older files are replaced.

    Returns:
        The paths of both files.
    """
    from matplotlib import rc_context

    png, svg = Path(path).with_suffix(".png"), Path(path).with_suffix(".svg")
    png.parent.mkdir(parents=True, exist_ok=True)
    # A fixed salt and no date.
    with rc_context({"svg.hashsalt": "metaopt"}):
        canvas.savefig(png, dpi=200)
        canvas.savefig(svg, metadata={"Date": None})
    return png, svg
