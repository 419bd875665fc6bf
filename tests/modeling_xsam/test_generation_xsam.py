import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from tiny_models import (
    HIGH_RES_SIZE,
    IMAGE,
    REGION,
    SEG,
    batch,
    phrase,
    prompt_ids,
    tiny_images,
    tiny_model,
    tiny_qwen_config,
)

TWO_REGIONS = prompt_ids(1, IMAGE, phrase(REGION), 5, phrase(REGION), 6)
ONE_REGION = prompt_ids(1, 7, IMAGE, phrase(REGION), 8, 9, 10)
QUESTION = prompt_ids(1, IMAGE, 6, phrase(14, 15), 20)
CHAT = prompt_ids(1, IMAGE, 6, 7)
TEXT_ONLY = [1, 6, 7, 8]


class Forced(LogitsProcessor):
    """Each sample, told apart by its last prompt token, gets the answer written here."""

    def __init__(self, prompt_length: int, answers: dict[int, list[int]]) -> None:
        self.prompt_length, self.answers = prompt_length, answers

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(input_ids):
            answer = self.answers[int(ids[self.prompt_length - 1])]
            forced[row, answer[min(len(ids) - self.prompt_length, len(answer) - 1)]] = 0
        return forced


def forced(rows: list[list[int]], *answers: list[int]) -> LogitsProcessorList:
    by_last_token = {row[-1]: answer for row, answer in zip(rows, answers, strict=True)}
    return LogitsProcessorList([Forced(max(len(row) for row in rows), by_last_token)])


def regions(number: int) -> torch.Tensor:
    masks = torch.zeros(number, HIGH_RES_SIZE, HIGH_RES_SIZE, dtype=torch.bool)
    for index in range(number):
        masks[index, 20 * index : 20 * index + 15, 10:50] = True
    return masks


def count_tower_calls(model, monkeypatch) -> list[str]:
    calls = []
    for name in ("vision_tower", "high_res_vision_tower"):
        tower = model.get_submodule(name)

        def forward(*args, name=name, original=tower.forward, **kwargs):
            calls.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(tower, "forward", forward)
    return calls


@pytest.fixture(scope="module")
def model():
    return tiny_model()


