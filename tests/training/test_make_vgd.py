import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from dataset_fixtures.visual import write_visual
from xsam_training import make_vgd as module
from xsam_training.data.coco_visual import CocoVgdReader
from xsam_training.data.reader import BrokenRecord
from xsam_training.data.visual_prompts import draw_visual_prompts, prompt_rng
from xsam_training.make_vgd import make_vgd

INSTANCES = "vgd_seg/annotations/instances_vgd_train2017.json"


@pytest.fixture
def instances(tmp_path) -> Path:
    write_visual(tmp_path)
    return tmp_path / INSTANCES


@pytest.fixture
def many_instances(tmp_path, instances) -> Path:
    """The same scenes over and over, as other images with other annotations."""
    data = json.loads(instances.read_text())
    copies = 15
    for key in ("images", "annotations"):
        data[key] = [
            {**each, "id": each["id"] + 10**6 * copy}
            | ({"image_id": each["image_id"] + 10**6 * copy} if "image_id" in each else {})
            for copy in range(copies)
            for each in data[key]
        ]
    file = tmp_path / "many.json"
    file.write_text(json.dumps(data))
    return file


def edit(file: Path, change) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def interrupt_after(monkeypatch, parts: int) -> None:
    """Stop a run of one process once so many parts are written."""
    written = []

    def write(part, settings):
        if len(written) == parts:
            raise KeyboardInterrupt
        written.append(part)
        return write_part(part, settings)

    write_part = module._write_part
    monkeypatch.setattr(module, "_write_part", write)


def test_the_result_has_the_published_form(tmp_path, instances):
    make_vgd(instances, tmp_path / "vgd.json", num_processes=1)
    published = json.loads((tmp_path / "vgd_seg/annotations/coco_vgdseg_train.json").read_text())
    entries = json.loads((tmp_path / "vgd.json").read_text())
    # The fixture's last image, a crowd alone, has an entry without annotations there and none here.
    assert [entry["image_id"] for entry in entries] == [700001, 700002, 700003]
    for entry, expected in zip(entries, published, strict=False):
        assert list(entry) == list(expected)
        assert {key: entry[key] for key in entry if key != "annotations"} == {
            key: expected[key] for key in entry if key != "annotations"
        }
        for annotation, other in zip(entry["annotations"], expected["annotations"], strict=True):
            assert list(annotation) == list(other)
            assert list(annotation["visual_prompts"]) == list(other["visual_prompts"])
            assert annotation | {"visual_prompts": 0} == other | {"visual_prompts": 0}


def test_prompts_are_those_of_the_generator(tmp_path, instances):
    make_vgd(instances, tmp_path / "vgd.json", seed=5, num_processes=1, point_radius=3, scribble_radius=2)
    annotation = json.loads((tmp_path / "vgd.json").read_text())[1]["annotations"][2]
    mask = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(annotation["segmentation"], 64, 96))).astype(bool)
    expected = draw_visual_prompts(mask, prompt_rng(5, annotation["id"]), 3, 2).by_kind()
    for kind, prompt in expected.items():
        rle = annotation["visual_prompts"][f"{kind}_visual_prompt"]
        assert isinstance(rle["counts"], str)
        assert (coco_mask.decode(rle) == prompt).all()


def test_the_reader_reads_the_result(tmp_path, instances):
    make_vgd(instances, tmp_path / "vgd.json", num_processes=1)
    reader = CocoVgdReader(tmp_path, "vgd.json", instances=INSTANCES)
    assert [reader[index].turns[0].labels for index in range(len(reader))] == [
        ("circle", "square", "triangle"),
        ("circle", "triangle"),
        ("circle", "square"),
    ]


def test_report_counts_what_is_left_out(tmp_path, instances):
    report = make_vgd(instances, tmp_path / "vgd.json", num_processes=1)
    assert (report.images, report.images_left_out, report.annotations, report.crowds) == (3, 1, 9, 4)
    assert report.unusable == ()
    assert str(report) == "3 images with 9 annotations\nleft out: 1 images, 4 crowds, 0 unusable annotations"


