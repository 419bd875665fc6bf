"""
Annotated samples -> the tensors of one forward pass with labels.

Shapes: B samples, T tokens, M images, R regions, N `<SEG>` tokens of the batch (in stage 1, images), n masks of one of
them, S side of the high-resolution input.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from processing_xsam import XSAMProcessor
from processing_xsam.image_processing_xsam import resize_longest_side
from processing_xsam.processing_xsam import XSAMPrompt
from processing_xsam.prompts_xsam import SEG_TOKEN, Message, first_of, get_task, plain_text, text_phrase
from processing_xsam.region_masks_xsam import resize_region_masks

from .data.drawing import (
    GROUPED_TASKS,
    DrawnTurn,
    DrawOptions,
    borrow_negatives,
    draw_turns,
    drop_absent_labels,
)
from .data.jitter import large_scale_jitter
from .data.samples import AnnotatedSample, Turn, decode_masks
from .dataset import TrainingItem

# Key of a batch that is not for the model.
SKIPPED = "num_skipped"

Choose = Callable[[Sequence[str]], str]

IGNORED_LABEL = -100
# Referring phrases of a batch share this group; every other `<SEG>` has its phrases to itself.
REFERRING_GROUP, NO_GROUP = 0, -1


@dataclass(frozen=True)
class Conversation:
    """The turns of a sample that fit into the prompt, and their tokens."""

    turns: list[DrawnTurn]
    prompt: XSAMPrompt


@dataclass
class XSAMCollator:
    """
    Batches for `XSAMForSegmentation`, stages 2 and 3. All random choices come from the seeds of the items.

    Args:
        processor: writes and tokenises conversations, prepares images.
        max_length: most tokens of a sample, image tokens included. Of a longer one, turns are left out, then absent
            categories; chats are cut.
        options: what is drawn of a sample.
        group_referring: whether the referring phrases of a batch are each other's negatives (`phrase_group_ids`), as
            in the original.
        vary_prompts: whether sentences are drawn from their variants instead of using the first of them.
    """

    processor: XSAMProcessor
    max_length: int = 4096
    options: DrawOptions = field(default_factory=DrawOptions)
    group_referring: bool = True
    vary_prompts: bool = True

    def __call__(self, items: Sequence[TrainingItem]) -> dict[str, Any]:
        """
        Returns:
            `input_ids`, `attention_mask`, `labels`: int64 (B, T), padded on the right, labels -100 except for what the
            assistant writes. `image_index`: int64 (B,). With images `pixel_values` and `high_res_pixel_values`; with
            regions `region_masks`, bool (R, S, S), and `region_batch_index`, int64 (R,). With `<SEG>`s `mask_labels`, N
            tensors bool (n, S, S), `class_labels`, N tensors int64 (n,), and, if grouped, `phrase_group_ids`, int64 (N,).

        Raises:
            ValueError: if a sample cannot be shortened to `max_length`; names the sample.
        """
        samples = [item.sample for item in items]
        rngs = [random.Random(item.draw) for item in items]
        drawn = borrow_negatives(
            [draw_turns(sample, rng, self.options) for sample, rng in zip(samples, rngs, strict=True)],
            rngs,
            self.options,
        )
        conversations = [
            self._converse(sample, turns, rng) for sample, turns, rng in zip(samples, drawn, rngs, strict=True)
        ]
        return {
            **self._token_tensors([conversation.prompt for conversation in conversations]),
            **self._image_tensors(samples),
            **self._region_tensors(samples, conversations),
            **self._label_tensors(samples, conversations),
            **_skipped(items),
        }

    def _converse(self, sample: AnnotatedSample, turns: list[DrawnTurn], rng: random.Random) -> Conversation:
        """The longest beginning of the turns that fits into `max_length`."""
        choose = rng.choice if self.vary_prompts else first_of
        messages = [
            self._messages(drawn.turn, sample.image is not None and i == 0, choose) for i, drawn in enumerate(turns)
        ]
        while True:
            prompt = self.processor.encode_conversation([message for pair in messages for message in pair])
            excess = len(prompt.input_ids) - self.max_length
            if excess <= 0:
                return Conversation(turns, prompt)
            if len(turns) > 1:
                turns, messages = turns[:-1], messages[:-1]
                continue
            return self._shorten(sample, turns[0], prompt, choose)

    def _shorten(self, sample: AnnotatedSample, drawn: DrawnTurn, prompt: XSAMPrompt, choose: Choose) -> Conversation:
        """A single turn that is too long: a chat is cut, a category list loses absent categories."""
        if drawn.turn.task == "chat":
            cut = XSAMPrompt(prompt.input_ids[: self.max_length], prompt.answer_mask[: self.max_length])
            if any(cut.answer_mask):
                return Conversation([drawn], cut)
        turn = drawn.turn
        least = max(1, len(set(turn.mask_phrases)))
        listed = turn.task in ("generic", "open-vocabulary")
        while listed and len(prompt.input_ids) > self.max_length and len(turn.labels) > least:
            turn = drop_absent_labels(turn, keep=max(least, len(turn.labels) * 3 // 4))
            prompt = self.processor.encode_conversation(self._messages(turn, sample.image is not None, choose))
        if len(prompt.input_ids) > self.max_length:
            raise ValueError(
                f"{sample.name}: its prompt has {len(prompt.input_ids)} tokens, but max_length is {self.max_length}. Make "
                "max_length larger or leave the sample out."
            )
        return Conversation([DrawnTurn(turn, drawn.region_samples)], prompt)

    def _messages(self, turn: Turn, has_image: bool, choose: Choose) -> list[Message]:
        """Question and answer of one turn."""
        messages = self.processor.build_conversation(
            turn.task,
            text=turn.text,
            labels={"thing": turn.labels[: turn.num_things], "stuff": turn.labels[turn.num_things :]}
            if get_task(turn.task).phrases_from == "labels"
            else None,
            num_regions=len(turn.regions),
            has_image=has_image,
            prefill_answer=get_task(turn.task).has_fixed_answer,
            choose=choose,
        )
        if turn.task == "chat":
            messages.append({"role": "assistant", "content": plain_text(turn.answer)})
        elif turn.task == "grounded-conversation":
            messages.append({"role": "assistant", "content": _tag_caption(turn)})
        elif turn.answer is not None:
            messages[-1]["content"] += " " + plain_text(turn.answer)
        return messages

    def _token_tensors(self, prompts: Sequence[XSAMPrompt]) -> dict[str, torch.Tensor]:
        tensors = self.processor.pad_sequences([prompt.input_ids for prompt in prompts], padding_side="right")
        labels = torch.full_like(tensors["input_ids"], IGNORED_LABEL)
        for row, prompt in enumerate(prompts):
            answered = torch.tensor(prompt.answer_mask)
            labels[row, : len(answered)][answered] = tensors["input_ids"][row, : len(answered)][answered]
        return {**tensors, "labels": labels}

    def _image_tensors(self, samples: Sequence[AnnotatedSample]) -> dict[str, torch.Tensor]:
        images = [sample.image for sample in samples if sample.image is not None]
        index = torch.tensor([-1 if row is None else row for row in _image_rows(samples)])
        return {"image_index": index, **self.processor.encode_images(images)}

    def _region_tensors(
        self, samples: Sequence[AnnotatedSample], conversations: Sequence[Conversation]
    ) -> dict[str, torch.Tensor]:
        rows, masks, index = _image_rows(samples), [], []
        for conversation in conversations:
            for drawn in conversation.turns:
                for (region,), origin in zip(drawn.turn.regions, drawn.region_samples, strict=True):
                    masks.append(self._masks_at_input_size(samples[origin], [region.mask]))
                    index.append(rows[origin])
        return {"region_masks": torch.cat(masks), "region_batch_index": torch.tensor(index)} if masks else {}

    def _label_tensors(
        self, samples: Sequence[AnnotatedSample], conversations: Sequence[Conversation]
    ) -> dict[str, Any]:
        mask_labels, class_labels, groups, grouped_texts = [], [], [], set()
        for sample, conversation in zip(samples, conversations, strict=True):
            for turn in (drawn.turn for drawn in conversation.turns if drawn.turn.num_phrases):
                mask_labels.append(self._masks_at_input_size(sample, turn.masks))
                class_labels.append(torch.tensor(turn.mask_phrases, dtype=torch.long))
                # Words that already are somebody's phrase cannot be their negative.
                joins = turn.task in GROUPED_TASKS and turn.text not in grouped_texts
                groups.append(REFERRING_GROUP if joins else NO_GROUP)
                grouped_texts.add(turn.text)
        if not mask_labels:
            return {}
        grouped = {"phrase_group_ids": torch.tensor(groups)} if self.group_referring else {}
        return {"mask_labels": mask_labels, "class_labels": class_labels, **grouped}

    def _masks_at_input_size(self, sample: AnnotatedSample, masks: Sequence[dict[str, Any]]) -> torch.Tensor:
        image_size = (sample.image.height, sample.image.width)
        return resize_region_masks(torch.from_numpy(decode_masks(masks, image_size)), self.processor.high_res_size)


@dataclass
class XSAMUniversalCollator:
    """
    Batches for `XSAMForUniversalSegmentation`, stage 1: images and their segments with the index of their category.

    Args:
        processor: its high-resolution image processor prepares the images.
        jitter: scale range of the large-scale jitter, or None to leave images as they are (evaluation).
    """

    processor: XSAMProcessor
    jitter: tuple[float, float] | None = (0.1, 2.0)

    def __call__(self, items: Sequence[TrainingItem]) -> dict[str, Any]:
        """
        Returns:
            `high_res_pixel_values`: float32 (M, 3, S, S), `mask_labels`: M tensors bool (n, S, S), `class_labels`: M
            tensors int64 (n,).
        """
        windows, mask_labels, class_labels = [], [], []
        size = self.processor.high_res_size
        for item in items:
            sample = item.sample
            if len(sample.turns) != 1 or not sample.turns[0].labels:
                raise ValueError(f"{sample.name}: stage 1 trains on one list of categories for each image.")
            turn = sample.turns[0]
            image = sample.image
            masks = decode_masks(turn.masks, (image.height, image.width))
            if self.jitter is not None:
                image, masks = large_scale_jitter(image, masks, size, random.Random(item.draw), self.jitter)
            else:
                masks = resize_region_masks(torch.from_numpy(masks), size).numpy()
                image = resize_longest_side(image, size)
            kept = masks.any((1, 2)) if len(masks) else np.zeros(0, dtype=bool)
            windows.append(image)
            mask_labels.append(_padded(torch.from_numpy(masks[kept]), size))
            class_labels.append(torch.tensor(turn.mask_phrases, dtype=torch.long)[torch.from_numpy(kept)])
        encode = self.processor.high_res_image_processor
        pixels = encode(windows, do_resize=False, return_tensors="pt")["pixel_values"]
        return {
            "high_res_pixel_values": pixels,
            "mask_labels": mask_labels,
            "class_labels": class_labels,
            **_skipped(items),
        }


def _skipped(items: Sequence[TrainingItem]) -> dict[str, int]:
    """How many broken records were passed over for these items, if there were any: `XSAMTrainer` logs it."""
    count = sum(item.num_skipped for item in items)
    return {SKIPPED: count} if count else {}


def _tag_caption(turn: Turn) -> str:
    """A caption with its phrases marked, and the `<SEG>` that segments them if there are any."""
    pieces, position = [], 0
    for start, end in turn.spans:
        pieces += [
            plain_text(turn.answer[position:start]) if start > position else "",
            text_phrase(turn.answer[start:end]),
        ]
        position = end
    if position < len(turn.answer):
        pieces.append(plain_text(turn.answer[position:]))
    return "".join(pieces) + (f" {SEG_TOKEN}" if turn.spans else "")


def _image_rows(samples: Sequence[AnnotatedSample]) -> list[int | None]:
    """The row of `pixel_values` of each sample's image; None without one."""
    rows, count = [], 0
    for sample in samples:
        rows.append(None if sample.image is None else count)
        count += sample.image is not None
    return rows


def _padded(masks: torch.Tensor, size: int) -> torch.Tensor:
    """Masks (n, h, w) with zeros at the bottom and right, (n, size, size)."""
    return torch.nn.functional.pad(masks, (0, size - masks.shape[2], 0, size - masks.shape[1]))
