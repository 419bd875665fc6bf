import inspect

import pytest
import torch
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForUniversalSegmentation, GPT2Config

from modeling_xsam import XSAMForSegmentation, XSAMForUniversalSegmentation
from modeling_xsam.loss_xsam import pair_wise_cross_entropy
from tiny_models import (
    HIGH_RES_SIZE,
    IMAGE,
    PHRASE_END,
    REGION,
    SEG,
    batch,
    phrase,
    prompt_ids,
    tiny_config,
    tiny_images,
    tiny_mask_decoder_config,
    tiny_model,
    tiny_qwen_config,
    tiny_text_config,
)

CATEGORIES = prompt_ids(1, 5, IMAGE, 7, phrase(8, 9), 10, phrase(11), 12, SEG)
ONE_PHRASE = prompt_ids(1, IMAGE, 6, phrase(14, 15, 16), SEG)
ONE_REGION = prompt_ids(1, IMAGE, phrase(REGION), 13, SEG)
TWO_TURNS = prompt_ids(1, IMAGE, phrase(20), SEG, 21, phrase(22, 23), SEG)


def regions(number: int = 1) -> torch.Tensor:
    masks = torch.zeros(number, HIGH_RES_SIZE, HIGH_RES_SIZE, dtype=torch.bool)
    for index in range(number):
        masks[index, 5 : 20 + 10 * index, 10:30] = True
    return masks


def image(index: int, images: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: pixels[index : index + 1] for name, pixels in images.items()}


@pytest.fixture(scope="module")
def model():
    return tiny_model()


