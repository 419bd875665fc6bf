import numpy as np
import pytest
from PIL import Image

from processing_xsam.visualization_xsam import PALETTE, contact_sheet, label_color, label_colors, visualize


def segment(label: str, size: tuple[int, int], box: tuple[int, int, int, int], **more) -> dict:
    mask = np.zeros((size[1], size[0]), dtype=np.uint8)
    mask[box[1] : box[3], box[0] : box[2]] = 255
    return {"label": label, "score": 0.5, "mask": Image.fromarray(mask), **more}


def test_a_label_has_the_same_colour_in_every_picture():
    assert label_color("cup") == label_color("cup")
    assert label_colors(["spoon", "cup"])["cup"] == label_color("cup") or label_color("cup") == label_color("spoon")


def test_labels_of_one_picture_have_different_colours():
    labels = [f"label {index}" for index in range(len(PALETTE))]
    assert len(set(label_colors(labels).values())) == len(PALETTE)
    assert label_colors(labels) == label_colors(labels)
    assert len(label_colors([f"label {index}" for index in range(100)])) == 100


def test_fill_contour_and_outside():
    image = Image.new("RGB", (60, 40), (100, 100, 100))
    picture = np.asarray(visualize(image, [segment("cup", image.size, (10, 10, 40, 30))], legend=False))
    color = np.array(label_color("cup"))
    assert picture.shape == (40, 60, 3)
    assert (picture[5, 5] == 100).all()
    assert (picture[10, 10] == color).all()
    assert np.abs(picture[20, 25] - (0.55 * 100 + 0.45 * color)).max() <= 1


def test_the_legend_stands_beside_the_picture():
    image = Image.new("RGB", (120, 80))
    picture = visualize(
        image, [segment("cup", image.size, (0, 0, 10, 10)), segment("cup", image.size, (20, 0, 30, 10))]
    )
    assert picture.width > 120
    panel = np.asarray(picture)[:, 120:].reshape(-1, 3)
    assert (panel == np.array(label_color("cup"))).all(1).any()


def test_the_caption_stands_below_and_its_phrases_are_coloured():
    image = Image.new("RGB", (400, 100), (0, 0, 0))
    plain = visualize(image, [], text="a cup on a table")
    coloured = visualize(image, [segment("a cup", image.size, (0, 0, 9, 9), span=(0, 5))], text="a cup on a table")
    assert plain.size == coloured.size
    assert plain.height > 100
    difference = np.asarray(plain.crop((0, 100, *plain.size))) != np.asarray(coloured.crop((0, 100, *plain.size)))
    columns = difference.any((0, 2)).nonzero()[0]
    # Only the first of the caption's letters stand on colour.
    assert len(columns) > 0
    assert columns.max() < 80


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"a mask has size \(5, 5\), but the image \(8, 8\)"):
        visualize(Image.new("RGB", (8, 8)), [segment("cup", (5, 5), (0, 0, 2, 2))])


@pytest.mark.parametrize("size", [(1, 1), (4000, 1), (1, 400)])
@pytest.mark.parametrize("number", [0, 1, 100])
def test_extreme_pictures(size, number):
    segments = [segment(f"thing {index}", size, (0, 0, 1, 1)) for index in range(number)]
    picture = visualize(Image.new("L", size), segments)
    assert picture.width >= size[0]
    assert picture.height >= size[1]


def test_a_rotated_photo_is_drawn_as_the_pipeline_reads_it(tmp_path):
    photo = Image.new("RGB", (60, 40), (100, 100, 100))
    exif = photo.getexif()
    exif[274] = 6  # turned by a quarter
    photo.save(tmp_path / "photo.jpg", exif=exif)
    picture = visualize(tmp_path / "photo.jpg", [segment("cup", (40, 60), (10, 10, 20, 30))], legend=False)
    assert picture.size == (40, 60)


def test_overlapping_fills_of_one_label_do_not_add_up():
    image = Image.new("RGB", (60, 40), (100, 100, 100))
    once = visualize(image, [segment("cup", image.size, (10, 10, 40, 30))], legend=False)
    often = visualize(image, [segment("cup", image.size, (10, 10, 40, 30))] * 9, legend=False)
    assert np.array_equal(np.asarray(once), np.asarray(often))


def test_contact_sheet():
    sheet = contact_sheet([("one", Image.new("RGB", (40, 20), (255, 0, 0)))] * 4, columns=3, width=80)
    assert sheet.width == 3 * (80 + 14) + 14
    assert (np.asarray(sheet) == np.array([255, 0, 0])).all(2).sum() == 4 * 80 * 40
    with pytest.raises(ValueError, match="`pictures` is empty"):
        contact_sheet([])
