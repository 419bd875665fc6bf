import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from dataset_fixtures.visual import CATEGORIES, write_visual
from xsam_training.data.coco_visual import CocoInteractiveReader, CocoVgdReader
from xsam_training.data.reader import BrokenRecord
from xsam_training.data.samples import decode_masks
from xsam_training.data.visual_prompts import draw_visual_prompts, prompt_rng

VGD = "vgd_seg/annotations/coco_vgdseg_train.json"
INSTANCES = "vgd_seg/annotations/instances_vgd_train2017.json"
PSALM = "interactive_seg/annotations/coco_interactive_train_psalm.json"
INTERSEG = "interactive_seg/annotations/coco_interseg_train.json"
KINDS = ["point", "scribble", "box", "mask"]


@pytest.fixture
def root(tmp_path):
    write_visual(tmp_path)
    return tmp_path


def edit(file: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def polygon_masks(root: Path, entry: int) -> list[np.ndarray]:
    """The masks of an image's annotations, as pycocotools draws their polygons."""
    annotations = json.loads((root / VGD).read_text())[entry]["annotations"]
    polygons = [coco_mask.merge(coco_mask.frPyObjects(each["segmentation"], 64, 96)) for each in annotations]
    return [coco_mask.decode(each).astype(bool) for each in polygons]


def masks(rles) -> list[np.ndarray]:
    return list(decode_masks(rles, (64, 96)))


def test_vgd_asks_for_the_categories_of_an_image(root):
    reader = CocoVgdReader(root, instances=INSTANCES)
    # The last image is only a crowd.
    assert len(reader) == 3
    sample = reader[2]
    assert sample.image_id == 700003 and sample.image.size == (96, 64)
    assert sample.name == f"{VGD}, image 700003"
    (turn,) = sample.turns
    assert turn.task == "visual-grounded" and turn.num_phrases == 2
    # Sorted by id: two squares and a circle in the annotations.
    assert turn.labels == ("circle", "square")
    assert turn.mask_phrases == (1, 1, 0)
    for found, expected in zip(masks(turn.masks), polygon_masks(root, 2), strict=True):
        assert (found == expected).all()


def test_vgd_regions_are_all_prompts_of_all_objects(root):
    (turn,) = CocoVgdReader(root, instances=INSTANCES)[2].turns
    circle, squares = turn.regions
    assert [region.kind for region in circle] == KINDS
    assert [region.kind for region in squares] == KINDS * 2
    first, second, third = polygon_masks(root, 2)
    for regions, mask, annotation in (
        (squares[:4], first, 70000300),
        (squares[4:], second, 70000301),
        (circle, third, 70000302),
    ):
        drawn = draw_visual_prompts(mask, prompt_rng(0, annotation)).by_kind()
        for region in regions:
            assert (masks([region.mask])[0] == drawn[region.kind]).all()


def test_vgd_leaves_out_categories_that_nothing_shows(root):
    # The triangle of the first image is too small for prompts.
    (turn,) = CocoVgdReader(root, instances=INSTANCES)[0].turns
    assert turn.labels == ("circle", "square") and len(turn.masks) == 2
    assert turn.unasked == ("triangle",)


def without_prompts(entries, category: str, iscrowd: int = 0) -> None:
    """Take the prompts of a category's objects in the third image, and make crowds of them if asked to."""
    entry = entries[2]
    for annotation in entry.get("annotations") or entry["anns"]:
        if annotation["category_id"] == CATEGORIES[category]:
            annotation.update(visual_prompts={}, iscrowd=iscrowd)
            for kind in KINDS:
                annotation.pop(f"{kind}_visual_prompt_mask", None)


@pytest.mark.parametrize("annotations", [VGD, PSALM])
@pytest.mark.parametrize("iscrowd", [0, 1])
def test_vgd_says_what_is_there_but_not_asked_for(root, annotations, iscrowd):
    """A person in a crowd and a dog without prompt are in the image: neither may be called absent."""
    edit(root / annotations, lambda entries: without_prompts(entries, "square", iscrowd))
    edit(root / INSTANCES, lambda content: content["annotations"][-2].update(category_id=CATEGORIES["triangle"]))
    crowds = [each for each in json.loads((root / INSTANCES).read_text())["annotations"] if each["iscrowd"]]
    assert [each["image_id"] for each in crowds] == [700001, 700002, 700003, 700004]
    (turn,) = CocoVgdReader(root, annotations, instances=INSTANCES)[2].turns
    assert turn.labels == ("circle",) and turn.mask_phrases == (0,)
    assert turn.unasked == ("square", "triangle")


def test_vgd_takes_the_crowds_of_x_sam_s_entries_from_the_instances(root):
    def crowd_of_triangles(content):
        for annotation in content["annotations"]:
            if annotation["iscrowd"]:
                annotation["category_id"] = CATEGORIES["triangle"]

    edit(root / INSTANCES, crowd_of_triangles)
    (root / "names.json").write_text(json.dumps([{"id": id_, "name": name} for name, id_ in CATEGORIES.items()]))
    assert CocoVgdReader(root, instances=INSTANCES)[2].turns[0].unasked == ("triangle",)
    # A list of names says nothing about crowds.
    assert CocoVgdReader(root, categories="names.json")[2].turns[0].unasked == ()


def test_vgd_does_not_count_a_crowd_of_what_it_asks_for(root):
    # Every image has a crowd of circles.
    assert [sample.turns[0].unasked for sample in CocoVgdReader(root, instances=INSTANCES)][1:] == [(), ()]


def test_vgd_keeps_an_object_without_prompts_if_its_category_is_shown(root):
    def strip(entries):
        entries[2]["annotations"][1]["visual_prompts"] = {}

    edit(root / VGD, strip)
    (turn,) = CocoVgdReader(root, instances=INSTANCES)[2].turns
    assert turn.mask_phrases == (1, 1, 0)
    assert [len(regions) for regions in turn.regions] == [4, 4]


def test_vgd_leaves_out_an_object_without_prompts_and_pixels(root):
    def shrink(entries):
        entries[2]["annotations"][1].update(visual_prompts={}, segmentation=[[5.0, 5.0, 5.1, 5.0, 5.0, 5.1]])

    edit(root / VGD, shrink)
    (turn,) = CocoVgdReader(root, instances=INSTANCES)[2].turns
    assert turn.mask_phrases == (1, 0)


def test_vgd_categories_from_a_file_of_their_own(root):
    (root / "names.json").write_text(json.dumps([{"id": id_, "name": name} for name, id_ in CATEGORIES.items()]))
    reader = CocoVgdReader(root, instances="none.json", categories="names.json")
    assert reader[0].turns[0].labels == ("circle", "square")


def test_vgd_reads_the_validation_split(root):
    reader = CocoVgdReader(
        root,
        "vgd_seg/annotations/coco_vgdseg_val.json",
        "coco2017/val2017",
        "vgd_seg/annotations/instances_vgd_val2017.json",
    )
    assert [reader[index].image_id for index in range(len(reader))] == [700101]


def test_same_at_every_access(root):
    reader = CocoVgdReader(root, instances=INSTANCES)
    assert reader[1].turns == reader[1].turns


@pytest.mark.parametrize("annotations", [PSALM, INTERSEG])
def test_interactive_asks_for_each_object(root, annotations):
    reader = CocoInteractiveReader(root, annotations)
    assert [len(reader[index].turns) for index in range(len(reader))] == [2, 3, 3]
    for turn, expected in zip(reader[2].turns, polygon_masks(root, 2), strict=True):
        assert turn.task == "interactive" and turn.num_phrases == 1 and turn.mask_phrases == (0,)
        assert [region.kind for region in turn.regions[0]] == KINDS
        assert (masks(turn.masks)[0] == expected).all()


def test_psalm_points_and_scribbles_are_widened_to_the_published_radii(root):
    (regions,) = CocoInteractiveReader(root)[2].turns[0].regions
    point, scribble, box, mask = masks([region.mask for region in regions])
    object_mask = polygon_masks(root, 2)[0]
    rows, columns = np.nonzero(object_mask)
    middle = len(rows) // 2
    y, x = np.mgrid[:64, :96]
    assert (point == (np.hypot(y - rows[middle], x - columns[middle]) <= 10)).all()
    beyond = np.clip(np.maximum(columns.min() - x, x - columns.max()), 0, None)
    assert (scribble == (np.hypot(y - rows[middle], beyond) <= 5)).all()
    assert (mask == object_mask).all()
    assert box.sum() == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)