class TestSegment:
    def test_a_batch_gives_what_a_loop_over_its_samples_gives(self, model):
        rows, images = [CATEGORIES, ONE_REGION, TWO_TURNS], tiny_images(3)
        together = model.segment(**batch(*rows), **images, region_masks=regions())
        assert together.seg_batch_index.tolist() == [0, 1, 2, 2]
        for index, row in enumerate(rows):
            masks = regions() if row is ONE_REGION else None
            alone = model.segment(**batch(row), **image(index, images), region_masks=masks)
            mine = together.seg_batch_index == index
            torch.testing.assert_close(together.masks_queries_logits[mine], alone.masks_queries_logits)
            for joint, single in zip(together.class_queries_logits[mine], alone.class_queries_logits, strict=True):
                valid = joint[0] > -1e8
                torch.testing.assert_close(joint[:, valid], single[:, single[0] > -1e8])

    def test_ignoring_the_padding_would_change_the_result(self, model):
        inputs, images = batch(CATEGORIES, ONE_PHRASE), tiny_images(2)
        right = model.segment(**inputs, **images)
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        wrong = model.segment(**inputs, **images)
        difference = (right.class_queries_logits[1] - wrong.class_queries_logits[1]).abs().max()
        assert difference > 1e-3

    def test_the_side_of_the_padding_does_not_matter(self, model):
        images = tiny_images(2)
        left = model.segment(**batch(CATEGORIES, ONE_PHRASE), **images)
        right = model.segment(**batch(CATEGORIES, ONE_PHRASE, padding_side="right"), **images)
        assert torch.equal(left.masks_queries_logits, right.masks_queries_logits)

    def test_phrase_spans_point_into_the_sequences(self, model):
        outputs = model.segment(**batch(ONE_PHRASE, CATEGORIES), **tiny_images(2))
        spans = outputs.phrase_spans
        assert [tuple(s.shape) for s in spans] == [(1, 2), (2, 2)]
        start, end = spans[0][0].tolist()
        assert outputs.sequences[0, start:end].tolist() == phrase(14, 15, 16)
        assert outputs.sequence_lengths.tolist() == [len(ONE_PHRASE), len(CATEGORIES)]

    def test_classes_are_padded_and_the_background_is_last(self, model):
        outputs = model.segment(**batch(ONE_PHRASE, CATEGORIES), **tiny_images(2))
        assert outputs.class_mask.tolist() == [[True, False, True], [True, True, True]]
        assert (outputs.class_queries_logits[0, :, 1] == -1e9).all()
        assert outputs.class_queries_logits.softmax(-1)[0, :, 1].max() == 0

    def test_groups_share_their_phrases(self, model):
        inputs, images = batch(ONE_PHRASE, CATEGORIES), tiny_images(2)
        alone = model.segment(**inputs, **images)
        shared = model.segment(**inputs, **images, phrase_group_ids=torch.tensor([7, 7]))
        assert shared.class_mask.tolist() == [[True] * 4] * 2
        torch.testing.assert_close(shared.class_queries_logits[0][:, 0], alone.class_queries_logits[0][:, 0])
        torch.testing.assert_close(shared.class_queries_logits[1][:, 1:], alone.class_queries_logits[1])
        torch.testing.assert_close(shared.masks_queries_logits, alone.masks_queries_logits)

    def test_image_towers_run_once_per_image_and_not_at_all_with_features(self, model, monkeypatch):
        calls = count_calls(model, monkeypatch)
        images = tiny_images(1)
        inputs = {**batch(ONE_PHRASE, CATEGORIES), "image_index": torch.tensor([0, 0])}
        first = model.segment(**inputs, **images)
        assert calls == {"vision_tower": 1, "high_res_vision_tower": 1}
        second = model.segment(**inputs, image_features=first.image_features)
        assert calls == {"vision_tower": 1, "high_res_vision_tower": 1}
        assert torch.equal(first.masks_queries_logits, second.masks_queries_logits)

    def test_many_samples_on_one_image_equal_one_call_each(self, model):
        images = tiny_images(1)
        shared = model.segment(**batch(ONE_PHRASE, CATEGORIES), **images, image_index=torch.tensor([0, 0]))
        for index, row in enumerate((ONE_PHRASE, CATEGORIES)):
            alone = model.segment(**batch(row), **images)
            torch.testing.assert_close(shared.masks_queries_logits[index], alone.masks_queries_logits[0])

    @pytest.mark.parametrize("text_config", [None, tiny_text_config(sliding_window=6), tiny_qwen_config()])
    def test_what_prompts_on_one_image_have_in_common_is_read_once(self, text_config, monkeypatch):
        model = tiny_model() if text_config is None else tiny_model(text_config=text_config)
        rows = [prompt_ids(1, IMAGE, 6, phrase(*words), SEG) for words in ((14, 15, 16), (17,), (14, 18))]
        images = tiny_images(1)
        alone = [model.segment(**batch(row), **images) for row in rows]
        lengths = []
        original = model.language_model.forward

        def forward(*args, **kwargs):
            lengths.append(kwargs["inputs_embeds"].shape[1])
            return original(*args, **kwargs)

        forward.__signature__ = inspect.signature(original)
        monkeypatch.setattr(model.language_model, "forward", forward)
        together = model.segment(**batch(*rows), **images, image_index=torch.tensor([0, 0, 0]))
        assert lengths == [11, 5, 3, 4]
        for row, single in enumerate(alone):
            torch.testing.assert_close(together.class_queries_logits[row], single.class_queries_logits[0])
            torch.testing.assert_close(together.masks_queries_logits[row], single.masks_queries_logits[0])

    def test_different_regions_are_not_shared(self, model):
        rows, images = [ONE_REGION, ONE_REGION], tiny_images(1)
        together = model.segment(**batch(*rows), **images, image_index=torch.tensor([0, 0]), region_masks=regions(2))
        alone = model.segment(**batch(ONE_REGION), **images, region_masks=regions(2)[1:])
        torch.testing.assert_close(together.masks_queries_logits[1], alone.masks_queries_logits[0])

    def test_a_region_may_be_read_from_another_image(self, model):
        images = tiny_images(2)
        inputs = {**batch(ONE_REGION), "image_index": torch.tensor([0]), "region_masks": regions()}
        own = model.segment(**inputs, **images, region_batch_index=torch.tensor([0]))
        other = model.segment(**inputs, **images, region_batch_index=torch.tensor([1]))
        default = model.segment(**batch(ONE_REGION), **image(0, images), region_masks=regions())
        torch.testing.assert_close(own.masks_queries_logits, default.masks_queries_logits)
        assert not torch.allclose(own.masks_queries_logits, other.masks_queries_logits)

    def test_masks_leave_at_decoder_resolution_and_alone(self, model):
        outputs = model.segment(**batch(ONE_PHRASE), **tiny_images(1))
        assert outputs.masks_queries_logits.shape == (1, 6, 8, 8)
        assert outputs.auxiliary_logits is None
        asked = model.segment(**batch(ONE_PHRASE), **tiny_images(1), output_auxiliary_logits=True)
        assert len(asked.auxiliary_logits) == 2

    def test_no_seg_gives_no_segment(self, model):
        outputs = model.segment(**batch([1, 5, 6]), generate_answer=False)
        assert outputs.class_queries_logits.shape[0] == outputs.masks_queries_logits.shape[0] == 0

    def test_several_region_tokens_per_region(self):
        model = tiny_model(num_region_tokens=4, region_pooling="mean")
        row = prompt_ids(1, IMAGE, phrase(*[REGION] * 4), SEG)
        outputs = model.segment(**batch(row), **tiny_images(1), region_masks=regions())
        assert outputs.phrase_spans[0].tolist() == [[9, 15]]

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_a_model_that_was_cast_as_a_whole_still_works(self, dtype):
        outputs = tiny_model().to(dtype).segment(**batch(ONE_REGION), **tiny_images(1), region_masks=regions())
        assert outputs.class_queries_logits.dtype == torch.float32
        assert torch.isfinite(outputs.masks_queries_logits).all()

    def test_half_precision_keeps_the_decoder_in_float32(self):
        half = tiny_model().to(torch.bfloat16)
        for name in ("connector", "mask_projector", "mask_decoder", "phrase_classifier", "background_embedding"):
            half.get_submodule(name).float()
        outputs = half.segment(**batch(ONE_REGION), **tiny_images(1), region_masks=regions())
        assert outputs.masks_queries_logits.dtype == outputs.class_queries_logits.dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = tiny_model().segment(**batch(ONE_REGION), **tiny_images(1), region_masks=regions())
        assert outputs.masks_queries_logits.dtype == outputs.class_queries_logits.dtype == torch.float32

    def test_many_segs_are_decoded_a_few_at_a_time(self, model, monkeypatch):
        turns = [token for word in range(20, 30) for token in (*phrase(word), SEG)]
        inputs = {**batch(prompt_ids(1, IMAGE, turns)), **tiny_images(1)}
        few = model.segment(**inputs, output_auxiliary_logits=True)
        monkeypatch.setattr("modeling_xsam.mask_decoder_xsam.ITEMS_AT_ONCE", 100)
        all_at_once = model.segment(**inputs, output_auxiliary_logits=True)
        torch.testing.assert_close(few.masks_queries_logits, all_at_once.masks_queries_logits)
        assert len(few.auxiliary_logits) == len(all_at_once.auxiliary_logits)

    def test_training_mode_with_checkpointing_gives_the_same(self):
        model = tiny_model()
        rows = [prompt_ids(1, IMAGE, 6, phrase(*words), SEG) for words in ((14, 15), (17,))]
        inputs = {**batch(*rows), **tiny_images(1), "image_index": torch.tensor([0, 0])}
        expected = model.segment(**inputs)
        model.train()
        model.gradient_checkpointing_enable()
        torch.testing.assert_close(model.segment(**inputs).class_queries_logits, expected.class_queries_logits)

    def test_a_language_model_with_other_names(self):
        text_config = GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=4, tie_word_embeddings=True)
        model = tiny_model(text_config=text_config)
        assert model.lm_head.weight is model.language_model.wte.weight
        assert model.segment(**batch(ONE_PHRASE), **tiny_images(1)).masks_queries_logits.shape[0] == 1


