import logging

import pytest
from PIL import Image

from xsam_training.data.reader import NAMED_PROBLEMS, BrokenRecord, SampleReader
from xsam_training.data.samples import AnnotatedSample, Turn


class ListReader(SampleReader[str]):
    """Images that a JSON list names; an entry that is no text is broken when listed."""

    def records(self):
        for place, name in enumerate(self.read_json("list.json")):
            if isinstance(name, str):
                yield name
            else:
                self.broken(self.root / "list.json", f"record {place}", f"{name} in a/b{place}.json is no name")

    def read(self, record):
        return AnnotatedSample(self.read_image(record, f"image {record}"), (Turn("chat"),), record)


@pytest.fixture
def root(tmp_path):
    Image.new("RGB", (3, 2), (10, 20, 30)).save(tmp_path / "a.png")
    Image.new("L", (5, 4)).save(tmp_path / "b.png")
    return tmp_path


def write_list(root, text: str) -> None:
    (root / "list.json").write_text(text, encoding="utf-8")


def test_sound_records(root):
    write_list(root, '["a.png", "b.png"]')
    reader = ListReader(root)
    assert len(reader) == 2 and [sample.name for sample in reader] == ["a.png", "b.png"]
    assert (reader[1].image.mode, reader[1].image.size) == ("RGB", (5, 4))
    assert reader[-1].name == "b.png" and not reader.skipped
    with pytest.raises(IndexError):
        reader[2]


def test_raise_stops_at_the_first_broken_record(root):
    write_list(root, '["a.png", 5, 6]')
    with pytest.raises(BrokenRecord) as raised:
        ListReader(root)
    assert str(raised.value) == "list.json, record 1: 5 in a/b1.json is no name"
    assert raised.value.problem == "5 in a/b1.json is no name"


def test_skip_counts_by_kind_and_names_the_first(root, caplog):
    write_list(root, '["a.png", 1, 2, null, 4, "b.png", 5, 6, 7]')
    with caplog.at_level(logging.WARNING, logger="xsam_training"):
        reader = ListReader(root, on_error="skip")
    assert [sample.name for sample in reader] == ["a.png", "b.png"]
    assert reader.skipped == {"... in ... is no name": 6, "None in ... is no name": 1}
    assert len(caplog.messages) == NAMED_PROBLEMS
    assert caplog.messages[0] == "skipped: list.json, record 1: 1 in a/b1.json is no name"


def test_kinds_keep_suffixes_that_are_no_files(root):
    write_list(root, '["a.png"]')
    reader = ListReader(root, on_error="skip")
    reader.broken("list.json", 0, "img_7.png has no map (.png, .jpg) but 12.5 % in maps/img_7")
    assert list(reader.skipped) == ["... has no map (.png, .jpg) but ... % in ..."]


def test_no_usable_record(root):
    write_list(root, "[1, 2]")
    with pytest.raises(
        ValueError, match=r"ListReader found no usable record; skipped: \{'\.\.\. in \.\.\. is no name': 2\}"
    ):
        ListReader(root, on_error="skip")


def test_on_error_has_two_values(root):
    with pytest.raises(ValueError, match="on_error is 'ignore'; possible are 'raise' and 'skip'"):
        ListReader(root, on_error="ignore")


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_files_that_are_missing_or_no_json(root, on_error):
    with pytest.raises(FileNotFoundError, match=r"list\.json does not exist; see training/README\.md"):
        ListReader(root, on_error=on_error)
    for text in ("", '["a.png"', "<html>"):
        write_list(root, text)
        with pytest.raises(ValueError, match=r"list\.json is not JSON"):
            ListReader(root, on_error=on_error)
    (root / "list.json").write_bytes(b'["\xe9.png"]')
    with pytest.raises(ValueError, match=r"list\.json is not JSON"):
        ListReader(root, on_error=on_error)


@pytest.mark.parametrize("content", [None, b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_images_that_are_missing_or_damaged(root, content):
    write_list(root, '["b.png"]')
    (root / "b.png").unlink()
    if content is not None:
        (root / "b.png").write_bytes(content)
    with pytest.raises(BrokenRecord, match=r"^b\.png, image b\.png: .+"):
        ListReader(root)[0]


def test_an_image_of_another_size_than_annotated(root):
    write_list(root, '["b.png"]')
    reader = ListReader(root)
    assert reader.read_image("b.png", "image b", size=(4, 5)).size == (5, 4)
    message = r"^b\.png, image b: the image has \(height, width\) \(4, 5\), but is annotated as \(5, 4\)$"
    with pytest.raises(BrokenRecord, match=message):
        reader.read_image("b.png", "image b", size=(5, 4))


def test_json_in_one_of_several_encodings(root):
    write_list(root, '["a.png"]')
    reader = ListReader(root)
    for encoding in ("utf-8", "utf-8-sig", "cp1252"):
        (root / "list.json").write_text('["é"]', encoding=encoding)
        assert reader.read_json("list.json", ("utf-8-sig", "cp1252")) == ["é"]
    (root / "list.json").write_bytes(b'["\x81"]')  # neither
    with pytest.raises(ValueError, match=r"list\.json is not JSON"):
        reader.read_json("list.json", ("utf-8-sig", "cp1252"))


def test_an_image_that_is_cut_off(root):
    write_list(root, '["a.jpg"]')
    Image.effect_noise((64, 64), 50).save(root / "a.jpg")
    content = (root / "a.jpg").read_bytes()
    (root / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(BrokenRecord, match=r"^a\.jpg, image a\.jpg: "):
        ListReader(root)[0]


def test_files_in_messages_start_from_the_root(root):
    write_list(root, '["a.png"]')
    reader = ListReader(root)
    assert reader.relative(root / "x" / "y.json") == "x/y.json"
    assert reader.relative("x/y.json") == "x/y.json"
    assert reader.relative("/elsewhere/y.json") == "/elsewhere/y.json"
