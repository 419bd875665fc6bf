import gc
import json

import numpy as np
import pytest
from PIL import Image

from dataset_fixtures.coco import LABELS, SEEDS, VOID_WIDTH, coco_scenes, write_coco_panoptic
from xsam_training.data.coco_panoptic import CocoPanopticReader, list_categories, readable_name
from xsam_training.data.reader import BrokenRecord, CategoryReader, SampleReader
from xsam_training.data.samples import decode_masks

ANNOTATIONS = "coco2017/annotations/panoptic_train2017.json"
VAL = {
    "annotations": "coco2017/annotations/panoptic_val2017.json",
    "segments": "coco2017/panoptic_val2017",
    "images": "coco2017/val2017",
}


def edited(root, change) -> None:
    """Apply a change to the content of the training annotations."""
    content = json.loads((root / ANNOTATIONS).read_text())
    change(content)
    (root / ANNOTATIONS).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("wall-other-merged", "wall"),
        ("floor-wood", "floor wood"),
        ("door-stuff", "door"),
        ("water-other", "water"),
        ("windowpane, window ", "windowpane"),
        ("sofa; couch", "sofa"),
        ("baseball_cap", "baseball cap"),
        ("bow_(weapon)", "bow (weapon)"),
        ("T-shirt", "t shirt"),
        ("mother-otherness", "mother otherness"),
    ],
)
def test_readable_name(name, expected):
    assert readable_name(name) == expected


def test_categories_are_things_then_stuff_and_have_distinct_names():
    names = [(9, "sky-other", 0), (2, "sky", 0), (7, "cup", 1), (3, "-merged", 1), (5, "Dog ", 1)]
    categories = list_categories([{"id": number, "name": name, "isthing": thing} for number, name, thing in names])
    assert categories.labels == ("-merged", "dog", "cup", "sky", "sky-other")
    assert categories.ids == (3, 5, 7, 2, 9)
    assert categories.num_things == 3
    with pytest.raises(ValueError, match=r"category names \['cup'\] are empty or stand there more than once"):
        list_categories([{"id": 1, "name": "cup"}, {"id": 2, "name": "cup"}])
    with pytest.raises(ValueError, match="an id stands there more than once"):
        list_categories([{"id": 1, "name": "cup"}, {"id": 1, "name": "dog"}])
    with pytest.raises(ValueError, match="'categories' are malformed: KeyError 'name'"):
        list_categories([{"id": 1}])
    with pytest.raises(ValueError, match="'categories' are empty"):
        list_categories([])


def test_labels_are_known_without_reading_an_image(tmp_path, monkeypatch):
    write_coco_panoptic(tmp_path)
    reader = CocoPanopticReader(tmp_path)
    expected = [sample.turns[0].labels for sample in reader]
    monkeypatch.setattr(SampleReader, "read_image", None)
    assert isinstance(reader, CategoryReader)
    assert reader.labels == LABELS and set(expected) == {reader.labels}


def test_segments_crowds_and_void(tmp_path):
    scenes = write_coco_panoptic(tmp_path)
    for split, arguments in (("train", {}), ("val", VAL)):
        reader = CocoPanopticReader(tmp_path, **arguments)
        assert [sample.image_id for sample in reader] == list(SEEDS[split])
        for each, sample in zip(scenes[split], reader, strict=True):
            (turn,) = sample.turns
            assert (turn.task, turn.labels, turn.num_things, turn.num_phrases) == ("generic", LABELS, 3, 7)
            kept = [item for item in each.objects if not item.is_crowd]
            ids = [reader.categories.ids[phrase] for phrase in turn.mask_phrases]
            assert ids == [item.category_id for item in kept]
            assert np.array_equal(decode_masks(turn.masks, (64, 96)), [item.mask for item in kept])
            ignored = [item.mask for item in each.objects if item.is_crowd]
            crowds = [LABELS[reader.categories.ids.index(item.category_id)] for item in each.objects if item.is_crowd]
            assert [LABELS[phrase] for phrase in turn.ignored_phrases if phrase is not None] == crowds
            ignored += [each.void] if each.void.any() else []
            assert len(turn.ignored) == len(turn.ignored_phrases) == len(ignored)
            assert all(
                np.array_equal(*pair) for pair in zip(decode_masks(turn.ignored, (64, 96)), ignored, strict=True)
            )
            assert sample.image.size == (96, 64)
    assert reader[0].name == "coco2017/annotations/panoptic_val2017.json, image 139"
    assert reader[1].turns[0].ignored_phrases == (2, None)
    crowd, void = decode_masks(reader[1].turns[0].ignored, (64, 96))
    assert crowd.any() and void[:, :VOID_WIDTH].any() and not void[:, VOID_WIDTH:].any()


def test_task(tmp_path):
    write_coco_panoptic(tmp_path)
    assert CocoPanopticReader(tmp_path, task="open-vocabulary")[0].turns[0].task == "open-vocabulary"
    with pytest.raises(ValueError, match="task is 'referring'"):
        CocoPanopticReader(tmp_path, task="referring")


