"""The rules of the house, as tests: who may import whom, what an import may do, how large a file may grow."""

from __future__ import annotations

import ast
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from waiting import PATIENCE

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "headway"
FILES = sorted(PACKAGE.rglob("*.py"))

# cli → pipeline → steps → (engine, data, tasks, compress, serving, tracking, cluster) → config:
# a module may import from a lower layer, or from its own.
LAYERS = {
    "cli": 0,
    "cli_cluster": 0,
    "cli_options": 0,
    "cli_serving": 0,
    "api": 1,
    "client": 1,
    "closing": 1,
    "given_data": 1,
    "single_step": 1,
    "trained_model": 1,
    "pipeline": 2,
    "steps": 3,
    "compress": 4,
    "doctor": 4,
    "serving": 4,
    "tasks": 4,
    "cluster": 4,
    "local_cluster": 4,
    "cluster_address": 4,
    "forking": 4,
    "model_folder": 4,
    "prestart": 4,
    "process_group": 4,
    "tracking": 4,
    "training_group": 4,
    "engine": 5,
    "data": 5,
    "display": 6,
    "config_files": 6,
    "config": 7,
    "config_base": 7,
    "config_presets": 7,
    "config_serve": 7,
    "config_tasks": 7,
    "config_training": 7,
}


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Full names of all that a file imports, wherever in it, except what only a type checker reads."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)
        pending += ast.iter_child_nodes(node)


def layer(module: str) -> tuple[str, int]:
    name = module.split(".")[1]
    assert name in LAYERS, f"{module}: give headway.{name} its place in LAYERS"
    return name, LAYERS[name]


def test_imports_flow_one_way():
    wrong = []
    for path in FILES:
        module = module_of(path)
        if module == "headway":
            continue
        name, depth = layer(module)
        for imported, line in imports_of(path):
            if not imported.startswith("headway.") or imported.startswith("headway.__"):
                continue
            other, other_depth = layer(imported)
            if other != name and other_depth < depth:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {name} imports {other}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("package", ["engine", "data"])
def test_the_core_knows_neither_ray_nor_mlflow(package):
    names = {name.split(".")[0] for path in (PACKAGE / package).rglob("*.py") for name, _ in imports_of(path)}
    assert not names & {"ray", "mlflow", "yaml"}


def test_engine_and_data_load_no_ray_and_no_mlflow_when_they_run():
    code = (
        "import sys, headway.engine.trainer, headway.engine.encoder, headway.data.corpus\n"
        "print([name for name in ('ray', 'mlflow') if name in sys.modules])"
    )
    assert python(code) == "[]"


def test_only_tracking_imports_mlflow():
    users = {
        str(path.relative_to(PACKAGE))
        for path in FILES
        for name, _ in imports_of(path)
        if name.split(".")[0] == "mlflow"
    }
    assert {user for user in users if not user.startswith("tracking/")} == {"serving/pyfunc_classifier.py"}


def test_what_travels_with_a_registered_model_needs_no_headway():
    imported = [name for name, _ in imports_of(PACKAGE / "serving" / "pyfunc_classifier.py")]
    assert not [name for name in imported if name.startswith("headway")]


def test_platform_stays_a_plain_folder():
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_import_platform_from_the_root_is_the_standard_librarys():
    assert python("import platform; print(platform.__file__, platform.system())").startswith(
        python("import sysconfig; print(sysconfig.get_path('stdlib'))")
    )


def test_importing_headway_loads_nothing_heavy():
    heavy = ["torch", "ray", "mlflow", "transformers", "datasets", "numpy", "pydantic", "yaml"]
    code = f"import sys, headway; print([name for name in {heavy} if name in sys.modules])"
    assert python(code) == "[]"


def test_importing_the_command_loads_no_torch_ray_or_mlflow():
    code = "import sys, headway.cli; print([n for n in ('torch', 'ray', 'mlflow') if n in sys.modules])"
    assert python(code) == "[]"


def test_importing_headway_writes_nothing_and_opens_no_connection(tmp_path):
    # An audit hook sees every file opened for writing, every folder made and every socket, in C code too.
    code = """
import sys, json
seen = []
def hook(event, args):
    writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
    if writes or event in ("os.mkdir", "os.rename", "os.remove", "subprocess.Popen") or "socket." in event:
        seen.append([event, str(args)])
sys.dont_write_bytecode = True
sys.addaudithook(hook)
import headway, headway.cli, headway.config
print(json.dumps(seen))
"""
    assert json.loads(python(code, tmp_path)) == []
    assert not list(tmp_path.iterdir())


def test_every_public_name_can_be_imported():
    import headway

    assert {name for name in headway.__all__ if getattr(headway, name) is None} == set()
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        headway.train  # noqa: B018


def test_no_file_is_longer_than_400_lines():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > 400} == {}


def test_functions_fit_a_screen():
    lengths = sorted(
        node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None
    )
    assert statistics.median(lengths) <= 10
    assert lengths[int(0.9 * len(lengths))] <= 40


def test_no_file_is_a_drawer_for_everything():
    assert not {path.stem for path in FILES} & {"utils", "util", "helpers", "common", "misc"}


def python(code: str, folder: Path = ROOT) -> str:
    """What a fresh interpreter prints, started in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    return done.stdout.strip()