def test_either_reader_reads_either_form(root):
    (turn,) = CocoVgdReader(root, PSALM, instances=INSTANCES)[2].turns
    assert turn.labels == ("circle", "square")
    assert len(CocoInteractiveReader(root, VGD)[2].turns) == 3


def test_crowds_are_never_asked_for(root):
    def make_crowd(entries):
        entries[1]["annotations"][0]["iscrowd"] = 1

    edit(root / INTERSEG, make_crowd)
    assert len(CocoInteractiveReader(root, INTERSEG)[1].turns) == 2


def test_a_file_that_is_no_list(root):
    (root / VGD).write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"coco_vgdseg_train\.json is not a JSON list: expected '\['"):
        CocoVgdReader(root, instances=INSTANCES)
    (root / VGD).write_text("[1, 2]")
    with pytest.raises(BrokenRecord, match="entry at byte 1: entry has neither X-SAM's nor PSALM's form"):
        CocoVgdReader(root, instances=INSTANCES)


def test_an_empty_list_has_no_usable_record(root):
    (root / VGD).write_text("[ ]")
    with pytest.raises(ValueError, match="no usable record"):
        CocoVgdReader(root, instances=INSTANCES)


def test_a_missing_file_is_named(root):
    with pytest.raises(FileNotFoundError, match=r"nothing\.json does not exist"):
        CocoInteractiveReader(root, "nothing.json")


