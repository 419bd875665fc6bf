"""What the processor refuses: each error names the argument and says what would do."""

from __future__ import annotations

import pytest

import processing_xsam


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "`task`: give a task"),
        ({"task": "segment"}, "unknown task 'segment'; the tasks are generic"),
        ({"task": "generic", "labels": ["a"], "images": None}, "`images`: task 'generic' needs an image"),
        ({"task": "generic", "labels": ["a"], "points": [[1, 1]]}, "`points`: task 'generic' does not take"),
        ({"task": "chat", "text": "a", "points": [[1, 1]], "images": None}, "`points` needs the image"),
        ({"task": "grounded-conversation", "points": [[1, 1]]}, "'grounded-conversation' does not take"),
        ({"task": "chat", "text": "a", "prompt_image": "x"}, "`prompt_image`: task 'chat' does not take"),
        ({"task": "interactive", "points": [[1, 1]], "prompt_image": "x"}, "only 'visual-grounded' does"),
        ({"task": "interactive"}, "`points`, `boxes`, `scribbles` or `masks`: task 'interactive' needs one"),
        ({"task": "interactive", "points": []}, "`points` is empty"),
        ({"task": "interactive", "points": [[1, 1]], "boxes": [[0, 0, 1, 1]]}, "`points` and `boxes`: give only one"),
        ({"task": "interactive", "points": [[1, 1]], "labels": ["a"]}, "`labels`: task 'interactive' does not take"),
        ({"task": "interactive", "points": [[1, 1], [2, 2]], "prefill_answer": False}, "set `prefill_answer=True`"),
        ({"task": [], "images": None}, "is an empty list"),
        ({"task": ["chat", "chat"], "text": "a"}, "`text`: expected a list with one entry for each of the 2 samples"),
        ({"task": ["chat", "chat"], "text": ["a"]}, "`text`: 1 entries for 2 samples"),
        ({"task": "chat", "text": "a", "return_tensors": "np"}, "`return_tensors`: 'np'"),
        ({"task": "chat", "text": "a", "padding_side": "top"}, "`padding_side`: 'top'"),
        ({"task": "chat", "text": "a", "videos": [1]}, "`videos` and `audio`"),
        ({"text": 3}, "`text`: expected a formatted prompt"),
        ({"text": "a", "labels": ["b"]}, "`labels` needs a `task`"),
        ({"text": "<image><image>"}, "prompt 0 has 2 <image> tokens"),
        ({"text": "a"}, "`images`: 1 given for prompts with 0 <image> tokens"),
        ({"text": "<image>", "images": None}, "`images`: 0 given for prompts with 1 <image> tokens"),
        ({"text": "<image><region>"}, "0 objects for a prompt with 1 <region> tokens"),
        ({"text": "<image>", "points": [[1, 1]]}, "1 objects for a prompt with 0 <region> tokens"),
        ({"text": "a", "images": None, "points": [[1, 1]]}, "`points` needs the image"),
    ],
)
def test_bad_calls(processor, image, arguments, message):
    with pytest.raises(ValueError, match=message):
        processor(**{"images": image, **arguments})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_image_tokens": 0}, "`num_image_tokens`: expected a number above 0, got 0"),
        ({"num_region_tokens": -1}, "`num_region_tokens`"),
        ({"point_radius": 0}, "`point_radius`"),
        ({"scribble_thickness": -2.0}, "`scribble_thickness`"),
        ({"prompt_templates": {"x": {}}}, "`prompt_templates`"),
    ],
)
def test_bad_settings(make_processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_processor(**arguments)


def test_image_processors_must_fit(processor):
    high = processor.high_res_image_processor
    with pytest.raises(ValueError, match="`image_processor`: expected a size with height and width"):
        processing_xsam.XSAMProcessor(high, high, processor.tokenizer)
    with pytest.raises(ValueError, match="`high_res_image_processor`: its pad_size"):
        processing_xsam.XSAMProcessor(processor.image_processor, processor.image_processor, processor.tokenizer)
