import pytest
from peft import get_peft_model

from tiny_models import tiny_model, tiny_qwen_config
from xsam_training.adapters import lora_config
from xsam_training.parts import describe_parts, set_trainable_parts

PROJECTORS = ["multi_modal_projector", "high_res_projector"]


def learning(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def rows(model) -> dict[str, tuple[int, int]]:
    """Learning and frozen parameters by part, from the description."""
    title, *lines = describe_parts(model).splitlines()
    assert title == "parameters:"
    fields = [line.split() for line in lines]
    assert all((words[2], words[4]) == ("learn", "frozen") for words in fields)
    return {words[0]: (int(words[1].replace(",", "")), int(words[3].replace(",", ""))) for words in fields}


def test_the_named_parts_learn_alone():
    model = tiny_model()
    set_trainable_parts(model, PROJECTORS)
    assert learning(model) == {name for name, _ in model.named_parameters() if name.split(".")[0] in PROJECTORS}


def test_a_part_of_a_part_learns_alone():
    model = tiny_model()
    set_trainable_parts(model, ["vision_tower.encoder.layers.0", "high_res_projector"])
    parts = ("vision_tower.encoder.layers.0.", "high_res_projector.")
    assert learning(model) == {name for name, _ in model.named_parameters() if name.startswith(parts)}


def test_frozen_parts_learn_again_when_named():
    model = tiny_model()
    everything = learning(model)
    set_trainable_parts(model, None)
    whole = learning(model)
    set_trainable_parts(model, PROJECTORS)
    set_trainable_parts(model, None)
    assert learning(model) == whole < everything


@pytest.mark.parametrize("part", ["language_model", "lm_head"])
def test_shared_weights_learn_if_either_part_does(part):
    model = tiny_model(text_config=tiny_qwen_config())
    set_trainable_parts(model, [part])
    assert model.lm_head.weight is model.get_input_embeddings().weight and model.lm_head.weight.requires_grad


def test_what_no_loss_reaches_is_frozen_in_any_case():
    model = tiny_model()
    set_trainable_parts(model, None)
    frozen = {name for name, _ in model.named_parameters()} - learning(model)
    # SAM's neck, and SigLIP's layers and head behind the layer that is read.
    assert {name.split(".")[0] for name in frozen} == {"high_res_vision_tower", "vision_tower"}
    assert any("neck" in name for name in frozen)
    set_trainable_parts(model, ["high_res_vision_tower"])
    assert not any("neck" in name for name in learning(model))


@pytest.mark.parametrize("part", ["decoder", "language_model.layer", ""])
def test_an_unknown_part_is_named_with_those_that_there_are(part):
    model = tiny_model()
    before = learning(model)
    with pytest.raises(ValueError, match=r"trainable: the model has no part \['.*'\]; its parts are .*mask_decoder"):
        set_trainable_parts(model, [*PROJECTORS, part])
    assert learning(model) == before


def test_the_description_counts_every_parameter_once():
    model = tiny_model()
    set_trainable_parts(model, PROJECTORS)
    counts = rows(model)
    assert list(counts)[:2] == PROJECTORS  # what learns comes first
    assert all((counts[part][0] > 0) == (part in PROJECTORS) for part in counts)
    assert all(counts[part][1] == 0 for part in PROJECTORS)
    assert sum(map(sum, counts.values())) == sum(parameter.numel() for parameter in model.parameters())


def test_the_description_has_the_same_parts_with_adapters():
    model = tiny_model()
    parts = set(rows(model))
    set_trainable_parts(model, None)
    adapted = get_peft_model(model, lora_config(model, rank=2))
    counts = rows(adapted)
    assert set(counts) == parts
    assert counts["vision_tower"][0] == 0 and counts["language_model"][0] > 0 and counts["connector"][0] > 0
    assert sum(learn for learn, _ in counts.values()) == adapted.get_nb_trainable_parameters()[0]
