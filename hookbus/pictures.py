"""Pictures for people: tensors and arrays as PNG files, each with a caption below it. Needs Pillow."""

from __future__ import annotations

__all__ = ("Normalization", "check_pillow", "has_image_shape", "labelled", "pixels")

import importlib.util
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from hookbus.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFont import FreeTypeFont, ImageFont

Pixels = npt.NDArray[np.uint8]
"""Height, width, and 1 or 3 channels, from 0 to 255."""

_CHANNELS = (1, 3)
_SMALLEST_SIDE = 128
"""Pixels; smaller images are magnified by a whole number, so that their pixels can still be told apart."""
_FONT_SIZE = 14
_MARGIN = 4
_LONGEST_LINE = 60
_INK: dict[bool | None, str] = {None: "black", True: "#11702c", False: "#b3161b"}


def check_pillow(user: str) -> None:
    """Refuse to go on without Pillow.

    Raises:
        ConfigError: it is not installed; says for whom, and how to get it.
    """
    if importlib.util.find_spec("PIL") is None:
        msg = f"{user} needs pillow: pip install 'hookbus[images]'"
        raise ConfigError(msg)


class Normalization(NamedTuple):
    """What was done to values from 0 to 1: `(value - mean) / std`, for all channels alike or for each."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def undone(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return values with the channels last as they were."""
        restored: npt.NDArray[np.float64] = values * np.asarray(self.std) + np.asarray(self.mean)
        return restored


def has_image_shape(shape: Sequence[int]) -> bool:
    """Return whether something of that shape can be drawn: height and width, and 1 or 3 channels before or behind them."""
    return len(shape) in (2, 3) and 0 not in shape and (len(shape) == 2 or shape[0] in _CHANNELS or shape[-1] in _CHANNELS)


def pixels(image: Any, normalization: Normalization | None = None) -> tuple[Pixels, bool]:
    """Return the pixels of an image, and whether all its values were in range.

    Numbers with a fraction are taken from 0 to 1, after a `normalization` is undone; whole numbers from 0 to 255. What is out
    of range is cut off, NaN is black.

    Args:
        image: a tensor, an array or a picture of Pillow; where both ends could be the channels, they are first in a tensor.
        normalization: what to undo; whole numbers were not normalised.

    Raises:
        ConfigError: its shape or type is not that of an image.
    """
    order: Literal["first", "last"] = "first" if isinstance(image, torch.Tensor) else "last"
    values = _array(image)
    if not has_image_shape(values.shape):
        msg = f"an image has height and width, and 1 or 3 channels before or behind them; got shape {tuple(values.shape)}"
        raise ConfigError(msg)
    if values.ndim == 2:
        values = values[:, :, None]
    elif values.shape[-1] not in _CHANNELS or (order == "first" and values.shape[0] in _CHANNELS):
        values = values.transpose(1, 2, 0)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255), True
    if np.issubdtype(values.dtype, np.integer):
        return np.clip(values, 0, 255).astype(np.uint8), bool(values.min() >= 0 and values.max() <= 255)
    return _from_fractions(values.astype(np.float64), normalization)


def _array(image: Any) -> npt.NDArray[Any]:
    if isinstance(image, torch.Tensor):
        host = image.detach().cpu()
        values: npt.NDArray[Any] = (host.float() if host.dtype == torch.bfloat16 else host).numpy()
    elif hasattr(image, "convert") and hasattr(image, "mode"):
        values = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    else:
        values = np.asarray(image)
    if values.dtype == np.bool_ or np.issubdtype(values.dtype, np.integer) or np.issubdtype(values.dtype, np.floating):
        return values
    msg = f"an image is a tensor, an array of numbers or a picture of Pillow; got {type(image).__name__} of {values.dtype}"
    raise ConfigError(msg)


def _from_fractions(values: npt.NDArray[np.float64], normalization: Normalization | None) -> tuple[Pixels, bool]:
    if normalization is not None:
        values = normalization.undone(values)
    tolerance = 1e-3  # undoing a normalisation rounds
    is_in_range = bool(np.all((values >= -tolerance) & (values <= 1 + tolerance)))
    within = np.clip(np.nan_to_num(values, nan=0.0), 0.0, 1.0)
    return np.rint(within * 255).astype(np.uint8), is_in_range


def labelled(drawn: Pixels, caption: str = "", is_right: bool | None = None) -> Image:
    """Return a picture of pixels, magnified if they are few, with a caption below; green if it is right, red if it is wrong."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(drawn.repeat(3, axis=2) if drawn.shape[2] == 1 else drawn)
    factor = math.ceil(_SMALLEST_SIDE / min(picture.size))
    if factor > 1:
        picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    lines = [_shortened(line) for line in caption.splitlines()]
    if not lines:
        return picture
    font = ImageFont.load_default(_FONT_SIZE)
    widest, line_height = max(_width(font, line) for line in lines), _FONT_SIZE + _MARGIN
    canvas = Image.new(
        "RGB", (max(picture.width, widest + 2 * _MARGIN), picture.height + line_height * len(lines) + 2 * _MARGIN), "white"
    )
    canvas.paste(picture, ((canvas.width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((_MARGIN, picture.height + _MARGIN + number * line_height), line, fill=_INK[is_right], font=font)
    return canvas


def _shortened(line: str) -> str:
    return line if len(line) <= _LONGEST_LINE else line[: _LONGEST_LINE - 1] + "…"


def _width(font: FreeTypeFont | ImageFont, line: str) -> int:
    return math.ceil(font.getlength(line))
