"""Pixels of whatever holds an image, and pictures with captions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hookbus.errors import ConfigError
from hookbus.pictures import Normalization, labelled, pixels

RGB = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)
"""Two rows, four columns, three channels."""
CHANNELS_FIRST = RGB.transpose(2, 0, 1).copy()


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (torch.from_numpy(CHANNELS_FIRST), RGB),
        (torch.from_numpy(RGB), RGB),
        (CHANNELS_FIRST, RGB),
        (RGB, RGB),
        (RGB[:, :, 0], RGB[:, :, :1]),
        (RGB[:, :, :1], RGB[:, :, :1]),
        (torch.from_numpy(RGB[:, :, 0].copy())[None], RGB[:, :, :1]),
        (torch.from_numpy(RGB.astype(np.float32) / 255), RGB),
        (torch.from_numpy(RGB.astype(np.float64) / 255), RGB),
        (RGB.astype(np.int64), RGB),
        (torch.from_numpy(RGB.astype(np.int32)), RGB),
        (np.array([[True, False]]), np.array([[[255], [0]]])),
        (torch.ones(1, 3, 3, dtype=torch.bfloat16), np.full((3, 3, 1), 255)),
        (torch.full((2, 2), 0.5, dtype=torch.float16), np.full((2, 2, 1), 128)),
        (torch.zeros(2, 2, requires_grad=True), np.zeros((2, 2, 1))),
    ],
)
def test_pixels_are_rows_columns_and_channels_from_0_to_255(image: Any, expected: Any) -> None:
    """Wherever the channels stand, and whatever the numbers are."""
    drawn, is_in_range = pixels(image)
    assert drawn.dtype == np.uint8
    assert is_in_range
    np.testing.assert_array_equal(drawn, expected)


def test_where_both_ends_could_be_channels_they_are_first_in_a_tensor_and_last_in_an_array() -> None:
    """As is the custom of each."""
    cube = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    np.testing.assert_array_equal(pixels(cube)[0], cube)
    np.testing.assert_array_equal(pixels(torch.from_numpy(cube.copy()))[0], cube.transpose(1, 2, 0))


@pytest.mark.parametrize(
    "normalization", [Normalization((0.5,), (0.25,)), Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
)
def test_a_normalization_is_undone(normalization: Normalization) -> None:
    """For all channels alike, and for each."""
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in normalization)
    normalised = (torch.from_numpy(CHANNELS_FIRST) / 255 - mean) / std
    drawn, is_in_range = pixels(normalised, normalization)
    assert is_in_range
    np.testing.assert_array_equal(drawn, RGB)
    assert not pixels(normalised)[1]


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (torch.tensor([[-1.0, 0.5, 2.0]]), [0, 128, 255]),
        (torch.tensor([[float("nan"), float("inf"), -float("inf")]]), [0, 255, 0]),
        (torch.tensor([[-3, 7, 300]]), [0, 7, 255]),
    ],
)
def test_what_is_out_of_range_is_cut_off_and_told(image: torch.Tensor, expected: list[int]) -> None:
    """NaN is black."""
    drawn, is_in_range = pixels(image)
    assert drawn[0, :, 0].tolist() == expected
    assert not is_in_range


@pytest.mark.parametrize("shape", [(4,), (2, 5, 2), (0, 4, 3), (1, 3, 4, 4), (4, 4, 4)])
def test_what_has_not_the_shape_of_an_image_is_refused(shape: tuple[int, ...]) -> None:
    """With its shape."""
    with pytest.raises(ConfigError, match=rf"and 1 or 3 channels before or behind them; got shape \({shape[0]},"):
        pixels(torch.zeros(shape))


@pytest.mark.parametrize("image", ["digit.png", None, np.zeros((2, 2), dtype=np.complex64)])
def test_what_is_no_image_is_refused(image: Any) -> None:
    """With its type."""
    with pytest.raises(ConfigError, match=f"a picture of Pillow; got {type(image).__name__} of "):
        pixels(image)


def test_pictures_of_pillow_are_images_too() -> None:
    """In colour, in grey, and with a palette."""
    image = pytest.importorskip("PIL.Image")
    picture = image.fromarray(RGB)
    np.testing.assert_array_equal(pixels(picture)[0], RGB)
    assert pixels(picture.convert("L"))[0].shape == (2, 4, 1)
    assert pixels(picture.convert("P"))[0].shape == (2, 4, 3)


def test_small_images_are_magnified_and_captions_stand_below() -> None:
    """By a whole number; a long caption makes the picture wider, and is cut in the end."""
    pytest.importorskip("PIL")
    assert labelled(RGB).size == (256, 128)
    assert labelled(np.zeros((130, 200, 1), dtype=np.uint8)).size == (200, 130)
    plain, told = labelled(RGB), labelled(RGB, "true: 3\npredicted: 8", is_right=False)
    assert told.width == plain.width
    assert plain.height + 2 * 14 < told.height < plain.height + 60
    np.testing.assert_array_equal(np.asarray(told)[:128], np.asarray(plain))
    long, longer = labelled(RGB, "w" * 60), labelled(RGB, "w" * 500)
    assert 256 < long.width <= longer.width + 14 < 1000


@pytest.mark.parametrize(("is_right", "channel"), [(True, 1), (False, 0)])
def test_what_is_right_is_green_and_what_is_wrong_red(is_right: bool, channel: int) -> None:
    """The darkest points of the caption."""
    pytest.importorskip("PIL")
    caption = np.asarray(labelled(RGB, "MMMMMM", is_right=is_right))[128:].reshape(-1, 3).astype(int)
    darkest = caption[caption.sum(axis=1).argmin()]
    assert darkest.argmax() == channel
