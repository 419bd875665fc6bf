from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_fixtures.class_maps import (
    CLASSES,
    THINGS,
    UNLABELLED,
    UNLABELLED_WIDTH,
    camvid_name,
    class_map,
    write_class_maps,
)
from xsam_training.data.class_maps import ClassMapReader
from xsam_training.data.reader import BrokenRecord, CategoryReader, SampleReader
from xsam_training.data.samples import decode_masks

TRAIN = {"images": "camvid/train", "annotations": "camvid/trainannot"}
FIRST = f"camvid/trainannot/{camvid_name(0)}.png"
CAMVID = Path(__file__).resolve().parents[4] / "shared/data"


def camvid(root, **changes) -> ClassMapReader:
    return ClassMapReader(
        root, **{**TRAIN, "classes": CLASSES, "things": THINGS, "ignore_value": UNLABELLED, **changes}
    )


def test_one_mask_per_class(tmp_path):
    scenes = write_class_maps(tmp_path)
    for split in ("train", "val"):
        reader = camvid(tmp_path, images=f"camvid/{split}", annotations=f"camvid/{split}annot")
        for place, (scene, sample) in enumerate(zip(scenes[split], reader, strict=True)):
            (turn,) = sample.turns
            assert (turn.task, turn.num_things) == ("generic", 3)
            assert turn.labels == ("car", "pedestrian", "bicyclist", *CLASSES[:8])
            values = class_map(place, scene)
            present = [CLASSES.index(turn.labels[phrase]) for phrase in turn.mask_phrases]
            assert present == sorted(set(values.ravel().tolist()) - {UNLABELLED})
            assert np.array_equal(decode_masks(turn.masks, (64, 96)), [values == value for value in present])
            assert len(turn.ignored) == (place == 0)
            assert sample.image_id == camvid_name(place)
        (unlabelled,) = decode_masks(reader[0].turns[0].ignored, (64, 96))
        assert unlabelled[:, :UNLABELLED_WIDTH].all() and not unlabelled[:, UNLABELLED_WIDTH:].any()
    assert reader[0].name == "camvid/valannot, image 0001TP_006690"


def test_labels_are_known_without_reading_an_image(tmp_path, monkeypatch):
    write_class_maps(tmp_path)
    reader = camvid(tmp_path)
    expected = [sample.turns[0].labels for sample in reader]
    monkeypatch.setattr(SampleReader, "read_image", None)
    assert isinstance(reader, CategoryReader)
    assert reader.labels == ("car", "pedestrian", "bicyclist", *CLASSES[:8]) and set(expected) == {reader.labels}


def test_classes_in_a_file_offset_and_task(tmp_path):
    write_class_maps(tmp_path)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES) + "\n\n")
    expected = camvid(tmp_path, things=())[0].turns[0]
    values = np.asarray(Image.open(tmp_path / FIRST))
    # Unlabelled is 0 here, the first class 7, and the map has 16 bits.
    shifted = np.where(values == UNLABELLED, 0, values.astype(np.uint16) + 7)
    Image.fromarray(shifted.astype(np.uint16)).save(tmp_path / FIRST)
    reader = camvid(
        tmp_path, classes="classes.txt", things=(), offset=7, ignore_value=0, task="open-vocabulary", on_error="skip"
    )
    (turn,) = reader[0].turns
    assert turn.task == "open-vocabulary"
    assert (turn.labels, turn.masks, turn.mask_phrases) == (expected.labels, expected.masks, expected.mask_phrases)
    assert turn.ignored == expected.ignored


def test_palettes_are_read_as_indices(tmp_path):
    write_class_maps(tmp_path)
    expected = camvid(tmp_path)[0].turns
    palette = Image.open(tmp_path / FIRST)
    palette.putpalette(np.random.default_rng(0).integers(0, 256, 768, dtype=np.uint8).tobytes())
    assert palette.mode == "P"
    palette.save(tmp_path / FIRST)
    assert camvid(tmp_path)[0].turns == expected


