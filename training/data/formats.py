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
}


def build_reader(spec: Mapping[str, Any], root: str | Path, on_error: OnError) -> SampleReader:
    """
    Args:
        spec: `format`, a name in `FORMATS`, and the arguments of its reader.
        root: folder that the reader's paths start from.
        on_error: what a broken record does, see `SampleReader`.

    Raises:
        ValueError: if the format or an argument is unknown, or an argument is missing.
    """
    arguments = {"root": root, "on_error": on_error, **spec}
    arguments.pop("name", None)
    name = arguments.pop("format", None)
    if name not in FORMATS:
        raise ValueError(f"datasets: format {name!r} in {dict(spec)} is unknown; known are {', '.join(FORMATS)}")
    try:
        signature(FORMATS[name]).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"datasets: {name}: {error}; its arguments are {signature(FORMATS[name])}") from error
    return FORMATS[name](**arguments)
