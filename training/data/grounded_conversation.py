"""
Captions whose phrases have masks: GranD-f and the data sets that GLaMM made into its form.

The files and their fields, as mbzuai-oryx/groundingLMM (dataset/gcg_datasets/GranDf_gcg_ds.py, eval/gcg/evaluate.py)
reads them:

- GranDf_HA_GCG_train.json, OpenPsgGCG_train.json: records `file_name`, `image_id`, `caption` and `groundings`, by phrase
  `token_positives` ([start, end) in the caption) and `rle_masks`, which are parts of one mask.
- RefCOCOg_GCG_train.json: records of one entry, whose value has `img_file_name`, `caption` and `refs`, each with the
  `sentence` it stands for and a `segmentation` in polygons. Sentences are found in the caption by their words.
- flickr_mergedGT_GCG_train.json: COCO's lists `images` (with `caption`) and `annotations` (with `tokens_positive`, a
  list of spans, and `sam_mask`). Annotations of one span are parts of one mask.
- val_gcg_coco_caption_gt.json and val_gcg_coco_mask_gt.json, test as well: COCO's lists twice, with the same image ids.
  An image's first caption has `labels`, and the image's masks belong to these in their order.
"""

from __future__ import annotations

import logging
import re
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from pycocotools import mask as coco_mask

from .reader import OnError, SampleReader
from .samples import RLE, AnnotatedSample, Turn, UnplacedLabel, rle_from_annotation

logger = logging.getLogger(__name__)

Span = tuple[int, int]
# Shorter captions are left out, as in the original.
FLICKR_MIN_WORDS = 3
# What reading a record raises that is not in the published form.
MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError)


@dataclass(frozen=True)
class Mention:
    """
    A phrase of a caption as it is published.

    Attributes:
        phrase: its words.
        parts: segmentations in any form of COCO annotations; together they are one mask.
        span: [start, end) characters in the published caption, if known.
    """

    phrase: str
    parts: Sequence[Any]
    span: Span | None = None


@dataclass(frozen=True)
class Caption:
    """
    A published caption.

    Attributes:
        name: for messages: "caption 3".
        file_name: the image's path from the image folder.
        size: (height, width) of the image, if known.
        references: other captions of the image.
    """

    name: str
    file_name: str
    image_id: int | str | None
    text: str
    mentions: Sequence[Mention] = field(repr=False)
    size: tuple[int, int] | None = None
    references: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class CaptionRecord:
    """
    A caption with its phrases placed, and the run-length counts of their masks; `unplaced` are labels without a place and
    the counts of theirs.
    """

    name: str
    file_name: str
    image_id: int | str | None
    text: str
    size: tuple[int, int]
    spans: tuple[Span, ...]
    masks: tuple[bytes, ...]
    mask_phrases: tuple[int, ...]
    unplaced: tuple[tuple[str, bytes], ...]
    references: tuple[str, ...]


