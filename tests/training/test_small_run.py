"""
The three stages in sequence on generated pictures, as small as can be: each stage learns, and the last one knows eight
samples, one of each task, by heart. In the place of a pretrained language model stands one that has learnt to answer
from a description in the question; in stage 2 the images take the description's place.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import Phi3ForCausalLM

from dataset_fixtures.scenes import COLORS, KINDS
from step_worker import InMemory
from tiny_models import tiny_config, tiny_mask_decoder_config, tiny_text_config
from tiny_training import all_tasks, category_sample, chat_sample, tiny_processor, vocabulary
from xsam_training.arguments import ModelArguments, XSAMTrainingArguments
from xsam_training.collator import XSAMCollator, XSAMUniversalCollator
from xsam_training.data.drawing import DrawOptions
from xsam_training.data.samples import AnnotatedSample, Turn, decode_masks
from xsam_training.dataset import TrainingDataset
from xsam_training.evaluation.predictor import question
from xsam_training.initialization import build_config, build_generation_config, build_model
from xsam_training.parts import set_trainable_parts
from xsam_training.pictures import predict
from xsam_training.sampler import MixedBatchSampler
from xsam_training.trainer import XSAMTrainer

HIGH_RES_SIZE = 96
TINY = tiny_config().to_dict()
CONFIG = {
    "vision_config": TINY["vision_config"],
    "high_res_vision_config": {
        **TINY["high_res_vision_config"],
        "hidden_size": 64,
        "mlp_dim": 128,
        "image_size": HIGH_RES_SIZE,
        "patch_size": 8,
        "window_size": 6,
    },
    "mask_decoder_config": tiny_mask_decoder_config(
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_feedforward_dim=128,
        dim_feedforward=128,
        num_queries=10,
        use_point_sampling=False,
    ).to_dict(),
    "connector_feature_layers": [1, 2, 3],
    "connector_hidden_size": 64,
    # Masks of half the input's resolution.
    "connector_scale_factors": [4, 2, 1],
}


def run_stage(folder, processor, model_args, samples, *, steps, learning_rate, labels=()) -> XSAMTrainer:
    """One stage through the package's own parts; the model is saved in `folder`."""
    torch.manual_seed(0)
    config = build_config(model_args, processor.tokenizer, labels)
    model, _ = build_model(model_args, config)
    set_trainable_parts(model, model_args.trainable)
    dataset = TrainingDataset([InMemory(samples)])
    collator = (
        XSAMUniversalCollator(processor, jitter=None)
        if model_args.stage == 1
        else XSAMCollator(
            processor,
            options=DrawOptions(whole_list_share=1.0, max_negatives=0),
            group_referring=False,
            vary_prompts=False,
        )
    )
    args = XSAMTrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        logging_steps=5,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = XSAMTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
        train_batch_sampler=MixedBatchSampler(dataset.lengths, 4),
        data_collator=collator,
        processing_class=processor,
    )
    trainer.train()
    trainer.save_model()
    return trainer


def fall(trainer: XSAMTrainer) -> float:
    """The last logged loss over the first."""
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses[-1] / losses[0]


def described(color: str, kind: str) -> AnnotatedSample:
    """A conversation without an image: the question says what is to be seen."""
    turn = Turn("chat", text=f"{color} {kind} What is on the left?", answer=f"A {color} {kind}.")
    return AnnotatedSample(None, (turn,), f"{color} {kind}")


def teach_language(folder, processor) -> None:
    """Train and save a language model that answers from descriptions, without ever seeing a picture."""
    text_config = tiny_text_config(**vocabulary(processor), hidden_size=64, intermediate_size=128)
    args = ModelArguments(
        stage=2, config={**CONFIG, "text_config": text_config.to_dict()}, trainable=["language_model", "lm_head"]
    )
    texts = [described(color, kind) for color in COLORS for kind in KINDS]
    trained = run_stage(folder / "language", processor, args, texts, steps=120, learning_rate=5e-3).model
    language_model = Phi3ForCausalLM(trained.config.text_config)
    language_model.model.load_state_dict(trained.language_model.state_dict())
    language_model.lm_head.load_state_dict(trained.lm_head.state_dict())
    language_model.save_pretrained(folder / "phi3")


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    processor = tiny_processor(HIGH_RES_SIZE, num_image_tokens=4 + 36)
    first_questions = [replace(sample, turns=sample.turns[:1]) for sample in all_tasks()]
    chats = [replace(sample, turns=sample.turns[:1]) for sample in map(chat_sample, range(8))]
    teach_language(folder, processor)
    language_model = str(folder / "phi3")
    one = ModelArguments(stage=1, config=CONFIG)
    categories = [category_sample(seed) for seed in range(8)]
    labels = categories[0].turns[0].labels
    two = ModelArguments(
        stage=2,
        language_model=language_model,
        segmentor=str(folder / "stage1"),
        config={"vision_config": CONFIG["vision_config"]},
        trainable=["multi_modal_projector", "high_res_projector"],
    )
    three = ModelArguments(
        stage=3,
        language_model=language_model,
        segmentor=str(folder / "stage1"),
        projectors=str(folder / "stage2"),
    )
    trainers = [
        run_stage(folder / "stage1", processor, one, categories, steps=40, learning_rate=2e-3, labels=labels),
        run_stage(folder / "stage2", processor, two, chats, steps=60, learning_rate=3e-3),
        run_stage(folder / "stage3", processor, three, first_questions, steps=210, learning_rate=2.5e-3),
    ]
    model = trainers[-1].model.eval()
    model.generation_config = build_generation_config(processor)
    return trainers, model, processor, first_questions


@pytest.mark.timeout(900)
def test_the_loss_of_each_stage_falls_to_less_than_half(stages):
    trainers, *_ = stages
    falls = [fall(trainer) for trainer in trainers]
    assert max(falls) < 0.5, falls


def test_eight_samples_are_known_by_heart(stages):
    _, model, processor, samples = stages
    for sample in samples:
        turn, image = sample.turns[0], sample.image
        segments, answer = predict(model, processor, image, turn)
        if turn.answer is not None:
            assert answer.strip() == turn.answer, turn.task
        found = [np.asarray(segment["mask"]) > 127 for segment in segments]
        for mask in decode_masks(turn.masks, (image.height, image.width)):
            best = max(((mask & other).sum() / (mask | other).sum() for other in found), default=0)
            assert best > 0.9, (turn.task, best)


def test_answers_are_generated_right(stages):
    """Nothing of the answer is given: the model says where the masks are."""
    _, model, processor, samples = stages
    for sample in samples:
        turn = sample.turns[0]
        if turn.answer is None:
            inputs = processor(
                images=[sample.image],
                task=[turn.task],
                **{name: [value] for name, value in question(turn, (sample.image.height, sample.image.width)).items()},
                prefill_answer=False,
            )
            outputs = model.segment(**inputs, max_new_tokens=64)
            assert outputs.empty_reasons == ("",) and len(outputs.seg_batch_index) == 1, turn.task
            answer = processor.tokenizer.decode(outputs.sequences[0, outputs.prompt_lengths[0] :])
            assert answer.split("<|end|>")[0] == processor.prompt_templates[turn.task]["answers"][0], turn.task
