"""Every call of the pipeline, with a tiny random model: the form of the results, and that nothing depends on what else is asked."""

import inspect
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import TextIteratorStreamer, pipeline

from processing_xsam import AnySegmentationPipeline
from processing_xsam.post_processing_xsam import Segment
from random_checkpoint import random_model, random_processor, save_random_checkpoint

PHOTO = Path(__file__).resolve().parents[2] / "examples" / "coffee.png"
LABELS = {"thing": ["cup", "spoon"], "stuff": ["table"]}


@pytest.fixture(scope="module")
def segment():
    processor = random_processor()
    return AnySegmentationPipeline(model=random_model(processor), processor=processor)


@pytest.fixture(scope="module")
def image():
    return Image.open(PHOTO).convert("RGB")


def same(first, second) -> bool:
    if isinstance(first, dict):
        return first["text"] == second["text"] and same(first["segments"], second["segments"])
    return len(first) == len(second) and all(
        a["label"] == b["label"]
        and a["score"] == pytest.approx(b["score"], abs=1e-5)
        and (np.asarray(a["mask"]) != np.asarray(b["mask"])).mean() < 1e-3
        for a, b in zip(first, second, strict=True)
    )


def count_images(segment, monkeypatch) -> list[int]:
    counts = []
    original = segment.model.high_res_vision_tower.forward

    def forward(pixel_values, **kwargs):
        counts.append(len(pixel_values))
        return original(pixel_values, **kwargs)

    monkeypatch.setattr(segment.model.high_res_vision_tower, "forward", forward)
    return counts


def test_it_is_found_by_its_task(tmp_path, image):
    save_random_checkpoint(tmp_path / "xsam")
    segment = pipeline("any-segmentation", model=str(tmp_path / "xsam"))
    assert isinstance(segment, AnySegmentationPipeline)
    (found,) = segment(image, task="referring", text="the cup")
    assert set(found) == {"label", "score", "mask", "box"}


def test_a_saved_pipeline_loads_again(tmp_path, segment, image):
    segment.save_pretrained(tmp_path)
    again = pipeline("any-segmentation", model=str(tmp_path))
    assert same(again(image, task="referring", text="a cup"), segment(image, task="referring", text="a cup"))


@pytest.mark.parametrize("subtask", ["panoptic", "instance", "semantic"])
@pytest.mark.parametrize("task", ["generic", "open-vocabulary"])
def test_categories(segment, image, task, subtask):
    thresholds = {"threshold": 0.05, "mask_threshold": 0.1, "overlap_mask_area_threshold": 0.0}
    found = segment(image, task=task, labels=LABELS, subtask=subtask, **thresholds)
    assert found
    names = {"cup", "spoon"} if subtask == "instance" else {"cup", "spoon", "table"}
    assert {part["label"] for part in found} <= names
    assert all(part["mask"].size == image.size and part["mask"].mode == "L" for part in found)
    if subtask != "instance":
        cover = sum((np.asarray(part["mask"]) > 0).astype(int) for part in found)
        assert cover.max() == 1
    if subtask == "semantic":
        assert cover.min() == 1


def test_referring_and_absence(segment, image):
    (found,) = segment(image, task="referring", text="the cup")
    assert found["label"] == "the cup"
    assert segment(image, task="referring", text="the cup", score_threshold=1.0) == []
    union = segment(image, task="referring", text="the cup", score_threshold=0.0, multi_target=True)
    assert np.asarray(union[0]["mask"]).sum() >= np.asarray(found["mask"]).sum()


def test_reasoning_is_generated_unless_it_is_prefilled(segment, image):
    assert segment(image, task="reasoning", text="What is it?", max_new_tokens=3) == []
    (found,) = segment(image, task="reasoning", text="What is it?", prefill_answer=True)
    assert found["label"] == "What is it?"


@pytest.mark.parametrize("task", ["grounded-conversation", "chat"])
def test_answers_in_words(segment, image, task):
    arguments = {"text": "What is this?"} if task == "chat" else {}
    result = segment(image, task=task, max_new_tokens=5, **arguments)
    assert isinstance(result["text"], str)
    assert result["text"]
    assert result["segments"] == []


