"""What an installation brings, and which way its parts may import each other."""

import ast
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"modeling_xsam", "processing_xsam", "xsam_training"}


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))]


def test_no_other_import_package_is_installed():
    assert set(distribution("xsam").read_text("top_level.txt").split()) == PACKAGES


def test_the_small_checkpoint_is_installed_with_its_pipeline(monkeypatch):
    """All that loads it, and its card, in the folder where `default_checkpoint` looks; not what its training left behind."""
    pytest.importorskip("setuptools")
    from distutils.core import run_setup

    monkeypatch.chdir(ROOT)
    build = run_setup("setup.py", stop_after="init").get_command_obj("build_py")
    build.ensure_finalized()
    folders = {package: (source, set(files)) for package, source, _, files in build.data_files}
    source, files = folders["processing_xsam.xsam_tiny"]
    assert Path(source) == Path("hub_cards/xsam-tiny")
    saved = {"config.json", "generation_config.json", "model.safetensors", "processor_config.json"}
    saved |= {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert saved <= files <= saved | {"README.md"}


@pytest.mark.parametrize("package", ["modeling_xsam", "processing_xsam"])
def test_network_and_processing_do_not_know_each_other(package):
    others = PACKAGES - {package}
    for path in (ROOT / package).glob("*.py"):
        for node in imports(path):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            assert not others & {name.split(".")[0] for name in names}, path


@pytest.mark.parametrize("package", ["modeling_xsam", "processing_xsam"])
def test_files_can_be_copied_as_custom_code(package):
    """transformers follows `from .file import name`, and nothing else that is relative."""
    for path in (ROOT / package).glob("*.py"):
        for node in imports(path):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module and "." not in node.module, path
                assert (path.parent / f"{node.module}.py").exists(), path