class TestForward:
    def test_losses_add_up(self, model):
        inputs, labels = training_inputs()
        outputs = model(**inputs, **labels)
        assert set(outputs.loss_dict) == {"loss_lm"} | {
            f"loss_{kind}{layer}" for kind in ("mask", "dice", "cls") for layer in ("", "_0", "_1")
        }
        torch.testing.assert_close(outputs.loss, sum(outputs.loss_dict.values()))
        assert outputs.seg_batch_index.tolist() == [0, 1, 1]

    def test_every_parameter_that_should_learn_gets_a_gradient(self):
        model = tiny_model()
        inputs, labels = training_inputs()
        model(**inputs, **labels).loss.backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        unused = ("vision_tower.encoder.layers.1.", "vision_tower.post_layernorm.", "vision_tower.head.")
        neck = "high_res_vision_tower.vision_encoder.neck."
        assert without == {name for name, _ in model.named_parameters() if name.startswith((*unused, neck))}

    def test_gradient_checkpointing_gives_the_same_gradients(self):
        inputs, labels = training_inputs()
        gradients = []
        for checkpointing in (False, True):
            model = tiny_model(mask_decoder_config=tiny_mask_decoder_config(use_point_sampling=False)).train()
            if checkpointing:
                model.gradient_checkpointing_enable()
            model(**inputs, **labels).loss.backward()
            gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradient, gradients[1][name], msg=name)

    def test_placeholders_are_never_predicted_and_never_enter_the_loss(self, model):
        inputs = batch(CATEGORIES)
        outputs = model(**inputs, **tiny_images(1), labels=inputs["input_ids"])
        assert (outputs.logits[..., [IMAGE, REGION]] == torch.finfo(torch.float32).min).all()
        labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
        expected = torch.nn.functional.cross_entropy(
            outputs.logits[0, :-1, : len(outputs.logits[0, 0]) - 2], labels[0, 1:], ignore_index=-100
        )
        torch.testing.assert_close(outputs.loss, expected)

    def test_matching_is_in_float32_under_autocast(self, model, monkeypatch):
        dtypes = []
        original = pair_wise_cross_entropy

        def recording(*args):
            cost = original(*args)
            dtypes.append(cost.dtype)
            return cost

        monkeypatch.setattr("modeling_xsam.loss_xsam.pair_wise_cross_entropy", recording)
        inputs, labels = training_inputs()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(**inputs, **labels)
        assert set(dtypes) == {torch.float32}

    def test_wrong_labels_are_named(self, model):
        inputs, labels = training_inputs()
        with pytest.raises(ValueError, match="3 <SEG> tokens, but mask_labels has 2 entries"):
            model(**inputs, mask_labels=labels["mask_labels"][:2], class_labels=labels["class_labels"])
        with pytest.raises(ValueError, match=r"class_labels\[1\] is \[4\], but its <SEG> has 1 phrases"):
            bad = [labels["class_labels"][0], torch.tensor([4]), labels["class_labels"][2]]
            model(**inputs, mask_labels=labels["mask_labels"], class_labels=bad)
        with pytest.raises(ValueError, match="phrase_group_ids has 1 entries for 3 <SEG> tokens"):
            model(**inputs, **labels, phrase_group_ids=torch.tensor([0]))


