import json

import numpy as np
import pytest

from dataset_fixtures.coco import (
    SEEDS,
    UNITED_IMAGE,
    compressed,
    square_polygon,
    uncompressed,
    write_coco_instances,
    write_coco_panoptic,
)
from xsam_training.data.coco_instances import CocoInstancesReader
from xsam_training.data.coco_panoptic import CocoPanopticReader
from xsam_training.data.reader import BrokenRecord, CategoryReader, SampleReader
from xsam_training.data.samples import decode_masks

ANNOTATIONS = "coco2017/annotations/instances_train2017.json"
VAL = {"annotations": "coco2017/annotations/instances_val2017.json", "images": "coco2017/val2017"}


def edited(root, change) -> None:
    """Apply a change to the content of the training annotations."""
    content = json.loads((root / ANNOTATIONS).read_text())
    change(content)
    (root / ANNOTATIONS).write_text(json.dumps(content))


def test_polygons_and_both_run_length_encodings(tmp_path):
    scenes = write_coco_instances(tmp_path)
    content = json.loads((tmp_path / ANNOTATIONS).read_text())
    forms = [annotation["segmentation"] for annotation in content["annotations"]]
    kinds = [type(form) if isinstance(form, list) else type(form["counts"]) for form in forms]
    assert kinds.count(list) > 2 and kinds.count(str) == 4
    assert any(isinstance(form, list) and len(form) == 2 for form in forms)
    for split, arguments in (("train", {}), ("val", VAL)):
        reader = CocoInstancesReader(tmp_path, **arguments)
        assert [sample.image_id for sample in reader] == list(SEEDS[split])
        for each, sample in zip(scenes[split], reader, strict=True):
            (turn,) = sample.turns
            assert (turn.task, turn.labels, turn.num_things) == ("generic", ("person", "bottle", "cup"), 3)
            things = [item for item in each.objects if item.shapes and not item.is_crowd]
            ids = [reader.categories.ids[phrase] for phrase in turn.mask_phrases]
            assert ids == [item.category_id for item in things]
            assert np.array_equal(decode_masks(turn.masks, (64, 96)), [item.mask for item in things])
            crowds = [item.mask for item in each.objects if item.is_crowd]
            categories = [item.category_id for item in each.objects if item.is_crowd]
            assert [reader.categories.ids[phrase] for phrase in turn.ignored_phrases] == categories
            assert len(turn.ignored) == len(crowds)
            assert all(
                np.array_equal(*pair) for pair in zip(decode_masks(turn.ignored, (64, 96)), crowds, strict=True)
            )


def test_labels_are_known_without_reading_an_image(tmp_path, monkeypatch):
    write_coco_instances(tmp_path)
    reader = CocoInstancesReader(tmp_path)
    expected = [sample.turns[0].labels for sample in reader]
    monkeypatch.setattr(SampleReader, "read_image", None)
    assert isinstance(reader, CategoryReader)
    assert reader.labels == ("person", "bottle", "cup") and set(expected) == {reader.labels}


def test_panoptic_and_instance_annotations_of_one_root_agree(tmp_path):
    write_coco_panoptic(tmp_path)
    write_coco_instances(tmp_path)
    for panoptic, instances in zip(CocoPanopticReader(tmp_path), CocoInstancesReader(tmp_path), strict=True):
        assert panoptic.image_id == instances.image_id
        both = [
            (phrase, mask["counts"])
            for phrase, mask in zip(panoptic.turns[0].mask_phrases, panoptic.turns[0].masks, strict=True)
            if phrase < 3
        ]
        (turn,) = instances.turns
        assert both == [(phrase, mask["counts"]) for phrase, mask in zip(turn.mask_phrases, turn.masks, strict=True)]


def test_uncompressed_encoding_of_the_fixture():
    mask = np.zeros((4, 5), dtype=bool)
    mask[0, 0] = mask[3, 4] = mask[1:3, 2] = True
    assert uncompressed(mask)["counts"] == [0, 1, 8, 2, 8, 1]
    mask[3, 4] = False
    assert uncompressed(mask)["counts"] == [0, 1, 8, 2, 9]
    assert compressed(mask)["size"] == [4, 5]
    assert square_polygon((1, 2, 3, 4)) == [1, 2, 4, 2, 4, 5, 1, 5]


