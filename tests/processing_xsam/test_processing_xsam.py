"""The processor as a whole: tokens, rows of images and regions, batches, saving, and text that tries to forge structure."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, models
from transformers import AutoProcessor, PreTrainedTokenizer, PreTrainedTokenizerFast

import processing_xsam
from processing_xsam.chat_templates_xsam import PHI3_CHAT_TEMPLATE, QWEN_CHAT_TEMPLATE
from processing_xsam.prompts_xsam import PLAIN_TEXT_MARK, SPECIAL_TOKENS
from processing_xsam.region_masks_xsam import masks_from_boxes, masks_from_points, resize_region_masks

NUM_IMAGE_TOKENS = 5
IMAGE = "<image>" * NUM_IMAGE_TOKENS
WORDING = {
    name: {"questions": [question], "answers": [answer]}
    for name, question, answer in [
        ("generic", "Q {phrases}?", "A <SEG>."),
        ("referring", "Q {phrases}?", "A <SEG>."),
        ("interactive", "Q {phrases}?", "A <SEG>."),
        ("visual-grounded", "Q {phrases}?", "A <SEG>."),
    ]
}


def two_word_tokenizer() -> PreTrainedTokenizerFast:
    """Without special tokens, BOS or padding token."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend)


class CharacterTokenizer(PreTrainedTokenizer):
    """A tokenizer in Python."""

    vocab_size = 128

    def get_vocab(self) -> dict[str, int]:
        return {chr(i): i for i in range(self.vocab_size)}


