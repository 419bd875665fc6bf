"""Pictures of results: overlays with contours and a legend, coloured captions, contact sheets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .image_processing_xsam import load_image

# Okabe and Ito's palette without black, then Paul Tol's "muted": all told apart with the common colour vision deficiencies.
PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (136, 34, 85),
    (51, 34, 136),
    (136, 204, 238),
    (68, 170, 153),
    (17, 119, 51),
    (153, 153, 51),
    (221, 204, 119),
    (204, 102, 119),
    (170, 68, 153),
)
BACKGROUND, INK = (255, 255, 255), (30, 30, 30)
FILL_OPACITY = 0.45
MAX_LEGEND_ENTRIES = 30


def label_color(label: str) -> tuple[int, int, int]:
    """The colour of a label, the same in every picture."""
    digest = hashlib.sha256(label.encode("utf-8")).digest()
    return PALETTE[digest[0] % len(PALETTE)]


def label_colors(labels: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """
    A colour for each label of one picture: its own, or the next free one if another label has it already. From the
    seventeenth label on colours repeat.
    """
    colors: dict[str, tuple[int, int, int]] = {}
    for label in dict.fromkeys(labels):
        start = PALETTE.index(label_color(label))
        candidates = [PALETTE[(start + step) % len(PALETTE)] for step in range(len(PALETTE))]
        free = [color for color in candidates if color not in colors.values()]
        colors[label] = (free or candidates)[0]
    return colors


def visualize(
    image: Image.Image,
    segments: Sequence[Mapping[str, Any]],
    text: str | None = None,
    legend: bool = True,
) -> Image.Image:
    """
    Draw segments over an image.

    Args:
        image: of any kind that the pipeline takes, see `load_image`.
        segments: `{"label", "score", "mask" (PIL "L" of the image's size)[, "span"]}`, as the pipeline gives them.
        text: a caption to be written below, its phrases (`span`, characters of `text`) in the colours of their masks.
        legend: whether labels and scores are listed beside the picture.

    Raises:
        ValueError: if a mask has another size than the image.
    """
    # Phrases of a caption are told apart even if they read the same.
    keys = [_color_key(segment) for segment in segments]
    colors = label_colors(keys)
    picture = _draw_masks(load_image(image), segments, [colors[key] for key in keys])
    if legend and segments and text is None:
        entries = _legend_entries(segments, [colors[key] for key in keys])
        picture = _beside(picture, _legend(entries, _font_size(picture)))
    if text is not None:
        spans = [
            (segment["span"], colors[key]) for segment, key in zip(segments, keys, strict=True) if segment.get("span")
        ]
        picture = _below(picture, _caption(text, spans, max(picture.width, 320), _font_size(picture)))
    return picture


def contact_sheet(pictures: Sequence[tuple[str, Image.Image]], columns: int = 3, width: int = 520) -> Image.Image:
    """
    Pictures with their titles in a grid; those of a row have the same scale.

    Args:
        pictures: titles and pictures.
        columns: of the grid.
        width: of a picture, in pixels.
    """
    if not pictures:
        raise ValueError("`pictures` is empty: give at least one title and picture")
    margin, title_height = 14, 30
    rows = [range(start, min(start + columns, len(pictures))) for start in range(0, len(pictures), columns)]
    cells = [cell for row in rows for cell in _same_scale([pictures[index][1] for index in row], width)]
    heights = [max(cells[index].height for index in row) + title_height + margin for row in rows]
    columns = min(columns, len(cells))
    sheet = Image.new("RGB", (columns * (width + margin) + margin, sum(heights) + margin), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    top = margin
    for row, height in zip(rows, heights, strict=True):
        for column, index in enumerate(row):
            left = margin + column * (width + margin)
            draw.text((left, top), pictures[index][0], fill=INK, font=ImageFont.load_default(18))
            sheet.paste(cells[index], (left, top + title_height))
        top += height
    return sheet


def _same_scale(pictures: Sequence[Image.Image], width: int) -> list[Image.Image]:
    """Pictures scaled so that the widest has a width, the others with background beside them."""
    widest = max(picture.width for picture in pictures)
    cells = []
    for picture in pictures:
        size = (max(1, round(picture.width * width / widest)), max(1, round(picture.height * width / widest)))
        cell = Image.new("RGB", (width, size[1]), BACKGROUND)
        cell.paste(picture.resize(size), (0, 0))
        cells.append(cell)
    return cells


def _color_key(segment: Mapping[str, Any]) -> str:
    span = segment.get("span")
    return segment["label"] if span is None else f"{segment['label']} {span}"


def _draw_masks(
    image: Image.Image, segments: Sequence[Mapping[str, Any]], colors: Sequence[tuple[int, int, int]]
) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32).copy()
    filled: dict[tuple[int, int, int], np.ndarray] = {}
    for segment, color in zip(segments, colors, strict=True):
        if segment["mask"].size != image.size:
            raise ValueError(f"`segments`: a mask has size {segment['mask'].size}, but the image {image.size}")
        inside = np.asarray(segment["mask"]) > 127
        filled[color] = filled[color] | inside if color in filled else inside
    # Once per colour: the fills of many segments that overlap would hide the image.
    for color, inside in filled.items():
        pixels[inside] += FILL_OPACITY * (np.array(color, dtype=np.float32) - pixels[inside])
    # Contours come last, so that no fill covers them.
    for segment, color in zip(segments, colors, strict=True):
        pixels[_contour(segment["mask"], image.size)] = color
    return Image.fromarray(pixels.round().astype(np.uint8))


def _contour(mask: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Pixels of a mask next to pixels outside it, a line whose width follows the image's."""
    thickness = 2 * max(1, round(max(size) / 600)) + 1
    binary = mask.point(lambda value: 255 if value > 127 else 0)
    eroded = binary.filter(ImageFilter.MinFilter(thickness))
    return (np.asarray(binary) > 0) & (np.asarray(eroded) == 0)