class TestGenerate:
    def test_beam_search_keeps_regions_with_their_samples(self, model, monkeypatch):
        """Two samples with different numbers of regions; every beam has to see its own sample's regions."""
        calls = count_tower_calls(model, monkeypatch)
        images, masks = tiny_images(2), regions(3)
        together = model.generate(
            **batch(TWO_REGIONS, ONE_REGION),
            **images,
            region_masks=masks,
            num_beams=3,
            max_new_tokens=6,
            do_sample=False,
        )
        assert sorted(calls) == ["high_res_vision_tower", "vision_tower"]
        for index, (row, own) in enumerate(((TWO_REGIONS, masks[:2]), (ONE_REGION, masks[2:]))):
            image = {name: pixels[index : index + 1] for name, pixels in images.items()}
            alone = model.generate(
                **batch(row), **image, region_masks=own, num_beams=3, max_new_tokens=6, do_sample=False
            )
            assert together[index, -6:].tolist() == alone[0, -6:].tolist()

    def test_beams_depend_on_their_regions(self, model):
        inputs = {**batch(TWO_REGIONS, ONE_REGION), **tiny_images(2)}
        logits = []
        for masks in (regions(3), regions(3).flip(0)):
            outputs = model.generate(
                **inputs,
                region_masks=masks,
                num_beams=3,
                max_new_tokens=1,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
            logits.append(outputs.logits[0])
        assert not torch.allclose(*logits, atol=1e-4)
        # The beams of one sample start from the same prompt.
        torch.testing.assert_close(logits[0][0], logits[0][2])
        assert not torch.allclose(logits[0][0], logits[0][3], atol=1e-4)

    @pytest.mark.parametrize("text_config", [None, tiny_qwen_config()])
    def test_the_cache_changes_nothing(self, text_config, monkeypatch):
        model = tiny_model() if text_config is None else tiny_model(text_config=text_config)
        calls = count_tower_calls(model, monkeypatch)
        inputs = {**batch(TWO_REGIONS, ONE_REGION), **tiny_images(2), "region_masks": regions(3)}
        answers = [
            model.generate(**inputs, max_new_tokens=8, use_cache=cache, do_sample=False) for cache in (True, False)
        ]
        assert torch.equal(*answers)
        # One call per tower and generation, even where every step reads the whole prompt again.
        assert len(calls) == 4

    def test_sampling_is_reproducible(self, model):
        inputs = {**batch(CHAT), **tiny_images(1)}
        answers = []
        for _ in range(2):
            torch.manual_seed(3)
            answers.append(model.generate(**inputs, max_new_tokens=8, do_sample=True, num_return_sequences=4))
        assert torch.equal(*answers)
        assert len({tuple(answer) for answer in answers[0].tolist()}) > 1

    def test_placeholders_are_never_sampled(self, model):
        inputs = {**batch(CHAT), **tiny_images(1)}
        answer = model.generate(**inputs, max_new_tokens=200, do_sample=True, temperature=100.0, eos_token_id=None)
        new = answer[0, len(CHAT) :]
        assert len(new) == 200
        assert not torch.isin(new, torch.tensor([IMAGE, REGION])).any()

    def test_streamers_get_prompt_and_answer(self, model):
        class Collect(BaseStreamer):
            def __init__(self) -> None:
                self.tokens, self.ended = [], False

            def put(self, value: torch.Tensor) -> None:
                self.tokens.extend(value.flatten().tolist())

            def end(self) -> None:
                self.ended = True

        streamer = Collect()
        answer = model.generate(**batch(CHAT), **tiny_images(1), max_new_tokens=5, do_sample=False, streamer=streamer)
        assert streamer.ended
        assert streamer.tokens == answer[0].tolist()
        assert TextIteratorStreamer  # the usual streamers are built on this interface

    def test_text_without_an_image(self, model):
        mixed = model.generate(**batch(TEXT_ONLY, CHAT), **tiny_images(1), max_new_tokens=4, do_sample=False)
        alone = model.generate(**batch(TEXT_ONLY), max_new_tokens=4, do_sample=False)
        assert mixed[0, -4:].tolist() == alone[0, -4:].tolist()

    def test_no_graph_is_kept(self, model, monkeypatch):
        needs = []
        original = model.get_image_features

        def recording(*args):
            features = original(*args)
            needs.append(features.vision_tokens.requires_grad)
            return features

        monkeypatch.setattr(model, "get_image_features", recording)
        model.generate(**batch(CHAT), **tiny_images(1), max_new_tokens=2)
        assert needs == [False]

    def test_embeddings_instead_of_ids(self, model):
        embeds = model.get_input_embeddings()(torch.tensor([TEXT_ONLY]))
        answer = model.generate(inputs_embeds=embeds, max_new_tokens=4, do_sample=False)
        assert (
            answer[0].tolist() == model.generate(**batch(TEXT_ONLY), max_new_tokens=4, do_sample=False)[0, 4:].tolist()
        )

    def test_static_cache(self, model):
        inputs = {**batch(TWO_REGIONS), **tiny_images(1), "region_masks": regions(2)}
        plain = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        static = model.generate(
            **inputs, max_new_tokens=5, do_sample=False, cache_implementation="static", disable_compile=True
        )
        assert torch.equal(plain, static)


class TestSegmentWithAnswers:
    def test_an_end_token_of_the_call_ends_answers(self, model):
        rows = [QUESTION, CHAT]
        outputs = model.segment(
            **batch(*rows),
            **tiny_images(2),
            logits_processor=forced(rows, [SEG, 50], [31, 32, 33, 34, 50]),
            max_new_tokens=8,
            eos_token_id=50,
        )
        assert (outputs.sequence_lengths - outputs.prompt_lengths).tolist() == [2, 5]

    def test_prompts_that_end_in_seg_are_answered_by_one_forward(self, model, monkeypatch):
        lengths = []
        original = model.language_model.forward

        def forward(*args, **kwargs):
            lengths.append(kwargs["inputs_embeds"].shape[1])
            return original(*args, **kwargs)

        monkeypatch.setattr(model.language_model, "forward", forward)
        prefilled = [*QUESTION, SEG]
        model.segment(**batch(prefilled), **tiny_images(1))
        assert lengths == [len(prefilled)]

    def test_a_mixed_batch_generates_only_where_it_has_to(self, model):
        rows = [[*QUESTION, SEG], QUESTION, CHAT]
        images = tiny_images(3)
        answers = forced(rows[1:], [30, SEG, 2], [31, 32, 2])
        outputs = model.segment(**batch(*rows), **images, logits_processor=answers, max_new_tokens=8)
        assert outputs.seg_batch_index.tolist() == [0, 1]
        assert outputs.empty_reasons == ("", "", "the answer has no <SEG>.")
        assert outputs.sequence_lengths.tolist() == [len(rows[0]), len(QUESTION) + 3, len(CHAT) + 3]
        assert outputs.sequences[1, len(QUESTION) : len(QUESTION) + 3].tolist() == [30, SEG, 2]
        alone = model.segment(
            **batch(QUESTION),
            **{name: pixels[1:2] for name, pixels in images.items()},
            logits_processor=forced([QUESTION], [30, SEG, 2]),
            max_new_tokens=8,
        )
        torch.testing.assert_close(outputs.masks_queries_logits[1], alone.masks_queries_logits[0])

    def test_regions_follow_the_samples_that_are_generated(self, model):
        rows = [[*TWO_REGIONS, SEG], ONE_REGION]
        images, masks = tiny_images(2), regions(3)
        outputs = model.segment(
            **batch(*rows),
            **images,
            region_masks=masks,
            logits_processor=forced(rows[1:], [30, SEG, 2]),
            max_new_tokens=4,
        )
        alone = model.segment(
            **batch(ONE_REGION),
            **{name: pixels[1:] for name, pixels in images.items()},
            region_masks=masks[2:],
            logits_processor=forced([ONE_REGION], [30, SEG, 2]),
            max_new_tokens=4,
        )
        torch.testing.assert_close(outputs.masks_queries_logits[1], alone.masks_queries_logits[0])

    def test_a_seg_that_is_the_last_generated_token_counts(self, model):
        answers = forced([QUESTION], [30, SEG])
        outputs = model.segment(**batch(QUESTION), **tiny_images(1), logits_processor=answers, max_new_tokens=2)
        assert outputs.seg_batch_index.tolist() == [0]

    def test_phrases_of_the_answer_become_the_classes(self, model):
        answer = [*phrase(40, 41), 33, *phrase(42), SEG, 2]
        outputs = model.segment(
            **batch(CHAT), **tiny_images(1), logits_processor=forced([CHAT], answer), max_new_tokens=len(answer)
        )
        spans = outputs.phrase_spans[0].tolist()
        assert [outputs.sequences[0, start:end].tolist() for start, end in spans] == [phrase(40, 41), phrase(42)]

    def test_a_malformed_answer_is_empty_and_leaves_the_others_alone(self, model):
        rows = [CHAT, QUESTION]
        outputs = model.segment(
            **batch(*rows),
            **tiny_images(2),
            logits_processor=forced(rows, [phrase(40)[0], 40, SEG, 2], [SEG, 2]),
            max_new_tokens=4,
        )
        assert outputs.seg_batch_index.tolist() == [1]
        assert "is not closed" in outputs.empty_reasons[0]
        assert outputs.empty_reasons[1] == ""
        assert torch.isfinite(outputs.masks_queries_logits).all()

    def test_a_seg_in_an_answer_without_an_image_is_empty(self, model):
        rows = [[1, *phrase(5), 9], QUESTION]
        outputs = model.segment(
            **batch(*rows), **tiny_images(1), logits_processor=forced(rows, [SEG, 2], [SEG, 2]), max_new_tokens=2
        )
        assert outputs.seg_batch_index.tolist() == [1]
        assert "no image" in outputs.empty_reasons[0]

    def test_answers_of_earlier_turns_stay_in_the_history(self, model):
        history = prompt_ids(1, IMAGE, phrase(5), SEG, 6, phrase(7), 8)
        outputs = model.segment(
            **batch(history), **tiny_images(1), logits_processor=forced([history], [SEG, 2]), max_new_tokens=2
        )
        assert len(outputs.phrase_spans) == 1
        (start, end) = outputs.phrase_spans[0][0].tolist()
        assert outputs.sequences[0, start:end].tolist() == phrase(7)

    def test_several_answers_per_sample_are_refused(self, model):
        with pytest.raises(ValueError, match="num_return_sequences has to be 1"):
            model.segment(**batch(QUESTION), **tiny_images(1), num_return_sequences=2, do_sample=True)
