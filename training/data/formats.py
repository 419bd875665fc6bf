"""The annotation formats by the names that recipes use."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from .ade20k import Ade20kSemanticReader
from .class_maps import ClassMapReader
from .coco_instances import CocoInstancesReader
from .coco_panoptic import CocoPanopticReader
from .coco_visual import CocoInteractiveReader, CocoVgdReader
from .grounded_conversation import (
    FlickrGcgReader,
    GranDfReader,
    GranDfValidationReader,
    OpenPsgGcgReader,
    RefCocoGcgReader,
)
from .llava import LlavaReader
from .reader import OnError, SampleReader
from .reasoning import ReasonSegReader
from .referring import RefCocoReader
from .shape_world.reader import ShapeWorldCategoryReader, ShapeWorldReader

FORMATS: dict[str, type[SampleReader]] = {
    "ade20k-semantic": Ade20kSemanticReader,
    "class-maps": ClassMapReader,
    "coco-instances": CocoInstancesReader,
    "coco-interactive": CocoInteractiveReader,
    "coco-panoptic": CocoPanopticReader,
    "coco-vgd": CocoVgdReader,
    "flickr-gcg": FlickrGcgReader,
    "grand-f": GranDfReader,
    "grand-f-val": GranDfValidationReader,
    "llava": LlavaReader,
    "psg-gcg": OpenPsgGcgReader,
    "reason-seg": ReasonSegReader,
    "refcoco": RefCocoReader,
    "refcocog-gcg": RefCocoGcgReader,
    "shape-world": ShapeWorldReader,
    "shape-world-categories": ShapeWorldCategoryReader,
}


def build_reader(
    spec: Mapping[str, Any], root: str | Path, on_error: OnError, field: str = "datasets"
) -> SampleReader:
    """
    Args:
        spec: `format`, a name in `FORMATS`, and the arguments of its reader; may have a `name`, for messages.
        root: folder that the reader's paths start from.
        on_error: what a broken record does, see `SampleReader`.
        field: the field of the recipe that the entry stands in, for messages.

    Raises:
        ValueError: if the entry is no mapping, the format or an argument is unknown, or an argument is missing.
    """
    if not isinstance(spec, Mapping):
        raise ValueError(
            f"{field}: the entry {spec!r} is no mapping; name a format and the arguments of its reader, such as"
            " {format: coco-panoptic, annotations: ..., segments: ..., images: ...}"
        )
    arguments = {"root": root, "on_error": on_error, **spec}
    name, format_name = arguments.pop("name", None), arguments.pop("format", None)
    where = field if name is None else f"{field}, {name!r}"
    if format_name not in tuple(FORMATS):
        raise ValueError(f"{where}: format {format_name!r} in {dict(spec)} is unknown; known are {', '.join(FORMATS)}")
    reader = FORMATS[format_name]
    try:
        signature(reader).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"{where}: {format_name}: {error}; its arguments are {signature(reader)}") from error
    return reader(**arguments)
