"""
Referring expressions for objects in COCO images: RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO.

Two files belong together, read as lichengunc/refer (refer.py) and henghuiding/ReLA (gres_model/data/datasets/grefer.py)
read them:

- `refs(unc).p`, `refs(google).p`, `refs(umd).p`, `grefs(unc).json`: a list of records `ref_id`, `image_id`, `split`,
  `sentences` (each with `sent`) and `ann_id`. In gRefCOCO `ann_id` is a list: several instances, or [-1] if what is
  described is absent; newer files also say `no_target`. A record's `file_name` has the annotation's id appended and
  names no file.
- `instances.json`: COCO's `images` and `annotations`, of training images of 2014.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .reader import OnError, SampleReader
from .restricted_pickle import load_restricted_pickle
from .samples import AnnotatedSample, Turn, rle_from_annotation

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test", "testA", "testB")
ABSENT = -1


@dataclass(frozen=True, slots=True)
class Expression:
    """What is said, and the run-length counts of the masks that it describes; none if that is absent."""

    text: str
    masks: tuple[bytes, ...]
    ignored: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class ReferringRecord:
    """An image, its (height, width), and the expressions about it."""

    image_id: int
    file_name: str
    size: tuple[int, int]
    expressions: tuple[Expression, ...]


class RefCocoReader(SampleReader[ReferringRecord]):
    """
    One sample per image with a "referring" turn per expression, lower-cased.

    Whether a target is single, multiple or absent follows from each record: every annotation of it is a mask of its
    own, and an absent target has none. A crowd among several annotations is no instance and goes to `ignored`.

    Args:
        refs: pickle or JSON file of the expressions.
        instances: JSON file of images and annotations.
        images: folder of the images.
        split: "train", "val", "test", "testA" or "testB"; "test" includes the other two.
        keep_repeated: whether the same words for the same object are as many turns as they stand there, as published
            evaluations count them; else they are one.

    Attributes:
        num_ambiguous: expressions that stand for several targets of one image, each on its own. They are kept.
    """

    def __init__(
        self,
        root: str | Path = ".",
        refs: str = "refer_seg/refcoco/refs(unc).p",
        instances: str = "refer_seg/refcoco/instances.json",
        images: str = "refer_seg/images/coco2014/train2014",
        split: str = "train",
        keep_repeated: bool = False,
        on_error: OnError = "raise",
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; possible are {', '.join(SPLITS)}.")
        self.refs, self.instances, self.images, self.split = refs, instances, images, split
        self.keep_repeated = keep_repeated
        self.num_ambiguous = 0
        super().__init__(root, on_error)

    def records(self) -> Iterable[ReferringRecord]:
        refs = self._refs_of_split()
        content = self.read_json(self.instances)
        if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
            raise ValueError(f"{self.root / self.instances} has no lists 'images' and 'annotations'")
        instances = _Instances(content, refs)
        del content  # hundreds of megabytes, of which `instances` keeps little
        of_image: dict[int, list[Expression]] = {}
        for place, ref in enumerate(refs):
            try:
                expressions = _expressions(ref, instances)
            except ValueError as error:
                self.broken(self.refs, f"ref {ref.get('ref_id', f'number {place}')}", str(error))
            except (AttributeError, KeyError, TypeError) as error:
                problem = f"not in the published form ({type(error).__name__}: {error})"
                self.broken(self.refs, f"ref {ref.get('ref_id', f'number {place}')}", problem)
            else:
                of_image.setdefault(ref["image_id"], []).extend(expressions)
        for image_id, expressions in of_image.items():
            file_name, size = instances.image(image_id)
            if not (self.root / self.images / file_name).is_file():
                self.broken(self.refs, f"image {image_id}", f"{Path(self.images) / file_name} does not exist")
                continue
            distinct = list(dict.fromkeys(expressions))
            texts = Counter(expression.text for expression in distinct)
            self.num_ambiguous += sum(count > 1 for count in texts.values())
            yield ReferringRecord(image_id, file_name, size, tuple(expressions if self.keep_repeated else distinct))
        if self.num_ambiguous:
            logger.info("%s: %d expressions stand for several targets of an image", self.refs, self.num_ambiguous)

    def read(self, record: ReferringRecord) -> AnnotatedSample:
        name = f"image {record.image_id}"
        image = self.read_image(Path(self.images) / record.file_name, name, record.size)
        turns = tuple(_turn(expression, record.size) for expression in record.expressions)
        return AnnotatedSample(image, turns, f"{self.relative(self.refs)}, {name}", record.image_id)

    def _refs_of_split(self) -> list[dict[str, Any]]:
        path = self.root / self.refs
        refs = self.read_json(self.refs) if path.suffix == ".json" else load_restricted_pickle(path)
        if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
            raise ValueError(f"{path} is not a list of records; see training/README.md")
        wanted = {"test", "testA", "testB"} if self.split == "test" else {self.split}
        chosen = [ref for ref in refs if ref.get("split") in wanted]
        if not chosen:
            splits = sorted({str(ref.get("split")) for ref in refs})
            raise ValueError(f"{path} has no split {self.split!r}; it has {', '.join(splits)}.")
        return chosen


class _Instances:
    """The images and annotations that some referring records name; masks are encoded once and kept."""

    def __init__(self, content: Mapping[str, Any], refs: Sequence[Mapping[str, Any]]) -> None:
        image_ids = {ref.get("image_id") for ref in refs}
        wanted = {annotation_id for ref in refs for annotation_id in _annotation_ids(ref)}
        self._images = {image["id"]: image for image in content["images"] if image["id"] in image_ids}
        self._annotations = {item["id"]: item for item in content["annotations"] if item["id"] in wanted}
        self._masks: dict[int, bytes] = {}

    def image(self, image_id: int) -> tuple[str, tuple[int, int]]:
        """File name and (height, width)."""
        if image_id not in self._images:
            raise ValueError(f"image_id {image_id} is not in the instances file")
        image = self._images[image_id]
        return image["file_name"], (image["height"], image["width"])

    def annotation(self, annotation_id: int, image_id: int) -> Mapping[str, Any]:
        if annotation_id not in self._annotations:
            raise ValueError(f"ann_id {annotation_id} is not in the instances file")
        annotation = self._annotations[annotation_id]
        if annotation["image_id"] != image_id:
            raise ValueError(f"ann_id {annotation_id} belongs to image {annotation['image_id']}, not {image_id}")
        return annotation

    def mask(self, annotation: Mapping[str, Any]) -> bytes:
        """Run-length counts of an annotation."""
        if annotation["id"] not in self._masks:
            size = self.image(annotation["image_id"])[1]
            self._masks[annotation["id"]] = rle_from_annotation(annotation["segmentation"], size)["counts"]
        return self._masks[annotation["id"]]


def _annotation_ids(ref: Mapping[str, Any]) -> tuple[int, ...]:
    """The annotations that a record names; RefCOCO names one, gRefCOCO a list."""
    ids = ref.get("ann_id")
    ids = ids if isinstance(ids, list) else [ids]
    return tuple(annotation_id for annotation_id in ids if annotation_id not in (None, ABSENT))


def _expressions(ref: Mapping[str, Any], instances: _Instances) -> list[Expression]:
    """
    Raises:
        ValueError: if the record cannot be used; says why.
    """
    for field in ("image_id", "sentences"):
        if ref.get(field) in (None, []):
            raise ValueError(f"field {field!r} is missing or empty")
    instances.image(ref["image_id"])
    annotations = [instances.annotation(annotation_id, ref["image_id"]) for annotation_id in _annotation_ids(ref)]
    absent = bool(ref.get("no_target")) or ref.get("ann_id") in (ABSENT, [ABSENT])
    if absent == bool(annotations):
        raise ValueError(f"ann_id is {ref.get('ann_id')!r} and no_target {ref.get('no_target')!r}: is there a target?")
    single = [annotation for annotation in annotations if not annotation.get("iscrowd")]
    crowds = [annotation for annotation in annotations if annotation.get("iscrowd")] if single else []
    masks = tuple(instances.mask(annotation) for annotation in single or annotations)
    ignored = tuple(instances.mask(annotation) for annotation in crowds)
    texts = [str(sentence.get("sent", "")).strip().lower() for sentence in ref["sentences"]]
    if not all(texts):
        raise ValueError("an expression in 'sentences' is empty")
    return [Expression(text, masks, ignored) for text in texts]


def _turn(expression: Expression, size: tuple[int, int]) -> Turn:
    return Turn(
        "referring",
        text=expression.text,
        masks=tuple({"size": list(size), "counts": counts} for counts in expression.masks),
        mask_phrases=(0,) * len(expression.masks),
        ignored=tuple({"size": list(size), "counts": counts} for counts in expression.ignored),
    )
