"""
Mask losses: transformers' Mask2Former loss and matcher, for a number of classes that varies with the prompt.

A loss is a sum over items, divided by what the items of a whole optimiser step count. The step may consist of several
forward passes on several processes, so the counts can be given; nothing in here communicates between processes.

Shapes: N items (one per `<SEG>`), Q queries, K classes with the background last, n masks of one item, S x S pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from transformers.models.mask2former.modeling_mask2former import (
    Mask2FormerHungarianMatcher,
    Mask2FormerLoss,
    dice_loss,
    pair_wise_dice_loss,
    sample_point,
    sigmoid_cross_entropy_loss,
)
from transformers.utils.generic import maybe_autocast

from .configuration_xsam import XSAMMaskDecoderConfig

# Costs beyond this are as bad as each other; linear_sum_assignment accepts no infinities.
MAX_COST = 1e10


@dataclass(frozen=True)
class XSAMLossItems:
    """
    What the mask losses are divided by. Counts of several batches add up.

    Args:
        num_masks: float32 (), masks of all items.
        class_weight: float32 (), sum of the class weights of all queries' targets.
    """

    num_masks: torch.Tensor
    class_weight: torch.Tensor


def count_loss_items(class_labels: list[torch.Tensor], config: XSAMMaskDecoderConfig) -> XSAMLossItems:
    """
    Count the items of a batch before its forward pass: how many queries are matched does not depend on which.

    Args:
        class_labels: N tensors (n,), one per `<SEG>` (in stage 1, per image), as the models take them.

    Returns:
        The counts on the CPU, 0 for an empty batch. Summed over the batches of a step and over processes they are
        `num_masks_in_batch` and `class_weight_in_batch` of the models.
    """
    return _count_items(class_labels, config.num_queries, config.no_object_weight)


def _count_items(class_labels: list[torch.Tensor], num_queries: int, no_object_weight: float) -> XSAMLossItems:
    num_masks = [len(labels) for labels in class_labels]
    matched = sum(min(number, num_queries) for number in num_masks)
    unmatched = len(num_masks) * num_queries - matched
    return XSAMLossItems(
        num_masks=torch.tensor(float(sum(num_masks))),
        class_weight=torch.tensor(float(matched + no_object_weight * unmatched)),
    )


def pair_wise_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Binary cross-entropy of every query with every mask: what transformers' `pair_wise_sigmoid_cross_entropy_loss` gives,
    in a third of the time; theirs is most of what matching costs.

    With x the logit, s the sigmoid and y the label, -y log s(x) - (1 - y) log(1 - s(x)) is softplus(x) - x y: one
    logarithm instead of two.

    Args:
        logits: float (Q, P), P pixels or points.
        labels: float (n, P), in [0, 1].

    Returns:
        (Q, n), means over P.
    """
    return (nn.functional.softplus(logits).sum(-1, keepdim=True) - logits @ labels.T) / logits.shape[1]


