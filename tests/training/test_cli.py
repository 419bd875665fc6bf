import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from dataset_fixtures.coco import write_coco_instances
from modeling_xsam import XSAMForSegmentation
from modeling_xsam.convert_xsam_to_hf import plan_conversion
from original_names import original_names
from processing_xsam import XSAMProcessor
from random_checkpoint import byte_tokenizer, save_random_checkpoint
from tiny_models import tiny_config
from xsam_training.cli import app


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_random_checkpoint(folder)
    return str(folder)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_an_overlay_and_a_table(model, photo, tmp_path):
    overlay = tmp_path / "overlay.png"
    result = run(
        "segment", photo, "--model", model, "--task", "referring", "--text", "the cup", "--output", str(overlay)
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().splitlines()[-1].startswith("the cup")
    assert Image.open(overlay).height >= 60


def test_json_has_masks_as_rle(model, photo):
    result = run("segment", photo, "--model", model, "--task", "interactive", "--point", "30,20", "--json")
    assert result.exit_code == 0, result.output
    answer = json.loads(result.stdout.strip().splitlines()[-1])
    (found,) = answer["segments"]
    assert answer["text"] is None
    assert found["label"] == "region 0"
    assert coco_mask.decode(found["mask"]).shape == (60, 90)


def test_labels_and_stuff(model, photo):
    arguments = ["--task", "generic", "--labels", "cup, spoon", "--stuff", "table", "--subtask", "semantic"]
    result = run("segment", photo, "--model", model, *arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().splitlines()[-1].split()[0] in ("cup", "spoon", "table")


def test_chat_prints_the_answer(model, photo):
    result = run("segment", photo, "--model", model, "--task", "chat", "--text", "What is this?")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "paint"], "unknown task 'paint'"),
        (["--task", "referring"], "needs this argument"),
        (["--task", "interactive", "--point", "3"], "--point 3: expected 2 numbers"),
    ],
)
def test_wrong_calls_are_named(model, photo, arguments, message):
    result = run("segment", photo, "--model", model, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.replace("│", " ").split())


def test_convert_saves_model_and_processor(tmp_path, monkeypatch):
    """The command with a tiny original: its weights are ours under the original's names."""
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    first = len(tokenizer)
    names = ("seg_token_id", "phrase_start_token_id", "phrase_end_token_id", "image_token_id", "region_token_id")
    config = tiny_config(
        text_config={**tiny_config().text_config.to_dict(), "vocab_size": first + 5},
        **{name: first + index for index, name in enumerate(names)},
    )
    torch.manual_seed(0)
    weights = original_names(XSAMForSegmentation(config).state_dict())
    assert not plan_conversion(weights, config).problems
    torch.save(weights, tmp_path / "pytorch_model.bin")
    monkeypatch.setattr("modeling_xsam.convert_xsam_to_hf._infer_config", lambda *_: (config, "phi3"))
    arguments = ["--checkpoint", str(tmp_path / "pytorch_model.bin"), "--output", str(tmp_path / "xsam")]
    result = run("convert", *arguments, "--tokenizer", str(tmp_path / "tokenizer"))
    assert result.exit_code == 0, result.output
    assert "0 missing" in result.output
    model = XSAMForSegmentation.from_pretrained(tmp_path / "xsam")
    processor = XSAMProcessor.from_pretrained(tmp_path / "xsam")
    assert processor.num_image_tokens == config.num_image_tokens
    assert processor.seg_token_id == config.seg_token_id
    inputs = processor(images=Image.new("RGB", (40, 30)), task="referring", text="a cup")
    assert model.eval().segment(**inputs).masks_queries_logits.shape[0] == 1


def test_convert_names_what_is_wrong(tmp_path):
    result = run("convert", "--checkpoint", str(tmp_path / "none.bin"), "--output", str(tmp_path / "xsam"))
    assert result.exit_code == 2
    assert "is not a file" in " ".join(result.output.replace("│", " ").split())


def test_make_vgd_draws_prompts(tmp_path):
    write_coco_instances(tmp_path)
    instances = tmp_path / "coco2017" / "annotations" / "instances_train2017.json"
    arguments = ["--instances", str(instances), "--output", str(tmp_path / "vgd.json"), "--processes", "1"]
    result = run("make-vgd", *arguments)
    assert result.exit_code == 0, result.output
    first = json.loads((tmp_path / "vgd.json").read_text())[0]["annotations"][0]
    prompt = first["visual_prompts"]["point_visual_prompt"]
    assert coco_mask.area({**prompt, "counts": prompt["counts"].encode()}) > 0
    again = run("make-vgd", *arguments)
    assert again.exit_code == 2 and "exists" in again.output