class GroundedConversationReader(SampleReader[CaptionRecord]):
    """
    One sample per caption, with one "grounded-conversation" turn. A subclass reads one published form in `captions`.

    Captions stay as published, without blanks and quotation marks around them. Mentions with the same words are one
    phrase that has a mask of each. Where phrases overlap the longest is kept. A caption without any phrase is left out,
    unless the reader is `for_evaluation`.

    Args:
        annotations: JSON file.
        images: folder of the images.

    Attributes:
        dropped: how many phrases could not be placed in their caption, by reason.
        left_out: how many captions were left out although nothing is wrong with them, by reason.
        for_evaluation: whether captions without a phrase are kept, and phrases without a place as `Turn.unplaced`.
    """

    for_evaluation: ClassVar[bool] = False

    def __init__(self, annotations: str, images: str, root: str | Path = ".", on_error: OnError = "raise") -> None:
        self.annotations, self.images = annotations, images
        self.dropped: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()
        super().__init__(root, on_error)

    @abstractmethod
    def captions(self) -> Iterable[Caption]:
        """The published captions, in the order of the file; broken ones go to `broken`."""

    def records(self) -> Iterable[CaptionRecord]:
        for caption in self.captions():
            try:
                record = self._record(caption)
            except ValueError as error:
                self.broken(self.annotations, caption.name, str(error))
                continue
            if record.spans or self.for_evaluation:
                yield record
            else:
                self.left_out["no phrase with a mask"] += 1
        if self.dropped or self.left_out:
            logger.info(
                "%s: phrases dropped: %s; captions left out: %s",
                self.annotations,
                dict(self.dropped),
                dict(self.left_out),
            )

    def read(self, record: CaptionRecord) -> AnnotatedSample:
        image = self.read_image(Path(self.images) / record.file_name, record.name, record.size)
        size = list(record.size)
        turn = Turn(
            "grounded-conversation",
            answer=record.text,
            spans=record.spans,
            masks=tuple({"size": size, "counts": counts} for counts in record.masks),
            mask_phrases=record.mask_phrases,
            unplaced=tuple(
                UnplacedLabel(label, {"size": size, "counts": counts}) for label, counts in record.unplaced
            ),
            references=record.references,
        )
        return AnnotatedSample(image, (turn,), f"{self.relative(self.annotations)}, {record.name}", record.image_id)

    def _record(self, caption: Caption) -> CaptionRecord:
        """
        Raises:
            ValueError: if the caption cannot be used; says why.
        """
        text, shift = _trim(caption.text)
        if not text:
            raise ValueError("the caption is empty")
        path = self.root / self.images / caption.file_name
        if not path.is_file():
            raise ValueError(f"{Path(self.images) / caption.file_name} does not exist")
        placed, dropped = place_phrases(text, caption.mentions, shift)
        self.dropped.update(dropped)
        mentions = [(index, mention) for index, (_, group) in enumerate(placed) for mention in group]
        known = {id(mention) for _, mention in mentions}
        others = [mention for mention in caption.mentions if self.for_evaluation and id(mention) not in known]
        size = caption.size or _published_size(caption.mentions) or _size_of_file(path)
        return CaptionRecord(
            name=caption.name,
            file_name=caption.file_name,
            image_id=caption.image_id,
            text=text,
            size=size,
            spans=tuple(span for span, _ in placed),
            masks=tuple(_merge(mention, size)["counts"] for _, mention in mentions),
            mask_phrases=tuple(index for index, _ in mentions),
            unplaced=tuple((mention.phrase, _merge(mention, size)["counts"]) for mention in others),
            references=tuple(_trim(reference)[0] for reference in caption.references),
        )

    def malformed(self, name: str, error: Exception) -> None:
        """Leave out, or stop at, a caption that lacks what the published form has."""
        self.broken(self.annotations, name, f"not in the published form ({type(error).__name__}: {error})")


