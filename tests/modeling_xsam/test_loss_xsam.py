import math

import pytest
import torch
from transformers.models.mask2former.modeling_mask2former import pair_wise_sigmoid_cross_entropy_loss

from modeling_xsam.loss_xsam import XSAMLoss, XSAMMatcher, count_loss_items, pair_wise_cross_entropy
from tiny_models import tiny_mask_decoder_config

SIZE = 4
LEFT = torch.zeros(SIZE, SIZE)
LEFT[:, :2] = 1
RIGHT = 1 - LEFT
SURE = 20.0


def logits_of(*masks: torch.Tensor) -> torch.Tensor:
    return torch.stack([SURE * (2 * mask - 1) for mask in masks])[None]


@pytest.fixture
def loss():
    return XSAMLoss(tiny_mask_decoder_config(use_point_sampling=False))


@pytest.mark.parametrize("scale", [0.1, 5.0, 100.0])
def test_every_query_is_compared_with_every_mask_as_in_transformers(scale):
    torch.manual_seed(0)
    logits, labels = scale * torch.randn(7, 300), torch.rand(4, 300)
    expected = pair_wise_sigmoid_cross_entropy_loss(logits.double(), labels.double())
    torch.testing.assert_close(pair_wise_cross_entropy(logits, labels), expected.float(), rtol=1e-5, atol=1e-6)
    assert pair_wise_cross_entropy(logits, labels[:0]).shape == (7, 0)


def test_masks_are_matched_by_shape_and_class():
    matcher = XSAMMatcher(tiny_mask_decoder_config(use_point_sampling=False))
    masks = logits_of(RIGHT, LEFT, LEFT)
    classes = torch.tensor([[[0.0, 0.0], [0.0, 5.0], [5.0, 0.0]]])
    (match,) = matcher(masks, classes, [torch.stack([LEFT, RIGHT])], [torch.tensor([0, 0])])
    assert match[0].tolist() == [0, 2]
    assert match[1].tolist() == [1, 0]


def test_invalid_costs_do_not_crash_the_matching():
    matcher = XSAMMatcher(tiny_mask_decoder_config(use_point_sampling=False))
    masks = logits_of(RIGHT, LEFT)
    masks[0, 0] = torch.nan
    (match,) = matcher(masks, torch.zeros(1, 2, 2), [LEFT[None]], [torch.tensor([0])])
    assert len(match[0]) == 1


def test_perfect_masks_cost_nothing(loss):
    classes = torch.tensor([[[SURE, 0.0, 0.0], [0.0, SURE, 0.0], [0.0, 0.0, SURE]]])
    losses = loss(logits_of(LEFT, RIGHT, LEFT), classes, [torch.stack([LEFT, RIGHT])], [torch.tensor([0, 1])])
    assert losses["loss_mask"].item() == pytest.approx(0, abs=1e-6)
    assert losses["loss_dice"].item() == pytest.approx(0, abs=1e-6)
    assert losses["loss_cls"].item() == pytest.approx(0, abs=1e-6)


def test_values_by_hand(loss):
    """One query that is undecided about everything, one mask: every term has a closed form."""
    losses = loss(torch.zeros(1, 1, SIZE, SIZE), torch.zeros(1, 1, 2), [LEFT[None]], [torch.tensor([0])])
    assert losses["loss_mask"].item() == pytest.approx(5 * math.log(2))
    assert losses["loss_dice"].item() == pytest.approx(5 * (1 - (2 * 4 + 1) / (8 + 8 + 1)))
    assert losses["loss_cls"].item() == pytest.approx(2 * math.log(2))


def test_the_background_counts_a_tenth(loss):
    """Two undecided queries, one mask: the mean is weighted with 1 and 0.1."""
    classes = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    losses = loss(torch.zeros(1, 2, SIZE, SIZE), classes, [LEFT[None]], [torch.tensor([0])])
    matched, unmatched = math.log(1 + math.exp(-1)), math.log(1 + math.exp(1))
    assert losses["loss_cls"].item() == pytest.approx(2 * (matched + 0.1 * unmatched) / 1.1)


def test_mask_losses_are_divided_by_the_masks_of_the_batch(loss):
    masks, classes = torch.zeros(2, 3, SIZE, SIZE), torch.zeros(2, 3, 2)
    one = loss(masks[:1], classes[:1], [LEFT[None]], [torch.tensor([0])])
    three = loss(masks, classes, [LEFT[None], torch.stack([LEFT, RIGHT])], [torch.tensor([0]), torch.tensor([0, 0])])
    torch.testing.assert_close(one["loss_mask"], three["loss_mask"])


