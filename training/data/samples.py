"""
What every reader of annotations gives: an image and what is asked and answered about it.

Readers say all that an annotation holds, the same at every access. What a training step takes of it is drawn later, see
`drawing.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

# COCO's compressed run-length encoding: {"size": [height, width], "counts": bytes}.
RLE = dict[str, Any]
RegionKind = Literal["point", "scribble", "box", "mask"]


@dataclass(frozen=True)
class Region:
    """A visual prompt: the pixels of the image that it marks."""

    mask: RLE
    kind: RegionKind = "mask"


@dataclass(frozen=True)
class UnplacedLabel:
    """A label of a published caption that has no place in it: its words are not there, or a longer one has them."""

    text: str
    mask: RLE


@dataclass(frozen=True)
class Turn:
    """
    A question about an image, its answer, and the masks of the phrases in them.

    Which fields a task uses:

    | task | phrases | fields |
    | --- | --- | --- |
    | generic, open-vocabulary | `labels`, things then stuff | `labels`, `num_things` |
    | referring | `text` | `text` |
    | reasoning | `text` | `text`, `answer`: an explanation that follows the mask, or None |
    | grounded-conversation | the parts `spans` of `answer` | `answer`: the caption, `spans` |
    | interactive | the one entry of `regions` | `regions` |
    | visual-grounded | the entries of `regions` | `regions`, `labels`: the category of each |
    | chat | none | `text`, `answer`, `regions`: what the message is about, if marked |

    Attributes:
        task: a task of `processing_xsam`.
        text: expression, question or message.
        labels: category names, each once.
        unasked: names of categories that are in the image, but not among `labels`: they cannot be called absent.
        num_things: how many of the labels, from the first, are things; the others are stuff.
        regions: per phrase (in a chat, per marked object) the visual prompts that it can be asked with, at least one.
        answer: what the annotation says; None for tasks whose answer is a fixed sentence.
        spans: [start, end) characters of the phrases in `answer`, in order and without overlap.
        masks: what is to be segmented, each of the image's size and not empty.
        mask_phrases: for each mask the index of its phrase. A phrase may have many masks, or none: it is absent.
        ignored: areas that say nothing about the phrases, such as crowds: neither right nor wrong in evaluation.
        ignored_phrases: for each ignored area the phrase that it is a crowd of; None: of no single one (void). Empty: None
            for all.
        unplaced: in grounded conversation, labels with masks that are not among the phrases; only evaluation uses them.
        references: in grounded conversation, other published captions of the image; only evaluation uses them.
    """

    task: str
    text: str | None = None
    labels: tuple[str, ...] = ()
    unasked: tuple[str, ...] = ()
    num_things: int = 0
    regions: tuple[tuple[Region, ...], ...] = ()
    answer: str | None = None
    spans: tuple[tuple[int, int], ...] = ()
    masks: tuple[RLE, ...] = ()
    mask_phrases: tuple[int, ...] = ()
    ignored: tuple[RLE, ...] = ()
    ignored_phrases: tuple[int | None, ...] = ()
    unplaced: tuple[UnplacedLabel, ...] = ()
    references: tuple[str, ...] = ()

    @property
    def ignored_areas(self) -> tuple[tuple[RLE, int | None], ...]:
        """
        The ignored areas, each with the phrase that it is a crowd of, or None.

        Raises:
            ValueError: if `ignored_phrases` do not fit `ignored`.
        """
        phrases = self.ignored_phrases or (None,) * len(self.ignored)
        if len(phrases) != len(self.ignored):
            raise ValueError(
                f"{len(phrases)} ignored_phrases for {len(self.ignored)} ignored areas; give one for each, or none"
            )
        return tuple(zip(self.ignored, phrases, strict=True))

    @property
    def num_phrases(self) -> int:
        if self.task == "chat":
            return 0
        if self.task == "grounded-conversation":
            return len(self.spans)
        if self.task in ("referring", "reasoning"):
            return 1
        return len(self.regions) or len(self.labels)


@dataclass(frozen=True)
class AnnotatedSample:
    """
    Attributes:
        image: upright RGB, or None for a conversation without an image.
        turns: independent questions about the image, or, for chat, one conversation in order.
        name: file and record, for messages: "annotations/panoptic_train2017.json, image 139".
        image_id: the annotation's own id of the image, if it has one.
    """

    image: Image.Image | None
    turns: tuple[Turn, ...]
    name: str
    image_id: int | str | None = None


def encode_masks(masks: np.ndarray) -> list[RLE]:
    """Masks (n, H, W), bool or 0/1, as run-length encodings."""
    return coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)) if len(masks) else []


def decode_masks(masks: Sequence[RLE], image_size: tuple[int, int]) -> np.ndarray:
    """
    Run-length encodings as masks, bool (n, H, W).

    Raises:
        ValueError: if a mask has another size than the image or is damaged.
    """
    check_sizes(masks, image_size)
    if not masks:
        return np.zeros((0, *image_size), dtype=bool)
    return np.stack([_decode(mask) for mask in masks])


def check_sizes(masks: Sequence[RLE], image_size: tuple[int, int]) -> None:
    """
    Raises:
        ValueError: if a mask has another size than the image.
    """
    for mask in masks:
        if tuple(mask["size"]) != tuple(image_size):
            raise ValueError(f"mask of size {tuple(mask['size'])} for an image of (height, width) {tuple(image_size)}")


def label_map(
    masks: Sequence[RLE], labels: Sequence[int], image_size: tuple[int, int], name: str = "masks"
) -> np.ndarray:
    """
    Masks as one map, int32 (H, W): at each pixel the label of its mask, 0 where there is none.

    Args:
        labels: of each mask, above 0. Masks of one label may overlap.
        name: what the masks are, for messages.

    Raises:
        ValueError: if a mask has another size than the image or is damaged, or masks of different labels overlap.
    """
    check_sizes(masks, image_size)
    height, width = image_size
    starts, ends, places = _runs_inside(masks)
    values = np.asarray(labels, dtype=np.int32)[places]
    reached = np.maximum.accumulate(ends)
    reaching = np.maximum.accumulate(np.where(ends == reached, np.arange(len(ends)), 0))[:-1]
    clash = np.flatnonzero((starts[1:] < reached[:-1]) & (values[1:] != values[reaching]))
    if len(clash):
        pair = sorted((int(places[reaching[clash[0]]]), int(places[clash[0] + 1])))
        raise ValueError(f"{name}: number {pair[0]} and number {pair[1]} overlap")
    starts[1:] = np.maximum(starts[1:], reached[:-1])
    kept = starts < ends
    edges = np.stack([starts[kept], ends[kept]], axis=1).ravel()
    filled = np.zeros(len(edges) + 1, dtype=np.int32)
    filled[1::2] = values[kept]
    return np.repeat(filled, np.diff(edges, prepend=0, append=height * width)).reshape(width, height).T


def _runs_inside(masks: Sequence[RLE]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    The runs of pixels of all masks in order of their start, counted column by column: starts, ends (exclusive), and the
    place of each one's mask; int64 (n,).
    """
    bounds = [run_lengths(mask).cumsum() for mask in masks]
    none = np.zeros(0, dtype=np.int64)
    starts = np.concatenate([none, *(each[: len(each) // 2 * 2 : 2] for each in bounds)])
    ends = np.concatenate([none, *(each[1::2] for each in bounds)])
    places = np.arange(len(masks)).repeat([len(each) // 2 for each in bounds])
    order = np.argsort(starts, kind="stable")
    order = order[starts[order] < ends[order]]
    return starts[order], ends[order], places[order]


def _decode(mask: RLE) -> np.ndarray:
    """A third of the time of pycocotools, which leaves what damaged counts do not cover uninitialised."""
    height, width = mask["size"]
    lengths = run_lengths(mask)
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(width, height).T


def run_lengths(mask: RLE) -> np.ndarray:
    """
    How long the runs of a mask are: int64 (n,), column by column, the first outside the mask, the next inside, and so on.

    The counts are digits to the base of 32, the lowest first, with a sixth bit on all but the last digit of a number; from
    the fourth number on they are differences to the last but one (cocoapi, `common/maskApi.c`, rleToString).

    Raises:
        ValueError: if the counts are damaged, or make up another number of pixels than the mask's size does.
    """
    height, width = mask["size"]
    digits = np.frombuffer(mask["counts"], dtype=np.uint8).astype(np.int64) - 48
    is_last = digits < 32
    if len(digits) and is_last[-1] and digits.min() >= 0 and digits.max() < 64:
        starts = np.concatenate([[0], np.flatnonzero(is_last)[:-1] + 1])
        places = np.arange(len(digits)) - starts.repeat(np.diff(starts, append=len(digits)))
        lengths = np.add.reduceat((digits & 31) << 5 * places, starts)
        # The highest digit has the sign.
        lengths -= np.where(digits[is_last] & 16, 1 << 5 * (places[is_last] + 1), 0)
        lengths[1::2] = lengths[1::2].cumsum()
        lengths[2::2] = lengths[2::2].cumsum()
        if lengths.min() >= 0 and lengths.sum() == height * width:
            return lengths
    raise ValueError(
        f"counts {str(mask['counts'])[:80]} do not encode a mask of (height, width) {(height, width)}: they are damaged, "
        "or of another image"
    )


def rle_from_annotation(segmentation: Any, image_size: tuple[int, int]) -> RLE:
    """
    A mask in any form that COCO annotations have: polygons, compressed or uncompressed run-length encoding.

    Args:
        segmentation: list of polygons [x0, y0, x1, y1, ...], or a run-length encoding.
        image_size: (H, W).

    Raises:
        ValueError: if it is none of these, is damaged, has another size than the image, or no pixel.
    """
    try:
        if isinstance(segmentation, dict):
            rle = _rle_of_size(segmentation, image_size)
        else:
            polygons = [polygon for polygon in segmentation if len(polygon) >= 6 and len(polygon) % 2 == 0]
            rle = coco_mask.merge(coco_mask.frPyObjects(polygons, *image_size)) if polygons else None
    except (KeyError, TypeError, IndexError, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(
            f"segmentation {str(segmentation)[:80]} is neither polygons nor run-length encoding"
        ) from error
    if rle is None or coco_mask.area(rle) == 0:
        raise ValueError(f"segmentation {str(segmentation)[:80]} has no pixel")
    return rle


def _rle_of_size(segmentation: dict[str, Any], image_size: tuple[int, int]) -> RLE:
    """
    Raises:
        ValueError: if a run-length encoding has another size, or is damaged: merging that may never end.
        KeyError, TypeError, OverflowError, UnicodeEncodeError: if it is none.
    """
    size, counts = tuple(segmentation["size"]), segmentation["counts"]
    if size != tuple(image_size):
        raise ValueError(f"segmentation of size {size} for an image of (height, width) {tuple(image_size)}")
    if isinstance(counts, list):
        rle = coco_mask.frPyObjects(segmentation, *size)
    else:
        rle = {"size": list(size), "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
    run_lengths(rle)
    return rle