def _font_size(picture: Image.Image) -> int:
    return int(np.clip(picture.width / 34, 12, 36))


def _legend_entries(
    segments: Sequence[Mapping[str, Any]], colors: Sequence[tuple[int, int, int]]
) -> list[tuple[str, tuple[int, int, int]]]:
    """One line per label: how many segments it has and their best score."""
    grouped: dict[str, tuple[tuple[int, int, int], list[float | None]]] = {}
    for segment, color in zip(segments, colors, strict=True):
        grouped.setdefault(segment["label"], (color, []))[1].append(segment["score"])
    entries = []
    for label, (color, scores) in grouped.items():
        count = f" x {len(scores)}" if len(scores) > 1 else ""
        known = [score for score in scores if score is not None]
        best = f"  {max(known):.2f}" if known else ""
        entries.append((f"{label if len(label) <= 40 else label[:37] + '...'}{count}{best}", color))
    if len(entries) > MAX_LEGEND_ENTRIES:
        more = len(entries) - MAX_LEGEND_ENTRIES
        entries = [*entries[:MAX_LEGEND_ENTRIES], (f"and {more} more", BACKGROUND)]
    return entries


def _legend(entries: Sequence[tuple[str, tuple[int, int, int]]], font_size: int) -> Image.Image:
    font = ImageFont.load_default(font_size)
    line, margin = round(font_size * 1.6), font_size // 2
    width = max(round(font.getlength(text)) for text, _ in entries) + 3 * margin + font_size
    panel = Image.new("RGB", (width, line * len(entries) + 2 * margin), BACKGROUND)
    draw = ImageDraw.Draw(panel)
    for row, (text, color) in enumerate(entries):
        top = margin + row * line
        draw.rounded_rectangle((margin, top, margin + font_size, top + font_size), radius=font_size // 5, fill=color)
        draw.text((2 * margin + font_size, top - font_size // 10), text, fill=INK, font=font)
    return panel


def _caption(
    text: str, spans: Sequence[tuple[tuple[int, int], tuple[int, int, int]]], width: int, font_size: int
) -> Image.Image:
    """Text in lines of at most `width` pixels; the characters of each span stand on their colour."""
    font = ImageFont.load_default(font_size)
    margin, line = font_size // 2, round(font_size * 1.7)
    places, x, y = [], margin, margin
    for start, word in _words(text):
        length = font.getlength(word)
        if x + length > width - margin and x > margin:
            x, y = margin, y + line
        places.append((start, word, x, y))
        x += length
    panel = Image.new("RGB", (width, y + line + margin), BACKGROUND)
    draw = ImageDraw.Draw(panel)
    for start, word, left, top in places:
        for (first, last), color in spans:
            inside = word[max(first - start, 0) : max(last - start, 0)]
            if inside:
                begin = left + font.getlength(word[: max(first - start, 0)])
                box = (begin, top - font_size // 8, begin + font.getlength(inside), top + font_size * 1.25)
                draw.rectangle(box, fill=_tint(color))
        draw.text((left, top), word, fill=INK, font=font)
    return panel


def _words(text: str) -> list[tuple[int, str]]:
    """Words with the white space behind them, and where they start."""
    words, start = [], 0
    for position, character in enumerate(text):
        if character.isspace() and position + 1 < len(text) and not text[position + 1].isspace():
            words.append((start, text[start : position + 1].replace("\n", " ")))
            start = position + 1
    return [*words, (start, text[start:].replace("\n", " "))]


def _tint(color: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(round(255 - 0.55 * (255 - channel)) for channel in color)


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    joined = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), BACKGROUND)
    joined.paste(left, (0, 0))
    joined.paste(right, (left.width, 0))
    return joined


def _below(top: Image.Image, bottom: Image.Image) -> Image.Image:
    joined = Image.new("RGB", (max(top.width, bottom.width), top.height + bottom.height), BACKGROUND)
    joined.paste(top, (0, 0))
    joined.paste(bottom, (0, top.height))
    return joined


__all__ = ["contact_sheet", "label_color", "label_colors", "visualize"]
