import json

import numpy as np
import pytest

from dataset_fixtures.ade20k import KIND_CLASSES, NAMES, THINGS, ade20k_id, class_map, objects, write_ade20k
from xsam_training.data.ade20k import Ade20kSemanticReader, read_class_names
from xsam_training.data.coco_instances import CocoInstancesReader
from xsam_training.data.coco_panoptic import CocoPanopticReader
from xsam_training.data.reader import CategoryReader, SampleReader
from xsam_training.data.samples import decode_masks

FOLDER = "ade20k/ADEChallengeData2016"
IMAGES = f"{FOLDER}/images/validation"
DETECTRON2 = {"annotations": f"{FOLDER}/annotations_detectron2/validation", "offset": 0, "ignore_value": 255}
FIRST_NAMES = [name.split(",")[0].strip() for name in NAMES]


def test_class_maps_as_published_and_as_prepared(tmp_path):
    scenes = write_ade20k(tmp_path)
    for arguments in ({}, DETECTRON2):
        reader = Ade20kSemanticReader(tmp_path, **arguments)
        assert len(reader) == 3
        for place, (scene, sample) in enumerate(zip(scenes, reader, strict=True)):
            (turn,) = sample.turns
            assert (turn.task, list(turn.labels), turn.num_things) == ("open-vocabulary", FIRST_NAMES, 0)
            values = class_map(place, scene)
            assert turn.mask_phrases == tuple(sorted({index for index, _ in objects(place, scene)}))
            expected = [values == phrase + 1 for phrase in turn.mask_phrases]
            assert np.array_equal(decode_masks(turn.masks, (64, 96)), expected)
            assert len(turn.ignored) == (place == 1)
            assert sample.image_id == ade20k_id(place)
        (unlabelled,) = decode_masks(reader[1].turns[0].ignored, (64, 96))
        assert np.array_equal(unlabelled, scenes[1].shapes[0].mask)


def test_labels_are_known_without_reading_an_image(tmp_path, monkeypatch):
    write_ade20k(tmp_path)
    reader = Ade20kSemanticReader(tmp_path)
    expected = [sample.turns[0].labels for sample in reader]
    monkeypatch.setattr(SampleReader, "read_image", None)
    assert isinstance(reader, CategoryReader)
    assert reader.labels == tuple(FIRST_NAMES) and set(expected) == {reader.labels}


def test_names_of_the_published_table_or_of_the_prepared_categories(tmp_path):
    write_ade20k(tmp_path)
    names = read_class_names(tmp_path / FOLDER / "objectInfo150.txt")
    assert names == FIRST_NAMES and names[8] == "windowpane"
    reader = Ade20kSemanticReader(tmp_path, classes=f"{FOLDER}/ade20k_panoptic_val.json")
    assert reader.labels[8] == "window" and reader.labels[6] == "road" and len(reader.labels) == len(NAMES)


def test_files_that_do_not_name_the_classes(tmp_path):
    write_ade20k(tmp_path)
    table = tmp_path / FOLDER / "objectInfo150.txt"
    table.write_text(table.read_text().replace("\n3\t", "\n4\t"))
    with pytest.raises(ValueError, match="is not ADE20K's table of classes"):
        Ade20kSemanticReader(tmp_path)
    table.write_text("")
    with pytest.raises(ValueError, match=r"is not ADE20K's table of classes"):
        Ade20kSemanticReader(tmp_path)
    with pytest.raises(ValueError, match="does not list 'categories' with ids from 0 on"):
        Ade20kSemanticReader(tmp_path, classes=f"{FOLDER}/ade20k_instance_val.json")
    with pytest.raises(FileNotFoundError, match=r"none.txt does not exist; see training/README.md"):
        Ade20kSemanticReader(tmp_path, classes="none.txt")


def test_prepared_panoptic_annotations_are_coco(tmp_path):
    scenes = write_ade20k(tmp_path)
    reader = CocoPanopticReader(
        tmp_path,
        annotations=f"{FOLDER}/ade20k_panoptic_val.json",
        segments=f"{FOLDER}/ade20k_panoptic_val",
        images=IMAGES,
        task="open-vocabulary",
        keep_empty=True,
    )
    assert reader.categories.ids[:5] == THINGS and reader.categories.num_things == 5
    assert reader.categories.labels[:6] == ("bed", "window", "cabinet", "person", "door", "wall")
    for place, (scene, sample) in enumerate(zip(scenes, reader, strict=True)):
        (turn,) = sample.turns
        assert (turn.task, sample.image_id) == ("open-vocabulary", ade20k_id(place))
        classes, masks = zip(*objects(place, scene), strict=True)
        assert tuple(reader.categories.ids[phrase] for phrase in turn.mask_phrases) == classes
        assert np.array_equal(decode_masks(turn.masks, (64, 96)), masks)
        assert len(turn.ignored) == (place == 1)


def test_prepared_instance_annotations_are_coco(tmp_path):
    scenes = write_ade20k(tmp_path)
    annotations = f"{FOLDER}/ade20k_instance_val.json"
    assert json.loads((tmp_path / annotations).read_text())["annotations"][0]["image_id"] == "ADE_val_00000001"
    reader = CocoInstancesReader(tmp_path, annotations=annotations, images=IMAGES, task="open-vocabulary")
    shapes = [scenes[0].shapes, scenes[1].shapes[1:], scenes[2].shapes]
    for expected, sample in zip(shapes, reader, strict=True):
        (turn,) = sample.turns
        ids = [reader.categories.ids[phrase] for phrase in turn.mask_phrases]
        assert ids == [KIND_CLASSES[shape.kind] for shape in expected]
        assert np.array_equal(decode_masks(turn.masks, (64, 96)), [shape.mask for shape in expected])
