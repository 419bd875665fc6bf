import json

import numpy as np
import pytest

from dataset_fixtures.reasoning import EXPLANATION, shape, write_reasonseg
from dataset_fixtures.referring import box_mask
from xsam_training.data.reader import BrokenRecord
from xsam_training.data.reasoning import IGNORED, TARGET, Polygon, ReasonSegReader, draw_polygons
from xsam_training.data.samples import decode_masks

TRAIN = "reason_seg/ReasonSeg/train"


def square(left: int, top: int, right: int, bottom: int, value: int) -> Polygon:
    return Polygon(((left, top), (right, top), (right, bottom), (left, bottom)), value)


def edited(root, stem: str, **fields) -> None:
    path = root / TRAIN / f"{stem}.json"
    annotation = json.loads(path.read_text(encoding="utf-8"))
    annotation.update(fields)
    path.write_text(json.dumps(annotation))


def test_questions_share_the_union_of_the_targets(tmp_path):
    scenes = write_reasonseg(tmp_path)
    reader = ReasonSegReader(tmp_path)
    assert [sample.image_id for sample in reader] == ["100_a_o", "200_b_o", "300_c_o"]
    sample = reader[0]
    assert sample.name == f"{TRAIN}/100_a_o.jpg, image 100_a_o"
    assert [turn.text for turn in sample.turns] == [
        "What is furthest from the right edge?",
        "Which shape would fall off the left edge first?",
    ]
    union = box_mask(scenes[0].shapes[0].box) | box_mask(scenes[0].shapes[1].box)
    for turn in sample.turns:
        assert (turn.task, turn.mask_phrases, turn.ignored) == ("reasoning", (0,), ())
        assert (decode_masks(turn.masks, (64, 96)) == union[None]).all()


def test_ignored_areas_take_pixels_from_targets(tmp_path):
    scenes = write_reasonseg(tmp_path)
    (turn,) = ReasonSegReader(tmp_path)[1].turns
    box = scenes[1].shapes[0].box
    inner = box_mask((box[0] + 3, box[1] + 3, box[2] - 3, box[3] - 3))
    assert (decode_masks(turn.ignored, (64, 96))[0] == inner).all()
    assert (decode_masks(turn.masks, (64, 96))[0] == (box_mask(box) & ~inner)).all()


def test_larger_polygons_are_drawn_first():
    large, small = square(0, 0, 9, 9, IGNORED), square(2, 2, 4, 4, TARGET)
    for polygons in ((large, small), (small, large)):
        drawn = draw_polygons(polygons, (10, 10))
        assert (drawn == TARGET).sum() == 9 and (drawn[2:5, 2:5] == TARGET).all()
        assert (drawn == IGNORED).sum() == 91
    # Equally large: the first of the list covers the second.
    one, other = square(0, 0, 4, 4, TARGET), square(2, 2, 6, 6, IGNORED)
    assert draw_polygons((one, other), (8, 8))[3, 3] == TARGET
    assert draw_polygons((other, one), (8, 8))[3, 3] == IGNORED


def test_outlines_points_and_parts_outside_the_image():
    drawn = draw_polygons((Polygon(((0, 0), (4, 0), (0, 4)), TARGET),), (6, 6))
    expected = np.add.outer(np.arange(6), np.arange(6)) <= 4
    assert ((drawn == TARGET) == expected).all()
    assert draw_polygons((Polygon(((2, 3),), TARGET),), (6, 6)).nonzero() == ([3], [2])
    assert (draw_polygons((square(-5, -5, 20, 1, TARGET),), (6, 6)) == TARGET).sum() == 12


def test_explanations_answer_the_question_with_their_words(tmp_path):
    write_reasonseg(tmp_path)
    assert [turn.answer for turn in ReasonSegReader(tmp_path)[0].turns] == [None, EXPLANATION]
    assert [turn.answer for turn in ReasonSegReader(tmp_path, explanations=None)[0].turns] == [None, None]
    path = tmp_path / "reason_seg/ReasonSeg/explanatory/train.json"
    path.write_text(json.dumps([{"image": "100_a_o.jpg", "query": "Why the left one?", "outputs": EXPLANATION}]))
    turns = ReasonSegReader(tmp_path)[0].turns
    assert [turn.answer for turn in turns] == [None, None, EXPLANATION]
    assert turns[2].text == "Why the left one?" and turns[2].masks == turns[0].masks


