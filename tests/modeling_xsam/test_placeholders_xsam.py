import pytest
import torch

from modeling_xsam.placeholders_xsam import resolve_image_index, resolve_region_batch_index
from tiny_models import IMAGE, REGION, batch, phrase, prompt_ids, tiny_config

WITH_IMAGE = prompt_ids(1, IMAGE, 5)
WITHOUT_IMAGE = [1, 5]


@pytest.fixture(scope="module")
def config():
    return tiny_config()


def test_samples_with_image_tokens_take_the_images_in_order(config):
    input_ids = batch(WITH_IMAGE, WITHOUT_IMAGE, WITH_IMAGE)["input_ids"]
    assert resolve_image_index(input_ids, 2, None, config).tolist() == [0, -1, 1]


def test_samples_may_share_an_image(config):
    input_ids = batch(WITH_IMAGE, WITH_IMAGE)["input_ids"]
    assert resolve_image_index(input_ids, 1, torch.tensor([0, 0]), config).tolist() == [0, 0]


def test_number_of_images_and_samples_disagree(config):
    input_ids = batch(WITH_IMAGE, WITH_IMAGE)["input_ids"]
    with pytest.raises(ValueError, match="16 image tokens in 2 samples, but there are 1 images with 8 image features"):
        resolve_image_index(input_ids, 1, None, config)


def test_images_without_image_tokens_are_an_error(config):
    with pytest.raises(ValueError, match="0 image tokens in 0 samples, but there are 1 images"):
        resolve_image_index(batch(WITHOUT_IMAGE)["input_ids"], 1, None, config)


def test_number_of_tokens_per_image_disagrees(config):
    input_ids = batch(prompt_ids(1, IMAGE, image_tokens=7))["input_ids"]
    with pytest.raises(ValueError, match="Sample 0 has 7 image tokens, but an image has 8"):
        resolve_image_index(input_ids, 1, None, config)


def test_image_index_out_of_range(config):
    with pytest.raises(ValueError, match=r"image_index is \[3\], but there are 1 images"):
        resolve_image_index(batch(WITH_IMAGE)["input_ids"], 1, torch.tensor([3]), config)


def resolve_regions(config, rows, num_masks, region_batch_index=None):
    input_ids = batch(*rows)["input_ids"]
    image_index = resolve_image_index(input_ids, len(rows), None, config)
    masks = None if num_masks == 0 else torch.ones(num_masks, 64, 64, dtype=torch.bool)
    return resolve_region_batch_index(input_ids, image_index, len(rows), masks, region_batch_index, config)


def test_regions_are_read_from_the_image_of_their_sample(config):
    rows = [prompt_ids(IMAGE, phrase(REGION), phrase(REGION)), prompt_ids(IMAGE), prompt_ids(IMAGE, phrase(REGION))]
    assert resolve_regions(config, rows, 3).tolist() == [0, 0, 2]


def test_regions_may_be_read_from_another_image(config):
    rows = [prompt_ids(IMAGE, phrase(REGION)), prompt_ids(IMAGE)]
    assert resolve_regions(config, rows, 1, torch.tensor([1])).tolist() == [1]


@pytest.mark.parametrize("num_masks", [0, 1, 3])
def test_regions_and_masks_disagree(config, num_masks):
    rows = [prompt_ids(IMAGE, phrase(REGION), phrase(REGION))]
    with pytest.raises(ValueError, match=f"2 region tokens .* region_masks has {num_masks} masks"):
        resolve_regions(config, rows, num_masks)


def test_several_tokens_per_region_are_counted_as_one():
    config = tiny_config(num_region_tokens=4, region_pooling="mean")
    rows = [prompt_ids(IMAGE, phrase(*[REGION] * 4), phrase(*[REGION] * 4))]
    assert resolve_regions(config, rows, 2).tolist() == [0, 0]


def test_region_batch_index_is_checked(config):
    rows = [prompt_ids(IMAGE, phrase(REGION))]
    with pytest.raises(ValueError, match=r"region_batch_index is \[5\], but there are 1 images"):
        resolve_regions(config, rows, 1, torch.tensor([5]))
    with pytest.raises(ValueError, match="2 entries for 1"):
        resolve_regions(config, rows, 1, torch.tensor([0, 0]))
