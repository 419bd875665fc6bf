"""What the validation reader keeps for evaluation, and that training reads over it."""

import json

import numpy as np
import pytest

from dataset_fixtures.grounded_conversation import encoded, names, write_grounded_conversation
from tiny_training import fitting_model, tiny_processor
from xsam_training.collator import XSAMCollator
from xsam_training.data.grounded_conversation import GranDfReader, GranDfValidationReader
from xsam_training.data.reader import BrokenRecord
from xsam_training.data.samples import decode_masks
from xsam_training.dataset import TrainingItem

CAPTIONS = "gcg_seg/annotations/val_test/val_gcg_coco_caption_gt.json"
MASKS = "gcg_seg/annotations/val_test/val_gcg_coco_mask_gt.json"


def change(root, file: str, edit) -> None:
    content = json.loads((root / file).read_text())
    edit(content["annotations"])
    (root / file).write_text(json.dumps(content))


def caption(place: int, text: str, labels: list[str] | None = None) -> dict:
    return {"id": 10 + place, "image_id": f"sa_{20010541 + place}", "caption": text, "labels": labels or []}


def mask(place: int, pixels: np.ndarray) -> dict:
    return {"id": 90, "image_id": f"sa_{20010541 + place}", "category_id": 1, "segmentation": encoded(pixels)}


def test_labels_without_a_place_are_kept_with_their_masks(tmp_path):
    scenes = write_grounded_conversation(tmp_path)["val"]
    first, second, third = names(scenes[0])
    change(tmp_path, CAPTIONS, lambda all_: all_[0]["labels"].insert(1, second))
    change(tmp_path, MASKS, lambda all_: all_.insert(1, mask(0, scenes[0].shapes[1].mask)))
    reader = GranDfValidationReader(tmp_path)
    (turn,) = reader[0].turns
    assert [turn.answer[slice(*span)] for span in turn.spans] == [third, first]
    (unplaced,) = turn.unplaced
    assert unplaced.text == second and reader.dropped == {"not in the caption": 1}
    assert (decode_masks([unplaced.mask], (64, 96))[0] == scenes[0].shapes[1].mask).all()
    assert reader[1].turns[0].unplaced == ()


def test_equal_labels_share_a_place_and_each_keeps_its_mask(tmp_path):
    scenes = write_grounded_conversation(tmp_path)["val"]
    first, _, third = names(scenes[0])
    change(tmp_path, CAPTIONS, lambda all_: all_[0]["labels"].insert(1, first))
    change(tmp_path, MASKS, lambda all_: all_.insert(1, mask(0, scenes[0].sky)))
    (turn,) = GranDfValidationReader(tmp_path)[0].turns
    assert [turn.answer[slice(*turn.spans[phrase])] for phrase in turn.mask_phrases] == [third, first, first]
    assert (decode_masks(turn.masks, (64, 96))[2] == scenes[0].sky).all()
    assert turn.unplaced == ()


def test_further_captions_are_references(tmp_path):
    write_grounded_conversation(tmp_path)
    change(tmp_path, CAPTIONS, lambda all_: all_.extend([caption(0, '"Shapes. "'), caption(0, "A drawing")]))
    reader = GranDfValidationReader(tmp_path)
    assert reader[0].turns[0].references == ("Shapes.", "A drawing")
    assert reader[1].turns[0].references == ()
    change(tmp_path, CAPTIONS, lambda all_: all_.append(caption(1, None)))
    with pytest.raises(BrokenRecord, match="caption of image sa_20010542: the caption is None, no text"):
        GranDfValidationReader(tmp_path)


def test_captions_without_a_phrase_are_kept_and_training_reads_them(tmp_path):
    scenes = write_grounded_conversation(tmp_path)["val"]
    change(tmp_path, CAPTIONS, lambda all_: all_[1].update(caption="Only shapes.", labels=["dots", "lines"]))
    reader = GranDfValidationReader(tmp_path)
    assert len(reader) == 3 and not reader.left_out
    (turn,) = reader[1].turns
    assert (turn.answer, turn.spans, turn.masks) == ("Only shapes.", (), ())
    assert [label.text for label in turn.unplaced] == ["dots", "lines"]
    assert (decode_masks([turn.unplaced[1].mask], (64, 96))[0] == scenes[1].shapes[2].mask).all()
    processor = tiny_processor()
    batch = XSAMCollator(processor)([TrainingItem(reader[1], 0)])
    assert "mask_labels" not in batch
    assert fitting_model(processor)(**batch).loss.isfinite()


def test_readers_for_training_keep_no_labels_without_a_place(tmp_path):
    write_grounded_conversation(tmp_path)
    file = "gcg_seg/annotations/train/GranDf_HA_GCG_train.json"
    records = json.loads((tmp_path / file).read_text())
    records[0]["caption"] = records[0]["caption"].replace("the sky", "clouds")
    (tmp_path / file).write_text(json.dumps(records))
    reader = GranDfReader(tmp_path)
    assert reader.dropped == {"not in the caption": 1}
    assert reader[0].turns[0].unplaced == () and reader[0].turns[0].references == ()
