"""The layers: data <- metrics <- model <- stages <- cli, jobs; Ray in stages alone; the command line loads neither torch nor Ray."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "raffect"
ALLOWED = {
    "data": {"errors", "config", "recipe", "data"},
    "metrics": {"errors", "data", "metrics"},
    "model": {"errors", "config", "recipe", "data", "metrics", "model"},
    "stages": {"errors", "config", "recipe", "data", "metrics", "model", "stages", "__init__"},
}
FOREIGN = {"data": {"torch", "ray", "open_clip"}, "metrics": {"torch", "ray", "open_clip"}, "model": {"ray"}, "stages": set()}
MODULES = [(layer, file) for layer in ALLOWED for file in sorted((PACKAGE / layer).glob("*.py"))]


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize(("layer", "file"), MODULES, ids=lambda value: value if isinstance(value, str) else value.stem)
def test_imports_go_one_way(layer, file):
    for name in imported(file):
        top, _, rest = name.partition(".")
        assert top not in FOREIGN[layer], f"{file.name} imports {name}"
        if top == "raffect":
            assert (rest.split(".")[0] or "__init__") in ALLOWED[layer], f"{layer}/{file.name} imports {name}"


def test_the_layer_test_can_fail(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    import ray.data\n")
    assert "ray.data" in imported(bad)


def test_help_imports_neither_torch_nor_ray_and_answers_at_once():
    code = "import sys; from raffect.cli import main; main(['--help']); print([m for m in ('torch', 'ray', 'open_clip', 'pyarrow') if m in sys.modules])"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "extract" in done.stdout
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("command", ["demo", "doctor", "synth", "prepare", "pack", "extract", "train", "tune", "evaluate", "report", "bank", "models"])
def test_help_of_every_command_is_light(command):
    code = f"import sys\nfrom raffect.cli import main\ntry:\n    main(['{command}', '--help'])\nexcept SystemExit:\n    pass\nprint([m for m in ('torch', 'ray', 'open_clip') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert f"raffect {command}" in done.stdout


def test_the_torch_core_runs_without_ray_installed():
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import numpy as np\nfrom raffect.config import EncoderConfig\nfrom raffect.encoders.tower import load_encoder\n"
        "encoder = load_encoder(EncoderConfig(model='raffect-faces', weights='embedded'), 'cpu')\n"
        "print(encoder.encode([np.zeros((112, 112, 3), np.uint8)]).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1, 256)"


def test_training_runs_without_ray_installed(tmp_path):
    code = (
        "import sys; sys.modules['ray'] = None\n"
        f"sys.path.insert(0, {str(Path(__file__).parent / 'stages')!r}); sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nfrom test_train import make_data, words\nfrom raffect.cli import main\n"
        f"folder = Path({str(tmp_path)!r})\nmake_data(folder / 'data')\n"
        "sys.exit(main(words('train', folder / 'data', folder / 'run')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "EXPR val-last" in done.stdout