def test_run_length_encodings_become_compressed(tmp_path, instances):
    def uncrowd(data):
        for annotation in data["annotations"]:
            annotation["iscrowd"] = 0

    edit(instances, uncrowd)
    make_vgd(instances, tmp_path / "vgd.json", num_processes=1)
    last = json.loads((tmp_path / "vgd.json").read_text())[3]["annotations"]
    assert [annotation["id"] for annotation in last] == [900100700004]
    expected = next(each for each in json.loads(instances.read_text())["annotations"] if each["id"] == 900100700004)
    decoded = coco_mask.decode(last[0]["segmentation"])
    assert (decoded == coco_mask.decode(coco_mask.frPyObjects(expected["segmentation"], 64, 96))).all()


def test_the_order_of_the_input_does_not_matter(tmp_path, instances):
    make_vgd(instances, tmp_path / "one.json", num_processes=1)
    edit(instances, lambda data: data["images"].reverse())
    make_vgd(instances, tmp_path / "two.json", num_processes=1, images_per_part=2)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def break_some(data):
    data["annotations"][1]["segmentation"] = [[1.0, 2.0]]
    data["annotations"][2]["id"] = "x"
    data["annotations"][4]["image_id"] = 1
    data["annotations"][5]["category_id"] = 2


def test_unusable_annotations_are_reported(tmp_path, instances):
    edit(instances, break_some)
    report = make_vgd(instances, tmp_path / "vgd.json", num_processes=1)
    assert {each.annotation_id: each.problem for each in report.unusable} == {
        70000101: "segmentation [[1.0, 2.0]] has no pixel",
        "x": "id is 'x', not an integer from 0 on",
        70000200: "image 1 is not among the images",
        70000201: "category 2 is not among the categories",
    }
    assert "annotation 70000101: segmentation [[1.0, 2.0]] has no pixel" in str(report)
    assert report.annotations == 5


def test_unusable_annotations_stop_a_run_that_can_go_on(tmp_path, instances):
    edit(instances, lambda data: data["annotations"][5].pop("segmentation"))
    with pytest.raises(BrokenRecord, match=r"annotation 70000201: segmentation None"):
        make_vgd(instances, tmp_path / "vgd.json", num_processes=1, images_per_part=1, on_error="raise")
    assert not (tmp_path / "vgd.json").exists()
    # Again: now the part is finished, and says so all the same.
    with pytest.raises(BrokenRecord, match=r"annotation 70000201"):
        make_vgd(instances, tmp_path / "vgd.json", num_processes=1, images_per_part=1, on_error="raise")
    report = make_vgd(instances, tmp_path / "vgd.json", num_processes=1, images_per_part=1)
    assert [each.annotation_id for each in report.unusable] == [70000201]


def test_an_interrupted_run_goes_on(tmp_path, many_instances, monkeypatch, capsys):
    make_vgd(many_instances, tmp_path / "straight.json", num_processes=1, images_per_part=4)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 7)
        make_vgd(many_instances, tmp_path / "resumed.json", num_processes=1, images_per_part=4)
    parts = tmp_path / "resumed.parts"
    assert not (tmp_path / "resumed.json").exists() and len(list(parts.glob("*.jsonl"))) == 7
    times = {part: part.stat().st_mtime_ns for part in parts.glob("*.jsonl")}
    with monkeypatch.context() as patch:
        # The rest, and nothing twice.
        interrupt_after(patch, 8)
        report = make_vgd(many_instances, tmp_path / "resumed.json", num_processes=1, images_per_part=4)
    assert len(times) == 7 and report.images == 45 and report.crowds == 60
    assert (tmp_path / "resumed.json").read_bytes() == (tmp_path / "straight.json").read_bytes()
    assert not parts.exists()
    assert "28/60" in capsys.readouterr().err