def test_short_and_long_questions_and_other_folders(tmp_path):
    write_reasonseg(tmp_path)
    long, short = (ReasonSegReader(tmp_path, sentences=sentences) for sentences in (True, False))
    assert [sample.image_id for sample in long] == ["100_a_o"]
    assert [sample.image_id for sample in short] == ["200_b_o", "300_c_o"]
    for split, name in (("val", "400_d_o"), ("test", "500_e_o")):
        assert [s.image_id for s in ReasonSegReader(tmp_path, folder=f"reason_seg/ReasonSeg/{split}")] == [name]


def test_files_in_cp1252(tmp_path):
    write_reasonseg(tmp_path)
    assert b"caf\xe9\x85" in (tmp_path / TRAIN / "300_c_o.json").read_bytes()
    assert ReasonSegReader(tmp_path)[2].turns[0].text == "the café… sign"


def test_repeated_questions_count_once(tmp_path):
    write_reasonseg(tmp_path)
    edited(tmp_path, "100_a_o", text=["Where?", "Who? ", "where?"])
    reader = ReasonSegReader(tmp_path, explanations=None)
    assert [turn.text for turn in reader[0].turns] == ["Where?", "Who?"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": []}, r"field 'text' is \[\]"),
        ({"text": "a question"}, "field 'text' is 'a question', expected a list"),
        ({"text": [" "]}, "expected texts"),
        ({"is_sentence": None}, "field 'is_sentence' is None, expected a bool"),
        ({"shapes": [shape("flag", (1, 1, 5, 5)), shape("Ignored", (1, 1, 5, 5))]}, "no shape is a target"),
        ({"shapes": [{"label": "target", "points": [[1, 2], [3]]}]}, "shape 0 has no points"),
        ({"shapes": [{"label": "target", "points": []}]}, "shape 0 has no label or no points"),
    ],
)
def test_broken_annotations_are_found_when_listed(tmp_path, fields, message):
    write_reasonseg(tmp_path)
    edited(tmp_path, "200_b_o", **fields)
    with pytest.raises(BrokenRecord, match=rf"train/200_b_o\.json, image 200_b_o: .*{message}"):
        ReasonSegReader(tmp_path)
    reader = ReasonSegReader(tmp_path, on_error="skip")
    assert (len(reader), reader.skipped.total()) == (2, 1)


def test_pairs_that_miss_a_file(tmp_path):
    write_reasonseg(tmp_path)
    (tmp_path / TRAIN / "100_a_o.jpg").unlink()
    (tmp_path / TRAIN / "200_b_o.json").unlink()
    with pytest.raises(BrokenRecord, match=r"its image 100_a_o\.jpg does not exist"):
        ReasonSegReader(tmp_path)
    reader = ReasonSegReader(tmp_path, on_error="skip")
    assert [sample.image_id for sample in reader] == ["300_c_o"]
    assert set(reader.skipped) == {
        "its image ... does not exist",
        "its annotation ... does not exist",
    }
    with pytest.raises(FileNotFoundError, match="somewhere does not exist"):
        ReasonSegReader(tmp_path, folder="somewhere")


def test_files_that_are_not_json(tmp_path):
    write_reasonseg(tmp_path)
    (tmp_path / TRAIN / "100_a_o.json").write_text("{")
    (tmp_path / TRAIN / "200_b_o.json").write_text("[]")
    (tmp_path / TRAIN / "300_c_o.json").write_bytes(b'{"text": "\x81\xff"}')  # of no encoding
    with pytest.raises(ValueError, match="no usable record"):
        ReasonSegReader(tmp_path, on_error="skip")


def test_a_target_that_is_wholly_ignored_is_found_when_read(tmp_path):
    write_reasonseg(tmp_path)
    edited(tmp_path, "200_b_o", shapes=[shape("ignore", (4, 4, 9, 9)), shape("target", (4, 4, 9, 9))])
    with pytest.raises(BrokenRecord, match="image 200_b_o: the targets have no pixel"):
        ReasonSegReader(tmp_path)[1]
