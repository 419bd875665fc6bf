"""
Package metadata. The three import packages are named one by one: `training` is installed as `xsam_training`, and the small
checkpoint, the pipeline's default, as the data folder `xsam_tiny` of `processing_xsam`.
"""

from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent

APP = ["gradio>=6"]
TRAIN = ["peft>=0.21", "pyyaml>=6", "tensorboard>=2.16", "trackio>=0.2"]
EVALUATE = ["pycocoevalcap>=1.2", "pyyaml>=6"]
TEST = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff>=0.14",
    "playwright>=1.50",
    *APP,
    *TRAIN,
    *EVALUATE,
]

CHECKPOINT = ["README.md", "*config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"]

setup(
    name="xsam",
    version="0.1.0",
    description="X-SAM, one multimodal LLM for seven segmentation tasks, as a Hugging Face transformers model",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[
        "modeling_xsam",
        "processing_xsam",
        "processing_xsam.xsam_tiny",
        "xsam_training",
        "xsam_training.data",
        "xsam_training.data.shape_world",
        "xsam_training.evaluation",
        "xsam_training.probes",
    ],
    package_dir={"xsam_training": "training", "processing_xsam.xsam_tiny": "hub_cards/xsam-tiny"},
    package_data={"xsam_training": ["recipes/*.yaml", "recipes/*/*.yaml"], "processing_xsam.xsam_tiny": CHECKPOINT},
    entry_points={"console_scripts": ["xsam = xsam_training.cli:main"]},
    install_requires=[
        "transformers>=5.20,<6",
        "torch>=2.6",
        "torchvision>=0.21",
        "accelerate>=1.10",
        "safetensors>=0.8",
        "huggingface-hub>=1.0",
        "numpy>=1.26",
        "pillow>=10",
        "pycocotools>=2.0.8",
        "scipy>=1.11",
        "jinja2>=3.1",
        "typer>=0.15",
    ],
    extras_require={"app": APP, "train": TRAIN, "evaluate": EVALUATE, "test": TEST},
)
