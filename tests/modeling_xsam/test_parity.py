"""
Agreement with the original implementation, number for number: recorded cases a to i, through the converter and the
public `forward`, `segment` and `generate`. Tolerances are absolute in float32 for values of order 1.
"""

from __future__ import annotations

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from modeling_xsam.convert_xsam_to_hf import convert_key
from parity import (
    Recorder,
    assert_near,
    recorded_images,
    recorded_model,
    recorded_stage1_model,
    recorded_text,
)
from processing_xsam.post_processing_xsam import resize_to_input

HIDDEN, LOGITS, LOSS, GRADIENT = 1e-5, 1e-4, 1e-4, 1e-3
INPUT_SIZE = 128
MODULES = (
    "vision_tower",
    "high_res_vision_tower",
    "language_model",
    "mask_projector",
    "mask_decoder.pixel_decoder",
    "mask_decoder.query_decoder",
    "phrase_classifier",
)
# Case, and the case that its images are stored with.
FORWARD_CASES = [
    ("a_genseg", "a_genseg"),
    ("b_refseg", "b_refseg"),
    ("c_gcgseg", "c_gcgseg"),
    ("d_vgdseg", "d_vgdseg"),
    ("e_intseg", "e_intseg"),
]


@pytest.fixture(scope="module")
def model(goldens):
    return recorded_model(goldens)


def read_case(goldens, model, name, images_of):
    case = goldens.tensors(name)
    lengths = goldens.case(name).get("lengths", [case["in.input_ids"].shape[1]])
    inputs = {**recorded_text(case, lengths, model.config), **recorded_images(goldens.tensors(images_of))}
    if "in.vprompt_masks.0" in case:
        inputs["region_masks"] = case["in.vprompt_masks.0"].bool()
    return case, inputs


def sharing_of(name: str, case: dict) -> torch.Tensor | None:
    """In the original, referring phrases of a batch are each other's classes."""
    return torch.zeros(len(case["seg_embeds"]), dtype=torch.long) if "refseg" in name else None


def check_segmentation(outputs, recorded, case) -> None:
    assert_near(outputs.class_queries_logits, case["out.class_queries_logits"], LOGITS, "class logits")
    predictions = [*outputs.auxiliary_logits, outputs]
    for layer, prediction in enumerate(predictions):
        assert_near(prediction["class_queries_logits"], case[f"class_logits.{layer}"], LOGITS, f"class {layer}")
        assert_near(prediction["masks_queries_logits"], case[f"decoder.mask_logits.{layer}"], LOGITS, f"mask {layer}")
    resized = resize_to_input(outputs.masks_queries_logits, (INPUT_SIZE, INPUT_SIZE))
    if "out.masks_queries_logits" in case:
        assert_near(resized, case["out.masks_queries_logits"], LOGITS, "masks")
    else:
        assert_near(resized[..., ::4, ::4], case["out.masks_queries_logits.stride4"], LOGITS, "masks")
    features = recorded.outputs["mask_decoder.pixel_decoder"]
    assert_near(features.mask_features, case["pixel_decoder.mask_features"], HIDDEN * 10, "mask features")
    decoded = recorded.outputs["mask_decoder.query_decoder"]
    last = len(predictions) - 1
    assert_near(decoded.queries[-1].transpose(0, 1), case[f"decoder.hidden.{last}"], HIDDEN, "queries")
    _, classes, class_mask = recorded.inputs["phrase_classifier"]
    assert_near(recorded.inputs["mask_decoder.query_decoder"][1], case["seg_embeds"][:, 0], HIDDEN, "<SEG>")
    valid = class_mask
    assert_near(classes[valid], case["cond_embeds"][valid], HIDDEN, "classes")
    if "embed_masks" in case:
        assert torch.equal(class_mask, case["embed_masks"].bool())


@pytest.mark.parametrize(("name", "images_of"), FORWARD_CASES)
def test_segment_gives_the_recorded_numbers(goldens, model, name, images_of):
    case, inputs = read_case(goldens, model, name, images_of)
    inputs.pop("labels")
    with Recorder(model, *MODULES) as recorded:
        outputs = model.segment(
            **inputs,
            phrase_group_ids=sharing_of(name, case),
            generate_answer=False,
            output_auxiliary_logits=True,
        )
    assert_near(outputs.image_features.vision_tokens, case["visual_projector.out"], HIDDEN, "global tokens")
    assert_near(outputs.image_features.high_res_tokens, case["seg_projector.out"], HIDDEN, "dense tokens")
    check_segmentation(outputs, recorded, case)
    projected = recorded.outputs["mask_projector"]
    for sample, length in enumerate(outputs.sequence_lengths):
        assert_near(projected[sample, :length], case["llm_projector.out"][sample, :length], HIDDEN, "projected")
    if "vision_sampler.0" in case:
        regions = model.region_sampler(
            outputs.image_features.region_map, inputs["region_masks"], torch.zeros(len(inputs["region_masks"])).long()
        )
        assert_near(regions[:, 0], case["vision_sampler.0"], HIDDEN, "regions")


