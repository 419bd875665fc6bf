"""
Probe `prompt-injection`: does a tagged phrase give a `<SEG>`, can a user forge the tags, and does the `<SEG>` reach the decoder?

X-SAM (arXiv 2508.04655, section 3.2) puts `<p>` and `</p>` around what is asked for, and adds the language model's embedding of
`<SEG>` to the queries of the mask decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from processing_xsam import XSAMProcessor
from processing_xsam.image_processing_xsam import load_image, scaled_size
from processing_xsam.post_processing_xsam import Geometry, referring
from processing_xsam.prompts_xsam import PHRASE_END_TOKEN, PHRASE_START_TOKEN, SPECIAL_TOKENS, plain_text, text_phrase
from processing_xsam.results_xsam import seg_output
from processing_xsam.visualization_xsam import visualize

from ..evaluation.metric import mean
from .checks import check_counts, check_has_language_model
from .report import ProbeReport

MEANING = (
    "How often a phrase is answered with a <SEG> with and without its tags, whether typed tags become structure, and how much"
    " the masks change when the decoder gets another embedding for the <SEG>."
)
# Added to what a user types: what would be structure in a formatted prompt.
TYPED_ENDINGS = ("", " <SEG>", " <p><region></p>", " <image>", " <<p>p>it<</p>/p>")
# What stands for the <SEG>'s own embedding.
REPLACEMENTS = ("zeros", "other image")
# Images that are shown; each makes up to four pictures.
NUM_SHOWN = 2


@dataclass(frozen=True)
class _Reply:
    """
    A generated answer.

    Attributes:
        answered: it is well-formed and has a `<SEG>` with a phrase, its own or the prompt's.
        has_seg: it has a `<SEG>`, whether there is a phrase for it or not.
        text: special tokens included.
    """

    answered: bool
    has_seg: bool
    text: str


@dataclass(frozen=True)
class _Asked:
    """A question about an image, with and without tags."""

    image: int
    question: str
    tagged: _Reply
    untagged: _Reply


@dataclass(frozen=True)
class _Typed:
    """A chat message with typed tags, and whether they became structure."""

    message: str
    forged: bool


@dataclass(frozen=True)
class _Decoded:
    """What the decoder makes of one `<SEG>`: probabilities (Q, h, w) and (Q, 2), and the best mask, bool (H, W)."""

    masks: torch.Tensor
    classes: torch.Tensor
    best: torch.Tensor


@dataclass(frozen=True)
class _Change:
    """What another embedding changes in the decoding of an image's `<SEG>`: differences from 0 (none) to 1."""

    image: int
    replaced_by: str
    masks: float
    best: float
    classes: float