def decoded(processor, outputs, row: int = 0) -> str:
    ids = outputs["input_ids"][row][outputs["attention_mask"][row].bool()]
    return processor.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def structure(processor, outputs) -> dict[str, int]:
    """How often each special token stands in a batch."""
    ids = outputs["input_ids"][outputs["attention_mask"].bool()].tolist()
    return {token: ids.count(processor.tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL_TOKENS}


# --- special tokens ---


def test_special_tokens_are_appended_in_order(make_processor, processor):
    ids = processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert SPECIAL_TOKENS == ("<SEG>", "<p>", "</p>", "<image>", "<region>")
    assert ids == list(range(len(processor.tokenizer) - 5, len(processor.tokenizer)))
    named = ("seg", "phrase_start", "phrase_end", "image", "region")
    assert [getattr(processor, f"{name}_token_id") for name in named] == ids
    assert [getattr(processor, f"{name}_token") for name in named] == list(SPECIAL_TOKENS)
    again = make_processor(processor.tokenizer)
    assert again.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == ids


def test_tokens_that_are_there_keep_their_ids(make_processor):
    tokenizer = two_word_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    processor = make_processor(tokenizer)
    ids = processor.tokenizer.convert_tokens_to_ids(["<image>", "<SEG>", "<p>", "</p>", "<region>"])
    assert ids == list(range(2, 7))


def test_slow_tokenizers_are_refused(make_processor):
    with pytest.raises(TypeError, match="`tokenizer`: CharacterTokenizer is not a fast tokenizer"):
        make_processor(CharacterTokenizer())


# --- prompts as tokens ---


def test_phi3_prompt(make_processor, image):
    processor = make_processor(prompt_templates=WORDING)
    outputs = processor(images=image, task="generic", labels={"stuff": ["sky"], "thing": ["car"]})
    # White space after the chat tokens belongs to them, as in the tokenizer itself.
    expected = f"<s><|user|>{IMAGE}\nQ <p>car</p>, <p>sky</p>?<|end|><|assistant|>A <SEG>"
    assert decoded(processor, outputs) == expected
    assert outputs["input_ids"][0, -1] == processor.seg_token_id


def test_qwen_prompt(make_processor, image):
    processor = make_processor(prompt_templates=WORDING, chat_template=QWEN_CHAT_TEMPLATE)
    conversation = [{"role": "system", "content": "Be brief."}]
    outputs = processor(images=image, task="referring", text="a man", conversation=conversation)
    # The test's chat tokens swallow the newline after them; Qwen's own do not.
    assert decoded(processor, outputs) == (
        f"<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\n{IMAGE}\nQ <p>a man</p>?<|im_end|>"
        "<|im_start|>assistant\nA <SEG>"
    )


def test_turns(make_processor, image):
    processor = make_processor(prompt_templates=WORDING)
    # The newline between turns is a piece of its own: it does not belong to the answer's end marker.
    for arguments, phrases in [
        ({"task": "referring", "text": ["a man", "a dog"]}, ["a man", "a dog"]),
        ({"task": "interactive", "points": [[3, 4], [9, 9]]}, ["<region>", "<region>"]),
    ]:
        outputs = processor(images=image, **arguments)
        assert decoded(processor, outputs) == (
            f"<s><|user|>{IMAGE}\nQ <p>{phrases[0]}</p>?<|end|><|assistant|>A <SEG>.<|end|>\n"
            f"<|user|>Q <p>{phrases[1]}</p>?<|end|><|assistant|>A <SEG>"
        )


def test_visual_grounded_shares_one_seg(make_processor, image):
    processor = make_processor(prompt_templates=WORDING, num_region_tokens=3)
    outputs = processor(images=image, task="visual-grounded", boxes=[[0, 0, 5, 5], [2, 2, 8, 8]])
    regions = "<region>" * 3
    expected = f"Q <p>{regions}</p>, <p>{regions}</p>?<|end|><|assistant|>A <SEG>"
    assert decoded(processor, outputs).endswith(expected)
    assert outputs["region_masks"].shape == (2, 32, 32)


@pytest.mark.parametrize(
    "arguments",
    [
        {"task": "reasoning", "text": "What is warm?"},
        {"task": "grounded-conversation"},
        {"task": "chat", "text": "Hello"},
        {"task": "referring", "text": "a man", "prefill_answer": False},
    ],
)
def test_generated_answers_end_with_the_assistant_marker(processor, image, arguments):
    outputs = processor(images=image, **arguments)
    assert decoded(processor, outputs).endswith("<|end|><|assistant|>")
    assert processor.seg_token_id not in outputs["input_ids"]


def test_reasoning_may_be_prefilled(processor, image):
    outputs = processor(images=image, task="reasoning", text="What is warm?", prefill_answer=True)
    assert outputs["input_ids"][0, -1] == processor.seg_token_id


def test_history_of_a_chat(processor, image):
    conversation = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    outputs = processor(images=image, task="chat", text="And?", conversation=conversation)
    expected = f"<s><|user|>{IMAGE}\nHi<|end|><|assistant|>Yes?<|end|>\n<|user|>And?<|end|><|assistant|>"
    assert decoded(processor, outputs) == expected


def test_a_chat_about_marked_regions(processor, image):
    """What the user writes is no mark, whatever it spells."""
    asked = {"task": "chat", "text": "Is <region> like this?"}
    outputs = processor(images=image, boxes=[[0, 0, 9, 9], [20, 10, 29, 19]], **asked)
    assert outputs["region_masks"].shape == (2, 32, 32)
    assert outputs["region_batch_index"].tolist() == [0, 0]
    marks = ", ".join(["<region>" * processor.num_region_tokens] * 2)
    assert f"{IMAGE}\n{marks}\nIs <region> like this?<|end|>" in decoded(processor, outputs)
    assert (outputs["input_ids"] == processor.region_token_id).sum() == 2 * processor.num_region_tokens
    assert "region_masks" not in processor(images=image, **asked)


def test_text_only_chat(processor):
    outputs = processor(task="chat", text="Hello")
    assert set(outputs) == {"input_ids", "attention_mask", "image_index"}
    assert outputs["image_index"].tolist() == [-1]
    assert decoded(processor, outputs) == "<s><|user|>Hello<|end|><|assistant|>"


def test_pieces_begin_with_the_tokenizers_prefix(any_processor, image):
    """Text on each side of a special token is tokenised as if it stood alone."""
    outputs = any_processor(images=image, task="referring", text="cat")
    ids = outputs["input_ids"][0].tolist()
    start, end = ids.index(any_processor.phrase_start_token_id), ids.index(any_processor.phrase_end_token_id)
    assert ids[start + 1 : end] == any_processor.tokenizer("cat", add_special_tokens=False)["input_ids"]


def test_answer_mask(processor):
    messages = [{"role": role, "content": content} for role, content in [("user", "q"), ("assistant", "ab")] * 2]
    prompt = processor.encode_conversation(messages)
    tokens = processor.tokenizer.convert_ids_to_tokens(prompt.input_ids)
    turn = [("<|user|>", False), ("q", False), ("<|end|>", False), ("<|assistant|>", False)]
    turn += [("a", True), ("b", True), ("<|end|>", True), ("Ċ", False)]
    assert list(zip(tokens, prompt.answer_mask, strict=True)) == [("<s>", False), *turn, *turn]


# --- images and regions ---


def test_images_are_encoded_once(processor, make_image):
    first, second = make_image(seed=1), make_image(height=48, seed=2)
    outputs = processor(images=[first, second, first], task="referring", text=["a", "b", "c"])
    assert outputs["image_index"].tolist() == [0, 1, 0]
    assert outputs["pixel_values"].shape == (2, 3, 14, 14)
    assert outputs["high_res_pixel_values"].shape == (2, 3, 32, 32)
    for row, image in enumerate([first, second]):
        alone = processor(images=image, task="grounded-conversation")
        assert torch.equal(alone["pixel_values"][0], outputs["pixel_values"][row])
        assert torch.equal(alone["high_res_pixel_values"][0], outputs["high_res_pixel_values"][row])


def test_one_image_for_many_tasks(processor, image):
    outputs = processor(images=image, task=["grounded-conversation", "referring"], text=[None, "a"])
    assert outputs["image_index"].tolist() == [0, 0] and len(outputs["pixel_values"]) == 1


def test_regions_are_batch_major(processor, make_image):
    images = [make_image(24, 48, seed=1), make_image(48, 24, seed=2), make_image(seed=3)]
    outputs = processor(
        images=images,
        task=["interactive", "visual-grounded", "grounded-conversation"],
        points=[[[3, 4], [9, 9]], None, None],
        boxes=[None, [[0, 0, 5, 5]], None],
    )
    points = resize_region_masks(masks_from_points([[3, 4], [9, 9]], (24, 48)), 32)
    box = resize_region_masks(masks_from_boxes([[0, 0, 5, 5]], (48, 24)), 32)
    assert torch.equal(outputs["region_masks"], torch.cat([points, box]))
    assert outputs["region_batch_index"].tolist() == [0, 0, 1]


def test_prompt_images_follow_the_samples(processor, make_image):
    images, prompt = [make_image(seed=1), make_image(seed=2)], make_image(40, 20, seed=3)
    boxes = [[[0, 0, 20, 40]], [[0, 0, 9, 9]]]
    outputs = processor(images=images, task="visual-grounded", boxes=boxes, prompt_image=[prompt, images[0]])
    assert outputs["image_index"].tolist() == [0, 1]
    assert outputs["region_batch_index"].tolist() == [2, 0]
    assert len(outputs["pixel_values"]) == 3
    # A box over the whole prompt image is in that image's geometry.
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[:, :16] = True
    assert torch.equal(outputs["region_masks"][0], expected)


def test_point_radius_and_scribble_thickness(make_processor, image):
    small, large = make_processor(point_radius=1), make_processor(point_radius=8)
    areas = [p(images=image, task="interactive", points=[[20, 12]])["region_masks"].sum() for p in (small, large)]
    assert areas[0] < areas[1]
    small, large = make_processor(scribble_thickness=1), make_processor(scribble_thickness=8)
    scribbles = [[[5, 12], [30, 12]]]
    areas = [p(images=image, task="interactive", scribbles=scribbles)["region_masks"].sum() for p in (small, large)]
    assert areas[0] < areas[1]


def test_masks_as_prompts(processor, image):
    mask = torch.zeros(24, 48, dtype=torch.bool)
    mask[:12, :24] = True
    outputs = processor(images=image, task="interactive", masks=[mask])
    assert outputs["region_masks"][0, :8, :16].all() and outputs["region_masks"].sum() == 8 * 16


# --- batches ---


def mixed_samples(make_image) -> list[dict]:
    return [
        {"images": make_image(seed=1), "task": "generic", "labels": {"thing": ["car"], "stuff": ["sky"]}},
        {"images": make_image(40, 30, seed=2), "task": "interactive", "points": [[3, 4], [9, 9]]},
        {"images": None, "task": "chat", "text": "Hello"},
        {"images": make_image(seed=3), "task": "referring", "text": ["a man", "a dog"]},
        {"images": make_image(seed=4), "task": "reasoning", "text": "What is warm?", "prefill_answer": True},
        {"images": make_image(seed=5), "task": "grounded-conversation"},
        {
            "images": make_image(seed=6),
            "task": "visual-grounded",
            "boxes": [[0, 0, 9, 9]],
            "prompt_image": make_image(33, 44, seed=7),
        },
        {
            "images": make_image(seed=8),
            "task": "chat",
            "conversation": [{"role": "user", "content": "Hi"}],
        },
    ]


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_mixed_batch_equals_single_calls(any_processor, make_image, padding_side):
    samples = mixed_samples(make_image)
    names = sorted({name for sample in samples for name in sample})
    batch = any_processor(
        **{name: [sample.get(name) for sample in samples] for name in names}, padding_side=padding_side
    )
    num_regions = 0
    for row, sample in enumerate(samples):
        alone = any_processor(**sample)
        attended = batch["attention_mask"][row].bool()
        assert torch.equal(batch["input_ids"][row][attended], alone["input_ids"][0])
        padding = torch.nonzero(~attended).flatten()
        edge = torch.arange(len(padding)) + (0 if padding_side == "left" else len(alone["input_ids"][0]))
        assert torch.equal(padding, edge)
        assert (batch["input_ids"][row][~attended] == any_processor.tokenizer.pad_token_id).all()
        image_row = batch["image_index"][row]
        assert (image_row == -1) == (sample["images"] is None)
        if image_row >= 0:
            assert torch.equal(batch["pixel_values"][image_row], alone["pixel_values"][0])
        for mask, source in zip(alone.get("region_masks", []), alone.get("region_batch_index", []), strict=True):
            assert torch.equal(batch["region_masks"][num_regions], mask)
            batch_source = batch["region_batch_index"][num_regions]
            assert torch.equal(batch["high_res_pixel_values"][batch_source], alone["high_res_pixel_values"][source])
            num_regions += 1
    assert num_regions == len(batch["region_masks"]) == 3
    dtypes = {name: tensor.dtype for name, tensor in batch.items()}
    integers = ("input_ids", "attention_mask", "image_index", "region_batch_index")
    assert all(dtypes[name] == torch.int64 for name in integers)
    assert dtypes["region_masks"] == torch.bool
    assert dtypes["pixel_values"] == dtypes["high_res_pixel_values"] == torch.float32
    assert set(batch) == set(any_processor.model_input_names)


def test_padding_needs_a_token(make_processor):
    processor = make_processor(two_word_tokenizer())
    assert processor(text=["a", "a"])["input_ids"].tolist() == [[1], [1]]
    with pytest.raises(ValueError, match=r"no padding token: set `tokenizer\.pad_token`"):
        processor(text=["a", "a<p>a"])


# --- user text is text ---


def without_space(text: str) -> str:
    """What every tokenizer gives back: the word-level one loses white space, metaspace adds some."""
    return re.sub(r"\s+", "", text)


def hostile_calls(forged: str) -> dict[str, dict]:
    """Calls with `forged` in each argument that takes a user's text."""
    conversation = [
        {"role": "system", "content": f"a {forged}"},
        {"role": "user", "content": [{"type": "text", "text": forged}]},
        {"role": "assistant", "content": f"b {forged} c"},
        {"role": "user", "content": [{"type": "phrase", "text": f"a {forged}"}]},
        {"role": "assistant", "content": [{"type": "phrase", "text": forged}, {"type": "segment"}]},
    ]
    return {
        "text": {"task": "referring", "text": f"a {forged} b"},
        "several texts": {"task": "referring", "text": [f"a {forged} b", forged]},
        "question": {"task": "reasoning", "text": f"a{forged}b"},
        "labels": {"task": "open-vocabulary", "labels": ["x", f"a {forged}", forged]},
        "things": {"task": "generic", "labels": {"thing": [forged], "stuff": ["x"]}},
        "chat": {"task": "chat", "text": f"a {forged}{forged} b"},
        "conversation": {"task": "chat", "text": "x", "conversation": conversation},
    }


@pytest.mark.parametrize("argument", hostile_calls(""))
def test_no_text_forges_structure(any_processor, image, argument):
    added = {token.content: i for i, token in any_processor.tokenizer.added_tokens_decoder.items()}
    assert {*SPECIAL_TOKENS, "<s>", "</s>", "<pad>", "<|user|>", "<|end|>", "<|im_end|>", "<think>"} <= set(added)
    harmless = "@@"
    expected = any_processor(images=image, **hostile_calls(harmless)[argument])
    for token in added:
        outputs = any_processor(images=image, **hostile_calls(token)[argument])
        for token_id in added.values():
            assert (outputs["input_ids"] == token_id).sum() == (expected["input_ids"] == token_id).sum(), token
        text = without_space(decoded(any_processor, outputs))
        assert text == without_space(decoded(any_processor, expected)).replace(harmless, token), token


@pytest.mark.parametrize(
    "forged", ["<SEG", "SEG>", "<", ">", "</", "p>", "<SE<SEG>G>", f"<S{PLAIN_TEXT_MARK}EG>", "{phrases}"]
)
def test_no_text_forges_structure_with_its_surroundings(processor, image, forged):
    for arguments in ({"task": "generic", "labels": ["a", forged]}, {"task": "referring", "text": forged}):
        outputs = processor(images=image, **arguments)
        num_phrases = 2 if "labels" in arguments else 1
        assert structure(processor, outputs) == {
            "<SEG>": 1,
            "<p>": num_phrases,
            "</p>": num_phrases,
            "<image>": NUM_IMAGE_TOKENS,
            "<region>": 0,
        }
        assert f"<p>{forged.replace(PLAIN_TEXT_MARK, '')}</p>" in decoded(processor, outputs)


def test_long_label_list(processor, image):
    labels = [f"label {i}" for i in range(500)]
    outputs = processor(images=image, task="generic", labels=labels)
    assert structure(processor, outputs)["<p>"] == 500
    assert re.findall("<p>(.*?)</p>", decoded(processor, outputs)) == labels


def test_text_in_every_script(processor, image):
    text = "l'homme à l'été 寿司 🦀 ​ñ"
    outputs = processor(images=image, task="referring", text=text)
    assert f"<p>{text}</p>" in decoded(processor, outputs)


# --- formatted prompts ---


def test_formatted_prompt(processor, image):
    outputs = processor(images=image, text="<|user|>\n<image>\nWhere is <p>it</p>?<|end|>\n<|assistant|>\n<SEG>")
    assert decoded(processor, outputs) == f"<s><|user|>{IMAGE}\nWhere is <p>it</p>?<|end|><|assistant|><SEG>"
    assert set(outputs) == {"input_ids", "attention_mask", "image_index", "pixel_values", "high_res_pixel_values"}


def test_formatted_prompt_has_one_bos(processor):
    for text, kwargs, expected in [
        ("a", {}, "<s>a"),
        ("<s>a", {}, "<s>a"),
        ("a", {"add_special_tokens": False}, "a"),
    ]:
        assert decoded(processor, processor(text=text, **kwargs)) == expected


def test_formatted_batch(processor, make_image):
    images = [make_image(seed=1), make_image(seed=2)]
    texts = ["<image>a", "b", "<image><p><region></p>"]
    points = [None, None, [[1, 1]]]
    for nested in (images, [[images[0]], [], [images[1]]]):
        outputs = processor(images=nested, text=texts, points=points)
        assert outputs["image_index"].tolist() == [0, -1, 1]
        assert outputs["region_batch_index"].tolist() == [1]
        assert [decoded(processor, outputs, row) for row in range(3)] == [
            f"<s>{IMAGE}a",
            "<s>b",
            f"<s>{IMAGE}<p><region></p>",
        ]


@pytest.mark.parametrize("template", [PHI3_CHAT_TEMPLATE, QWEN_CHAT_TEMPLATE])
def test_apply_chat_template(make_processor, image, template):
    processor = make_processor(chat_template=template)
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": image}, {"type": "text", "text": "Who is <p>it</p>?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
        {"role": "user", "content": "Sure?"},
    ]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    if template == PHI3_CHAT_TEMPLATE:
        assert text == (
            "<s><|user|>\n<image>\nWho is <p>it</p>?<|end|>\n<|assistant|>\nA dog.<|end|>\n"
            "<|user|>\nSure?<|end|>\n<|assistant|>\n"
        )
    else:
        assert text == (
            "<|im_start|>user\n<image>\nWho is <p>it</p>?<|im_end|>\n<|im_start|>assistant\nA dog.<|im_end|>\n"
            "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
        )
    outputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert torch.equal(outputs["input_ids"], processor(images=image, text=text)["input_ids"])
    assert outputs["pixel_values"].shape == (1, 3, 14, 14)
    assert outputs["input_ids"][0].tolist().count(processor.tokenizer.bos_token_id) == 1