def drop_size(entries):
    del entries[1]["image_size"]


def rename_category(entries):
    entries[1]["annotations"][0]["category_id"] = 99


def break_prompt(entries):
    entries[1]["annotations"][0]["visual_prompts"]["point_visual_prompt"] = {"size": [64, 96]}


@pytest.mark.parametrize(
    "change, message",
    [
        (drop_size, "entry at byte .*: entry has neither X-SAM's nor PSALM's form: KeyError\\('image_size'\\)"),
        (rename_category, "image 700002: category 99 has no name in"),
        (break_prompt, "image 700002: visual prompt .* is no compressed run-length encoding"),
    ],
)
def test_problems_that_are_seen_when_listing(root, change, message):
    edit(root / VGD, change)
    with pytest.raises(BrokenRecord, match=f"{VGD}, {message}"):
        CocoVgdReader(root, instances=INSTANCES)
    reader = CocoVgdReader(root, instances=INSTANCES, on_error="skip")
    assert len(reader) == 2 and reader.skipped.total() == 1
    assert [reader[index].image_id for index in range(2)] == [700001, 700003]


def break_segmentation(entries):
    entries[1]["annotations"][2]["segmentation"] = []


def resize_prompt(entries):
    prompts = entries[1]["annotations"][1]["visual_prompts"]
    prompts["box_visual_prompt"] = {
        "size": [8, 8],
        "counts": coco_mask.encode(np.ones((8, 8), np.uint8, order="F"))["counts"].decode(),
    }


def resize_image(entries):
    entries[1]["image_size"] = [96, 64]


@pytest.mark.parametrize(
    "change, message",
    [
        (break_segmentation, "annotation 70000202: segmentation .* has no pixel"),
        (resize_prompt, "annotation 70000201: segmentation of size .* for an image"),
        (resize_image, r"has \(height, width\) \(64, 96\), but is annotated as \(96, 64\)"),
    ],
)
def test_problems_that_are_seen_when_reading(root, change, message):
    edit(root / VGD, change)
    reader = CocoVgdReader(root, instances=INSTANCES)
    with pytest.raises(BrokenRecord, match=f"image 700002: .*{message}"):
        reader[1]


def test_a_missing_image_is_named(root):
    (root / "coco2017/train2017/000000700002.jpg").unlink()
    reader = CocoInteractiveReader(root)
    with pytest.raises(BrokenRecord, match=r"000000700002\.jpg"):
        reader[1]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_categories_must_be_coco_s(root, on_error):
    (root / "names.json").write_text('["circle"]')
    with pytest.raises(ValueError, match=r"names\.json does not name categories as COCO does"):
        CocoVgdReader(root, categories="names.json", on_error=on_error)
