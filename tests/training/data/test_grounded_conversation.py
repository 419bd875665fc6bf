import json

import numpy as np
import pytest

from dataset_fixtures.grounded_conversation import encoded, names, write_grounded_conversation
from dataset_fixtures.referring import box_mask
from xsam_training.data.grounded_conversation import (
    FlickrGcgReader,
    GranDfReader,
    GranDfValidationReader,
    Mention,
    OpenPsgGcgReader,
    RefCocoGcgReader,
    place_phrases,
)
from xsam_training.data.reader import BrokenRecord
from xsam_training.data.samples import decode_masks

GRAND = "gcg_seg/annotations/train/GranDf_HA_GCG_train.json"


def grounded(sample) -> list[tuple[str, np.ndarray]]:
    """The phrases of a sample with their masks, in the order of the masks."""
    (turn,) = sample.turns
    assert turn.task == "grounded-conversation"
    assert list(turn.spans) == sorted(turn.spans)
    assert set(turn.mask_phrases) == set(range(turn.num_phrases))
    masks = decode_masks(turn.masks, (sample.image.height, sample.image.width))
    return [
        (turn.answer[slice(*turn.spans[index])], mask) for index, mask in zip(turn.mask_phrases, masks, strict=True)
    ]


def check(found, expected) -> None:
    assert [phrase for phrase, _ in found] == [phrase for phrase, _ in expected]
    for (phrase, mask), (_, expected_mask) in zip(found, expected, strict=True):
        assert (mask == expected_mask).all(), phrase


def edited(root, file: str, change) -> None:
    content = json.loads((root / file).read_text())
    change(content)
    (root / file).write_text(json.dumps(content))


def test_captions_written_by_people(tmp_path):
    scenes = write_grounded_conversation(tmp_path)["grand"]
    reader = GranDfReader(tmp_path)
    assert len(reader) == 3 and not reader.dropped
    for scene, sample in zip(scenes, reader, strict=True):
        first, second, third = names(scene)
        masks = [shape.mask for shape in scene.shapes]
        assert sample.turns[0].answer == f"There are {second} and {first}. Behind them is the sky, near {third}."
        check(grounded(sample), [(second, masks[1]), (first, masks[0]), ("the sky", scene.sky), (third, masks[2])])
    assert (reader[0].name, reader[0].image_id) == (f"{GRAND}, caption 0", "sa_10010541")


def test_captions_of_psg(tmp_path):
    scenes = write_grounded_conversation(tmp_path)["psg"]
    reader = OpenPsgGcgReader(tmp_path)
    assert reader.left_out == {"no phrase with a mask": 1} and not reader.skipped
    assert [sample.image_id for sample in reader] == ["139", "141"]
    for scene, sample in zip(scenes[::2], reader, strict=True):
        check(grounded(sample), [(names(scene)[0], scene.shapes[0].mask), ("the ground", scene.ground)])


def test_captions_of_refcocog_are_searched_for_the_expressions(tmp_path):
    scenes = write_grounded_conversation(tmp_path)["refcocog"]
    reader = RefCocoGcgReader(tmp_path)
    boxes = [[box_mask(shape.box) for shape in scene.shapes] for scene in scenes]
    check(grounded(reader[0]), [("The Left Thing", boxes[0][0]), ("the middle thing", boxes[0][1])])
    # The longer expression takes the first place, the shorter one the next that is free.
    check(grounded(reader[1]), [("A thing in front", boxes[1][0]), ("a thing", boxes[1][1])])
    assert reader[1].turns[0].spans == ((0, 16), (20, 27))
    # Equal words are one phrase, and only whole words count.
    check(grounded(reader[2]), [("shapes", boxes[2][0]), ("shapes", boxes[2][1])])
    assert reader[2].turns[0].mask_phrases == (0, 0)
    assert reader.dropped == {"not in the caption": 2}


def test_captions_of_flickr(tmp_path):
    scenes = write_grounded_conversation(tmp_path)["flickr"]
    reader = FlickrGcgReader(tmp_path)
    assert len(reader) == 2 and reader.left_out == {"less than 3 words": 1}
    masks = [[shape.mask for shape in scene.shapes] for scene in scenes]
    # The annotations of a span are parts of one mask.
    check(grounded(reader[0]), [("Two shapes", masks[0][0] | masks[0][1]), ("a shape", masks[0][2])])
    # Spans count from the start of the published caption, which begins with a blank.
    assert reader[1].turns[0].answer == "A shape under the sky ."
    check(grounded(reader[1]), [("A shape", masks[1][1])])


@pytest.mark.parametrize("split", ["val", "test"])
def test_captions_for_validation(tmp_path, split):
    scenes = write_grounded_conversation(tmp_path)["val"]
    folder = "gcg_seg/annotations/val_test"
    files = {
        "annotations": f"{folder}/{split}_gcg_coco_caption_gt.json",
        "masks": f"{folder}/{split}_gcg_coco_mask_gt.json",
    }
    reader = GranDfValidationReader(tmp_path, **files)
    for scene, sample in zip(scenes, reader, strict=True):
        first, _, third = names(scene)
        check(grounded(sample), [(third, scene.shapes[2].mask), (first, scene.shapes[0].mask)])
    edited(tmp_path, files["masks"], lambda content: content["annotations"].pop())
    with pytest.raises(
        BrokenRecord,
        match=r"caption of image sa_20010543: not in the published form \(ValueError: 2 labels, but 1 masks",
    ):
        GranDfValidationReader(tmp_path, **files)


