import json
import pickle

import pytest

from dataset_fixtures.referring import IMAGE_IDS, annotation_id, box_mask, write_grefcoco, write_refcoco
from xsam_training.data.reader import BrokenRecord
from xsam_training.data.referring import RefCocoReader
from xsam_training.data.samples import decode_masks

REFS = "refer_seg/refcoco/refs(unc).p"
GREFCOCO = {"refs": "refer_seg/grefcoco/grefs(unc).json", "instances": "refer_seg/grefcoco/instances.json"}


def edited(root, change) -> None:
    """Apply a change to the records of RefCOCO."""
    refs = pickle.loads((root / REFS).read_bytes())
    change(refs)
    (root / REFS).write_bytes(pickle.dumps(refs, protocol=2))


def test_one_sample_per_image_with_a_turn_per_expression(tmp_path):
    scenes = write_refcoco(tmp_path)
    reader = RefCocoReader(tmp_path)
    assert [sample.image_id for sample in reader] == list(IMAGE_IDS[:3])
    for scene, sample in zip(scenes, reader, strict=False):
        assert sample.image.size == scene.image.size
        expected = []
        for shape, side in zip(scene.shapes, ("on the left", "in the middle", "on the right"), strict=True):
            words = f"{shape.color} {shape.kind}"
            expected += [(f"the {words} {side}", shape.box), (words, shape.box)]
        assert [turn.text for turn in sample.turns] == [text for text, _ in expected]
        for turn, (_, box) in zip(sample.turns, expected, strict=True):
            assert (turn.task, turn.mask_phrases, turn.num_phrases, turn.ignored) == ("referring", (0,), 1, ())
            assert (decode_masks(turn.masks, (64, 96))[0] == box_mask(box)).all()
    assert reader[0].name == f"{REFS}, image {IMAGE_IDS[0]}"


def test_the_same_words_for_two_objects_are_kept_and_counted(tmp_path):
    write_refcoco(tmp_path)

    def change(refs):
        for ref in refs[:2]:
            ref["sentences"] = [{"sent": "the shape"}, {"sent": "The shape "}]

    before = RefCocoReader(tmp_path).num_ambiguous
    edited(tmp_path, change)
    reader = RefCocoReader(tmp_path)
    assert reader.num_ambiguous == before + 1
    first, second = reader[0].turns[:2]
    assert first.text == second.text == "the shape" and first.masks != second.masks


def test_splits(tmp_path):
    write_refcoco(tmp_path)
    assert [sample.image_id for sample in RefCocoReader(tmp_path, split="val")] == [IMAGE_IDS[3]]
    edited(tmp_path, lambda refs: [ref.update(split="testA" if ref["ref_id"] < 3 else "testB") for ref in refs])
    assert [len(RefCocoReader(tmp_path, split=split)) for split in ("testA", "testB", "test")] == [1, 3, 4]
    with pytest.raises(ValueError, match="has no split 'train'; it has testA, testB"):
        RefCocoReader(tmp_path)
    with pytest.raises(ValueError, match="split is 'testC'; possible are train"):
        RefCocoReader(tmp_path, split="testC")


def test_json_holds_the_same_records(tmp_path, monkeypatch):
    write_refcoco(tmp_path)
    refs = pickle.loads((tmp_path / REFS).read_bytes())
    (tmp_path / "refs.json").write_text(json.dumps(refs))
    monkeypatch.chdir(tmp_path)  # a relative root as well
    for one, other in zip(RefCocoReader(tmp_path), RefCocoReader(".", refs="refs.json"), strict=True):
        assert one.turns == other.turns


def test_several_targets_absent_targets_and_crowds(tmp_path):
    scenes = write_grefcoco(tmp_path)
    reader = RefCocoReader(tmp_path, **GREFCOCO)
    assert len(reader) == 3
    shapes = scenes[0].shapes
    single, several, absent, crowd = reader[0].turns
    assert (decode_masks(single.masks, (64, 96))[0] == box_mask(shapes[0].box)).all()
    assert several.mask_phrases == (0, 0)
    for mask, shape in zip(decode_masks(several.masks, (64, 96)), shapes, strict=False):
        assert (mask == box_mask(shape.box)).all()
    assert (absent.text, absent.masks, absent.mask_phrases, absent.num_phrases) == ("a purple star", (), (), 1)
    assert (decode_masks(crowd.masks, (64, 96))[0] == box_mask(shapes[1].box)).all() and len(crowd.masks) == 1
    assert (decode_masks(crowd.ignored, (64, 96))[0] == shapes[2].mask).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ann_id": 5}, "ref 1: ann_id 5 is not in the instances file"),
        ({"ann_id": annotation_id(1, 0)}, f"ref 1: ann_id {annotation_id(1, 0)} belongs to image {IMAGE_IDS[1]}"),
        ({"ann_id": []}, r"ref 1: ann_id is \[\] and no_target None"),
        ({"no_target": True}, "ref 1: ann_id is .* and no_target True"),
        ({"image_id": 7}, "ref 1: image_id 7 is not in the instances file"),
        ({"image_id": None}, "ref 1: field 'image_id' is missing"),
        ({"sentences": []}, "ref 1: field 'sentences' is missing or empty"),
        ({"sentences": [{"sent": " "}]}, "ref 1: an expression in 'sentences' is empty"),
        ({"sentences": ["red"]}, "ref 1: not in the published form"),
    ],
)
def test_broken_refs_are_found_when_listed(tmp_path, change, message):
    write_refcoco(tmp_path)
    edited(tmp_path, lambda refs: refs[1].update(change))
    with pytest.raises(BrokenRecord, match=message):
        RefCocoReader(tmp_path)
    reader = RefCocoReader(tmp_path, on_error="skip")
    assert reader.skipped.total() == 1
    assert len(reader) == 3 and len(reader[0].turns) == 4


def test_a_mask_without_pixels_and_a_missing_image_are_found_when_listed(tmp_path):
    write_refcoco(tmp_path)
    path = tmp_path / "refer_seg/refcoco/instances.json"
    instances = json.loads(path.read_text())
    instances["annotations"][0]["segmentation"] = [[1, 1, 2, 2]]
    path.write_text(json.dumps(instances))
    (tmp_path / f"refer_seg/images/coco2014/train2014/COCO_train2014_{IMAGE_IDS[1]:012d}.jpg").unlink()
    with pytest.raises(BrokenRecord, match=r"ref 0: .* has no pixel"):
        RefCocoReader(tmp_path)
    reader = RefCocoReader(tmp_path, on_error="skip")
    assert [sample.image_id for sample in reader] == [IMAGE_IDS[0], IMAGE_IDS[2]]
    assert reader.skipped.total() == 2


def test_an_image_of_another_size_is_found_when_read(tmp_path):
    scenes = write_refcoco(tmp_path)
    folder = tmp_path / "refer_seg/images/coco2014/train2014"
    scenes[0].image.resize((48, 32)).save(folder / f"COCO_train2014_{IMAGE_IDS[0]:012d}.jpg")
    with pytest.raises(
        BrokenRecord, match=r"the image has \(height, width\) \(32, 48\), but is annotated as \(64, 96\)"
    ):
        RefCocoReader(tmp_path)[0]


def test_other_content_is_refused(tmp_path):
    write_refcoco(tmp_path)
    (tmp_path / REFS).write_bytes(pickle.dumps({"refs": []}))
    with pytest.raises(ValueError, match="is not a list of records"):
        RefCocoReader(tmp_path)