class XSAMMatcher(Mask2FormerHungarianMatcher):
    """
    Hungarian matching of queries and masks of one item. Differs from transformers' matcher in the value that invalid
    costs get (bounded, and 0 for NaN, as in the original) and in that all pixels may count instead of sampled points.
    """

    def __init__(self, config: XSAMMaskDecoderConfig) -> None:
        super().__init__(
            cost_class=config.class_weight,
            cost_mask=config.mask_weight,
            cost_dice=config.dice_weight,
            num_points=config.train_num_points,
        )
        self.use_point_sampling = config.use_point_sampling

    @torch.no_grad()
    def forward(
        self,
        masks_queries_logits: torch.Tensor,
        class_queries_logits: torch.Tensor,
        mask_labels: list[torch.Tensor],
        class_labels: list[torch.Tensor],
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """
        Args:
            masks_queries_logits: (N, Q, h, w).
            class_queries_logits: (N, Q, K).
            mask_labels: N tensors (n, S, S).
            class_labels: N tensors int64 (n,).

        Returns:
            Per item the matched query indices and label indices, both int64 (min(n, Q),) on the CPU.
        """
        matches = []
        for masks, classes, labels, label_classes in zip(
            masks_queries_logits, class_queries_logits, mask_labels, class_labels, strict=True
        ):
            queries, targets = self._mask_values(masks[:, None], labels.to(masks)[:, None])
            cost = (
                self.cost_mask * pair_wise_cross_entropy(queries, targets)
                - self.cost_class * classes.softmax(-1)[:, label_classes.long()]
                + self.cost_dice * pair_wise_dice_loss(queries, targets)
            )
            cost = torch.nan_to_num(cost.clamp(-MAX_COST, MAX_COST), nan=0.0)
            matches.append(tuple(torch.as_tensor(index) for index in linear_sum_assignment(cost.float().cpu())))
        return matches

    def _mask_values(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (Q, 1, h, w) and labels (n, 1, S, S) at the same points, as (Q, P) and (n, P)."""
        if not self.use_point_sampling:
            return _at_label_size(logits, labels).flatten(1), labels.flatten(1)
        points = torch.rand(1, self.num_points, 2, device=logits.device)
        return _at_points(logits, points), _at_points(labels, points)


class XSAMLoss(Mask2FormerLoss):
    """
    Class, mask and dice loss of all predictions, weighted. The class head is open, so the number of classes is read
    from the logits instead of a configuration, and no weight vector is kept.
    """

    def __init__(self, config: XSAMMaskDecoderConfig) -> None:
        # The parent's constructor builds the buffer `empty_weight` for a fixed number of classes.
        nn.Module.__init__(self)
        self.class_weight = config.class_weight
        self.mask_weight = config.mask_weight
        self.dice_weight = config.dice_weight
        self.no_object_weight = config.no_object_weight
        self.use_point_sampling = config.use_point_sampling
        self.num_points = config.train_num_points
        self.oversample_ratio = config.oversample_ratio
        self.importance_sample_ratio = config.importance_sample_ratio
        self.matcher = XSAMMatcher(config)

    def forward(
        self,
        masks_queries_logits: torch.Tensor,
        class_queries_logits: torch.Tensor,
        mask_labels: list[torch.Tensor],
        class_labels: list[torch.Tensor],
        auxiliary_predictions: list[dict[str, torch.Tensor]] | None = None,
        num_masks_in_batch: torch.Tensor | float | None = None,
        class_weight_in_batch: torch.Tensor | float | None = None,
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            masks_queries_logits: (N, Q, h, w).
            class_queries_logits: (N, Q, K).
            mask_labels: N tensors (n, S, S) with values 0 and 1.
            class_labels: N tensors int64 (n,), indices into the K classes.
            auxiliary_predictions: the same two logits of the predictions before the last one, by name.
            num_masks_in_batch: what mask and dice losses are divided by; by default the masks of this call.
            class_weight_in_batch: what class losses are divided by; by default the class weights of this call.

        Returns:
            `loss_mask`, `loss_dice` and `loss_cls` of the final prediction, and the same with `_i` appended for
            auxiliary prediction i, float32 (). The weights are included: the loss is their sum.

        Raises:
            ValueError: if labels disagree with the predictions or with each other.
        """
        _check_labels(mask_labels, class_labels, len(masks_queries_logits), class_queries_logits.shape[-1] - 1)
        items = self._step_items(class_queries_logits, class_labels, num_masks_in_batch, class_weight_in_batch)
        # Products of masks lose the differences that decide the matching in half precision.
        with maybe_autocast(device_type=masks_queries_logits.device.type, enabled=False):
            losses = self._prediction_losses(
                masks_queries_logits, class_queries_logits, mask_labels, class_labels, items
            )
            for index, prediction in enumerate(auxiliary_predictions or []):
                terms = self._prediction_losses(
                    prediction["masks_queries_logits"],
                    prediction["class_queries_logits"],
                    mask_labels,
                    class_labels,
                    items,
                )
                losses.update({f"{name}_{index}": value for name, value in terms.items()})
        return losses

    def _step_items(
        self,
        class_queries_logits: torch.Tensor,
        class_labels: list[torch.Tensor],
        num_masks: torch.Tensor | float | None,
        class_weight: torch.Tensor | float | None,
    ) -> XSAMLossItems:
        """The given counts, or else those of this call, as divisors: where nothing is counted, 0 is to be divided."""
        counted = _count_items(class_labels, class_queries_logits.shape[1], self.no_object_weight)
        as_divisor = {"dtype": torch.float32, "device": class_queries_logits.device}
        num_masks = torch.as_tensor(counted.num_masks if num_masks is None else num_masks, **as_divisor)
        class_weight = torch.as_tensor(counted.class_weight if class_weight is None else class_weight, **as_divisor)
        return XSAMLossItems(num_masks.clamp(min=1), class_weight.clamp(min=torch.finfo(torch.float32).tiny))

    def _prediction_losses(
        self,
        masks_queries_logits: torch.Tensor,
        class_queries_logits: torch.Tensor,
        mask_labels: list[torch.Tensor],
        class_labels: list[torch.Tensor],
        items: XSAMLossItems,
    ) -> dict[str, torch.Tensor]:
        masks_queries_logits = masks_queries_logits.float()
        class_queries_logits = class_queries_logits.float()
        matches = self.matcher(masks_queries_logits, class_queries_logits, mask_labels, class_labels)
        return {
            **self.loss_masks(masks_queries_logits, mask_labels, matches, items.num_masks),
            "loss_cls": self.class_weight
            * self.loss_classes(class_queries_logits, class_labels, matches, items.class_weight),
        }

    def loss_classes(
        self,
        class_queries_logits: torch.Tensor,
        class_labels: list[torch.Tensor],
        matches: list[tuple[torch.Tensor, torch.Tensor]],
        class_weight: torch.Tensor,
    ) -> torch.Tensor:
        """
        Weighted cross-entropy, summed over all N * Q queries and divided by `class_weight`; unmatched queries have the
        background as target.
        """
        num_classes = class_queries_logits.shape[-1]
        targets = torch.full(class_queries_logits.shape[:2], num_classes - 1, device=class_queries_logits.device)
        for item, (queries, labels) in enumerate(matches):
            targets[item, queries] = class_labels[item].to(targets.device, torch.long)[labels]
        weights = class_queries_logits.new_ones(num_classes)
        weights[-1] = self.no_object_weight
        total = nn.functional.cross_entropy(
            class_queries_logits.transpose(1, 2), targets, weight=weights, reduction="sum"
        )
        return total / class_weight

    def loss_masks(
        self,
        masks_queries_logits: torch.Tensor,
        mask_labels: list[torch.Tensor],
        matches: list[tuple[torch.Tensor, torch.Tensor]],
        num_masks: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Binary cross-entropy and dice of the matched masks, summed over masks and divided by `num_masks`."""
        pairs = list(zip(masks_queries_logits, mask_labels, matches, strict=True))
        logits = torch.cat([masks[queries] for masks, _, (queries, _) in pairs])[:, None]
        labels = torch.cat([masks.to(logits.device)[index] for _, masks, (_, index) in pairs]).to(logits)[:, None]
        logits, labels = self._mask_values(logits, labels)
        return {
            "loss_mask": self.mask_weight * sigmoid_cross_entropy_loss(logits, labels, num_masks),
            "loss_dice": self.dice_weight * dice_loss(logits, labels, num_masks),
        }

    def _mask_values(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Matched logits (n, 1, h, w) and labels (n, 1, S, S) at the same points, as two tensors (n, P)."""
        if not self.use_point_sampling:
            return _at_label_size(logits, labels).flatten(1), labels.flatten(1)
        with torch.no_grad():
            points = self.sample_points_using_uncertainty(
                logits,
                self.calculate_uncertainty,
                self.num_points,
                self.oversample_ratio,
                self.importance_sample_ratio,
            )
        return _at_points(logits, points), _at_points(labels, points)


def _check_labels(
    mask_labels: list[torch.Tensor], class_labels: list[torch.Tensor] | None, num_items: int, num_classes: int
) -> None:
    counts = [0 if labels is None else len(labels) for labels in (mask_labels, class_labels)]
    if counts != [num_items, num_items]:
        raise ValueError(
            f"mask_labels has {counts[0]} entries and class_labels {counts[1]} for {num_items} items: give one entry per "
            "<SEG> (in stage 1, per image)."
        )
    size = mask_labels[0].shape[-2:]
    for index, (masks, classes) in enumerate(zip(mask_labels, class_labels, strict=True)):
        if masks.ndim != 3 or len(masks) != len(classes):
            raise ValueError(
                f"mask_labels[{index}] is {tuple(masks.shape)} for {len(classes)} class_labels: expected (n, height, width) "
                "with one mask per class label."
            )
        if masks.shape[-2:] != size:
            raise ValueError(
                f"mask_labels[{index}] is {tuple(masks.shape)}, mask_labels[0] {tuple(mask_labels[0].shape)}: all masks "
                "have the size of the high-resolution input."
            )
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
            raise ValueError(f"class_labels[{index}] is {classes.tolist()}, but there are {num_classes} classes.")


def _at_points(masks: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Masks (n, 1, h, w) at points (n or 1, P, 2) in [0, 1], as (n, P)."""
    return sample_point(masks, points.expand(len(masks), -1, -1), align_corners=False).squeeze(1)


def _at_label_size(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return nn.functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)


__all__ = ["XSAMLoss", "XSAMLossItems", "XSAMMatcher", "count_loss_items"]