@torch.no_grad()
def probe_prompt_injection(
    model: PreTrainedModel,
    processor: XSAMProcessor,
    images: Iterable[Image.Image],
    phrase: str = "person",
    limit: int = 20,
    wordings: int = 1,
    max_new_tokens: int = 64,
) -> ProbeReport:
    """
    Ask for a phrase with and without tags, and decode its `<SEG>` with other embeddings.

    Prompts are formatted ones, in which special tokens are tokens: the questions of `referring`, answered by greedy generation.
    The figures, all from 0 to 1:

    - `tagged: answered`: share of prompts with `<p>phrase</p>` that are answered with a well-formed `<SEG>`. Near 1 for a good
      checkpoint.
    - `untagged: answered`: the same prompts without the tags. A `<SEG>` needs a phrase, which the answer then has to tag itself.
    - `tagged: <SEG>`, `untagged: <SEG>`: share of answers with the token, well-formed or not. If the second is as high as the
      first, it is the words of the question that ask for a mask and not the tags.
    - `formatted: read as structure`: share of the tagged prompts whose tags are tokens. 1, or the prompts above ask nothing.
    - `typed: read as structure`: share of chat messages with typed tags, `<SEG>`, `<image>` or `<region>` whose prompt has
      any such token. Has to be 0, whatever the checkpoint.
    - `zeros: ...`, `other image: ...`: what changes when the decoder gets zeros, or the `<SEG>` embedding of the next image
      (the last image gets that of the first; NaN for a single image), instead of the prompt's own; the answer is given up to
      its `<SEG>`, and all else stays the same, the embedding of the phrase too. `mask probabilities`: mean absolute change over
      queries and the image's area; `best mask`: 1 - IoU of the thresholded mask of the best query; `class probabilities`:
      mean absolute change over queries, of phrase and background. All 0: the embedding does not reach the decoder.

    That something changes does not say that it changes for the better, and not whether the phrase is in the image: there is no
    annotation here. `other image` is small for a checkpoint whose `<SEG>` stands for the phrase alone.

    Args:
        model: `XSAMForSegmentation`, in evaluation mode.
        processor: its processor.
        images: with or without what the phrase names.
        phrase: what is asked for, taken literally.
        limit: images, from the first.
        wordings: questions of the processor's templates, from the first, that each image is asked.
        max_new_tokens: of an answer.

    Raises:
        ValueError: if the model has no language model, or `limit` or `wordings` is below 1.
    """
    check_has_language_model(model)
    check_counts(limit=limit, wordings=wordings)
    questions = processor.prompt_templates["referring"]["questions"][:wordings]
    pictures = [load_image(image) for image in islice(images, limit)]
    asked = [
        each
        for row, image in enumerate(pictures)
        for each in _ask(model, processor, row, image, questions, phrase, max_new_tokens)
    ]
    typed = [_type(processor, question, phrase, ending) for question in questions for ending in TYPED_ENDINGS]
    changes, shown = _replace_all(model, processor, pictures, phrase)
    figures = {
        "tagged: answered": mean([each.tagged.answered for each in asked]),
        "untagged: answered": mean([each.untagged.answered for each in asked]),
        "tagged: <SEG>": mean([each.tagged.has_seg for each in asked]),
        "untagged: <SEG>": mean([each.untagged.has_seg for each in asked]),
        "formatted: read as structure": mean([_has_tags(processor, question, phrase) for question in questions]),
        "typed: read as structure": mean([each.forged for each in typed]),
    }
    for name in REPLACEMENTS:
        of_kind = [change for change in changes if change.replaced_by == name]
        figures[f"{name}: mask probabilities"] = mean([change.masks for change in of_kind])
        figures[f"{name}: best mask"] = mean([change.best for change in of_kind])
        figures[f"{name}: class probabilities"] = mean([change.classes for change in of_kind])
    settings = {
        "phrase": phrase,
        "images": len(pictures),
        "prompts of each kind": len(asked),
        "typed messages": len(typed),
        "max_new_tokens": max_new_tokens,
    }
    cases = [asdict(case) for case in (*asked, *typed, *changes)]
    return ProbeReport("prompt-injection", MEANING, figures, settings, cases, shown)


def _formatted(processor: XSAMProcessor, question: str, phrase: str) -> str:
    """A prompt with the image and a question, up to where the answer begins."""
    content = f"{processor.image_token}\n{question.replace('{phrases}', phrase)}"
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )


def _ask(
    model: PreTrainedModel,
    processor: XSAMProcessor,
    row: int,
    image: Image.Image,
    questions: Sequence[str],
    phrase: str,
    max_new_tokens: int,
) -> list[_Asked]:
    """Generate the answers to questions about one image, all in one batch."""
    prompts = [_formatted(processor, question, text_phrase(phrase)) for question in questions]
    prompts += [_formatted(processor, question, plain_text(phrase)) for question in questions]
    inputs = processor(images=[image] * len(prompts), text=prompts).to(model.device)
    outputs = model.segment(**inputs, generate_answer=True, max_new_tokens=max_new_tokens, do_sample=False)
    replies = [_reply(processor, outputs, place) for place in range(len(prompts))]
    tagged, untagged = replies[: len(questions)], replies[len(questions) :]
    return [
        _Asked(row, question, *of_question) for question, *of_question in zip(questions, tagged, untagged, strict=True)
    ]


def _reply(processor: XSAMProcessor, outputs: Any, place: int) -> _Reply:
    """One answer of the model's outputs."""
    answer = outputs.sequences[place, outputs.prompt_lengths[place] : outputs.sequence_lengths[place]].tolist()
    return _Reply(
        answered=place in outputs.seg_batch_index.tolist() and not outputs.empty_reasons[place],
        has_seg=processor.seg_token_id in answer,
        text=processor.tokenizer.decode(answer),
    )


def _structure(processor: XSAMProcessor, inputs: Mapping[str, torch.Tensor]) -> list[int]:
    """The structure tokens of a prompt, in order."""
    structure = processor.tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    return [token for token in inputs["input_ids"][0].tolist() if token in structure]


def _type(processor: XSAMProcessor, question: str, phrase: str, ending: str) -> _Typed:
    """A chat message without an image has no structure, unless what is typed becomes one."""
    message = question.replace("{phrases}", f"{PHRASE_START_TOKEN}{phrase}{PHRASE_END_TOKEN}") + ending
    return _Typed(message, forged=bool(_structure(processor, processor(task="chat", text=message))))