class TestErrors:
    def test_image_tokens_and_images_disagree(self, model):
        with pytest.raises(ValueError, match="8 image tokens in 1 samples, but there are 2 images with 16"):
            model.segment(**batch(ONE_PHRASE), **tiny_images(2))
        with pytest.raises(ValueError, match="8 image tokens in 1 samples, but there are 0 images"):
            model(**batch(ONE_PHRASE))

    def test_one_of_the_two_kinds_of_pixels_is_missing(self, model):
        with pytest.raises(ValueError, match="pixel_values has 1 images and high_res_pixel_values 0"):
            model.segment(**batch(ONE_PHRASE), pixel_values=tiny_images(1)["pixel_values"])

    @pytest.mark.parametrize("masks", [None, regions(2)])
    def test_regions_and_masks_disagree(self, model, masks):
        with pytest.raises(ValueError, match=r"1 region tokens .* region_masks has"):
            model.segment(**batch(ONE_REGION), **tiny_images(1), region_masks=masks)

    def test_malformed_prompts_raise_before_anything_is_generated(self, model, monkeypatch):
        monkeypatch.setattr(model, "generate", lambda *args, **kwargs: pytest.fail("generated"))
        with pytest.raises(ValueError, match="<p> at position 9 has no </p>"):
            model.segment(**batch(prompt_ids(1, IMAGE, phrase(5)[:-1])), **tiny_images(1))

    def test_regions_of_another_size(self, model):
        with pytest.raises(
            ValueError, match=r"region_masks are \(8, 8\), but the high-resolution input is \(64, 64\)"
        ):
            model.segment(**batch(ONE_REGION), **tiny_images(1), region_masks=torch.ones(1, 8, 8, dtype=torch.bool))

    def test_an_attention_mask_over_the_image(self, model):
        inputs = batch(ONE_PHRASE)
        inputs["attention_mask"][0, 3] = 0
        with pytest.raises(ValueError, match="attention_mask is 0 at image or region tokens"):
            model.segment(**inputs, **tiny_images(1))

    def test_malformed_prompts(self, model):
        images = tiny_images(1)
        with pytest.raises(ValueError, match="<p> at position 9 is not closed"):
            model.segment(**batch(prompt_ids(1, IMAGE, phrase(5)[:-1], SEG)), **images)
        with pytest.raises(ValueError, match="has no <p> before it"):
            model.segment(**batch(prompt_ids(1, IMAGE, PHRASE_END, SEG)), **images)
        with pytest.raises(ValueError, match="<SEG> at position 9 has no phrase"):
            model.segment(**batch(prompt_ids(1, IMAGE, SEG)), **images)

    def test_a_seg_without_an_image(self, model):
        with pytest.raises(ValueError, match="Sample 0 has a <SEG>, but no image"):
            model.segment(**batch([1, *phrase(5), SEG]))

    def test_a_region_without_a_pixel(self, model):
        with pytest.raises(ValueError, match=r"region_masks\[0\] has no pixel"):
            model.segment(**batch(ONE_REGION), **tiny_images(1), region_masks=torch.zeros_like(regions()))


