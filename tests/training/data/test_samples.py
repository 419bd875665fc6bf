import time

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from xsam_training.data.samples import (
    Region,
    Turn,
    decode_masks,
    encode_masks,
    label_map,
    rle_from_annotation,
    run_lengths,
)

SIZE = (4, 5)


def drawn() -> np.ndarray:
    """A corner pixel, and a bar in the third column."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[0, 0] = mask[1:3, 2] = True
    return mask


def random_masks(seed: int, count: int, size: tuple[int, int], share: float) -> np.ndarray:
    return np.random.default_rng(seed).random((count, *size)) < share


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (13, 40), (70, 90)])
def test_masks_survive_encoding(size, share):
    masks = random_masks(0, 3, size, share)
    encoded = encode_masks(masks)
    decoded = decode_masks(encoded, size)
    assert decoded.dtype == bool and np.array_equal(decoded, masks)
    assert [coco_mask.area(rle) for rle in encoded] == masks.sum((1, 2)).tolist()
    assert np.array_equal(decode_masks(encode_masks(masks.astype(np.uint8)), size), masks)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # within pycocotools
def test_decoding_agrees_with_pycocotools_on_long_runs():
    rows, columns = np.mgrid[:480, :640]
    mask = (rows - 200) ** 2 + (columns - 333) ** 2 < 150**2
    (encoded,) = encode_masks(mask[None])
    assert np.array_equal(decode_masks([encoded], mask.shape)[0], coco_mask.decode([encoded])[:, :, 0])


def test_no_masks_and_a_mask_without_a_pixel():
    assert encode_masks(np.zeros((0, *SIZE), dtype=bool)) == []
    assert decode_masks([], SIZE).shape == (0, *SIZE)
    empty = encode_masks(np.zeros((1, *SIZE), dtype=bool))
    assert run_lengths(empty[0]).tolist() == [20] and not decode_masks(empty, SIZE).any()


def test_run_lengths_go_down_the_columns():
    assert run_lengths(encode_masks(drawn()[None])[0]).tolist() == [0, 1, 8, 2, 9]


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"mask of size \(4, 5\) for an image of \(height, width\) \(5, 4\)"):
        decode_masks(encode_masks(drawn()[None]), (5, 4))


@pytest.mark.parametrize("labels", [(1, 2, 3), (2, 7, 2), (5, 5, 5)])
def test_a_map_of_labels(labels):
    painted = np.random.default_rng(0).choice([0, 0, *labels], (13, 40))
    encoded = encode_masks(np.stack([painted == label for label in labels]))
    found = label_map(encoded, labels, (13, 40))
    assert found.dtype == np.int32 and np.array_equal(found, painted)
    assert np.array_equal(label_map([], [], SIZE), np.zeros(SIZE))
    assert not label_map(encode_masks(np.zeros((1, *SIZE), dtype=bool)), [3], SIZE).any()


def test_only_masks_of_one_label_may_overlap():
    whole = np.ones(SIZE, dtype=bool)
    encoded = encode_masks(np.stack([np.zeros(SIZE, dtype=bool), drawn(), whole, drawn()]))
    assert np.array_equal(label_map(encoded, (4, 2, 2, 2), SIZE), 2 * whole)
    with pytest.raises(ValueError, match="segments: number 2 and number 3 overlap"):
        label_map(encoded, (4, 2, 2, 3), SIZE, "segments")
    with pytest.raises(ValueError, match=r"mask of size \(4, 5\) for an image"):
        label_map(encoded, (4, 2, 2, 2), (5, 4))
    with pytest.raises(ValueError, match="they are damaged"):
        label_map([{"size": [4, 5], "counts": b"929P"}], [1], SIZE)


def test_ignored_areas_have_the_phrase_of_their_crowd():
    crowd, void = encode_masks(random_masks(0, 2, SIZE, 0.5))
    turn = Turn("generic", labels=("a", "b"), ignored=(crowd, void), ignored_phrases=(1, None))
    assert turn.ignored_areas == ((crowd, 1), (void, None))
    assert Turn("generic", ignored=(crowd, void)).ignored_areas == ((crowd, None), (void, None))
    with pytest.raises(ValueError, match="1 ignored_phrases for 2 ignored areas"):
        _ = Turn("generic", ignored=(crowd, void), ignored_phrases=(1,)).ignored_areas


@pytest.mark.parametrize("text", [False, True])
def test_compressed_encodings(text):
    encoded = encode_masks(drawn()[None])[0]
    counts = encoded["counts"].decode("ascii") if text else encoded["counts"]
    rle = rle_from_annotation({"size": [4, 5], "counts": counts}, SIZE)
    assert rle == {"size": [4, 5], "counts": encoded["counts"]}


def test_uncompressed_encodings():
    rle = rle_from_annotation({"size": [4, 5], "counts": [0, 1, 8, 2, 9]}, SIZE)
    assert np.array_equal(decode_masks([rle], SIZE)[0], drawn())


def test_polygons_are_united():
    left, top_right = [0, 0, 2, 0, 2, 4, 0, 4], [3, 0, 5, 0, 5, 2, 3, 2]
    expected = np.zeros(SIZE, dtype=bool)
    expected[:, :2] = expected[:2, 3:] = True
    rle = rle_from_annotation([left, top_right], SIZE)
    assert np.array_equal(decode_masks([rle], SIZE)[0], expected)
    # What has fewer than three corners, or half a corner, is no polygon.
    with_rests = rle_from_annotation([[1, 1, 3, 3], left, [0, 0, 1, 1, 2, 2, 3], top_right], SIZE)
    assert with_rests == rle


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        ([], "has no pixel"),
        ([[0, 0, 4, 4]], "has no pixel"),
        ([[1.1, 1.1, 1.2, 1.1, 1.2, 1.2]], "has no pixel"),
        ({"size": [4, 5], "counts": [20]}, "has no pixel"),
        ({"size": [5, 4], "counts": [0, 20]}, r"size \(5, 4\) for an image of \(height, width\) \(4, 5\)"),
        ({"size": [4], "counts": [0, 4]}, r"size \(4,\) for an image"),
        ({"counts": [0, 20]}, "is neither polygons nor run-length encoding"),
        ({"size": [4, 5]}, "is neither polygons"),
        ({"size": [4, 5], "counts": 7}, "is neither polygons"),
        ({"size": [4, 5], "counts": "é"}, "is neither polygons"),
        ({"size": [4, 5], "counts": [3, -2, 19]}, "is neither polygons"),
        (None, "is neither polygons"),
        (3, "is neither polygons"),
        ([3, 4], "is neither polygons"),
    ],
)
def test_what_is_no_mask_of_the_image_is_refused(segmentation, problem):
    with pytest.raises(ValueError, match=problem):
        rle_from_annotation(segmentation, SIZE)


@pytest.mark.parametrize(
    "counts",
    [
        pytest.param([0, 1, 8, 2], id="too few"),
        pytest.param([0, 1, 8, 2, 9, 1], id="too many"),
        pytest.param(b"", id="empty"),
        pytest.param(b"929P", id="cut within a number"),
        pytest.param(b"9~9", id="no digit"),
        pytest.param("zzz", id="never ends"),
        pytest.param(b"i0K", id="negative"),
    ],
)
def test_damaged_counts_are_refused(counts):
    """pycocotools decodes too few counts into pixels that are never set, and may merge them without an end."""
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"do not encode a mask of \(height, width\) \(4, 5\): they are damaged"):
        rle_from_annotation({"size": [4, 5], "counts": counts}, SIZE)
    assert time.perf_counter() - started < 5
    if isinstance(counts, bytes):
        with pytest.raises(ValueError, match="they are damaged"):
            decode_masks([{"size": [4, 5], "counts": counts}], SIZE)


@pytest.mark.parametrize(
    ("turn", "number"),
    [
        (Turn("generic", labels=("a", "b", "c"), num_things=2), 3),
        (Turn("open-vocabulary", labels=("a",)), 1),
        (Turn("referring", text="a"), 1),
        (Turn("reasoning", text="a?", answer="b"), 1),
        (Turn("grounded-conversation", answer="a dog, a cat", spans=((0, 5), (7, 12))), 2),
        (Turn("grounded-conversation", answer="nothing"), 0),
        (Turn("interactive", regions=((Region({}),),)), 1),
        (Turn("visual-grounded", regions=((Region({}), Region({})), (Region({}),)), labels=("a", "b")), 2),
        (Turn("chat", text="a", answer="b"), 0),
        (Turn("chat", text="a", answer="b", regions=((Region({}),),)), 0),
    ],
)
def test_the_number_of_phrases(turn, number):
    assert turn.num_phrases == number
