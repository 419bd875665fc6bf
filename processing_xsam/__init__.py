"""Everything between a user and the tensors of X-SAM: importing it registers the processor and the pipeline."""

from transformers import AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

from .default_model_xsam import default_checkpoint
from .pipeline_xsam import AnySegmentationPipeline
from .processing_xsam import XSAMProcessor
from .remote_code_xsam import export_remote_code

AutoProcessor.register("xsam", XSAMProcessor, exist_ok=True)
PIPELINE_REGISTRY.register_pipeline(
    "any-segmentation",
    AnySegmentationPipeline,
    pt_model=AutoModel,
    default={"model": (str(default_checkpoint()), "main")},
    type="multimodal",
)

__all__ = ["AnySegmentationPipeline", "XSAMProcessor", "export_remote_code"]
