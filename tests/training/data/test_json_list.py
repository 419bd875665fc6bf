import json

import pytest

from xsam_training.data import json_list
from xsam_training.data.json_list import Place, locate_values, read_value

VALUES = [{"image": "Fjäll/√.jpg"}, [1, [2, "]"]], 'ein "Wort", 🙂', 1234, {}, None, -5.25e3]


def written(tmp_path, content: str | bytes):
    file = tmp_path / "list.json"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@pytest.mark.parametrize("ensure_ascii", [True, False])
@pytest.mark.parametrize("line_end", [None, "\n", "\r\n"])
@pytest.mark.parametrize("chunk", [1, 2, 7, 100, 1 << 24])
def test_values_and_their_places(tmp_path, monkeypatch, chunk, line_end, ensure_ascii):
    monkeypatch.setattr(json_list, "CHUNK", chunk)
    text = json.dumps(VALUES, ensure_ascii=ensure_ascii, indent=line_end and 2)
    file = written(tmp_path, f" \t{text} \n".replace("\n", line_end or " "))
    found = list(locate_values(file))
    assert [value for _, value in found] == VALUES
    assert [place.index for place, _ in found] == list(range(len(VALUES)))
    assert [read_value(file, place) for place, _ in reversed(found)] == VALUES[::-1]


def test_places_are_bytes(tmp_path):
    file = written(tmp_path, '["√",\r\n {"é": 1}]')
    assert list(locate_values(file)) == [(Place(0, 1, 5), "√"), (Place(1, 10, 9), {"é": 1})]


@pytest.mark.parametrize("chunk", [1, 1 << 24])
def test_an_empty_list(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_list, "CHUNK", chunk)
    assert list(locate_values(written(tmp_path, "\r\n[ ]\r\n"))) == []


@pytest.mark.parametrize("chunk", [1, 1 << 24])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"expected '\[' at byte 0, found ''"),
        ('{"a": 1}', r"expected '\[' at byte 0, found '{"),
        ("[{}", "expected ',' at byte 3, found ''"),
        ("[{} {}]", "expected ',' at byte 4, found '{"),
        ("[,{}]", "in or after byte 1: Expecting value"),
        ("[{},]", "in or after byte 4: Expecting value"),
        ('[{"é": 1},\r\n {"a": ', "in or after byte 14: Expecting value"),
        ('["a]', "in or after byte 1: Unterminated string"),
        ("[{}] {}", "it goes on after the list, at byte 5"),
        (b'[1, "\xe9"]', "byte 5 is no UTF-8"),
    ],
)
def test_files_that_are_no_list(tmp_path, monkeypatch, chunk, content, message):
    monkeypatch.setattr(json_list, "CHUNK", chunk)
    with pytest.raises(ValueError, match=rf"list\.json is not a JSON list: {message}"):
        list(locate_values(written(tmp_path, content)))


def test_a_value_that_never_ends_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(json_list, "CHUNK", 10)
    monkeypatch.setattr(json_list, "LONGEST_VALUE", 50)
    file = written(tmp_path, '["' + "x" * 100 + '"]')
    with pytest.raises(ValueError, match="in or after byte 1: Unterminated string"):
        list(locate_values(file))


def test_values_come_before_what_is_wrong_after_them(tmp_path):
    values = locate_values(written(tmp_path, "[1, 2"))
    assert [next(values)[1], next(values)[1]] == [1, 2]
    with pytest.raises(ValueError, match="expected ','"):
        next(values)


def test_a_file_that_has_changed(tmp_path):
    file = written(tmp_path, '[{"a": 1}]')
    ((place, _),) = locate_values(file)
    file.write_text("[]")
    with pytest.raises(ValueError):
        read_value(file, place)