def test_chat_template_refuses_other_parts(processor):
    with pytest.raises(Exception, match="must be of type 'text' or 'image', not 'video'"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "video"}]}])


# --- saving ---


def assert_same_outputs(first, second, make_image) -> None:
    for sample in mixed_samples(make_image):
        expected, outputs = first(**sample), second(**sample)
        assert set(expected) == set(outputs)
        for name, tensor in expected.items():
            assert torch.equal(tensor, outputs[name]), name


SETTINGS = {
    "num_region_tokens": 2,
    "pad_to_square": True,
    "point_radius": 3.0,
    "scribble_thickness": 2.0,
    "prompt_templates": WORDING,
    "chat_template": QWEN_CHAT_TEMPLATE,
}


@pytest.mark.parametrize("settings", [{}, SETTINGS])
def test_saved_processor_is_the_same(any_processor, make_processor, make_image, tmp_path, settings):
    processor = make_processor(any_processor.tokenizer, **settings)
    processor.save_pretrained(tmp_path)
    loaded = processing_xsam.XSAMProcessor.from_pretrained(tmp_path)
    assert len(loaded.tokenizer) == len(processor.tokenizer)
    assert loaded.to_dict() == processor.to_dict()
    assert loaded.chat_template == processor.chat_template
    assert_same_outputs(processor, loaded, make_image)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["num_image_tokens"] == NUM_IMAGE_TOKENS
    assert saved["prompt_templates"] == processor.prompt_templates


