"""XSAMProcessor: images, text and visual prompts -> the tensors that X-SAM takes.

Shapes: B samples, I images, R regions, L tokens; s and S are the sides of the SigLIP and the SAM input.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AddedToken, BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template

from .chat_templates_xsam import PHI3_CHAT_TEMPLATE
from .image_processing_xsam import load_image, pad_to_square, resize_longest_side, resize_to
from .prompts_xsam import (
    IMAGE_TOKEN,
    PHRASE_END_TOKEN,
    PHRASE_START_TOKEN,
    PLAIN_TEXT_MARK,
    REGION_TOKEN,
    SEG_TOKEN,
    SPECIAL_TOKENS,
    Message,
    PromptTemplates,
    build_conversation,
    first_of,
    merge_prompt_templates,
    should_prefill,
)
from .region_masks_xsam import (
    masks_from_boxes,
    masks_from_masks,
    masks_from_points,
    masks_from_scribbles,
    resize_region_masks,
)
from .result_methods_xsam import XSAMResultMethods
from .samples_xsam import Sample, split_batch, split_formatted


@dataclass(frozen=True)
class XSAMPrompt:
    """A tokenised conversation.

    Attributes:
        input_ids: token ids, image and region placeholders expanded.
        answer_mask: for each token whether the assistant writes it (its text and its end marker), for a loss on the
            answers.
    """

    input_ids: list[int]
    answer_mask: list[bool]


class _ImageRows:
    """The images of a batch, each kept once: the same object, path or URL always has the same row."""

    def __init__(self) -> None:
        self.images: list[Image.Image] = []
        self._rows: dict[Any, int] = {}
        self._sources: list[Any] = []

    def row_of(self, source: Any) -> int:
        key = source if isinstance(source, (str, Path)) else id(source)
        if key not in self._rows:
            self.images.append(load_image(source))
            # An id stays unique only as long as its object lives.
            self._sources.append(source)
            self._rows[key] = len(self.images) - 1
        return self._rows[key]


class XSAMProcessor(XSAMResultMethods, ProcessorMixin):
    """Prepares images, text and visual prompts for X-SAM.

    Args:
        image_processor: stock SigLIP image processor; its `size` is a height and a width.
        high_res_image_processor: stock SAM image processor; its longest edge and its padding are equal.
        tokenizer: a fast tokenizer. `<SEG>`, `<p>`, `</p>`, `<image>` and `<region>` are appended in this order unless
            they are there.
        chat_template: jinja template of the conversation format, `PHI3_CHAT_TEMPLATE` by default.
        num_image_tokens: tokens of one image, SigLIP's and SAM's together.
        num_region_tokens: tokens of one region.
        pad_to_square: centre images on a grey square for SigLIP instead of squeezing them.
        point_radius: of point prompts, in pixels of the original image; None for a hundredth of its longest side.
        scribble_thickness: in pixels of the original image; None for a fiftieth of its longest side.
        prompt_templates: wording that differs from the default, `{task: {"questions": [...], "answers": [...]}}`.

    Raises:
        TypeError: the tokenizer is not a fast one.
        ValueError: an argument is out of range, or wording has no placeholder.
    """

    image_token = IMAGE_TOKEN
    region_token = REGION_TOKEN
    seg_token = SEG_TOKEN
    phrase_start_token = PHRASE_START_TOKEN
    phrase_end_token = PHRASE_END_TOKEN

    def __init__(
        self,
        image_processor,
        high_res_image_processor,
        tokenizer,
        chat_template: str | dict[str, str] | None = None,
        num_image_tokens: int = 1753,
        num_region_tokens: int = 1,
        pad_to_square: bool = False,
        point_radius: float | None = None,
        scribble_thickness: float | None = None,
        prompt_templates: PromptTemplates | None = None,
    ):
        _check_positive(
            num_image_tokens=num_image_tokens,
            num_region_tokens=num_region_tokens,
            point_radius=point_radius,
            scribble_thickness=scribble_thickness,
        )
        _check_image_processors(image_processor, high_res_image_processor)
        self.num_image_tokens = num_image_tokens
        self.num_region_tokens = num_region_tokens
        self.pad_to_square = pad_to_square
        self.point_radius = point_radius
        self.scribble_thickness = scribble_thickness
        self.prompt_templates = merge_prompt_templates(prompt_templates)
        add_structure_tokens(tokenizer)
        self.image_token_id, self.region_token_id, self.seg_token_id = tokenizer.convert_tokens_to_ids(
            [IMAGE_TOKEN, REGION_TOKEN, SEG_TOKEN]
        )
        self.phrase_start_token_id, self.phrase_end_token_id = tokenizer.convert_tokens_to_ids(
            [PHRASE_START_TOKEN, PHRASE_END_TOKEN]
        )
        super().__init__(
            image_processor,
            high_res_image_processor,
            tokenizer,
            chat_template=PHI3_CHAT_TEMPLATE if chat_template is None else chat_template,
        )

    @property
    def model_input_names(self) -> list[str]:
        return [
            "input_ids",
            "attention_mask",
            "pixel_values",
            "high_res_pixel_values",
            "region_masks",
            "region_batch_index",
            "image_index",
        ]

    @property
    def high_res_size(self) -> int:
        """S, the side of the SAM input in pixels."""
        return self.high_res_image_processor.size["longest_edge"]

    def get_image_size(self, image: Any) -> tuple[int, int]:
        """(height, width) of an image after EXIF rotation: the entry of `target_sizes` in post-processing."""
        loaded = load_image(image)
        return loaded.height, loaded.width

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: None = None,
        audio: None = None,
        *,
        task: str | Sequence[str] | None = None,
        labels: Any = None,
        points: Any = None,
        boxes: Any = None,
        scribbles: Any = None,
        masks: Any = None,
        prompt_image: Any = None,
        conversation: Any = None,
        prefill_answer: bool | Sequence[bool | None] | None = None,
        padding_side: str = "left",
        add_special_tokens: bool = True,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Prepare one sample or a batch.

        With a list of `images` or of `task`s it is a batch: each argument is then None or a list with an entry per
        sample (None where a sample does not use it), except that one `task`, one image and one `prefill_answer` may
        serve all samples. The same image object, path or URL is encoded once.

        Without `task`, `text` is a formatted prompt (or a list of them) in which special tokens are tokens; this is
        how `apply_chat_template` calls it. All text given with a `task` is taken literally.

        Args:
            images: an image, or a list of images (None for a sample without); see `load_image` for the kinds.
            text: the expression (referring), question (reasoning) or message (chat). A list: several of them in turns
                in one sample.
            videos: not supported.
            audio: not supported.
            task: generic, open-vocabulary, referring, reasoning, grounded-conversation, interactive, visual-grounded
                or chat.
            labels: categories of generic and open-vocabulary: a list or `{"thing": [...], "stuff": [...]}`.
            points: visual prompts `[[x, y], ...]` (an object each) or `[[[x, y], ...], ...]`, in pixels of the
                original image.
            boxes: visual prompts `[[x0, y0, x1, y1], ...]`.
            scribbles: visual prompts `[[[x, y], [x, y], ...], ...]`.
            masks: visual prompts of shape (N, H, W), or a list of (H, W).
                In a chat, visual prompts of any kind mark what the message is about.
            prompt_image: image that the visual prompts of visual-grounded refer to, if it is another one.
            conversation: finished turns before this one, `[{"role": ..., "content": ...}]`; for chat it may end with
                the question.
            prefill_answer: give the task's fixed answer up to and including its `<SEG>`. By default so for generic,
                open-vocabulary, referring, interactive and visual-grounded.
            padding_side: "left" for generation, "right" for training.
            add_special_tokens: without `task`: begin with the tokenizer's BOS, unless the text already does.
            return_tensors: only "pt".

        Returns:
            `input_ids`, `attention_mask`: int64, (B, L).
            `image_index`: int64, (B,), the row of `pixel_values` a sample looks at, -1 without image.
            `pixel_values`: float32, (I, 3, s, s), and `high_res_pixel_values`: float32, (I, 3, S, S): the samples'
                images, then prompt images; absent without images.
            `region_masks`: bool, (R, S, S), in the order of the `<region>` tokens, batch-major, and
                `region_batch_index`: int64, (R,), the row of `pixel_values` each region is read from; absent
                without regions.

        Raises:
            ValueError: an argument is missing, malformed or not one that the task takes; the message names it.
        """
        if videos is not None or audio is not None:
            raise ValueError("`videos` and `audio`: X-SAM takes neither; give `images` and `text`")
        if return_tensors != "pt":
            raise ValueError(f"`return_tensors`: {return_tensors!r} is not supported, only 'pt'")
        arguments = {
            "image": images,
            "text": text,
            "labels": labels,
            "points": points,
            "boxes": boxes,
            "scribbles": scribbles,
            "masks": masks,
            "prompt_image": prompt_image,
            "conversation": conversation,
            "prefill_answer": prefill_answer,
        }
        samples = split_formatted(arguments) if task is None else split_batch({"task": task, **arguments})

        rows = _ImageRows()
        image_index = [-1 if sample.image is None else rows.row_of(sample.image) for sample in samples]
        regions = [self._read_regions(sample, row, rows) for sample, row in zip(samples, image_index, strict=True)]
        prompts = [
            self._encode_sample(sample, len(drawn), add_special_tokens)
            for sample, (drawn, _) in zip(samples, regions, strict=True)
        ]
        data = self.pad_sequences([prompt.input_ids for prompt in prompts], padding_side)
        data["image_index"] = torch.tensor(image_index)
        data |= self.encode_images(rows.images)
        if any(len(drawn) for drawn, _ in regions):
            data["region_masks"] = torch.cat([drawn for drawn, _ in regions])
            data["region_batch_index"] = torch.tensor([row for drawn, row in regions for _ in drawn])
        return BatchFeature(data)

    def build_conversation(
        self,
        task: str,
        *,
        text: Any = None,
        labels: Any = None,
        num_regions: int = 0,
        conversation: Sequence[Mapping[str, Any]] | None = None,
        has_image: bool = True,
        prefill_answer: bool | None = None,
        choose: Callable[[Sequence[str]], str] = first_of,
    ) -> list[Message]:
        """Write the messages for one sample.

        `num_regions` counts the prompted objects; `choose` picks a sentence among its variants (`random.choice` for
        training). User text in the messages is marked so that it can't be read as structure: pass them to
        `encode_conversation` only.
        """
        return build_conversation(
            task,
            templates=self.prompt_templates,
            text=text,
            labels=labels,
            num_regions=num_regions,
            history=conversation,
            has_image=has_image,
            prefill=should_prefill(task, prefill_answer),
            choose=choose,
        )

    def encode_conversation(self, messages: Sequence[Message], up_to_last_seg: bool = False) -> XSAMPrompt:
        """Format messages with the chat template and tokenise them.

        What the assistant writes is tokenised apart from what surrounds it, as in generation.

        Args:
            messages: as `build_conversation` returns them. If the user has the last word, the prompt ends where the
                answer begins.
            up_to_last_seg: ends with the last `<SEG>` instead of the end of the answer.
        """
        rendered, (answers,) = render_jinja_template(
            conversations=[list(messages)],
            chat_template=self._conversation_template,
            return_assistant_tokens_mask=True,
            add_generation_prompt=messages[-1]["role"] != "assistant",
            **self.tokenizer.special_tokens_map,
        )
        text = rendered[0]
        end = text.rindex(SEG_TOKEN) + len(SEG_TOKEN) if up_to_last_seg else len(text)
        input_ids, answer_mask = [], []
        for start, stop, is_answer in _alternate(answers, end):
            ids = self._expand_placeholders(self._encode_text(text[start:stop]))
            input_ids += ids
            answer_mask += [is_answer] * len(ids)
        return XSAMPrompt(input_ids, answer_mask)

    def count_tokens(self, text: str) -> int:
        """Tokens that a piece of a prompt takes between special tokens or with them, placeholders expanded."""
        return len(self._expand_placeholders(self._encode_text(text)))

    @property
    def _conversation_template(self) -> str:
        return self.chat_template if isinstance(self.chat_template, str) else self.chat_template["default"]

    def _encode_sample(self, sample: Sample, num_regions: int, add_special_tokens: bool) -> XSAMPrompt:
        if sample.task is None:
            return self._encode_formatted(sample, num_regions, add_special_tokens)
        prefill = should_prefill(sample.task, sample.prefill_answer)
        messages = self.build_conversation(
            sample.task,
            text=sample.text,
            labels=sample.labels,
            num_regions=num_regions,
            conversation=sample.conversation,
            has_image=sample.image is not None,
            prefill_answer=prefill,
        )
        return self.encode_conversation(messages, up_to_last_seg=prefill)

    def _encode_formatted(self, sample: Sample, num_regions: int, add_special_tokens: bool) -> XSAMPrompt:
        ids = self._encode_text(sample.text)
        bos = self.tokenizer.bos_token_id
        if add_special_tokens and bos is not None and ids[:1] != [bos]:
            ids = [bos, *ids]
        if ids.count(self.region_token_id) != num_regions:
            raise ValueError(
                f"`points`, `boxes`, `scribbles` or `masks`: {num_regions} objects for a prompt with"
                f" {ids.count(self.region_token_id)} {REGION_TOKEN} tokens; make the numbers equal"
            )
        ids = self._expand_placeholders(ids)
        return XSAMPrompt(ids, [False] * len(ids))

    def _encode_text(self, text: str) -> list[int]:
        """Tokenise text piece by piece between its special tokens, without adding any.

        A piece that was marked with `plain_text` can spell a special token: it is tokenised as ordinary characters.
        """
        added = {token.content: (i, token) for i, token in self.tokenizer.added_tokens_decoder.items()}
        longest_first = sorted(added, key=len, reverse=True)
        pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        ids = []
        for i, piece in enumerate(pieces):
            if i % 2:
                ids.append(added[piece][0])
                continue
            if i > 0 and added[pieces[i - 1]][1].rstrip:
                piece = piece.lstrip()
            if i + 1 < len(pieces) and added[pieces[i + 1]][1].lstrip:
                piece = piece.rstrip()
            ids += self._encode_plain(piece.replace(PLAIN_TEXT_MARK, ""))
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        """Tokenise text without looking for added tokens in it.

        The tokenizer's own `split_special_tokens` skips only those of them that are special.
        """
        backend = self.tokenizer.backend_tokenizer
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words = [text] if text else []
        if backend.pre_tokenizer is not None:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in backend.model.tokenize(word)]

    def _expand_placeholders(self, ids: Sequence[int]) -> list[int]:
        copies = {self.image_token_id: self.num_image_tokens, self.region_token_id: self.num_region_tokens}
        return [token_id for token_id in ids for _ in range(copies.get(token_id, 1))]

    def pad_sequences(self, sequences: Sequence[Sequence[int]], padding_side: str) -> dict[str, torch.Tensor]:
        """Token ids of different lengths as `input_ids` and `attention_mask`, int64 (B, L)."""
        if padding_side not in ("left", "right"):
            raise ValueError(f"`padding_side`: {padding_side!r} is neither 'left' nor 'right'")
        longest = max(map(len, sequences))
        pad_token_id = self.tokenizer.pad_token_id
        if pad_token_id is None:
            if any(len(sequence) < longest for sequence in sequences):
                raise ValueError(
                    "`tokenizer` has no padding token: set `tokenizer.pad_token` to batch prompts of different lengths"
                )
            pad_token_id = 0
        input_ids = torch.full((len(sequences), longest), pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, sequence in enumerate(sequences):
            start = longest - len(sequence) if padding_side == "left" else 0
            input_ids[row, start : start + len(sequence)] = torch.tensor(sequence)
            attention_mask[row, start : start + len(sequence)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def encode_images(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """RGB images as `pixel_values` (I, 3, s, s) and `high_res_pixel_values` (I, 3, S, S); nothing for no images."""
        if not images:
            return {}
        low, high = self.image_processor, self.high_res_image_processor
        size = (low.size["height"], low.size["width"])
        squared = [pad_to_square(image) for image in images] if self.pad_to_square else images
        low_images = [resize_to(image, size, low.resample) for image in squared]
        high_images = [resize_longest_side(image, self.high_res_size, high.resample) for image in images]
        return {
            "pixel_values": low(low_images, return_tensors="pt")["pixel_values"],
            "high_res_pixel_values": high(high_images, return_tensors="pt")["pixel_values"],
        }

    def _read_regions(self, sample: Sample, image_row: int, rows: _ImageRows) -> tuple[torch.Tensor, int]:
        """Region masks, bool, (R, S, S), and the row of the image that they belong to."""
        if not sample.visual_prompts:
            return torch.zeros(0, self.high_res_size, self.high_res_size, dtype=torch.bool), image_row
        row = image_row if sample.prompt_image is None else rows.row_of(sample.prompt_image)
        image_size = (rows.images[row].height, rows.images[row].width)
        draw = {
            "points": partial(masks_from_points, radius=self.point_radius),
            "boxes": masks_from_boxes,
            "scribbles": partial(masks_from_scribbles, thickness=self.scribble_thickness),
            "masks": masks_from_masks,
        }
        ((kind, values),) = sample.visual_prompts.items()
        return resize_region_masks(draw[kind](values, image_size), self.high_res_size), row


def add_structure_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Append those of `<SEG>`, `<p>`, `</p>`, `<image>`, `<region>` that a tokenizer lacks, in this order.

    Raises:
        TypeError: the tokenizer is not a fast one.
    """
    if not tokenizer.is_fast:
        raise TypeError(f"`tokenizer`: {type(tokenizer).__name__} is not a fast tokenizer; load it with AutoTokenizer")
    present = {token.content for token in tokenizer.added_tokens_decoder.values()}
    missing = [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS if token not in present]
    tokenizer.add_tokens(missing, special_tokens=True)


def _check_positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f"`{name}`: expected a number above 0, got {value!r}")


def _check_image_processors(image_processor: Any, high_res_image_processor: Any) -> None:
    size = image_processor.size
    if not (size.get("height") and size.get("width")):
        raise ValueError(f"`image_processor`: expected a size with height and width, got {dict(size)}")
    size, padding = dict(high_res_image_processor.size), dict(high_res_image_processor.pad_size or {})
    longest = size.get("longest_edge")
    if longest is None or padding != {"height": longest, "width": longest}:
        raise ValueError(
            f"`high_res_image_processor`: its pad_size {padding} must be a height and a width that equal the longest_edge of"
            f" its size {size}"
        )


def _alternate(answers: Sequence[tuple[int, int]], end: int) -> Iterator[tuple[int, int, bool]]:
    """Cut the characters 0..end into (start, stop, is_answer) at the borders of the answers."""
    position = 0
    for start, stop in answers:
        yield position, min(start, end), False
        yield min(start, end), min(stop, end), True
        position = min(stop, end)
    yield position, end, False