def test_subfolders_and_a_map_without_any_class(tmp_path):
    write_class_maps(tmp_path)
    for folder, suffix in (("train", "jpg"), ("trainannot", "png")):
        (tmp_path / f"camvid/{folder}/a").mkdir()
        file = f"{camvid_name(0)}.{suffix}"
        (tmp_path / f"camvid/{folder}/{file}").rename(tmp_path / f"camvid/{folder}/a/{file}")
    Image.new("L", (96, 64), UNLABELLED).save(tmp_path / f"camvid/trainannot/a/{camvid_name(0)}.png")
    reader = camvid(tmp_path)
    assert [sample.image_id for sample in reader] == [camvid_name(1), camvid_name(2), f"a/{camvid_name(0)}"]
    (turn,) = reader[2].turns
    assert turn.masks == turn.mask_phrases == () and decode_masks(turn.ignored, (64, 96)).all()


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (Image.new("L", (96, 64), 12), "has the value 12; classes are 0 to 10, 11 is ignored: set `classes`"),
        (Image.new("RGB", (96, 64)), "has mode RGB; a class map has one channel or a palette"),
        (Image.new("L", (64, 96)), r"is \(64, 96\) \(width, height\), its image \(96, 64\)"),
    ],
)
def test_maps_that_cannot_be_used(tmp_path, image, problem):
    write_class_maps(tmp_path)
    image.save(tmp_path / FIRST)
    with pytest.raises(
        BrokenRecord, match=f"camvid/trainannot, image {camvid_name(0)}: {camvid_name(0)}.png {problem}"
    ):
        camvid(tmp_path)[0]


def test_damaged_maps(tmp_path):
    write_class_maps(tmp_path)
    (tmp_path / FIRST).write_bytes((tmp_path / FIRST).read_bytes()[:60])
    with pytest.raises(BrokenRecord, match=f"{camvid_name(0)}.png cannot be read"):
        camvid(tmp_path)[0]


def test_files_without_a_partner(tmp_path):
    write_class_maps(tmp_path)
    (tmp_path / FIRST).unlink()
    (tmp_path / f"camvid/train/{camvid_name(1)}.jpg").unlink()
    (tmp_path / "camvid/train/notes.txt").write_text("no image")
    with pytest.raises(BrokenRecord, match=f"image {camvid_name(0)}: there is no class map"):
        camvid(tmp_path)
    reader = camvid(tmp_path, on_error="skip")
    assert [sample.image_id for sample in reader] == [camvid_name(2)]
    assert sorted(reader.skipped) == [
        "there is no class map (.png) for it",
        "there is no image (.jpg, .jpeg, .png) for it",
    ]
    Image.new("RGB", (96, 64)).save(tmp_path / f"camvid/train/{camvid_name(2)}.png")
    with pytest.raises(ValueError, match="no usable record"):
        camvid(tmp_path, on_error="skip")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"classes": ()}, "classes: .* is empty"),
        ({"classes": ("car", " ")}, "classes: .* has an empty name"),
        ({"classes": ("car", "sky", "car")}, r"classes: \['car'\] stand there more than once"),
        ({"things": ("van",)}, r"things: \['van'\] are not among the classes sky, building"),
        ({"ignore_value": 8}, "ignore_value is also the value of the class 'car'"),
        ({"task": "chat"}, "task is 'chat'"),
    ],
)
def test_arguments_that_contradict_each_other(tmp_path, changes, problem):
    write_class_maps(tmp_path)
    with pytest.raises(ValueError, match=problem):
        camvid(tmp_path, **changes)


def test_missing_folders_and_files(tmp_path):
    write_class_maps(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"camvid/none does not exist; see training/README.md"):
        camvid(tmp_path, images="camvid/none")
    with pytest.raises(FileNotFoundError, match=r"names.txt does not exist; it is to hold the name of a class"):
        camvid(tmp_path, classes="names.txt")


@pytest.mark.skipif(not (CAMVID / "camvid").is_dir(), reason="CamVid is not there")
def test_camvid():
    reader = camvid(CAMVID, images="camvid/val", annotations="camvid/valannot")
    assert len(reader) == 101
    sample = reader[0]
    (turn,) = sample.turns
    covered = decode_masks((*turn.masks, *turn.ignored), (sample.image.height, sample.image.width)).sum(0)
    assert (
        sample.image.size == (480, 360)
        and (covered == 1).all()
        and "road" in [turn.labels[phrase] for phrase in turn.mask_phrases]
    )
