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
