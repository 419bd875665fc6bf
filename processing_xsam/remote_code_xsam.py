"""Makes a saved model loadable where this package is not installed, as custom code of its Hub repository."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# None of them is needed to run a model.
NOT_EXPORTED = ("__init__.py", "convert_xsam_to_hf.py", "enlarge_xsam.py", "published_xsam.py", "remote_code_xsam.py")

MODEL_CLASSES = {
    "AutoConfig": "configuration_xsam.XSAMConfig",
    "AutoModel": "modeling_xsam.XSAMForSegmentation",
    "AutoModelForImageTextToText": "modeling_xsam.XSAMForSegmentation",
    "AutoModelForUniversalSegmentation": "universal_segmentation_xsam.XSAMForUniversalSegmentation",
    "AutoProcessor": "processing_xsam.XSAMProcessor",
}
CUSTOM_PIPELINES = {
    "any-segmentation": {
        "impl": "pipeline_xsam.AnySegmentationPipeline",
        "pt": ["AutoModel"],
        "type": "multimodal",
    }
}


def export_remote_code(folder: str | Path) -> None:
    """
    Add this package's code to a folder written by `save_pretrained`, so that `AutoModel`, `AutoProcessor` and
    `pipeline` load it with `trust_remote_code=True`. Where the package is installed, load the folder as it was before.

    Args:
        folder: has `config.json`, and `processor_config.json` if the processor was saved there as well.

    Raises:
        FileNotFoundError: if there is no `config.json`.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json: save the model there first.")
    for package in ("modeling_xsam", "processing_xsam"):
        for location in find_spec(package).submodule_search_locations:
            for source in sorted(Path(location).glob("*.py")):
                if source.name not in NOT_EXPORTED:
                    shutil.copyfile(source, folder / source.name)
    _update_json(folder / "config.json", auto_map=MODEL_CLASSES, custom_pipelines=CUSTOM_PIPELINES)
    if (folder / "processor_config.json").is_file():
        _update_json(folder / "processor_config.json", auto_map={"AutoProcessor": MODEL_CLASSES["AutoProcessor"]})


def _update_json(path: Path, **entries: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **entries}, indent=2) + "\n", encoding="utf-8")


__all__ = ["export_remote_code"]