def placed(text: str, *mentions: Mention, shift: int = 0):
    places, dropped = place_phrases(text, mentions, shift)
    return [(span, len(group)) for span, group in places], dict(dropped)


def test_published_places_are_kept_and_the_longer_of_two_wins():
    text = "a red cup and a cup"
    cup, red_cup = Mention("a cup", [], (14, 19)), Mention("a red cup", [], (0, 9))
    assert placed(text, cup, red_cup) == ([((0, 9), 1), ((14, 19), 1)], {})
    red = Mention("red", [], (2, 5))
    assert placed(text, red, red_cup) == ([((0, 9), 1)], {"overlaps a longer phrase": 1})
    # Phrases may touch.
    assert placed("abcd", Mention("ab", [], (0, 2)), Mention("cd", [], (2, 4)))[0] == [((0, 2), 1), ((2, 4), 1)]
    # Equal words at two published places stay two phrases.
    both = placed("a cup, a cup", Mention("a cup", [], (0, 5)), Mention("a cup", [], (7, 12)))
    assert both == ([((0, 5), 1), ((7, 12), 1)], {})


def test_a_published_place_that_shows_other_words_is_searched_for():
    assert placed("a red cup", Mention("Cup", [], (0, 3))) == ([((6, 9), 1)], {})
    assert placed("a red cup", Mention("cup", [], (90, 93))) == ([((6, 9), 1)], {})
    assert placed("a red cup", Mention("mug", [], (6, 9))) == ([], {"not in the caption": 1})
    assert placed("a cup", Mention(" ", [], (1, 2)), Mention("", [])) == ([], {"not in the caption": 2})
    # A span may be wider than the words, and then decides between two places.
    assert placed("a cup, the cup", Mention("cup", [], (7, 14))) == ([((11, 14), 1)], {})
    # Two characters were taken from the start of the published caption.
    assert placed("cup by cup", Mention("cup", [], (9, 12)), shift=2) == ([((7, 10), 1)], {})


def test_words_with_signs_are_searched_literally():
    assert placed("A dog (brown) ran", Mention("dog (brown)", [])) == ([((2, 13), 1)], {})
    assert placed("a woman", Mention("man", [])) == ([], {"not in the caption": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caption": ' "" '}, "the caption is empty"),
        ({"caption": None}, "the caption is None, no text"),
        ({"file_name": "nowhere.jpg"}, r"GranDf_HA_images/train/nowhere\.jpg does not exist"),
        ({"groundings": None}, "not in the published form"),
        ({"groundings": {"the sky": {"rle_masks": []}}}, r"not in the published form \(KeyError: 'token_positives'"),
        ({"groundings": {"the sky": {"rle_masks": [], "token_positives": [0, 7]}}}, "phrase 'the sky' has no mask"),
        ({"groundings": {"the sky": {"rle_masks": [[5]], "token_positives": [0, 7]}}}, "neither polygons nor"),
        (
            {"groundings": {"the sky": {"rle_masks": [encoded(np.zeros((64, 96)))], "token_positives": [0, 7]}}},
            "has no pixel",
        ),
        (
            {"groundings": {"the sky": {"rle_masks": [encoded(np.ones((5, 5)))], "token_positives": [0, 7]}}},
            r"size \(5, 5\)",
        ),
    ],
)
def test_broken_captions_are_found_when_listed(tmp_path, change, message):
    write_grounded_conversation(tmp_path)
    edited(tmp_path, GRAND, lambda records: records[1].update(change))
    with pytest.raises(BrokenRecord, match=f"caption 1: .*{message}"):
        GranDfReader(tmp_path)
    reader = GranDfReader(tmp_path, on_error="skip")
    assert len(reader) == 2 and reader.skipped.total() == 1


def test_other_forms_name_what_is_broken(tmp_path):
    write_grounded_conversation(tmp_path)
    folder = "gcg_seg/annotations"
    edited(tmp_path, f"{folder}/train/RefCOCOg_GCG_train.json", lambda records: records[2].clear())
    with pytest.raises(BrokenRecord, match="caption 2: not in the published form"):
        RefCocoGcgReader(tmp_path)
    edited(
        tmp_path,
        f"{folder}/train/flickr_mergedGT_GCG_train.json",
        lambda content: content["annotations"][0].pop("sam_mask"),
    )
    with pytest.raises(BrokenRecord, match=r"caption of image 1: not in the published form \(KeyError: 'sam_mask'"):
        FlickrGcgReader(tmp_path)
    edited(tmp_path, f"{folder}/val_test/val_gcg_coco_caption_gt.json", lambda content: content["annotations"].pop(0))
    with pytest.raises(
        BrokenRecord, match=r"caption of image sa_20010541: not in the published form \(ValueError: there is none"
    ):
        GranDfValidationReader(tmp_path)


def test_an_image_of_another_size_is_found_when_read(tmp_path):
    scenes = write_grounded_conversation(tmp_path)["grand"]
    reader = GranDfReader(tmp_path)
    scenes[0].image.resize((48, 32)).save(tmp_path / "gcg_seg/images/GranDf_HA_images/train/sa_10010541.jpg")
    with pytest.raises(
        BrokenRecord, match=r"caption 0: the image has \(height, width\) \(32, 48\), but is annotated as \(64, 96\)"
    ):
        reader[0]