@pytest.mark.parametrize(("name", "images_of"), [*FORWARD_CASES, ("f_imgconv", "b_refseg")])
def test_forward_gives_the_recorded_language_model(goldens, model, name, images_of):
    case, inputs = read_case(goldens, model, name, images_of)
    samples = len(inputs["input_ids"])
    inputs.update({key: inputs[key][:samples] for key in ("pixel_values", "high_res_pixel_values")})
    with Recorder(model, "language_model") as recorded:
        outputs = model(**inputs)
    hidden = recorded.outputs["language_model"].last_hidden_state
    vocabulary = case["llm.logits"].shape[-1]
    for sample, length in enumerate(inputs["attention_mask"].sum(-1).tolist()):
        assert_near(hidden[sample, :length], case["llm.last_hidden_state"][sample, :length], HIDDEN, "hidden")
        logits = outputs.logits[sample, :length]
        assert_near(logits[:, :vocabulary], case["llm.logits"][sample, :length], LOGITS, "logits")
        assert (logits[:, vocabulary:] == torch.finfo(torch.float32).min).all()
    assert outputs.loss.item() == pytest.approx(case["llm.loss"].item(), rel=LOSS)
    assert outputs.loss.item() == pytest.approx(goldens.case(name)["llm_loss"], rel=LOSS)


def test_every_recorded_intermediate_of_case_a(goldens, model):
    case, inputs = read_case(goldens, model, "a_genseg", "a_genseg")
    inputs.pop("labels")
    neck, layers = "high_res_vision_tower.vision_encoder.neck", "mask_decoder.query_decoder.decoder"
    with Recorder(model, *MODULES, neck, layers) as recorded:
        outputs = model.segment(**inputs, generate_answer=False, output_auxiliary_logits=True)
    vision = recorded.outputs["vision_tower"]
    for layer, states in enumerate(vision.hidden_states):
        assert_near(states, case[f"siglip.hidden_states.{layer}"], HIDDEN, f"siglip {layer}")
    assert_near(vision.last_hidden_state, case["siglip.last_hidden_state"], HIDDEN, "siglip")
    for layer, states in enumerate(recorded.outputs["high_res_vision_tower"].hidden_states):
        assert_near(states, case[f"sam.hidden_states.{layer}"], HIDDEN, f"sam {layer}")
    assert_near(recorded.outputs[neck], case["sam.neck"], HIDDEN, "neck")
    for scale, maps in enumerate(outputs.image_features.connector_maps):
        assert_near(maps, case[f"seg_connector.{scale}"], HIDDEN, f"connector {scale}")
    for level, maps in enumerate(recorded.outputs["mask_decoder.pixel_decoder"].multi_scale_features):
        assert_near(maps, case[f"pixel_decoder.multi_scale_features.{level}"], HIDDEN, f"pixel decoder {level}")
    for layer, queries in enumerate(recorded.outputs["mask_decoder.query_decoder"].queries):
        assert_near(queries.transpose(0, 1), case[f"decoder.hidden.{layer}"], HIDDEN, f"queries {layer}")
    last = recorded.outputs[layers].last_hidden_state
    assert_near(last, case["out.decoder_last_hidden_state"], HIDDEN, "queries before the layer norm")
    # The masks at input size are recorded in full for this case.
    assert case["out.masks_queries_logits"].shape[-1] == INPUT_SIZE

    classes = recorded.inputs["phrase_classifier"][1]
    for sample, length in enumerate(outputs.sequence_lengths.tolist()):
        ids = case["multimodal.input_ids"][sample, :length]
        is_image = outputs.sequences[sample, :length] == model.config.image_token_id
        assert torch.equal(is_image, ids == -200)
        assert torch.equal(outputs.sequences[sample, :length][~is_image], ids[~is_image])
        conditions = torch.full((length,), -1)
        for index, (start, end) in enumerate(outputs.phrase_spans[sample].tolist()):
            conditions[start:end] = index
        assert torch.equal(conditions, case["multimodal.cond_ids"][sample, :length])
        phrases = case[f"cond_embeds_raw.{sample}"]
        assert_near(classes[sample, : len(phrases)], phrases, HIDDEN, "phrases")
        seg_embeds = recorded.inputs["mask_decoder.query_decoder"][1]
        assert_near(seg_embeds[sample], case[f"seg_embeds_raw.{sample}"][0], HIDDEN, "<SEG>")