def test_images_without_instances(tmp_path):
    write_coco_instances(tmp_path)
    edited(tmp_path, lambda content: content["annotations"].__delitem__(slice(0, 2)))
    edited(tmp_path, lambda content: [each.update(iscrowd=1) for each in content["annotations"][:3]])
    reader = CocoInstancesReader(tmp_path)
    assert [sample.image_id for sample in reader] == [30, 34]
    assert reader.skipped == {"no annotation but crowds": 2}
    reader = CocoInstancesReader(tmp_path, keep_empty=True)
    assert [(sample.image_id, len(sample.turns[0].masks)) for sample in reader] == [(9, 0), (25, 0), (30, 2), (34, 3)]
    assert [len(sample.turns[0].ignored) for sample in reader] == [0, 3, 1, 0]
    assert not reader.skipped


def test_own_data_in_subfolders_with_stuff_and_lvis_addresses(tmp_path):
    write_coco_instances(tmp_path)

    def change(content):
        for image in content["images"]:
            image["file_name"] = f"train2017/{image['file_name']}"
        image = content["images"][1]
        image["coco_url"] = f"http://images.cocodataset.org/{image.pop('file_name')}"
        content["categories"][0].update(name="Big_Ground-stuff", isthing=0)

    edited(tmp_path, change)
    reader = CocoInstancesReader(tmp_path, images="coco2017", task="open-vocabulary")
    (turn,) = reader[1].turns
    assert (turn.task, turn.labels, turn.num_things) == ("open-vocabulary", ("bottle", "cup", "big ground"), 2)
    assert turn.mask_phrases == (1, 2, 0)
    assert len(reader) == 4 and reader[1].image.size == (96, 64)


def unknown_image(annotation, content):
    annotation["image_id"] = 5


def unknown_category(annotation, content):
    annotation["category_id"] = 2


def no_pixel(annotation, content):
    # COCO's annotation 918.
    annotation["segmentation"] = [[29.65, 38.33, 29.65, 38.33, 29.68, 38.33, 29.68, 38.33]]


def no_polygon(annotation, content):
    annotation["segmentation"] = []


def other_size(annotation, content):
    annotation["segmentation"] = compressed(np.ones((96, 64), dtype=bool))


def no_size(annotation, content):
    del content["images"][0]["height"]


@pytest.mark.parametrize(
    ("change", "problem", "left_out"),
    [
        (unknown_image, "image_id 5 is not among 'images'", 1),
        (unknown_category, "category 2 is not among 'categories'", 1),
        (no_pixel, "has no pixel", 1),
        (no_polygon, "segmentation [] has no pixel", 1),
        (other_size, "segmentation of size (96, 64) for an image of (height, width) (64, 96)", 1),
        (no_size, f"image {UNITED_IMAGE} has no 'height' and 'width'", 2),
    ],
)
def test_broken_annotations_are_left_out_alone(tmp_path, change, problem, left_out):
    write_coco_instances(tmp_path)
    edited(tmp_path, lambda content: change(content["annotations"][0], content))
    with pytest.raises(BrokenRecord) as error:
        CocoInstancesReader(tmp_path)
    assert f"{ANNOTATIONS}, annotation 9000: " in str(error.value) and problem in str(error.value)
    reader = CocoInstancesReader(tmp_path, on_error="skip", keep_empty=True)
    assert [len(sample.turns[0].masks) for sample in reader] == [2 - left_out, 3, 2, 3]
    assert reader.skipped.total() == left_out


def test_malformed_records(tmp_path):
    write_coco_instances(tmp_path)

    def change(content):
        del content["annotations"][0]["category_id"]
        content["annotations"][1] = 3
        del content["images"][2]["file_name"]
        content["images"].append(content["images"][0])

    edited(tmp_path, change)
    with pytest.raises(BrokenRecord, match="number 2 of 'images': malformed: KeyError 'coco_url'"):
        CocoInstancesReader(tmp_path)
    reader = CocoInstancesReader(tmp_path, on_error="skip")
    assert [sample.image_id for sample in reader] == [25, 34]
    assert reader.skipped["malformed: KeyError 'category_id'"] == 1
    assert reader.skipped["it is listed more than once"] == 1
    assert reader.skipped["image_id ... is not among 'images'"] == 3


def test_images_that_are_missing_or_have_another_size(tmp_path):
    write_coco_instances(tmp_path)

    def change(content):
        content["images"][0].update(height=32, width=48)
        content["annotations"][0]["segmentation"] = compressed(np.ones((32, 48), dtype=bool))
        del content["annotations"][1]

    edited(tmp_path, change)
    reader = CocoInstancesReader(tmp_path)
    with pytest.raises(BrokenRecord, match=r"image 9: .*\(height, width\) \(64, 96\), but is annotated as \(32, 48\)"):
        reader[0]
    (tmp_path / "coco2017/train2017/000000000009.jpg").unlink()
    with pytest.raises(BrokenRecord, match=r"image 9: coco2017/train2017/000000000009.jpg does not exist"):
        CocoInstancesReader(tmp_path)
