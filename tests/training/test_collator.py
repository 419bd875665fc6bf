from dataclasses import replace

import numpy as np
import pytest
import torch

from processing_xsam.region_masks_xsam import resize_region_masks
from tiny_models import HIGH_RES_SIZE
from tiny_training import (
    all_tasks,
    caption_sample,
    category_sample,
    chat_sample,
    fitting_model,
    interactive_sample,
    referring_sample,
    tiny_processor,
    visual_sample,
)
from xsam_training.collator import IGNORED_LABEL, XSAMCollator, XSAMUniversalCollator
from xsam_training.data.drawing import DrawOptions
from xsam_training.data.samples import AnnotatedSample, Turn, decode_masks
from xsam_training.dataset import TrainingItem

PLAIN = DrawOptions(whole_list_share=1.0, negative_share=0.0)


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


def items(*samples):
    return [TrainingItem(sample, draw) for draw, sample in enumerate(samples)]


def answers(processor, batch) -> list[str]:
    """What the loss is taken on, as text."""
    return [
        processor.tokenizer.decode(ids[labels != IGNORED_LABEL])
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    ]


def at_input_size(sample, masks) -> torch.Tensor:
    size = (sample.image.height, sample.image.width)
    return resize_region_masks(torch.from_numpy(decode_masks(masks, size)), HIGH_RES_SIZE)


def test_the_loss_is_on_answers_and_their_end_markers(processor):
    collate = XSAMCollator(processor, options=PLAIN, vary_prompts=False)
    batch = collate(items(category_sample(0), caption_sample(1), chat_sample(2)))
    caption = caption_sample(1).turns[0]
    tagged = "I see" + "".join(f" <p>{caption.answer[start:end]}</p>" for start, end in caption.spans)
    assert answers(processor, batch) == [
        "The segmentation is <SEG>.<|end|>",
        f"{tagged}. <SEG><|end|>",
        f"{chat_sample(2).turns[0].answer}<|end|>The ground.<|end|>",
    ]
    counted = batch["labels"] != IGNORED_LABEL
    assert torch.equal(batch["labels"][counted], batch["input_ids"][counted])
    assert not counted[batch["attention_mask"] == 0].any()


def test_masks_and_classes_follow_the_phrases(processor):
    sample = category_sample(0)
    batch = XSAMCollator(processor, options=PLAIN)(items(sample))
    text = processor.tokenizer.decode(batch["input_ids"][0])
    labels = [text.split("<p>")[1 + i].split("</p>")[0] for i in range(5)]
    turn = sample.turns[0]
    (masks,), (classes,) = batch["mask_labels"], batch["class_labels"]
    assert masks.dtype == torch.bool
    assert torch.equal(masks, at_input_size(sample, turn.masks))
    assert [labels[index] for index in classes] == [turn.labels[index] for index in turn.mask_phrases]


def test_one_seg_for_each_question(processor):
    collate = XSAMCollator(processor, options=PLAIN)
    batch = collate(items(referring_sample(0), chat_sample(1), interactive_sample(2)))
    assert (batch["input_ids"] == processor.seg_token_id).sum(1).tolist() == [4, 0, 3]
    assert [len(masks) for masks in batch["mask_labels"]].count(0) == 1  # what is absent
    assert batch["phrase_group_ids"].tolist() == [0, 0, 0, 0, -1, -1, -1]
    assert batch["image_index"].tolist() == [0, 1, 2]
    assert "phrase_group_ids" not in XSAMCollator(processor, group_referring=False)(items(referring_sample(0)))


def test_the_same_words_are_not_each_others_negatives(processor):
    collate = XSAMCollator(processor, options=DrawOptions(max_turns=1))
    samples = [replace(referring_sample(seed), turns=referring_sample(seed).turns[:1]) for seed in (0, 1)]
    assert collate(items(*samples))["phrase_group_ids"].tolist() == [0, -1]


def test_regions_are_read_from_the_images_they_were_drawn_on(processor):
    options = DrawOptions(negative_share=1.0)
    samples = [visual_sample(6), visual_sample(3)]
    kinds = [set(sample.turns[0].labels) for sample in samples]
    batch = XSAMCollator(processor, options=options)(items(*samples))
    assert len(batch["region_masks"]) == int((batch["input_ids"] == processor.region_token_id).sum())
    known = [
        [at_input_size(sample, [region.mask])[0] for regions in sample.turns[0].regions for region in regions]
        for sample in samples
    ]
    for mask, row in zip(batch["region_masks"], batch["region_batch_index"].tolist(), strict=True):
        assert any(torch.equal(mask, other) for other in known[row])
    borrowed = len(kinds[0]) + len(kinds[1]) < len(batch["region_masks"])
    assert borrowed == bool(kinds[0] ^ kinds[1])


def test_chats_about_regions(processor):
    chat, shown = chat_sample(0), interactive_sample(2)
    marked = replace(chat.turns[0], regions=(shown.turns[0].regions[0][:1],))
    sample = replace(shown, turns=(chat.turns[1], marked))
    batch = XSAMCollator(processor)(items(chat, sample))
    (mask,) = batch["region_masks"]
    assert torch.equal(mask, at_input_size(shown, [marked.regions[0][0].mask])[0])
    assert batch["region_batch_index"].tolist() == [1]
    assert (batch["input_ids"] == processor.region_token_id).sum(1).tolist() == [0, processor.num_region_tokens]
    assert "mask_labels" not in batch