def test_two_processes_give_the_same_even_if_one_is_killed(tmp_path, many_instances, monkeypatch):
    make_vgd(many_instances, tmp_path / "one.json", num_processes=1, images_per_part=1)

    class KillingBar(module.tqdm):
        def update(self, n=1):
            multiprocessing.active_children()[0].kill()
            return super().update(n)

    with monkeypatch.context() as patch:
        patch.setattr(module, "tqdm", KillingBar)
        with pytest.raises(ChildProcessError, match=r"a process was killed.*of 60 parts"):
            make_vgd(many_instances, tmp_path / "two.json", num_processes=2, images_per_part=1)
    assert not (tmp_path / "two.json").exists()
    assert 1 <= len(list((tmp_path / "two.parts").glob("*.jsonl"))) < 60
    make_vgd(many_instances, tmp_path / "two.json", num_processes=2, images_per_part=1)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seed": 1}, "seed 0 instead of 1"),
        ({"point_radius": 7}, r"point_radius 10\.0 instead of 7"),
        ({"images_per_part": 3}, "images_per_part 1 instead of 3"),
    ],
)
def test_parts_of_other_settings_are_an_error(tmp_path, instances, monkeypatch, change, message):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1)
        make_vgd(instances, tmp_path / "vgd.json", num_processes=1, images_per_part=1)
    with pytest.raises(ValueError, match=f"vgd.parts holds the parts of another run, with {message}; .*delete"):
        make_vgd(instances, tmp_path / "vgd.json", num_processes=1, **{"images_per_part": 1, **change})


def test_parts_of_another_input_are_an_error(tmp_path, instances, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1)
        make_vgd(instances, tmp_path / "vgd.json", num_processes=1, images_per_part=1)
    edit(instances, lambda data: data["annotations"].pop())
    with pytest.raises(ValueError, match=r"instances_bytes .* instances_sha256"):
        make_vgd(instances, tmp_path / "vgd.json", num_processes=1, images_per_part=1)


def test_a_folder_of_something_else_is_left_alone(tmp_path, instances):
    (tmp_path / "vgd.parts").mkdir()
    (tmp_path / "vgd.parts/precious").touch()
    with pytest.raises(ValueError, match=r"not a folder of parts"):
        make_vgd(instances, tmp_path / "vgd.json", num_processes=1)
    assert (tmp_path / "vgd.parts/precious").exists()


def test_a_damaged_part_is_named(tmp_path, instances, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_after(patch, 1)
        make_vgd(instances, tmp_path / "vgd.json", num_processes=1, images_per_part=2)
    (part,) = (tmp_path / "vgd.parts").glob("*.jsonl")
    part.write_text(part.read_text().splitlines()[0] + "\n")
    with pytest.raises(ValueError, match=r"000000\.jsonl has 0 entries, not 2; delete it and run again"):
        make_vgd(instances, tmp_path / "vgd.json", num_processes=1, images_per_part=2)
    part.unlink()
    assert make_vgd(instances, tmp_path / "vgd.json", num_processes=1, images_per_part=2).images == 3


def test_an_output_that_exists_is_not_overwritten(tmp_path, instances):
    (tmp_path / "vgd.json").write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        make_vgd(instances, tmp_path / "vgd.json")
    assert (tmp_path / "vgd.json").read_text() == "mine"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"seed": -1}, "seed is -1"),
        ({"num_processes": 0}, "num_processes 0"),
        ({"images_per_part": 0}, "images_per_part 0"),
        ({"on_error": "ignore"}, "on_error is 'ignore'"),
        ({"point_radius": 0}, "point_radius 0"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_written(tmp_path, instances, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_vgd(instances, tmp_path / "vgd.json", **{"num_processes": 1, **arguments})
    assert not (tmp_path / "vgd.parts").exists()


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"images": []}', '{"images": [{}], "annotations": []}'])
def test_input_of_another_form_is_an_error(tmp_path, content):
    (tmp_path / "instances.json").write_text(content)
    with pytest.raises(ValueError, match=r"instances\.json is not COCO instance annotations"):
        make_vgd(tmp_path / "instances.json", tmp_path / "vgd.json", num_processes=1)


def test_nothing_usable_is_an_error(tmp_path, instances):
    edit(instances, lambda data: data["annotations"].clear())
    with pytest.raises(ValueError, match="nothing to write"):
        make_vgd(instances, tmp_path / "vgd.json", num_processes=1)


def test_missing_instances_are_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        make_vgd(tmp_path / "none.json", tmp_path / "vgd.json")


def test_prompts_differ_between_objects_and_seeds(tmp_path, instances):
    for seed in (0, 1):
        make_vgd(instances, tmp_path / f"{seed}.json", seed=seed, num_processes=1)
    first, second = (json.loads((tmp_path / f"{seed}.json").read_text()) for seed in (0, 1))
    points = [
        coco_mask.decode(entry["annotations"][0]["visual_prompts"]["point_visual_prompt"])
        for entry in (first[0], second[0])
    ]
    assert not np.array_equal(*points)
