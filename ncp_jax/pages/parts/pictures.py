"""Pictures from arrays: to 8 bits, into grids, onto the disk."""

import io
from pathlib import Path

import numpy as np
from PIL import Image


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Maps [0, 1] to 0 .. 255 by rounding; values outside are clipped."""
    return np.round(255.0 * np.clip(x, 0.0, 1.0)).astype(np.uint8)


def as_uint8(stored: np.ndarray) -> np.ndarray:
    """Returns uint8 pictures as they are, and floats in [0, 1] in 8 bits."""
    return stored if stored.dtype == np.uint8 else to_uint8(stored)


def grid(images: np.ndarray, columns: int) -> np.ndarray:
    """Tiles pictures [N, H, W, C] row by row, one black pixel apart: [H', W', C]."""
    n, height, width, channels = images.shape
    rows = -(-n // columns)
    cells = np.zeros((rows * columns, height + 1, width + 1, channels), images.dtype)
    cells[:n, :-1, :-1] = images
    tiled = cells.reshape(rows, columns, height + 1, width + 1, channels)
    tiled = tiled.swapaxes(1, 2).reshape(rows * (height + 1), columns * (width + 1), -1)
    return tiled[:-1, :-1]


def pairs(above: np.ndarray, below: np.ndarray, columns: int) -> np.ndarray:
    """Tiles so that rows alternate: pictures, then their counterparts: [H', W', C].

    Args:
      above: uint8 [N, H, W, C]; what does not fill a row is left out, unless N is less
        than one row.
      below: [0, 1] floats [N or more, H, W, C], in the same order.
      columns: pictures per row.
    """
    columns = min(columns, len(above))
    n = len(above) // columns * columns
    rows = np.stack([above[:n], to_uint8(below[:n])])  # [2, n, H, W, C]
    rows = rows.reshape(2, -1, columns, *above.shape[1:]).swapaxes(0, 1)
    return grid(rows.reshape(-1, *above.shape[1:]), columns)


def as_png(picture: np.ndarray) -> bytes:
    """Returns [H, W, 1] or [H, W, 3] uint8 as the bytes of a PNG file."""
    buffer = io.BytesIO()
    shown = picture.squeeze(-1) if picture.shape[-1] == 1 else picture
    Image.fromarray(shown).save(buffer, "png")
    return buffer.getvalue()


def save_png(path: Path, picture: np.ndarray) -> None:
    """Writes [H, W, 1] or [H, W, 3] uint8 as PNG."""
    path.write_bytes(as_png(picture))
