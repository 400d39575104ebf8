"""The layers: imports go one way, as docs/architecture.md shows; few packages load Ray or torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from raffect.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "raffect"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Which packages (or single modules) each may import, besides itself and errors.
_RUN = "storage config recipe progress provenance ray_session datasets metrics bank"
ALLOWED = {
    "errors": "",
    "storage": "",
    "leaving": "",
    "imports": "",
    "progress": "storage leaving",
    "provenance": "storage",
    "recipe": "storage",
    "config": "storage recipe",
    "ray_session": "storage progress leaving",
    "metrics": "storage datasets.tasks",
    "datasets": "storage config progress metrics",
    "bank": "storage leaving config progress datasets",
    "faces": "storage config progress datasets",
    "encoders": "storage config progress datasets bank",
    "predictions": "storage config provenance datasets metrics bank",
    "heads": "storage recipe datasets.tasks datasets.affwild2.tasks metrics bank",
    "runs": "storage config recipe provenance datasets metrics bank heads",
    "extraction": (
        "storage imports config progress provenance ray_session datasets bank faces encoders"
    ),
    "training": f"{_RUN} heads runs",
    "reporting": (
        "storage config progress datasets metrics bank faces predictions runs evaluation.results"
    ),
    "pipelines": (
        f"{_RUN} leaving faces predictions encoders heads runs extraction training language"
        " evaluation reporting"
    ),
    "language": (
        "storage config recipe progress provenance datasets metrics bank encoders heads runs"
        " training"
    ),
    "evaluation": f"{_RUN} predictions heads runs",
    "export": (
        "storage config progress provenance datasets metrics bank predictions encoders heads runs"
        " evaluation"
    ),
}
# The command line imports the one command that is asked for.
FREE = {"__main__", "cli", "commands", "flags", "several", "job", "__init__"}
WITH_RAY = {"ray_session", "extraction", "training", "evaluation", "pipelines"}
WITH_TORCH = WITH_RAY | {"encoders", "heads", "runs", "language", "export"}


def place(file: Path) -> str:
    """The package of a module, or its own name at the top."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def faults(file: Path, layer: str) -> list[str]:
    """Imports of a module that its layer may not have."""
    allowed = {layer, "errors", *ALLOWED[layer].split()}
    found = []
    for name in imported(file):
        top, _, inside = name.partition(".")
        if top == "raffect" and not any(f"{inside}.".startswith(f"{other}.") for other in allowed):
            found.append(name)
        if top == "ray" and layer not in WITH_RAY:
            found.append(name)
        if top in ("torch", "open_clip") and layer not in WITH_TORCH:
            found.append(name)
    return found


@pytest.mark.parametrize("file", MODULES, ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(file):
    layer = place(file)
    if layer not in FREE:
        assert not faults(file, layer)


def test_every_package_has_a_place_in_the_table_and_the_page_shows_the_same_table():
    assert {place(file) for file in MODULES} - FREE == ALLOWED.keys()
    page = (ROOT / "docs" / "architecture.md").read_text()
    lines = [" ".join(line.split()) for line in page.splitlines()]
    for layer, allowed in ALLOWED.items():
        assert f"{layer}: {allowed}".strip() in lines, layer


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        ("metrics", "from raffect.datasets.manifest import read_manifest"),
        ("metrics", "from raffect.datasets import tasks, manifest"),
        ("heads", "import ray.data"),
        ("bank", "import torch"),
        ("storage", "from raffect import bank"),
        ("runs", "def f():\n    from raffect.training.tune import tune"),
    ],
)
def test_the_layer_test_can_fail(tmp_path, layer, line):
    bad = tmp_path / "bad.py"
    bad.write_text(line + "\n")
    assert faults(bad, layer)


def test_no_test_imports_another_test():
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for name in imported(file):
            assert ".test_" not in f".{name}", file
            assert not name.startswith("conftest"), file


def run_python(code: str) -> str:
    """Output of a Python process of its own."""
    words = [sys.executable, "-c", code]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_a_worker_of_pytest_gets_whole_groups_of_tests(request):
    # xdist adds the group of tests/conftest.py to a test's name; with pytest 9.2 it did not
    if not request.config.getoption("loadgroup", False):
        pytest.skip("not among several workers")
    assert request.node.nodeid.endswith("@test_layers.py")


def test_reports_need_neither_torch_nor_ray():
    code = (
        "import sys, raffect.reporting.report\n"
        "print([name for name in ('torch', 'ray') if name in sys.modules])"
    )
    assert run_python(code).strip() == "[]"


def test_help_imports_neither_torch_nor_ray():
    code = (
        "import sys\nfrom raffect.cli import main\nmain(['--help'])\n"
        "names = ('torch', 'ray', 'open_clip', 'pyarrow')\n"
        "print([name for name in names if name in sys.modules])"
    )
    shown = run_python(code)
    assert shown.splitlines()[-1] == "[]"
    assert "extract" in shown


def test_help_of_every_command_is_light():
    """All in one process: what one of them imported is there after the others too."""
    code = (
        "import contextlib, sys\nfrom raffect.cli import main\n"
        f"for command in {list(COMMANDS)}:\n"
        "    with contextlib.suppress(SystemExit):\n        main([command, '--help'])\n"
        "    heavy = [name for name in ('torch', 'ray', 'open_clip') if name in sys.modules]\n"
        "    print('imported for', command, heavy)"
    )
    shown = run_python(code)
    for command in COMMANDS:
        assert f"usage: raffect {command} " in shown
        assert f"imported for {command} []" in shown.splitlines()


def test_encoding_and_training_run_without_ray_installed(tmp_path):
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import numpy as np\n"
        "from raffect.config import EncoderConfig\n"
        "from raffect.encoders.tower import load_encoder\n"
        "config = EncoderConfig(model='raffect-faces', weights='embedded')\n"
        "face = np.zeros((112, 112, 3), np.uint8)\n"
        "print(load_encoder(config, 'cpu').encode([face]).shape)\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\n"
        "from tests.helpers.learning import make_data, words\n"
        "from raffect.cli import main\n"
        f"folder = Path({str(tmp_path)!r})\nmake_data(folder / 'data')\n"
        "sys.exit(main(words('train', folder / 'data', folder / 'run')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(1, 256)\n")
    assert "EXPR val-last" in done.stdout