class TestSaving:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_round_trip_bit_for_bit_in_shards(self, tmp_path, model, dtype):
        model.to(torch.float32).save_pretrained(tmp_path / "float")
        original = XSAMForSegmentation.from_pretrained(tmp_path / "float", dtype=dtype)
        original.save_pretrained(tmp_path / "saved", max_shard_size="200KB")
        assert len(list((tmp_path / "saved").glob("*.safetensors"))) > 1
        loaded = AutoModel.from_pretrained(tmp_path / "saved", device_map="auto", dtype="auto")
        assert isinstance(loaded, XSAMForSegmentation)
        weights, expected = loaded.state_dict(), original.state_dict()
        assert weights.keys() == expected.keys()
        for name, weight in expected.items():
            assert weights[name].dtype == weight.dtype, name
            assert torch.equal(weights[name], weight), name
        assert loaded.connector.branches[0].conv1.weight.dtype == torch.float32
        assert loaded.lm_head.weight.dtype == dtype

    def test_a_folder_named_xsam(self, tmp_path, monkeypatch, model):
        model.save_pretrained(tmp_path / "xsam")
        monkeypatch.chdir(tmp_path)
        assert isinstance(AutoModel.from_pretrained("xsam"), XSAMForSegmentation)
        assert isinstance(AutoModelForImageTextToText.from_pretrained("xsam"), XSAMForSegmentation)

    def test_stage_1_round_trip(self, tmp_path):
        stage1 = XSAMForUniversalSegmentation(tiny_config(num_labels=3))
        stage1.save_pretrained(tmp_path)
        loaded = AutoModelForUniversalSegmentation.from_pretrained(tmp_path)
        pixels = tiny_images(1)["high_res_pixel_values"]
        assert loaded.config.num_labels == 3
        torch.testing.assert_close(
            loaded.eval()(pixels).class_queries_logits,
            stage1.eval()(high_res_pixel_values=pixels).class_queries_logits,
        )

    def test_a_stage_1_folder_is_no_stage_3_model(self, tmp_path):
        XSAMForUniversalSegmentation(tiny_config()).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="saved from XSAMForUniversalSegmentation: load it with that class"):
            AutoModel.from_pretrained(tmp_path)

    def test_a_checkpoint_that_lacks_keys(self, tmp_path, model):
        weights = {k: v for k, v in model.state_dict().items() if not k.startswith("mask_projector")}
        model.save_pretrained(tmp_path, state_dict=weights)
        with pytest.raises(ValueError, match=r"lacks 4 weights of XSAMForSegmentation.*mask_projector"):
            XSAMForSegmentation.from_pretrained(tmp_path)
        _, info = XSAMForSegmentation.from_pretrained(tmp_path, output_loading_info=True)
        assert len(info["missing_keys"]) == 4

    def test_tied_embeddings_stay_tied(self, tmp_path):
        model = tiny_model(text_config=tiny_qwen_config())
        assert model.lm_head.weight is model.language_model.embed_tokens.weight
        model.save_pretrained(tmp_path)
        loaded = XSAMForSegmentation.from_pretrained(tmp_path)
        assert loaded.lm_head.weight is loaded.language_model.embed_tokens.weight
        inputs = {**batch(ONE_PHRASE), **tiny_images(1)}
        torch.testing.assert_close(
            loaded.eval().segment(**inputs).masks_queries_logits, model.segment(**inputs).masks_queries_logits
        )


