import json

import pytest

from dataset_fixtures.llava import conversation, write_llava
from dataset_fixtures.scenes import draw_scene
from xsam_training.data.llava import LlavaReader
from xsam_training.data.reader import BrokenRecord

PRETRAIN = {
    "annotations": "llava/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
    "images": "llava/LLaVA-Pretrain/images",
}
INSTRUCT = "llava/LLaVA-Instruct-150K/llava_v1_5_mix665k.json"


def written(root, *records) -> LlavaReader:
    (root / "records.json").write_text(json.dumps(records))
    return LlavaReader(root, annotations="records.json", images="llava/llava_images")


def pairs(sample) -> list[tuple[str, str]]:
    assert {turn.task for turn in sample.turns} == {"chat"}
    return [(turn.text, turn.answer) for turn in sample.turns]


def test_captions(tmp_path):
    write_llava(tmp_path)
    reader = LlavaReader(tmp_path, **PRETRAIN)
    assert [pairs(sample)[0][0] for sample in reader] == ["Describe it.", "Give a caption.", "What is this?"]
    shapes = draw_scene(seed=41, num_shapes=2).shapes
    assert pairs(reader[1]) == [("Give a caption.", " and ".join(f"a {shape.color} {shape.kind}" for shape in shapes))]
    assert reader[1].image.size == (96, 64)
    assert reader[1].name == f"{PRETRAIN['annotations']}, record 1 (id 000014539375)"


def test_conversations_with_and_without_image_in_any_order_of_access(tmp_path):
    write_llava(tmp_path)
    reader = LlavaReader(tmp_path)
    assert pairs(reader[2]) == [("What is the weather?", "The sky is blue, “très bleu”.")]
    assert pairs(reader[1]) == [("How is <SEG> wrïtten? 🙂", "As any other text: <SEG>, <p>.")]
    assert pairs(reader[0]) == [
        ("What stands on the ground?", "Three shapes."),
        ("Which is the largest?", "The one on the left."),
    ]
    assert [sample.image is None for sample in reader] == [False, True, False]
    assert [sample.image_id for sample in reader] == ["000000033471", "wgByO4Y_0", "000000052846"]


def test_a_question_may_lack_the_placeholder(tmp_path):
    write_llava(tmp_path)
    record = {"id": 1, "image": "coco/train2017/000000033471.jpg", "conversations": conversation("What?", "That.")}
    assert pairs(written(tmp_path, record)[0]) == [("What?", "That.")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conversations": None}, "has no list 'conversations'"),
        ({"conversations": []}, "0 messages are not pairs"),
        ({"conversations": conversation("a", "b", "c")}, "3 messages are not pairs"),
        ({"conversations": conversation("a", "b")[::-1]}, "message 0 is from 'gpt': .* must take turns"),
        ({"conversations": [{"from": "system", "value": "a"}] * 2}, "message 0 is from 'system'; possible are"),
        ({"conversations": [{"from": "human", "value": "a"}] * 2}, "message 1 is from 'human': .* must take turns"),
        ({"conversations": conversation("a", " ")}, "the text of message 1 is empty"),
        ({"conversations": conversation("<image>\n", "b")}, "the text of message 0 is empty"),
        ({"conversations": [{"from": "human"}, {"from": "gpt"}]}, "the value of message 0 is None"),
        ({"conversations": conversation("in <image> here", "b")}, "<image> stands elsewhere"),
        ({"conversations": conversation("<image><image> two", "b")}, "<image> stands elsewhere"),
        ({"conversations": conversation("a", "b", "<image>\nc", "d")}, "<image> stands elsewhere"),
        ({"image": ["a.jpg", "b.jpg"]}, "field 'image' is"),
        ({"image": ""}, "field 'image' is ''"),
        ({"image": "nowhere.jpg"}, r"llava/llava_images/nowhere\.jpg does not exist"),
        ({"image": None, "conversations": conversation("<image>\na", "b")}, "the record has no field 'image'"),
    ],
)
def test_broken_records_are_found_when_listed(tmp_path, change, message):
    write_llava(tmp_path)
    sound = {"id": "x", "image": "coco/train2017/000000033471.jpg", "conversations": conversation("a", "b")}
    with pytest.raises(BrokenRecord, match=rf"^records\.json, record 1 \(id x\): .*{message}"):
        written(tmp_path, sound, {**sound, **change})
    (tmp_path / "records.json").write_text(json.dumps([sound, {**sound, **change}, {**sound, "id": "y"}]))
    reader = LlavaReader(tmp_path, annotations="records.json", on_error="skip")
    assert [sample.image_id for sample in reader] == ["x", "y"]
    assert reader.skipped.total() == 1


@pytest.mark.parametrize("text", ["{}", "[{}", "[{} {}]", "[{},]", "[{}] {}", "", "[1,"])
def test_files_that_are_no_list(tmp_path, text):
    (tmp_path / "records.json").write_text(text)
    with pytest.raises(ValueError, match=r"records\.json is not a JSON list"):
        LlavaReader(tmp_path, annotations="records.json", on_error="skip")


def test_an_empty_list_and_a_missing_file(tmp_path):
    with pytest.raises(ValueError, match="no usable record"):
        written(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nothing\.json does not exist"):
        LlavaReader(tmp_path, annotations="nothing.json")


def test_a_file_that_changes_and_a_damaged_image_are_found_when_read(tmp_path):
    write_llava(tmp_path)
    reader = LlavaReader(tmp_path)
    (tmp_path / "llava/llava_images/coco/train2017/000000033471.jpg").write_bytes(b"no image")
    with pytest.raises(BrokenRecord, match=r"record 0 \(id 000000033471\)"):
        reader[0]
    (tmp_path / INSTRUCT).write_text("[]")
    with pytest.raises(BrokenRecord, match="must not change"):
        reader[1]


def test_records_hold_no_texts(tmp_path):
    write_llava(tmp_path)
    content = (tmp_path / INSTRUCT).read_bytes()
    for record in LlavaReader(tmp_path)._records:
        assert json.loads(content[record.start : record.start + record.length])["id"]


def test_line_ends_of_windows(tmp_path):
    write_llava(tmp_path)
    before = [pairs(sample) for sample in LlavaReader(tmp_path)]
    text = json.dumps(json.loads((tmp_path / INSTRUCT).read_text(encoding="utf-8")), indent=1, ensure_ascii=False)
    (tmp_path / INSTRUCT).write_text(text, encoding="utf-8", newline="\r\n")
    assert b"\r\n" in (tmp_path / INSTRUCT).read_bytes()
    assert [pairs(sample) for sample in LlavaReader(tmp_path)] == before


def test_names_of_images_beyond_ascii(tmp_path):
    write_llava(tmp_path)
    folder = tmp_path / "llava/llava_images"
    (folder / "coco/train2017/000000033471.jpg").rename(folder / "fjäll √.jpg")
    record = {"id": 1, "image": "fjäll √.jpg", "conversations": conversation("Où?", "Là.")}
    (tmp_path / "records.json").write_text(json.dumps([record], ensure_ascii=False), encoding="utf-8")
    (sample,) = LlavaReader(tmp_path, annotations="records.json")
    assert pairs(sample) == [("Où?", "Là.")] and sample.image.size == (96, 64)
