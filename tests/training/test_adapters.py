"""LoRA adapters by PEFT: what they reach, what learns, and that saving, merging and removing them loses nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainingArguments

from modeling_xsam import XSAMConfig, XSAMForSegmentation, XSAMForUniversalSegmentation
from tiny_models import (
    HIGH_RES_SIZE,
    IMAGE,
    PHRASE_END,
    PHRASE_START,
    SEG,
    VOCAB_SIZE,
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
from xsam_training.adapters import FULLY_TRAINED, lora_config

TEXT_CONFIGS = {"phi3": tiny_text_config, "qwen3": tiny_qwen_config}
SPECIAL_TOKENS = list(range(VOCAB_SIZE - 5, VOCAB_SIZE))
LANGUAGE_LAYERS = {
    "phi3": ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"],
    "qwen3": [
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    ],
}
SEGMENTING = prompt_ids(1, IMAGE, phrase(5, 6), 7, phrase(8), SEG)
CHATTING = prompt_ids(1, IMAGE, [9, 10, 11])

# PEFT and the Trainer use names of transformers that are about to change.
pytestmark = pytest.mark.filterwarnings("ignore:`.*gradient_checkpointing.*` is deprecated:FutureWarning")


def model_of(family: str, **overrides: Any) -> XSAMForSegmentation:
    return tiny_model(
        text_config=TEXT_CONFIGS[family](),
        mask_decoder_config=tiny_mask_decoder_config(use_point_sampling=False),
        **overrides,
    )


def adapted(model: XSAMForSegmentation, dropout: float = 0.0) -> PeftModel:
    torch.manual_seed(0)
    return get_peft_model(model, lora_config(model, rank=4, alpha=8, dropout=dropout, image_towers=True))


def training_batch() -> dict[str, Any]:
    masks = torch.zeros(2, HIGH_RES_SIZE, HIGH_RES_SIZE)
    masks[0, :32], masks[1, 40:, 40:] = 1, 1
    inputs = batch(SEGMENTING)
    return {
        **inputs,
        **tiny_images(),
        "labels": inputs["input_ids"],
        "mask_labels": [masks],
        "class_labels": [torch.tensor([0, 1])],
    }


def train(model: nn.Module, steps: int = 6) -> list[float]:
    """Losses of some steps on one batch; without weight decay, which moves what no gradient reaches."""
    model.train()
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        loss = model(**training_batch()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    model.eval()
    return losses


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters(remove_duplicate=False)}


def answers(model: nn.Module) -> dict[str, torch.Tensor]:
    """What a model says to a prompt that segments and to one that asks for text."""
    segmented = model.segment(**batch(SEGMENTING), **tiny_images())
    generated = model.generate(
        **batch(CHATTING),
        **tiny_images(),
        max_new_tokens=4,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return {
        "masks": segmented.masks_queries_logits,
        "classes": segmented.class_queries_logits,
        "sequences": generated.sequences,
        "logits": torch.stack(generated.logits),
    }


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def assert_same_answers(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Of equal weights: some CPUs add up in another order where loaded weights lie at other addresses."""
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-6)