class TestInitialisation:
    def test_deformable_offsets_are_not_zero(self, model):
        offsets = model.mask_decoder.pixel_decoder.encoder.layers[0].self_attn.sampling_offsets
        assert offsets.weight.abs().max() == 0
        assert offsets.bias.abs().max() == 4

    def test_scale_of_the_classifier(self, model):
        assert model.phrase_classifier.logit_scale.item() == pytest.approx(2.6593, abs=1e-4)

    def test_the_mask_head_has_the_scale_of_a_plain_linear_layer(self, model):
        linear = model.mask_decoder.query_decoder.decoder.mask_predictor.mask_embedder.get_submodule("0.0")
        bound = linear.in_features**-0.5
        assert 0.8 * bound < linear.weight.abs().max() <= bound
        assert 0 < linear.bias.abs().max() <= bound

    def test_queries_and_levels_are_drawn(self, model):
        decoder = model.mask_decoder
        for weight in (
            decoder.query_decoder.queries_features.weight,
            decoder.query_decoder.level_embed.weight,
            decoder.pixel_decoder.level_embed,
        ):
            assert 0.5 < weight.std() < 1.5


class TestAttention:
    def test_every_tower_uses_sdpa(self, model):
        for tower in (model.vision_tower, model.high_res_vision_tower, model.language_model):
            assert tower.config._attn_implementation == "sdpa"

    def test_prompts_longer_than_the_sliding_window(self):
        """Phi-3 looks back over 2,047 tokens; eager and SDPA attention have to agree on what that means."""
        text_config = tiny_text_config(sliding_window=2047, max_position_embeddings=4096)
        generator = torch.Generator().manual_seed(0)
        words = torch.randint(3, 100, (2200,), generator=generator).tolist()
        row = [1, *[IMAGE] * 8, *words, *phrase(5, 6), SEG]
        outputs = []
        for implementation in ("eager", "sdpa"):
            model = tiny_model(text_config=text_config)
            model.set_attn_implementation(implementation)
            assert model.language_model.config._attn_implementation == implementation
            outputs.append(model.segment(**batch(row, ONE_PHRASE), **tiny_images(2)))
        eager, sdpa = outputs
        torch.testing.assert_close(eager.masks_queries_logits, sdpa.masks_queries_logits, atol=1e-5, rtol=0)
        unlimited = tiny_model(text_config=tiny_text_config(max_position_embeddings=4096))
        without = unlimited.segment(**batch(row, ONE_PHRASE), **tiny_images(2))
        assert not torch.allclose(without.class_queries_logits[0], sdpa.class_queries_logits[0], atol=1e-5)
        assert torch.allclose(without.class_queries_logits[1], sdpa.class_queries_logits[1], atol=1e-5)


def training_inputs():
    """Two samples with three `<SEG>`s, and labels for each."""
    inputs = batch(CATEGORIES, TWO_TURNS, padding_side="right")
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    masks = regions(2).float()
    return {**inputs, **tiny_images(2)}, {
        "labels": labels,
        "mask_labels": [masks, masks[:1], masks[1:]],
        "class_labels": [torch.tensor([1, 0]), torch.tensor([0]), torch.tensor([0])],
    }


def count_calls(model, monkeypatch) -> dict[str, int]:
    calls = {}
    for name in ("vision_tower", "high_res_vision_tower"):
        tower = model.get_submodule(name)
        original = tower.forward

        def forward(*args, name=name, original=original, **kwargs):
            calls[name] = calls.get(name, 0) + 1
            return original(*args, **kwargs)

        monkeypatch.setattr(tower, "forward", forward)
    return calls
