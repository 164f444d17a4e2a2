"""Who may import whom is kept, and a violation would be caught."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE_ROOTS = ("core", "pipelines", "serving", "operator")


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts of *tree*, with its own packages in front of the installed ones."""
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(str(tree / r) for r in SOURCE_ROOTS)}
    program = Path(sys.executable).parent / "lint-imports"
    command = [str(program), "--no-cache", "--config", str(tree / "pyproject.toml")]
    return subprocess.run(
        command, cwd=tree, env=environ, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def copied_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("tree")
    for root in SOURCE_ROOTS:
        shutil.copytree(
            ROOT / root, tree / root, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def test_every_contract_is_kept(copied_tree: Path) -> None:
    result = lint_imports(copied_tree)
    assert result.returncode == 0, result.stdout[-4000:]
    assert "0 broken" in result.stdout


def test_planted_violations_are_caught(copied_tree: Path) -> None:
    """One for each kind of rule: a component on another, a framework inside, I/O in a decision."""
    planted = {
        "operator/flexinfer_operator/planted.py": "def f() -> None:\n    import flexinfer_serving.app\n",
        "serving/flexinfer_serving/routing/planted.py": "import fastapi\nimport socket\n",
        "pipelines/flexinfer_pipelines/planted.py": "import prefect\nimport subprocess\n",
        "core/flexinfer/resources/planted.py": "from flexinfer import store\n",
        # What is not pure through another module is not pure.
        "operator/flexinfer_operator/plan/planted.py": "from flexinfer import log\n",
        "serving/flexinfer_serving/admission/planted.py": "def f() -> None:\n    import secrets\n",
        "serving/flexinfer_serving/openai/planted.py": "import os\nfrom pathlib import Path\n",
    }
    try:
        for name, text in planted.items():
            (copied_tree / name).write_text(text)
        result = lint_imports(copied_tree)
    finally:
        for name in planted:
            (copied_tree / name).unlink(missing_ok=True)
    assert result.returncode == 1
    for name in (
        "flexinfer_operator.planted",
        "routing.planted -> fastapi",
        "routing.planted -> socket",
        "pipelines.planted -> prefect",
        "pipelines.planted -> subprocess",
        "resources.planted",
        "plan.planted -> flexinfer.log",
        "admission.planted -> secrets",
        "openai.planted -> os",
        "openai.planted -> pathlib",
    ):
        assert name in result.stdout, name
    broken = [line for line in result.stdout.splitlines() if " BROKEN" in line]
    assert len(broken) >= 5, broken


def test_standard_library_is_not_shadowed() -> None:
    """`operator/` at the top is a folder, never the module of that name."""
    code = "import operator, collections; print(operator.__file__)"
    for folder in (
        ROOT,
        ROOT / "operator",
        ROOT / "operator" / "flexinfer_operator",
        ROOT / "tests",
    ):
        found = subprocess.run(
            [sys.executable, "-c", code],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        assert str(ROOT) not in found.stdout