def test_the_garbage_collector_is_left_as_it_was(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        CocoPanopticReader(tmp_path)
    assert gc.isenabled()


def unlisted_image(content):
    del content["images"][0]


def unlisted_category(content):
    content["annotations"][0]["segments_info"][1]["category_id"] = 3


def no_segments_file(content):
    content["annotations"][0]["file_name"] = "none.png"


def no_image_file(content):
    content["images"][0]["file_name"] = "none.jpg"


def annotated_twice(content):
    content["annotations"][1]["image_id"] = content["annotations"][0]["image_id"]


def segment_twice(content):
    content["annotations"][0]["segments_info"][1]["id"] = content["annotations"][0]["segments_info"][0]["id"]


def not_annotated(content):
    del content["annotations"][0]


def no_segments(content):
    del content["annotations"][0]["segments_info"]


@pytest.mark.parametrize(
    ("change", "problem", "left"),
    [
        (unlisted_image, "image 9: it is annotated, but not among 'images'", (25, 30, 34)),
        (unlisted_category, "image 9: category 3 is not among 'categories'", (25, 30, 34)),
        (no_segments_file, "image 9: coco2017/panoptic_train2017/none.png does not exist", (25, 30, 34)),
        (no_image_file, "image 9: coco2017/train2017/none.jpg does not exist", (25, 30, 34)),
        (annotated_twice, "image 9: it is annotated more than once", (9, 30, 34)),
        (segment_twice, "image 9: a segment id stands there more than once", (25, 30, 34)),
        (not_annotated, "image 9: it has no annotation", (25, 30, 34)),
        (no_segments, "number 0 of 'annotations': malformed: KeyError 'segments_info'", (25, 30, 34)),
    ],
)
def test_broken_records_are_found_when_they_are_listed(tmp_path, change, problem, left):
    write_coco_panoptic(tmp_path)
    edited(tmp_path, change)
    with pytest.raises(BrokenRecord) as error:
        CocoPanopticReader(tmp_path)
    assert f"{ANNOTATIONS}, {problem}" in str(error.value)
    reader = CocoPanopticReader(tmp_path, on_error="skip")
    assert tuple(sample.image_id for sample in reader) == left
    assert reader.skipped.total() == (2 if change is annotated_twice else 1)


def test_a_segment_without_a_pixel_is_left_out_and_counted_once(tmp_path):
    write_coco_panoptic(tmp_path)
    edited(tmp_path, lambda content: content["annotations"][0]["segments_info"][0].update(id=5))
    with pytest.raises(BrokenRecord, match="image 9, segment 5: it has no pixel in the PNG"):
        CocoPanopticReader(tmp_path)[0]
    reader = CocoPanopticReader(tmp_path, on_error="skip")
    for _ in range(2):
        (turn,) = reader[0].turns
        assert len(turn.masks) == 3
        # What is drawn there says nothing now.
        assert np.array_equal(decode_masks(turn.ignored, (64, 96))[0], coco_scenes("train")[0].objects[0].mask)
    assert reader.skipped == {"it has no pixel in the PNG": 1}


def test_pngs_that_cannot_be_read_or_do_not_fit(tmp_path):
    write_coco_panoptic(tmp_path)
    png = tmp_path / "coco2017/panoptic_train2017/000000000009.png"
    Image.new("RGB", (64, 96)).save(png)
    reader = CocoPanopticReader(tmp_path)
    with pytest.raises(BrokenRecord, match=r"image 9: 000000000009.png is \(64, 96\) .*, its image \(96, 64\)"):
        reader[0]
    png.write_bytes(b"no image")
    with pytest.raises(BrokenRecord, match=r"image 9: 000000000009.png cannot be read"):
        reader[0]
    png.write_bytes((tmp_path / "coco2017/panoptic_train2017/000000000025.png").read_bytes()[:200])
    with pytest.raises(BrokenRecord, match=r"image 9: 000000000009.png cannot be read"):
        reader[0]


def test_images_without_segments(tmp_path):
    write_coco_panoptic(tmp_path)

    def change(content):
        content["annotations"][0]["segments_info"] = []
        content["annotations"][1]["segments_info"] = content["annotations"][1]["segments_info"][:1]
        content["annotations"][1]["segments_info"][0]["iscrowd"] = 1

    edited(tmp_path, change)
    reader = CocoPanopticReader(tmp_path)
    assert [sample.image_id for sample in reader] == [30, 34]
    assert reader.skipped == {"no annotation but crowds": 2}
    reader = CocoPanopticReader(tmp_path, keep_empty=True)
    assert [sample.image_id for sample in reader] == [9, 25, 30, 34]
    nothing, crowd = reader[0].turns[0], reader[1].turns[0]
    assert nothing.masks == crowd.masks == () and len(nothing.labels) == 7
    assert decode_masks(nothing.ignored, (64, 96)).all() and len(crowd.ignored) == 2


def test_other_json_is_named(tmp_path):
    write_coco_panoptic(tmp_path)
    (tmp_path / ANNOTATIONS).write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"panoptic_train2017.json is not in COCO's format: 'annotations'; it needs"):
        CocoPanopticReader(tmp_path)