def test_inputs_of_the_language_model_in_case_a(goldens, model):
    case, inputs = read_case(goldens, model, "a_genseg", "a_genseg")
    calls = []
    handle = model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    model(**inputs)
    handle.remove()
    for sample, length in enumerate(inputs["attention_mask"].sum(-1).tolist()):
        embeds, positions = calls[0]["inputs_embeds"], calls[0]["position_ids"]
        assert_near(embeds[sample, :length], case["llm.inputs_embeds"][sample, :length], HIDDEN, "embeddings")
        assert torch.equal(positions[sample, :length], case["llm.position_ids"][sample, :length])
        assert torch.equal(inputs["labels"][sample, :length], case["llm.labels"][sample, :length])


class ForcedAnswer(LogitsProcessor):
    """Makes generation give a recorded answer."""

    def __init__(self, prompt_length: int, answer: list[int]) -> None:
        self.prompt_length, self.answer = prompt_length, answer

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.answer[input_ids.shape[1] - self.prompt_length]] = 0
        return forced


@pytest.mark.parametrize("name", ["h_predict_gcgseg", "h_predict_refseg"])
def test_generated_answers_give_the_recorded_masks(goldens, model, name):
    case, inputs = read_case(goldens, model, name, "h_predict_gcgseg")
    inputs.pop("labels")
    answer = goldens.case(name)["forced_sequence"]
    forced = LogitsProcessorList([ForcedAnswer(inputs["input_ids"].shape[1], answer)])
    with Recorder(model, *MODULES) as recorded:
        outputs = model.segment(
            **inputs, logits_processor=forced, max_new_tokens=len(answer), output_auxiliary_logits=True
        )
    assert outputs.sequences[0, outputs.prompt_lengths[0] :].tolist() == case["out.sequences"][0].tolist()
    check_segmentation(outputs, recorded, case)
    hidden = recorded.outputs["language_model"].last_hidden_state
    states = torch.cat([case["out.prompt_last_hidden_state"], case["out.generated_last_hidden_state"]], dim=1)
    # The original has no state for the last generated token.
    assert_near(hidden[:, :-1], states, HIDDEN, "hidden states")
    assert_near(recorded.outputs["mask_projector"][:, :-1], case["llm_projector.out.1"], HIDDEN, "projected")


@pytest.mark.parametrize("name", ["i_loss_genseg", "i_loss_genseg_points", "i_loss_refseg", "i_loss_refseg_points"])
def test_losses_matches_and_gradients(goldens, name, monkeypatch):
    facts, case = goldens.case(name), goldens.tensors(name)
    model = recorded_model(goldens, use_point_sampling=facts["use_sample_point"])
    labels_of = goldens.tensors(name.removesuffix("_points"))
    inputs = loss_inputs(goldens, model, name, case, labels_of)
    matches = record_matches(model, monkeypatch)
    if facts["use_sample_point"]:
        replay_draws(case, monkeypatch)
    model.zero_grad()
    outputs = model(**inputs)
    outputs.loss.backward()

    assert outputs.loss.item() == pytest.approx(facts["loss"]["loss"], rel=LOSS)
    assert outputs.loss_dict["loss_lm"].item() == pytest.approx(facts["loss"]["loss_llm"], rel=LOSS)
    compare_mask_losses(outputs.loss_dict, facts["loss"])
    compare_matches(matches, case)
    compare_gradients(model, facts["grad_norm"])
    if f"class_logits.{0}" in case:
        for layer, prediction in enumerate([*outputs.auxiliary_logits, outputs]):
            assert_near(prediction["class_queries_logits"], case[f"class_logits.{layer}"], LOGITS)
            assert_near(prediction["masks_queries_logits"], case[f"decoder.mask_logits.{layer}"], LOGITS)