def test_text_only_batches(processor):
    batch = XSAMCollator(processor)(items(chat_sample(0, with_image=False)))
    assert "pixel_values" not in batch and batch["image_index"].tolist() == [-1]


def test_skipped_records_are_counted(processor):
    skipped = [TrainingItem(chat_sample(0), 0, 2), TrainingItem(chat_sample(1), 1)]
    assert XSAMCollator(processor)(skipped)["num_skipped"] == 2
    assert "num_skipped" not in XSAMCollator(processor)(items(chat_sample(0)))


def test_a_caption_without_phrases_has_no_seg(processor):
    sample = caption_sample(0)
    turn = replace(sample.turns[0], spans=(), masks=(), mask_phrases=())
    batch = XSAMCollator(processor)(items(replace(sample, turns=(turn,))))
    assert processor.seg_token_id not in batch["input_ids"] and "mask_labels" not in batch


def test_an_explanation_follows_the_mask(processor):
    sample = referring_sample(3, "reasoning")
    turn = replace(sample.turns[0], answer="It is the only one with <SEG> corners.")
    batch = XSAMCollator(processor, vary_prompts=False)(items(replace(sample, turns=(turn,))))
    assert answers(processor, batch) == ["The answer is <SEG>. It is the only one with <SEG> corners.<|end|>"]
    # The annotation's own "<SEG>" is text.
    assert (batch["input_ids"] == processor.seg_token_id).sum() == 1


def test_the_same_draw_gives_the_same_batch(processor):
    collate = XSAMCollator(processor)
    first, second = collate(items(*all_tasks())), collate(items(*all_tasks()))
    assert torch.equal(first["input_ids"], second["input_ids"])
    other = collate([TrainingItem(sample, 100 + i) for i, sample in enumerate(all_tasks())])
    assert first["input_ids"].shape != other["input_ids"].shape or not torch.equal(
        first["input_ids"], other["input_ids"]
    )


def test_what_is_too_long_is_shortened(processor):
    turns = XSAMCollator(processor, max_length=260, vary_prompts=False)(items(referring_sample(0)))
    assert 1 <= len(turns["mask_labels"]) < 4 and turns["input_ids"].shape[1] <= 260
    chat = XSAMCollator(processor, max_length=40)(items(chat_sample(0)))
    assert chat["input_ids"].shape == (1, 40)
    sample = category_sample(0)
    labels = (*sample.turns[0].labels, *(f"absent thing number {i}" for i in range(30)))
    long = replace(sample, turns=(replace(sample.turns[0], labels=labels),))
    shortened = XSAMCollator(processor, max_length=400, options=PLAIN, vary_prompts=False)(items(long))
    assert shortened["input_ids"].shape[1] <= 400 and len(shortened["mask_labels"][0]) == 5
    alone = replace(sample, turns=(replace(sample.turns[0], labels=labels[:1], masks=(), mask_phrases=()),))
    for too_long in (category_sample(0), alone):
        with pytest.raises(ValueError, match=r"scene 0: its prompt has .* tokens, but max_length is 50"):
            XSAMCollator(processor, max_length=50)(items(too_long))
    with pytest.raises(ValueError, match=r"chat 0: its prompt has .* tokens, but max_length is 10"):
        XSAMCollator(processor, max_length=10)(items(chat_sample(0)))


def test_the_model_takes_every_batch(processor):
    model = fitting_model(processor)
    output = model(**XSAMCollator(processor)(items(*all_tasks())))
    assert torch.isfinite(output.loss)
    assert set(output.loss_dict) >= {"loss_lm", "loss_cls", "loss_mask", "loss_dice", "loss_cls_0"}


def test_stage_1_without_jitter(processor):
    sample = category_sample(0)
    batch = XSAMUniversalCollator(processor, jitter=None)(items(sample))
    assert batch["high_res_pixel_values"].shape == (1, 3, HIGH_RES_SIZE, HIGH_RES_SIZE)
    assert torch.equal(batch["mask_labels"][0], at_input_size(sample, sample.turns[0].masks))
    assert batch["class_labels"][0].tolist() == list(sample.turns[0].mask_phrases)
    expected = processor.encode_images([sample.image])["high_res_pixel_values"]
    torch.testing.assert_close(batch["high_res_pixel_values"], expected)


def test_stage_1_with_jitter_drops_what_left_the_window(processor):
    counts = set()
    for draw in range(20):
        batch = XSAMUniversalCollator(processor)([TrainingItem(category_sample(0), draw)])
        (masks,), (classes,) = batch["mask_labels"], batch["class_labels"]
        assert masks.shape == (len(classes), HIGH_RES_SIZE, HIGH_RES_SIZE) and masks.any((1, 2)).all()
        counts.add(len(classes))
    assert len(counts) > 1


def test_stage_1_takes_category_lists_only(processor):
    sample = AnnotatedSample(category_sample(0).image, (Turn("chat", text="a", answer="b"),), "record 5")
    with pytest.raises(ValueError, match="record 5: stage 1 trains on one list of categories"):
        XSAMUniversalCollator(processor)(items(sample))


def test_pixels_of_a_window_are_normalised_and_padded_with_zeros(processor):
    batch = XSAMUniversalCollator(processor, jitter=(0.5, 0.5))(items(category_sample(0)))
    pixels = batch["high_res_pixel_values"][0]
    assert np.isclose(pixels[:, HIGH_RES_SIZE // 2 :].abs().max(), 0)
    assert pixels[:, : HIGH_RES_SIZE // 4].abs().max() > 0.5