def test_given_counts_are_the_divisors(loss):
    """A weighted sum of ln 2 per undecided query: 1 for the matched one, 0.1 for the other."""
    masks, classes = torch.zeros(1, 2, SIZE, SIZE), torch.zeros(1, 2, 2)
    losses = loss(
        masks, classes, [LEFT[None]], [torch.tensor([0])], num_masks_in_batch=4, class_weight_in_batch=torch.tensor(5)
    )
    assert losses["loss_mask"].item() == pytest.approx(5 * math.log(2) / 4)
    assert losses["loss_dice"].item() == pytest.approx(5 * (1 - 9 / 17) / 4)
    assert losses["loss_cls"].item() == pytest.approx(2 * 1.1 * math.log(2) / 5)


def test_a_step_in_which_nothing_counts():
    """Without masks and with a background of weight 0, zero is divided by zero items."""
    loss = XSAMLoss(tiny_mask_decoder_config(use_point_sampling=False, no_object_weight=0.0))
    losses = loss(
        torch.zeros(1, 2, SIZE, SIZE),
        torch.zeros(1, 2, 2),
        [torch.zeros(0, SIZE, SIZE)],
        [torch.zeros(0, dtype=torch.long)],
        num_masks_in_batch=0,
    )
    assert [value.item() for value in losses.values()] == [0, 0, 0]


def test_items_are_counted_before_the_forward_pass():
    """6 queries: 2 + 0 + 6 are matched (the last item has 8 masks), 4 + 6 + 0 are not."""
    config = tiny_mask_decoder_config()
    items = count_loss_items([torch.zeros(number, dtype=torch.long) for number in (2, 0, 8)], config)
    assert items.num_masks.item() == 10
    assert items.class_weight.item() == pytest.approx(8 + 0.1 * 10)
    assert items.num_masks.dtype == items.class_weight.dtype == torch.float32
    nothing = count_loss_items([], config)
    assert nothing.num_masks.item() == nothing.class_weight.item() == 0


def test_an_item_without_masks_is_all_background(loss):
    empty = torch.zeros(0, SIZE, SIZE)
    for sampling in (False, True):
        loss = XSAMLoss(tiny_mask_decoder_config(use_point_sampling=sampling))
        logits = torch.zeros(1, 2, SIZE, SIZE, requires_grad=True)
        losses = loss(logits, torch.zeros(1, 2, 2), [empty], [torch.zeros(0, dtype=torch.long)])
        assert losses["loss_mask"].item() == losses["loss_dice"].item() == 0
        assert losses["loss_cls"].item() == pytest.approx(2 * math.log(2))
        sum(losses.values()).backward()


def test_more_masks_than_queries(loss):
    masks = torch.zeros(1, 1, SIZE, SIZE)
    losses = loss(masks, torch.zeros(1, 1, 2), [torch.stack([LEFT, RIGHT])], [torch.tensor([0, 0])])
    assert losses["loss_mask"].item() == pytest.approx(5 * math.log(2) / 2)


def test_point_sampling_estimates_the_same_loss():
    torch.manual_seed(0)
    coarse = 3 * torch.randn(1, 3, SIZE, SIZE)
    masks = torch.nn.functional.interpolate(coarse, scale_factor=16, mode="bilinear")
    labels = [torch.stack([LEFT, RIGHT]).repeat_interleave(16, 1).repeat_interleave(16, 2)], [torch.tensor([0, 0])]
    classes = torch.zeros(1, 3, 2)
    config = tiny_mask_decoder_config(train_num_points=20000, importance_sample_ratio=0.0)
    sampled = XSAMLoss(config)(masks, classes, *labels)
    config = tiny_mask_decoder_config(use_point_sampling=False)
    dense = XSAMLoss(config)(masks, classes, *labels)
    assert sampled["loss_cls"].item() == pytest.approx(dense["loss_cls"].item(), rel=1e-4)
    assert sampled["loss_mask"].item() == pytest.approx(dense["loss_mask"].item(), rel=0.03)
    assert sampled["loss_dice"].item() == pytest.approx(dense["loss_dice"].item(), rel=0.03)


@pytest.mark.parametrize(
    ("mask_labels", "class_labels", "message"),
    [
        ([LEFT[None]], None, "mask_labels has 1 entries and class_labels 0 for 1 items"),
        ([torch.stack([LEFT, RIGHT])], [torch.tensor([0])], r"mask_labels\[0\] is \(2, 4, 4\) for 1 class_labels"),
        ([LEFT[None]], [torch.tensor([1])], r"class_labels\[0\] is \[1\], but there are 1 classes"),
    ],
)
def test_labels_that_do_not_fit_are_named(loss, mask_labels, class_labels, message):
    with pytest.raises(ValueError, match=message):
        loss(torch.zeros(1, 2, SIZE, SIZE), torch.zeros(1, 2, 2), mask_labels, class_labels)


def test_the_loss_has_no_state():
    assert not XSAMLoss(tiny_mask_decoder_config()).state_dict()