def test_stage_1(goldens, monkeypatch):
    facts, case = goldens.case("g_stage1"), goldens.tensors("g_stage1")
    model = recorded_stage1_model(goldens, use_point_sampling=facts["use_sample_point"])
    matches = record_matches(model, monkeypatch)
    items = range(2)
    with Recorder(model, "mask_decoder.pixel_decoder", "mask_decoder.query_decoder") as recorded:
        outputs = model(
            high_res_pixel_values=goldens.tensors("a_genseg")["in.extra_pixel_values"],
            mask_labels=[case[f"in.mask_labels.{i}"] for i in items],
            class_labels=[case[f"in.class_labels.{i}"] for i in items],
        )
    outputs.loss.backward()
    assert_near(outputs.class_queries_logits, case["out.class_queries_logits"], LOGITS, "class logits")
    masks = resize_to_input(outputs.masks_queries_logits, (INPUT_SIZE, INPUT_SIZE))
    assert_near(masks[..., ::4, ::4], case["out.masks_queries_logits.stride4"], LOGITS, "masks")
    for layer, prediction in enumerate([*outputs.auxiliary_logits, outputs]):
        assert_near(prediction["class_queries_logits"], case[f"class_logits.{layer}"], LOGITS)
        assert_near(prediction["masks_queries_logits"], case[f"decoder.mask_logits.{layer}"], LOGITS)
    features = recorded.outputs["mask_decoder.pixel_decoder"].mask_features
    assert_near(features, case["pixel_decoder.mask_features"], HIDDEN * 10, "mask features")
    queries = recorded.outputs["mask_decoder.query_decoder"].queries[-1]
    assert_near(queries.transpose(0, 1), case["decoder.hidden.3"], HIDDEN, "queries")
    assert outputs.loss.item() == pytest.approx(facts["loss"]["loss"], rel=LOSS)
    compare_mask_losses(outputs.loss_dict, facts["loss"])
    compare_matches(matches, case)
    compare_gradients(model, facts["grad_norm"])


def loss_inputs(goldens, model, name, case, labels_of):
    """One entry of labels per `<SEG>`; the original keeps them per image."""
    referring = "refseg" in name
    images = recorded_images(goldens.tensors("b_refseg" if referring else "a_genseg"))
    lengths = [int((ids != 0).nonzero().max()) + 1 for ids in case["in.input_ids"]]
    inputs = {**recorded_text(case, lengths, model.config), **images}
    masks = [labels_of[f"in.mask_labels.{i}"] for i in range(2)]
    classes = [case[f"in.class_labels.{i}"] for i in range(2)]
    if referring:
        # One mask per phrase: each `<SEG>` gets its own, which is class 0 of its own phrases.
        inputs["mask_labels"] = [mask[None] for of_image in masks for mask in of_image]
        inputs["class_labels"] = [torch.zeros(1, dtype=torch.long) for _ in inputs["mask_labels"]]
        inputs["phrase_group_ids"] = torch.zeros(len(inputs["mask_labels"]), dtype=torch.long)
    else:
        inputs["mask_labels"], inputs["class_labels"] = masks, classes
    return inputs


def record_matches(model, monkeypatch) -> list:
    matches = []
    matcher = model.loss.matcher
    original = matcher.forward

    def forward(*args):
        result = original(*args)
        matches.extend(result)
        return result

    monkeypatch.setattr(matcher, "forward", forward)
    return matches


def replay_draws(case, monkeypatch) -> None:
    draws = iter([case[f"rand.{i}"] for i in range(sum(key.startswith("rand.") for key in case))])

    original = torch.rand

    def rand(*shape, **kwargs):
        if shape == ([],):
            # Some versions of transformers draw an unused number per decoder layer.
            return original([])
        draw = next(draws)
        assert draw.shape == tuple(shape)
        return draw

    monkeypatch.setattr(torch, "rand", rand)


def compare_mask_losses(loss_dict, recorded) -> None:
    names = [key for key in recorded if key not in ("loss", "loss_llm", "loss_seg")]
    assert set(names) == {key for key in loss_dict if key != "loss_lm"}
    for key in names:
        assert loss_dict[key].item() == pytest.approx(recorded[key], rel=LOSS), key


def compare_matches(matches, case) -> None:
    recorded = [case[f"match.{i}"] for i in range(sum(key.startswith("match.") for key in case))]
    assert len(recorded) == len(matches)
    for (queries, labels), expected in zip(matches, recorded, strict=True):
        assert torch.equal(torch.stack([queries, labels]), expected)


def compare_gradients(model, recorded) -> None:
    parameters = dict(model.named_parameters())
    compared = set()
    for original, expected in recorded.items():
        name = convert_key(original)
        gradient = parameters[name].grad
        compared.add(name)
        norm = 0.0 if gradient is None else gradient.norm().item()
        assert norm == pytest.approx(expected or 0.0, rel=GRADIENT, abs=1e-5), original
    assert compared == set(parameters)