def test_a_chat_is_about_what_is_marked(segment, image):
    model, processor = segment.model, segment.processor
    asked = {"task": "chat", "text": "What is this?", "boxes": [[10, 10, 200, 150]]}
    inputs = processor(images=image, **asked)
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)[0]
    expected = processor.tokenizer.decode(tokens[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    result = segment(image, max_new_tokens=4, **asked)
    assert result["text"].split() == expected.split()
    assert result["segments"] == []


def test_chat_without_an_image(segment):
    assert isinstance(segment(task="chat", text="Hello", max_new_tokens=3)["text"], str)


@pytest.mark.parametrize(
    "prompts",
    [
        {"points": [[300, 200], [100, 50]]},
        {"boxes": [[150, 60, 450, 340], [0, 0, 60, 60]]},
        {"scribbles": [[[100, 100], [300, 250]], [[10, 10], [40, 60]]]},
    ],
)
def test_each_interactive_prompt_gives_a_segment_of_its_own(segment, image, prompts):
    found = segment(image, task="interactive", **prompts)
    assert [part["label"] for part in found] == ["region 0", "region 1"]
    ((kind, values),) = prompts.items()
    alone = segment(image, task="interactive", **{kind: values[1:]})
    assert same([{**alone[0], "label": "region 1"}], found[1:])


def test_visual_grounded_finds_segments_for_each_prompt(segment, image):
    mask = np.zeros((image.height, image.width), dtype=bool)
    mask[100:200, 100:200] = True
    found = segment(image, task="visual-grounded", masks=[mask], threshold=0.1)
    assert {part["label"] for part in found} == {"region 0"}


def test_prompts_on_another_image(segment, image):
    other = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).crop((0, 0, 200, 300))
    own = segment(image, task="visual-grounded", boxes=[[20, 20, 120, 120]], threshold=0.1)
    foreign = segment(image, task="visual-grounded", boxes=[[20, 20, 120, 120]], prompt_image=other, threshold=0.1)
    assert not same(own, foreign)
    assert foreign[0]["mask"].size == image.size


def test_many_prompts_on_one_image_encode_it_once(segment, image, monkeypatch):
    counts = count_images(segment, monkeypatch)
    texts = [f"thing {index}" for index in range(5)]
    results = segment(image, task="referring", text=texts, prompts_at_once=2)
    assert counts == [1]
    assert [found[0]["label"] for found in results] == texts
    assert same(results[4], segment(image, task="referring", text=texts[4]))


def test_features_are_reused(segment, image, monkeypatch):
    features = segment.encode_image(image)
    counts = count_images(segment, monkeypatch)
    reused = segment(image, task="referring", text="the cup", image_features=features)
    assert counts == []
    assert same(reused, segment(image, task="referring", text="the cup"))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_lists_generators_and_data_sets(segment, image, batch_size):
    images = [image, image.resize((200, 300)), image.convert("L")]
    expected = [segment(one, task="referring", text="the cup") for one in images]
    for inputs in (images, (one for one in images), ListDataset(images)):
        results = list(segment(inputs, task="referring", text="the cup", batch_size=batch_size))
        assert len(results) == 3
        assert all(same(*pair) for pair in zip(results, expected, strict=True))


def test_kinds_of_images(segment, image, tmp_path):
    image.save(tmp_path / "photo.png")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    expected = segment(image, task="referring", text="the cup")
    for kind in (str(tmp_path / "photo.png"), tmp_path / "photo.png", np.asarray(image), buffer.getvalue()):
        assert same(segment(kind, task="referring", text="the cup"), expected)


def test_1203_categories_in_one_call(segment, image, monkeypatch):
    lengths, prefixes = [], []
    original = segment.model.language_model.forward

    def forward(*args, **kwargs):
        lengths.append(kwargs["inputs_embeds"].shape[1])
        prefixes.append(int(kwargs["position_ids"][0, 0]))
        return original(*args, **kwargs)

    forward.__signature__ = inspect.signature(original)
    monkeypatch.setattr(segment.model.language_model, "forward", forward)
    counts = count_images(segment, monkeypatch)
    labels = [f"category {index}" for index in range(1203)]
    found = segment(image, task="open-vocabulary", labels=labels, subtask="semantic")
    limit = segment.model.config.text_config.max_position_embeddings
    assert counts == [1]
    assert len(lengths) > 4
    assert max(lengths) < limit
    assert {part["label"] for part in found} <= set(labels)
    cover = sum((np.asarray(part["mask"]) > 0).astype(int) for part in found)
    assert cover.min() == cover.max() == 1


def test_passes_share_the_cache_of_their_common_beginning(segment, image, monkeypatch):
    """With a limit that splits a short list, the image is read by the language model once."""
    labels = [f"category {index}" for index in range(12)]
    whole = segment(image, task="open-vocabulary", labels=labels, subtask="semantic")
    assert whole
    lengths = []
    original = segment.model.language_model.forward

    def forward(*args, **kwargs):
        lengths.append(kwargs["inputs_embeds"].shape[1])
        return original(*args, **kwargs)

    forward.__signature__ = inspect.signature(original)
    monkeypatch.setattr(segment.model.language_model, "forward", forward)
    monkeypatch.setattr(segment.model.config.text_config, "max_position_embeddings", 400)
    assert segment(image, task="open-vocabulary", labels=labels, subtask="semantic")
    image_tokens = segment.processor.num_image_tokens
    assert lengths[0] > image_tokens
    assert all(length < image_tokens for length in lengths[1:])
    assert len(lengths) > 2


@pytest.mark.parametrize("subtask", ["panoptic", "instance", "semantic"])
def test_tiles_cover_the_image_and_see_a_crop_each(segment, image, monkeypatch, subtask):
    counts = count_images(segment, monkeypatch)
    thresholds = {"threshold": 0.05, "mask_threshold": 0.1, "overlap_mask_area_threshold": 0.0}
    found = segment(image, task="generic", labels=LABELS, subtask=subtask, tiles=(2, 2), **thresholds)
    assert sum(counts) == 4
    assert found
    assert all(part["mask"].size == image.size for part in found)
    cover = sum((np.asarray(part["mask"]) > 0).astype(int) for part in found)
    if subtask != "instance":
        assert cover.max() == 1
    if subtask == "semantic":
        assert cover.min() == 1


def test_120_small_objects_with_a_perfect_oracle_for_each_crop(segment, monkeypatch):
    """More objects than queries: the network's place is taken by one that finds all of a crop, whole or cut."""
    size, step = (600, 840), 70
    truth = np.zeros(size, dtype=int)
    for index in range(120):
        row, column = divmod(index, 12)
        top, left = 10 + row * 58, 12 + column * step
        truth[top : top + 30 + index % 5, left : left + 34 + index % 7] = index + 1
    scene = Image.fromarray(np.repeat(truth[..., None], 3, axis=2).astype(np.uint8))

    def oracle(output, options):
        marks = torch.from_numpy(np.asarray(output.sample.image)[..., 0].astype(int))
        return [Segment(0, 0.9, marks == mark) for mark in marks.unique().tolist() if mark > 0]

    monkeypatch.setattr("processing_xsam.pipeline_xsam.category_segments", oracle)
    found = segment(scene, task="open-vocabulary", labels=["block"], subtask="instance", tiles=(3, 3))
    assert len(found) == 120
    masks = {int(truth[np.asarray(part["mask"]) > 0][0]): np.asarray(part["mask"]) > 0 for part in found}
    assert set(masks) == set(range(1, 121))
    assert all(np.array_equal(mask, truth == mark) for mark, mask in masks.items())


def test_tiles_are_for_category_lists(segment, image):
    with pytest.raises(ValueError, match="`tiles`: task 'referring' does not take this argument"):
        segment(image, task="referring", text="cup", tiles=(2, 2))
    with pytest.raises(ValueError, match="`tiles`"):
        segment(image, task="generic", labels=LABELS, tiles=(0, 2))


def test_the_text_is_streamed(segment, image):
    streamer = TextIteratorStreamer(segment.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
    result = segment(image, task="chat", text="What is this?", max_new_tokens=6, streamer=streamer)
    assert "".join(streamer).strip() == result["text"]


def test_a_conversation_goes_on_and_switches_between_talking_and_segmenting(segment, image):
    said = segment(image, task="chat", text="What is this?", max_new_tokens=4)
    history = [
        {"role": "user", "content": "What is this?"},
        {"role": "assistant", "content": said["text"]},
    ]
    (found,) = segment(image, task="referring", text="the cup", conversation=history)
    assert found["label"] == "the cup"
    (fresh,) = segment(image, task="referring", text="the cup")
    assert found["score"] != fresh["score"]
    history += [
        {"role": "user", "content": [{"type": "text", "text": "Segment "}, {"type": "phrase", "text": "the cup"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Here: "}, {"type": "segment"}]},
    ]
    again = segment(image, task="chat", text="And now?", conversation=history, max_new_tokens=4)
    assert again["segments"] == []
    assert isinstance(again["text"], str)


SEGMENTED = [
    {"role": "user", "content": [{"type": "text", "text": "Segment "}, {"type": "phrase", "text": "the cup"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "It is "}, {"type": "segment"}]},
]


@pytest.mark.parametrize(
    ("arguments", "label"),
    [
        ({"task": "referring", "text": "spoon"}, "spoon"),
        ({"task": "interactive", "points": [[300, 200]]}, "region 0"),
        ({"task": "generic", "labels": ["a"], "subtask": "semantic"}, "a"),
    ],
)
def test_masks_of_finished_turns_are_not_results(segment, image, monkeypatch, arguments, label):
    rows = []
    original = segment.model.segment
    monkeypatch.setattr(segment.model, "segment", lambda **inputs: rows.append(original(**inputs)) or rows[-1])
    (found,) = segment(image, conversation=SEGMENTED, **arguments)
    assert found["label"] == label
    # The network segments both turns; the result is the second.
    assert len(rows[0].seg_batch_index) == 2
    if arguments["task"] == "referring":
        scores = rows[0].class_queries_logits[1][:, rows[0].class_mask[1]].softmax(-1)[:, 0]
        assert found["score"] == pytest.approx(scores.max().item(), abs=1e-5)


def test_features_belong_to_their_image(segment, image):
    features = segment.encode_image(image)
    with pytest.raises(ValueError, match="`image_features` are those of one image of size"):
        segment(image.resize((60, 40)), task="referring", text="a", image_features=features)
    with pytest.raises(ValueError, match="leave them out for several images, tiles and prompt_image"):
        segment(image, task="generic", labels=LABELS, tiles=(1, 2), image_features=features)
    with pytest.raises(ValueError, match="expected the result of encode_image, got int"):
        segment(image, task="referring", text="a", image_features=3)


def test_a_prompt_longer_than_the_context_is_named(segment, image):
    with pytest.raises(ValueError, match=r"takes .* tokens, but the language model knows 4096"):
        segment(image, task="referring", text="word " * 3000)


def test_an_answer_without_seg_is_no_result_and_says_so(segment, image, monkeypatch):
    warnings = []
    monkeypatch.setattr(
        "processing_xsam.results_xsam.logger.warning", lambda *parts: warnings.append(parts[0] % parts[1:])
    )
    assert segment(image, task="generic", labels=["a"], prefill_answer=False, max_new_tokens=2) == []
    assert segment(image, task="reasoning", text="What is it?", max_new_tokens=2) == []
    assert warnings == ["No mask for 'What is it?': the answer has no <SEG>."]


@pytest.mark.parametrize(
    "arguments",
    [
        {"task": "generic", "labels": ["a", "b"], "threshold": 0.0, "subtask": "instance"},
        {"task": "visual-grounded", "boxes": [[2, 2, 30, 30]], "threshold": 0.0},
        {"task": "interactive", "boxes": [[2, 2, 30, 30]]},
    ],
)
def test_phrases_that_an_answer_names_itself_are_none_that_were_asked_for(segment, image, monkeypatch, arguments):
    assert segment(image, **arguments)
    tokenizer = segment.processor.tokenizer
    words = "".join(f"<p>{word}</p>" for word in ("sky", "cat", "dog")) + "<SEG>"
    answer = torch.tensor(tokenizer(words, add_special_tokens=False).input_ids)
    monkeypatch.setattr(
        segment.model,
        "_with_answers",
        lambda prompts, answered, *_: [
            torch.cat([prompt, answer]) if wanted else prompt for prompt, wanted in zip(prompts, answered, strict=True)
        ],
    )
    assert segment(image, **arguments, prefill_answer=False) == []


def test_one_mask_is_one_object(segment, image):
    mask = np.zeros((image.height, image.width), dtype=bool)
    mask[100:200, 100:300] = True
    (found,) = segment(image, task="interactive", masks=mask)
    (again,) = segment(image, task="interactive", masks=Image.fromarray(mask))
    assert same([found], [again])


def test_a_streamer_ends_even_if_nothing_is_generated(segment, image):
    streamer = TextIteratorStreamer(segment.processor.tokenizer, timeout=5)
    segment(image, task="referring", text="a", streamer=streamer)
    assert "".join(streamer) == ""


def test_500_prompts_on_one_image(segment, image, monkeypatch):
    counts = count_images(segment, monkeypatch)
    points = [[10 + 5 * (index % 100), 10 + 60 * (index // 100)] for index in range(500)]
    found = segment(image.resize((520, 400)), task="interactive", points=points, prompts_at_once=50)
    assert counts == [1]
    assert [part["label"] for part in found] == [f"region {index}" for index in range(500)]


@pytest.mark.parametrize("token", ["<SEG>", "<p>", "</p>", "<image>", "<region>", "<|end|>", "<|user|>", "<s>"])
def test_text_of_a_user_is_text(segment, image, token):
    """As many results as were asked for, whatever the text says."""
    assert len(segment(image, task="referring", text=f"a {token} cup{token}")) == 1
    found = segment(image, task="open-vocabulary", labels=[f"a{token}", f"{token}b"], subtask="semantic")
    assert {part["label"] for part in found} <= {f"a{token}", f"{token}b"}
    assert segment(image, task="chat", text=f"{token}{token}", max_new_tokens=2)["segments"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "`task` is missing"),
        ({"task": "paint"}, "unknown task 'paint'; the tasks are generic, open-vocabulary, referring"),
        ({"task": "referring", "text": "cup", "colour": "red"}, "`colour` is not an argument"),
        ({"task": "referring", "text": "cup", "points": [[1, 2]]}, "`points`: task 'referring' does not take"),
        ({"task": "generic", "labels": ["cup"], "subtask": "outline"}, "unknown subtask 'outline'"),
        ({"task": "referring", "text": ""}, "`text`"),
        ({"task": "generic", "labels": []}, "`labels` is empty"),
        (
            {"task": "generic", "labels": {"thing": "cup"}},
            r"`labels\['thing'\]`: expected a list of labels, got 'cup'",
        ),
        ({"task": "referring", "text": "cup", "subtask": "semantic"}, "`subtask`: task 'referring' does not take"),
        ({"task": "generic", "labels": ["a"], "multi_target": True}, "`multi_target`: task 'generic' does not take"),
        ({"task": "generic", "labels": ["a"], "threshold": 2}, "`threshold`: expected a number from 0 to 1, got 2"),
        ({"task": "referring", "text": "cup", "prompts_at_once": 0}, "`prompts_at_once`: expected a number from 1 on"),
        ({"task": "referring", "text": []}, "`text` is empty"),
        ({"task": "interactive", "points": []}, "`points`"),
        ({"task": "interactive", "boxes": [[5, 5, 5, 9]]}, r"`boxes\[0\]`"),
        ({"task": "visual-grounded", "points": [[1e6, 2]]}, r"`points\[0\]`"),
        ({"task": "referring", "text": ["cup", " "]}, "`text"),
    ],
)
def test_wrong_calls_are_named(segment, image, arguments, message):
    with pytest.raises(ValueError, match=message):
        segment(image, **arguments)


class ListDataset(torch.utils.data.Dataset):
    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]
