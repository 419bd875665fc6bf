"""X-SAM for transformers: importing this package registers its classes with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForUniversalSegmentation,
)

from .configuration_xsam import XSAMConfig, XSAMMaskDecoderConfig
from .modeling_xsam import XSAMForSegmentation
from .outputs_xsam import XSAMImageFeatures, XSAMSegmentationOutput, XSAMUniversalSegmentationOutput
from .pretrained_xsam import XSAMPreTrainedModel
from .universal_segmentation_xsam import XSAMForUniversalSegmentation

AutoConfig.register(XSAMConfig.model_type, XSAMConfig)
AutoModel.register(XSAMConfig, XSAMForSegmentation)
AutoModelForImageTextToText.register(XSAMConfig, XSAMForSegmentation)
AutoModelForUniversalSegmentation.register(XSAMConfig, XSAMForUniversalSegmentation)

__all__ = [
    "XSAMConfig",
    "XSAMForSegmentation",
    "XSAMForUniversalSegmentation",
    "XSAMImageFeatures",
    "XSAMMaskDecoderConfig",
    "XSAMPreTrainedModel",
    "XSAMSegmentationOutput",
    "XSAMUniversalSegmentationOutput",
]