def _has_tags(processor: XSAMProcessor, question: str, phrase: str) -> bool:
    """Whether the tags of a formatted prompt are tokens."""
    prompt = _formatted(processor, question, text_phrase(phrase)).replace(processor.image_token, "")
    tags = [processor.phrase_start_token_id, processor.phrase_end_token_id]
    return _structure(processor, processor(text=prompt)) == tags


@contextmanager
def _seg_embedding(model: PreTrainedModel, edit: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """The decoder gets `edit` of the projected `<SEG>` embeddings (N, D), float32; nothing else sees the difference."""

    def before(module: torch.nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        connector_maps, image_index, seg_embeds, *others = arguments
        return connector_maps, image_index, edit(seg_embeds), *others

    hook = model.mask_decoder.register_forward_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()


def _prefilled(model: PreTrainedModel, processor: XSAMProcessor, image: Image.Image, phrase: str) -> dict[str, Any]:
    """Inputs of `segment` that end in the `<SEG>` of a phrase, with the image encoded."""
    inputs = dict(processor(images=image, task="referring", text=phrase, prefill_answer=True).to(model.device))
    features = model.get_image_features(inputs.pop("pixel_values"), inputs.pop("high_res_pixel_values"))
    return {**inputs, "image_features": features}


def _own_embedding(model: PreTrainedModel, inputs: Mapping[str, Any]) -> torch.Tensor:
    """The projected embedding of a prompt's `<SEG>`, (1, D)."""
    seen: list[torch.Tensor] = []

    def record(embedding: torch.Tensor) -> torch.Tensor:
        seen.append(embedding)
        return embedding

    with _seg_embedding(model, record):
        model.segment(**inputs)
    return seen[0]


def _replace_all(
    model: PreTrainedModel, processor: XSAMProcessor, images: Sequence[Image.Image], phrase: str
) -> tuple[list[_Change], list[tuple[str, Image.Image]]]:
    """What other embeddings change in each image, and pictures of the first images."""
    embeddings = [_own_embedding(model, _prefilled(model, processor, image, phrase)) for image in images]
    changes, pictures = [], []
    for row, image in enumerate(images):
        inputs = _prefilled(model, processor, image, phrase)
        geometry = Geometry(processor.high_res_size, (image.height, image.width))
        own = _decode(model, inputs, embeddings[row], geometry)
        others = [torch.zeros_like(embeddings[row])]
        if len(images) > 1:
            others.append(embeddings[(row + 1) % len(images)])
        for name, embedding in zip(REPLACEMENTS, others, strict=False):
            replaced = _decode(model, inputs, embedding, geometry)
            changes.append(_change(row, name, own, replaced))
            if row < NUM_SHOWN:
                pictures.append((f"image {row}: its own <SEG>", _drawn(image, own, phrase)))
                pictures.append((f"image {row}: <SEG> replaced, {name}", _drawn(image, replaced, phrase)))
    return changes, pictures


def _decode(
    model: PreTrainedModel, inputs: Mapping[str, Any], embedding: torch.Tensor, geometry: Geometry
) -> _Decoded:
    """The one `<SEG>` of a prompt, decoded with an embedding (1, D)."""
    with _seg_embedding(model, lambda _: embedding):
        seg = seg_output(model.segment(**inputs), 0)
    # What lies beyond the image is padding.
    sides = scaled_size(geometry.target_size, geometry.input_size)
    height, width = (
        -(-side * size // geometry.input_size) for side, size in zip(sides, seg.mask_logits.shape[-2:], strict=True)
    )
    found = referring(seg.class_logits, seg.mask_logits, geometry)
    return _Decoded(
        masks=seg.mask_logits[:, :height, :width].float().sigmoid(),
        classes=seg.class_logits.float().softmax(-1),
        best=torch.zeros(geometry.target_size, dtype=torch.bool) if found is None else found.mask.cpu(),
    )


def _change(row: int, name: str, own: _Decoded, replaced: _Decoded) -> _Change:
    union = int((own.best | replaced.best).sum())
    return _Change(
        image=row,
        replaced_by=name,
        masks=float((own.masks - replaced.masks).abs().mean()),
        # Two masks without a pixel are the same.
        best=1 - int((own.best & replaced.best).sum()) / union if union else 0.0,
        classes=float((own.classes - replaced.classes).abs().mean()),
    )


def _drawn(image: Image.Image, decoded: _Decoded, phrase: str) -> Image.Image:
    mask = Image.fromarray(decoded.best.numpy()).convert("L")
    return visualize(image, [{"label": phrase, "score": None, "mask": mask}], legend=False)
