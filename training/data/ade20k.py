"""
ADE20K's 150 classes, ADEChallengeData2016, as CSAILVision/sceneparsing publishes it and as it is prepared for evaluation.

Panoptic and instance annotations, as Mask2Former's `datasets/prepare_ade20k_pan_seg.py` and `prepare_ade20k_ins_seg.py`
write them, are in COCO's formats, and their readers read them:

    CocoPanopticReader(annotations="…/ade20k_panoptic_val.json", segments="…/ade20k_panoptic_val",
                       images="…/images/validation", task="open-vocabulary", keep_empty=True)
    CocoInstancesReader(annotations="…/ade20k_instance_val.json", images="…/images/validation",
                        task="open-vocabulary", keep_empty=True)

Only the semantic class maps need a reader of their own, for the names of their classes.
"""

from __future__ import annotations

import json
from pathlib import Path

from .class_maps import ClassMapReader
from .coco_panoptic import distinct_names
from .reader import OnError, missing

FOLDER = "ade20k/ADEChallengeData2016"


class Ade20kSemanticReader(ClassMapReader):
    """
    ADE20K's class maps with one open-vocabulary question: all classes, in the order of their values.

    Args:
        root: folder that the other paths start from.
        images: folder of the images.
        annotations: folder of the maps.
        classes: `objectInfo150.txt`, a table whose last column is a name and its synonyms; or a JSON file with COCO's
            `categories`, as `ade20k_panoptic_val.json`, whose names are Mask2Former's and X-SAM's: "window" and "trash
            can" in place of "windowpane" and "ashcan". Of synonyms the first is asked for.
        offset: value of the first class: 1 in `annotations`, 0 in detectron2's `annotations_detectron2`.
        ignore_value: value of unlabelled pixels: 0 in `annotations`, 255 in `annotations_detectron2`.
        on_error: see `SampleReader`.

    Raises:
        ValueError: if the file of the classes is not as described.
        FileNotFoundError: if a folder or that file does not exist.
    """

    def __init__(
        self,
        root: str | Path = ".",
        images: str = f"{FOLDER}/images/validation",
        annotations: str = f"{FOLDER}/annotations/validation",
        classes: str = f"{FOLDER}/objectInfo150.txt",
        offset: int = 1,
        ignore_value: int = 0,
        on_error: OnError = "raise",
    ) -> None:
        super().__init__(
            root,
            images=images,
            annotations=annotations,
            classes=read_class_names(Path(root) / classes),
            offset=offset,
            ignore_value=ignore_value,
            task="open-vocabulary",
            on_error=on_error,
        )


def read_class_names(file: Path) -> list[str]:
    """
    The names of ADE20K's classes in order of their values, of synonyms the first.

    Raises:
        ValueError: if the file is neither of those that `Ade20kSemanticReader` describes.
        FileNotFoundError: if it does not exist.
    """
    if not file.is_file():
        raise missing(file)
    text = file.read_text(encoding="utf-8")
    return _names_of_categories(file, text) if file.suffix == ".json" else _names_of_table(file, text)


def _names_of_table(file: Path, text: str) -> list[str]:
    header, *rows = (line.split("\t") for line in text.rstrip().split("\n"))
    numbers = [row[0].strip() for row in rows]
    if header[0] != "Idx" or header[-1] != "Name" or numbers != [str(place + 1) for place in range(len(rows))]:
        raise ValueError(f"{file} is not ADE20K's table of classes: columns 'Idx' from 1 on, ..., 'Name', with tabs")
    return distinct_names([row[-1] for row in rows])


def _names_of_categories(file: Path, text: str) -> list[str]:
    try:
        names = {category["id"]: category["name"] for category in json.loads(text)["categories"]}
        return distinct_names([names[place] for place in range(len(names))])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} does not list 'categories' with ids from 0 on and names: {error!r}") from error