def differ(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return not torch.allclose(first["masks"], second["masks"], atol=1e-2)


@dataclass(frozen=True)
class Trained:
    """A base model on disk, its adapter on disk, and what both say."""

    base_folder: Path
    folder: Path
    base_weights: dict[str, torch.Tensor]
    base_answers: dict[str, torch.Tensor]
    answers: dict[str, torch.Tensor]
    tied: bool

    def base(self, **kwargs: Any) -> XSAMForSegmentation:
        return XSAMForSegmentation.from_pretrained(self.base_folder, **kwargs)

    def load(self) -> PeftModel:
        return PeftModel.from_pretrained(self.base(), self.folder).eval()


@pytest.fixture(scope="module", params=list(TEXT_CONFIGS))
def trained(request, tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp(request.param)
    model_of(request.param).save_pretrained(folder / "base")
    base = XSAMForSegmentation.from_pretrained(folder / "base")
    base_weights, base_answers = weights_of(base), answers(base)
    model = adapted(base)
    train(model)
    model.save_pretrained(folder / "adapter")
    return Trained(
        folder / "base",
        folder / "adapter",
        base_weights,
        base_answers,
        answers(model),
        base.config.tie_word_embeddings,
    )


class TestTargets:
    @pytest.mark.parametrize("family", TEXT_CONFIGS)
    @pytest.mark.parametrize("image_towers", [False, True])
    def test_linear_layers_up_to_the_last_that_is_read(self, family, image_towers):
        expected = {f"language_model.layers.{i}.{name}" for i in range(2) for name in LANGUAGE_LAYERS[family]}
        if image_towers:
            siglip = [*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2"]
            sam = ["attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2"]
            # Of SigLIP's two blocks the second is not read, and neither is its attention pooling.
            expected |= {f"vision_tower.encoder.layers.0.{name}" for name in siglip}
            blocks = "high_res_vision_tower.vision_encoder.layers"
            expected |= {f"{blocks}.{i}.{name}" for i in range(3) for name in sam}
        model = model_of(family)
        config = lora_config(model, rank=2, image_towers=image_towers)
        assert config.target_modules == expected
        assert set(get_peft_model(model, config).targeted_module_names) == expected

    def test_the_configuration_says_what_is_read(self):
        model = model_of("phi3", vision_feature_layer=-1, high_res_feature_layer=1, connector_feature_layers=[1, 2, 2])
        targets = lora_config(model, image_towers=True).target_modules
        assert "vision_tower.encoder.layers.1.mlp.fc1" in targets
        assert {int(name.split(".")[3]) for name in targets if name.startswith("high_res")} == {0, 1}

    def test_the_output_of_multihead_attention_is_spared(self):
        model = model_of("phi3")
        block = "vision_tower.encoder.layers.0"
        model.get_submodule(block).self_attn = nn.MultiheadAttention(32, 4)
        targets = lora_config(model, image_towers=True).target_modules
        assert {name for name in targets if name.startswith(block)} == {f"{block}.mlp.fc1", f"{block}.mlp.fc2"}

    def test_the_full_model(self):
        with torch.device("meta"):
            model = XSAMForSegmentation(XSAMConfig())
        model = get_peft_model(model, lora_config(model, rank=64, image_towers=True), low_cpu_mem_usage=True)
        # 4 layers in each of 32 blocks, 6 in 26 of SigLIP's 27, 4 in SAM's 24.
        assert len(model.targeted_module_names) == 4 * 32 + 6 * 26 + 4 * 24
        sizes = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
        language = [size for name, size in sizes.items() if "language_model" in name and "lora_" in name]
        assert sum(language) == 100_663_296
        assert sum(size for name, size in sizes.items() if "token_adapter" in name) == 2 * 5 * 3072

    def test_scale_and_dropout(self):
        config = lora_config(model_of("phi3"), rank=8, alpha=32, dropout=0.1)
        assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (8, 32, 0.1, "none")

    def test_a_model_without_language_model_is_refused(self):
        with pytest.raises(ValueError, match="language model, but got XSAMForUniversalSegmentation"):
            lora_config(XSAMForUniversalSegmentation(tiny_config()))

    def test_blocks_that_are_not_found_are_named(self):
        model = model_of("phi3")
        model.config.text_config.num_hidden_layers = 7
        with pytest.raises(ValueError, match="language_model has 0 lists of 7 blocks"):
            lora_config(model)


class TestTraining:
    @pytest.mark.parametrize("family", TEXT_CONFIGS)
    def test_what_should_learn_learns_and_the_rest_keeps_every_bit(self, family):
        model = adapted(model_of(family))
        before = weights_of(model)
        learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert learning == {name for name, _ in model.named_parameters() if "lora_" in name or ".default" in name}, (
            "adapters, copies and rows learn"
        )
        copied = {name.split(".")[2] for name in learning if ".modules_to_save." in name}
        assert copied == set(FULLY_TRAINED)
        rows = [name for name in learning if "trainable_tokens" in name]
        assert len(rows) == (1 if family == "qwen3" else 2)
        losses = train(model)
        assert losses[-1] < 0.8 * losses[0]
        after = dict(model.named_parameters())
        assert {name for name in after if not torch.equal(after[name], before[name])} == learning

    @pytest.mark.parametrize("family", TEXT_CONFIGS)
    def test_a_new_adapter_changes_nothing(self, family):
        assert_equal(answers(adapted(model_of(family)).eval()), answers(model_of(family)))

    @pytest.mark.parametrize("family", TEXT_CONFIGS)
    def test_gradient_checkpointing_gives_the_same_gradients(self, family):
        gradients = []
        for checkpointing in (False, True):
            model = model_of(family)
            if checkpointing:
                model.gradient_checkpointing_enable()
                model.enable_input_require_grads()
            model = adapted(model).train()
            model(**training_batch()).loss.backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        torch.testing.assert_close(gradients[1], gradients[0], rtol=0, atol=1e-5)

    @pytest.mark.parametrize("family", TEXT_CONFIGS)
    def test_a_batch_of_text_leaves_nothing_without_gradient(self, family):
        model = adapted(model_of(family)).train()
        inputs = batch([1, 9, 10, 11, 2])
        model(**inputs, labels=inputs["input_ids"]).loss.backward()
        assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]

    @pytest.mark.parametrize("family", TEXT_CONFIGS)
    def test_the_trainer_resumes_where_it_stopped(self, family, tmp_path):
        weights = []
        for resume in (None, str(tmp_path / "checkpoint-1")):
            # Dropout, so that the state of the random numbers has to be resumed too.
            model = adapted(model_of(family), dropout=0.2)
            arguments = TrainingArguments(
                str(tmp_path),
                max_steps=2,
                save_steps=1,
                learning_rate=1e-2,
                per_device_train_batch_size=1,
                remove_unused_columns=False,
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
            )
            trainer = Trainer(
                model, arguments, train_dataset=[training_batch()] * 2, data_collator=lambda samples: samples[0]
            )
            trainer.train(resume_from_checkpoint=resume)
            assert trainer.state.global_step == 2
            weights.append(weights_of(model))
        assert_equal(weights[1], weights[0])
        rows = "base_model.model.language_model.embed_tokens.token_adapter.trainable_tokens_delta"
        saved = load_file(tmp_path / "checkpoint-1" / "adapter_model.safetensors")
        assert not torch.equal(saved[rows], weights[1][f"{rows}.default"]), "the second step was taken"


class TestSavedAdapters:
    def test_they_hold_no_vocabulary(self, trained):
        saved = load_file(trained.folder / "adapter_model.safetensors")
        assert (VOCAB_SIZE, 32) not in {tuple(tensor.shape) for tensor in saved.values()}
        rows = {name: tensor.shape for name, tensor in saved.items() if "lm_head" in name or "embed_tokens" in name}
        prefix, suffix = "base_model.model", "token_adapter.trainable_tokens_delta"
        expected = [f"{prefix}.language_model.embed_tokens.{suffix}"]
        expected += [] if trained.tied else [f"{prefix}.lm_head.{suffix}"]
        assert rows == dict.fromkeys(expected, (5, 32))

    def test_on_a_fresh_base_they_give_the_same(self, trained):
        loaded = trained.load()
        assert_same_answers(answers(loaded), trained.answers)
        assert differ(trained.answers, trained.base_answers)

    def test_transformers_loads_them_too(self, trained):
        model = trained.base()
        model.load_adapter(str(trained.folder))
        assert_same_answers(answers(model.eval()), trained.answers)

    def test_switched_off_they_give_the_base(self, trained):
        loaded = trained.load()
        with loaded.disable_adapter():
            assert_same_answers(answers(loaded), trained.base_answers)
        assert_same_answers(answers(loaded), trained.answers)


class TestMerging:
    def test_merged_weights_give_the_same(self, trained, tmp_path):
        merged = trained.load().merge_and_unload()
        assert type(merged) is XSAMForSegmentation
        assert set(weights_of(merged)) == set(trained.base_weights)
        torch.testing.assert_close(answers(merged), trained.answers, rtol=1e-5, atol=1e-5)
        merged.save_pretrained(tmp_path)
        again = XSAMForSegmentation.from_pretrained(tmp_path)
        assert_same_answers(answers(again), answers(merged))
        for model in (merged, again):
            assert model.config.tie_word_embeddings == trained.tied
            assert (model.lm_head.weight is model.get_input_embeddings().weight) == trained.tied

    def test_only_rows_of_special_tokens_change(self, trained):
        merged, base = weights_of(trained.load().merge_and_unload()), trained.base_weights
        for name in ("lm_head.weight", "language_model.embed_tokens.weight"):
            changed = (merged[name] != base[name]).any(1).nonzero().flatten().tolist()
            # The placeholders are never looked up or predicted, so that nothing moves them.
            assert changed == [SEG, PHRASE_START, PHRASE_END]

    def test_tied_rows_are_one(self, trained):
        model = trained.load().get_base_model()
        head, embeddings = model.lm_head.weight, model.get_input_embeddings().weight
        assert torch.equal(head[SPECIAL_TOKENS], embeddings[SPECIAL_TOKENS]) == trained.tied

    def test_removed_adapters_leave_the_base_bit_by_bit(self, trained):
        model = trained.load()
        model.delete_adapter("default")
        assert_equal(weights_of(model.unload()), trained.base_weights)

    def test_unload_alone_keeps_the_trained_copies(self, trained):
        weights = weights_of(trained.load().unload())
        different = {name for name in weights if not torch.equal(weights[name], trained.base_weights[name])}
        assert {name.split(".")[0] for name in different} == set(FULLY_TRAINED)


class TestBfloat16:
    def test_adapters_and_masks_stay_in_float32(self, trained):
        model = adapted(trained.base(dtype=torch.bfloat16))
        learning = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
        low = {name.split(".")[2] for name, dtype in learning.items() if dtype == torch.bfloat16}
        assert low == {"multi_modal_projector", "high_res_projector"}
        losses = train(model)
        assert losses[-1] < 0.8 * losses[0]

    def test_they_load_and_merge(self, trained):
        loaded = PeftModel.from_pretrained(trained.base(dtype=torch.bfloat16), trained.folder).eval()
        expected = answers(loaded)
        assert expected["masks"].dtype == torch.float32
        merged = loaded.merge_and_unload()
        assert merged.mask_decoder.pixel_decoder.level_embed.dtype == torch.float32
        # The merged weights are rounded to 8 bits of precision.
        scale = expected["masks"].abs().max()
        assert (answers(merged)["masks"] - expected["masks"]).abs().max() < 0.02 * scale