class GranDfReader(GroundedConversationReader):
    """GranDf_HA_GCG_train.json, the captions written by people."""

    def __init__(
        self,
        root: str | Path = ".",
        annotations: str = "gcg_seg/annotations/train/GranDf_HA_GCG_train.json",
        images: str = "gcg_seg/images/GranDf_HA_images/train",
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(annotations, images, root, on_error)

    def captions(self) -> Iterable[Caption]:
        for place, item in enumerate(self.read_json(self.annotations)):
            name = f"caption {place}"
            try:
                mentions = [
                    Mention(phrase.strip(' "'), grounding["rle_masks"], _span(grounding["token_positives"]))
                    for phrase, grounding in item["groundings"].items()
                ]
                size = (int(item["height"]), int(item["width"])) if "height" in item else None
                yield Caption(name, item["file_name"], item.get("image_id"), item["caption"], mentions, size)
            except MALFORMED as error:
                self.malformed(name, error)


class OpenPsgGcgReader(GranDfReader):
    """OpenPsgGCG_train.json; its file names begin with train2017/ or val2017/."""

    def __init__(
        self,
        root: str | Path = ".",
        annotations: str = "gcg_seg/annotations/train/OpenPsgGCG_train.json",
        images: str = "gcg_seg/images/coco2017",
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(root, annotations, images, on_error)


class RefCocoGcgReader(GroundedConversationReader):
    """RefCOCOg_GCG_train.json: captions made of RefCOCOg's expressions."""

    def __init__(
        self,
        root: str | Path = ".",
        annotations: str = "gcg_seg/annotations/train/RefCOCOg_GCG_train.json",
        images: str = "gcg_seg/images/coco2014/train2014",
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(annotations, images, root, on_error)

    def captions(self) -> Iterable[Caption]:
        for place, entry in enumerate(self.read_json(self.annotations)):
            name = f"caption {place}"
            try:
                (item,) = entry.values()
                # A reference is one mask, however many polygons it has.
                mentions = [Mention(ref["sentence"].strip(' "'), [ref["segmentation"]]) for ref in item["refs"]]
                size = (int(item["height"]), int(item["width"])) if "height" in item else None
                yield Caption(name, item["img_file_name"], item.get("image_id"), item["caption"], mentions, size)
            except MALFORMED as error:
                self.malformed(name, error)


class FlickrGcgReader(GroundedConversationReader):
    """flickr_mergedGT_GCG_train.json: captions of Flickr30k. Those of less than three words are left out."""

    def __init__(
        self,
        root: str | Path = ".",
        annotations: str = "gcg_seg/annotations/train/flickr_mergedGT_GCG_train.json",
        images: str = "gcg_seg/images/flickr30k",
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(annotations, images, root, on_error)

    def captions(self) -> Iterable[Caption]:
        content = self.read_json(self.annotations)
        of_image = _by_image(content["annotations"])
        for item in content["images"]:
            name = f"caption of image {item.get('id')}"
            try:
                text = item["caption"]
                if len(text.split()) < FLICKR_MIN_WORDS:
                    self.left_out[f"less than {FLICKR_MIN_WORDS} words"] += 1
                    continue
                parts: dict[Span, list[Any]] = defaultdict(list)
                for annotation in of_image[item["id"]]:
                    if not annotation.get("ignore"):
                        parts[_span(annotation["tokens_positive"][0])].append(annotation["sam_mask"])
                mentions = [Mention(text[start:end], found, (start, end)) for (start, end), found in parts.items()]
                size = (int(item["height"]), int(item["width"]))
                yield Caption(name, item["file_name"], item["id"], text, mentions, size)
            except MALFORMED as error:
                self.malformed(name, error)


class GranDfValidationReader(GroundedConversationReader):
    """
    The validation and test captions of GranD-f. Every label has a mask of its own.

    No image and no label is left out, because published figures count all of them: captions without a phrase are kept,
    labels without a place are `Turn.unplaced`, and further captions of an image are `Turn.references`.

    Args:
        annotations: captions, val_gcg_coco_caption_gt.json.
        masks: val_gcg_coco_mask_gt.json.
    """

    for_evaluation = True

    def __init__(
        self,
        root: str | Path = ".",
        annotations: str = "gcg_seg/annotations/val_test/val_gcg_coco_caption_gt.json",
        masks: str = "gcg_seg/annotations/val_test/val_gcg_coco_mask_gt.json",
        images: str = "gcg_seg/images/GranDf_HA_images/val_test",
        on_error: OnError = "raise",
    ) -> None:
        self.masks = masks
        super().__init__(annotations, images, root, on_error)

    def captions(self) -> Iterable[Caption]:
        content = self.read_json(self.annotations)
        captions = _by_image(content["annotations"])
        masks = _by_image(self.read_json(self.masks)["annotations"])
        for item in content["images"]:
            name = f"caption of image {item.get('id')}"
            try:
                image_id = item["id"]
                if not captions[image_id]:
                    raise ValueError("there is none")
                text, labels = captions[image_id][0]["caption"], captions[image_id][0]["labels"]
                references = [other["caption"] for other in captions[image_id][1:]]
                parts = [annotation["segmentation"] for annotation in masks[image_id]]
                if len(labels) != len(parts):
                    raise ValueError(f"{len(labels)} labels, but {len(parts)} masks")
                mentions = [Mention(label, [part]) for label, part in zip(labels, parts, strict=True)]
            except MALFORMED as error:
                self.malformed(name, error)
            else:
                yield Caption(name, f"{image_id}.jpg", image_id, text, mentions, references=references)


def place_phrases(
    text: str, mentions: Sequence[Mention], shift: int = 0
) -> tuple[list[tuple[Span, list[Mention]]], Counter[str]]:
    """
    Place phrases in a caption, without overlap: longer ones first, each where it is said to stand or else at the first
    free place where its words do, in any case, as whole words. Mentions with the same words share a place.

    Args:
        text: the caption.
        shift: characters that were taken from the start of the published caption, which `Mention.span` counts.

    Returns:
        Spans in order with their mentions, and how many mentions were dropped, by reason.
    """
    groups: dict[tuple[str, Span | None], list[Mention]] = {}
    for mention in mentions:
        span = _confirmed_span(text, mention, shift)
        groups.setdefault((mention.phrase.strip().lower(), span), []).append(mention)
    placed: dict[Span, list[Mention]] = {}
    dropped: Counter[str] = Counter()
    for (phrase, span), group in sorted(groups.items(), key=lambda item: -len(item[0][0])):
        places = [span] if span else _occurrences(text, phrase)
        free = [place for place in places if not any(_overlap(place, taken) for taken in placed)]
        if free:
            placed[free[0]] = group
        else:
            dropped["overlaps a longer phrase" if places else "not in the caption"] += len(group)
    return sorted(placed.items()), dropped


def _confirmed_span(text: str, mention: Mention, shift: int) -> Span | None:
    """Where the phrase's words stand in its published span, counted from the published or the trimmed start."""
    words = mention.phrase.strip()
    if mention.span is None or not words:
        return None
    length = mention.span[1] - mention.span[0]
    for start in (mention.span[0] - shift, mention.span[0]):
        # One more character, because a span may begin with the blank before the phrase.
        found = re.compile(re.escape(words), re.IGNORECASE).search(text, max(start, 0), max(start + length + 1, 0))
        if found:
            return found.span()
    return None


def _occurrences(text: str, words: str) -> list[Span]:
    if not words:
        return []
    return [found.span() for found in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE)]


def _overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _trim(caption: str) -> tuple[str, int]:
    """A caption without quotation marks and blanks around it, and how many characters that took from its start."""
    if not isinstance(caption, str):
        raise ValueError(f"the caption is {caption!r}, no text")
    text = caption.strip('" \t\n')
    return text, caption.find(text)


def _span(published: Sequence[int]) -> Span:
    start, end = published
    return int(start), int(end)


def _by_image(annotations: Iterable[Mapping[str, Any]]) -> defaultdict[Any, list[Mapping[str, Any]]]:
    of_image: defaultdict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        of_image[annotation["image_id"]].append(annotation)
    return of_image


def _published_size(mentions: Sequence[Mention]) -> tuple[int, int] | None:
    """The size that a run-length encoding states."""
    for mention in mentions:
        for part in mention.parts:
            if isinstance(part, dict) and "size" in part:
                return tuple(part["size"])
    return None


def _size_of_file(path: Path) -> tuple[int, int]:
    """Height and width from an image's header; polygons do not say for which size they are."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except OSError as error:
        raise ValueError(f"{path.name} is no image: {error}") from error


def _merge(mention: Mention, size: tuple[int, int]) -> RLE:
    if not mention.parts:
        raise ValueError(f"phrase {mention.phrase!r} has no mask")
    return coco_mask.merge([rle_from_annotation(part, size) for part in mention.parts])