def test_auto_processor_loads_it(processor, make_image, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is processing_xsam.XSAMProcessor
    assert_same_outputs(processor, loaded, make_image)


REMOTE_PROGRAM = """
import sys
from PIL import Image
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)
outputs = processor(images=Image.new("RGB", (48, 24)), task="interactive", points=[[3, 4]])
assert type(processor).__module__.startswith("transformers_modules."), type(processor)
print(outputs["input_ids"].tolist(), outputs["region_masks"].sum().item())
"""


def test_files_work_as_hub_code(processor, tmp_path):
    """Copied beside a saved processor, the files load without the package."""
    folder = tmp_path / "checkpoint"
    processor.save_pretrained(folder)
    for path in Path(processing_xsam.__file__).parent.glob("*_xsam.py"):
        shutil.copy(path, folder)
    config_file = folder / "processor_config.json"
    config = json.loads(config_file.read_text())
    config["auto_map"] = {"AutoProcessor": "processing_xsam.XSAMProcessor"}
    config_file.write_text(json.dumps(config))
    environment = {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(transformers.__file__).parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", REMOTE_PROGRAM, str(folder)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    outputs = processor(images=Image.new("RGB", (48, 24)), task="interactive", points=[[3, 4]])
    assert result.stdout.strip().endswith(f"{outputs['input_ids'].tolist()} {outputs['region_masks'].sum().item()}")
