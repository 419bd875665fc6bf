"""
The processor's `post_process_...` methods: outputs of `segment` -> label maps, in the form of transformers' image
processors. One result per `<SEG>`, in the order of the outputs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch

from .post_processing_xsam import (
    Geometry,
    Segment,
    instance,
    interactive,
    panoptic,
    referring,
    semantic,
    to_coco_rle,
    to_segmentation,
)
from .results_xsam import SegOutput, caption_segments, seg_output

Size = tuple[int, int]
Result = dict[str, Any]


class XSAMResultMethods:
    """
    Mixin of the processor. In all methods:

    Args:
        outputs: of `XSAMForSegmentation.segment`.
        target_sizes: (height, width) of each sample's image, see `get_image_size`.
        return_coco_rle: adds `"rle"`, COCO run-length encoding, to each entry of `segments_info`; masks that overlap are
            whole in it.

    Returns:
        Per `<SEG>` a `{"segmentation": int64 (H, W), "segments_info": [{"id", "label_id", "was_fused", "score"}],
        "sample_index"}`. Ids count from 1, 0 is background; where masks overlap, the better score is on top. A sample
        may have no `<SEG>` or several: `sample_index` says whose result it is. In a batch of several tasks, give the
        outputs of one task at a time.
    """

    def post_process_panoptic_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[Size],
        stuff_ids: Sequence[Collection[int]] | None = None,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        overlap_mask_area_threshold: float = 0.8,
        return_coco_rle: bool = False,
    ) -> list[Result]:
        """
        For generic and open-vocabulary; see `panoptic`.

        Args:
            stuff_ids: per sample the classes whose segments are fused.
        """
        results = []
        for sample, seg, geometry in self._each_seg(outputs, target_sizes):
            stuff = () if stuff_ids is None else stuff_ids[sample]
            found = panoptic(
                seg.class_logits,
                seg.mask_logits,
                geometry,
                stuff,
                threshold,
                mask_threshold,
                overlap_mask_area_threshold,
            )
            results.append(_result(found, geometry, return_coco_rle, sample))
        return results

    def post_process_instance_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[Size],
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        return_coco_rle: bool = False,
    ) -> list[Result]:
        """For generic and open-vocabulary; see `instance`."""
        return [
            _result(
                instance(seg.class_logits, seg.mask_logits, geometry, threshold, mask_threshold),
                geometry,
                return_coco_rle,
                sample,
            )
            for sample, seg, geometry in self._each_seg(outputs, target_sizes)
        ]

    # Regions are classes like any others.
    post_process_visual_grounded_segmentation = post_process_instance_segmentation

    def post_process_semantic_segmentation(self, outputs: Any, target_sizes: Sequence[Size]) -> list[torch.Tensor]:
        """For generic and open-vocabulary: a class map, int64 (H, W), per `<SEG>`, one per sample; see `semantic`."""
        return [
            semantic(seg.class_logits, seg.mask_logits, geometry)
            for _, seg, geometry in self._each_seg(outputs, target_sizes)
        ]

    def post_process_referring_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[Size],
        score_threshold: float | None = None,
        multi_target: bool = False,
        mask_threshold: float = 0.5,
        return_coco_rle: bool = False,
    ) -> list[Result]:
        """For referring and reasoning; see `referring`. What is absent has no entry in `segments_info`."""
        results = []
        for sample, seg, geometry in self._each_seg(outputs, target_sizes):
            found = referring(
                seg.class_logits, seg.mask_logits, geometry, score_threshold, multi_target, mask_threshold
            )
            results.append(_result([] if found is None else [found], geometry, return_coco_rle, sample))
        return results

    post_process_reasoning_segmentation = post_process_referring_segmentation

    def post_process_interactive_segmentation(
        self,
        outputs: Any,
        target_sizes: Sequence[Size],
        region_masks: torch.Tensor,
        threshold: float = 0.5,
        mask_threshold: float = 0.5,
        return_coco_rle: bool = False,
    ) -> list[Result]:
        """
        See `interactive`.

        Args:
            region_masks: bool (R, S, S), as the model got them: one per `<SEG>`.

        Raises:
            ValueError: if there are more or fewer regions than `<SEG>` tokens.
        """
        if len(region_masks) != len(outputs.seg_batch_index):
            raise ValueError(
                f"`region_masks` has {len(region_masks)} masks for {len(outputs.seg_batch_index)} <SEG> tokens: "
                "interactive segmentation has one of each per object"
            )
        results = []
        for region, (sample, seg, geometry) in zip(region_masks, self._each_seg(outputs, target_sizes), strict=True):
            found = interactive(seg.class_logits, seg.mask_logits, region, geometry, threshold, mask_threshold)
            results.append(_result([] if found is None else [found], geometry, return_coco_rle, sample))
        return results

    def post_process_grounded_conversation(
        self,
        outputs: Any,
        target_sizes: Sequence[Size],
        mask_threshold: float = 0.5,
        return_coco_rle: bool = False,
    ) -> list[Result]:
        """
        Per sample: `{"text", "segmentation", "segments_info"}` with the clean caption; an entry of `segments_info` also
        has `"span"`, the characters of its phrase in the caption.
        """
        segs: list[list[SegOutput]] = [[] for _ in target_sizes]
        for sample, seg, _ in self._each_seg(outputs, target_sizes):
            segs[sample].append(seg)
        results = []
        for sample, size in enumerate(target_sizes):
            geometry = Geometry(self.high_res_size, tuple(size))
            answer = outputs.sequences[sample, : outputs.sequence_lengths[sample]].tolist()
            start = int(outputs.prompt_lengths[sample])
            text, found = caption_segments(segs[sample], answer, start, geometry, mask_threshold, self.tokenizer)
            # Later phrases lie over earlier ones, as in the original.
            result = _result([segment for segment, _ in found], geometry, return_coco_rle, sample, best_on_top=False)
            for info, (_, span) in zip(result["segments_info"], found, strict=True):
                info["span"] = span
            results.append({"text": text, **result})
        return results

    def _each_seg(self, outputs: Any, target_sizes: Sequence[Size]) -> Iterator[tuple[int, SegOutput, Geometry]]:
        samples = outputs.seg_batch_index.tolist()
        if len(target_sizes) != len(outputs.sequences):
            raise ValueError(
                f"`target_sizes` has {len(target_sizes)} entries for {len(outputs.sequences)} samples: give the (height, "
                "width) of each sample's image"
            )
        for row, sample in enumerate(samples):
            yield sample, seg_output(outputs, row), Geometry(self.high_res_size, tuple(target_sizes[sample]))


def _result(
    segments: Sequence[Segment], geometry: Geometry, return_coco_rle: bool, sample: int, best_on_top: bool = True
) -> Result:
    ordered = sorted(segments, key=lambda segment: segment.score) if best_on_top else segments
    result = to_segmentation(ordered, geometry.target_size)
    if return_coco_rle:
        for info, segment in zip(result["segments_info"], ordered, strict=True):
            info["rle"] = to_coco_rle(segment.mask)
    return {**result, "sample_index": sample}


__all__ = ["XSAMResultMethods"]
