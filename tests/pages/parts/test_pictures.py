"""`pictures.py`: every pixel where it belongs."""

import numpy as np
import pytest
from PIL import Image

from ncp_jax.pages.parts import pictures


def test_to_uint8_rounds_and_clips():
    x = np.array([-1.0, 0.0, 0.49 / 255, 0.51 / 255, 0.5, 1.0, 7.0])
    np.testing.assert_array_equal(pictures.to_uint8(x), [0, 0, 0, 1, 128, 255, 255])
    levels = np.arange(256, dtype=np.uint8)
    stored = levels.astype(np.float32) / 255
    np.testing.assert_array_equal(pictures.to_uint8(stored), levels)
    assert pictures.to_uint8(x).dtype == np.uint8


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_places_every_picture(channels):
    n, height, width, columns = 5, 2, 3, 2
    count = n * height * width * channels
    images = (1 + np.arange(count, dtype=np.uint8)).reshape(n, height, width, channels)
    grid = pictures.grid(images, columns)
    assert grid.shape == (3 * 3 - 1, 2 * 4 - 1, channels)
    assert grid.dtype == np.uint8
    left = grid.copy()
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        place = np.s_[3 * row : 3 * row + height, 4 * column : 4 * column + width]
        np.testing.assert_array_equal(grid[place], image)
        left[place] = 0
    assert not left.any()  # black between the pictures and in the empty cell


def test_one_picture_is_its_own_grid():
    image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3, 1)
    np.testing.assert_array_equal(pictures.grid(image, columns=1), image[0])


def test_pairs_alternate_rows():
    above = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    below = np.full((5, 1, 1, 1), 1.0)
    tiled = pictures.pairs(above, below, columns=2)[::2, ::2, 0]
    np.testing.assert_array_equal(tiled, [[0, 1], [255, 255], [2, 3], [255, 255]])
    assert pictures.pairs(above[:1], below, columns=2).shape == (3, 1, 1)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_save_png_keeps_every_value(tmp_path, channels, mode):
    picture = np.arange(4 * 5 * channels, dtype=np.uint8).reshape(4, 5, channels)
    pictures.save_png(tmp_path / "a.png", picture)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == mode
        np.testing.assert_array_equal(np.asarray(image).reshape(4, 5, -1), picture)
