"""The rules of the house, as tests: who may import whom, what an import may do, how large a file may grow."""

from __future__ import annotations

import ast
import json
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from headway.tracking import pyfunc
from waiting import PATIENCE

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "headway"
FILES = sorted(PACKAGE.rglob("*.py"))

# A folder may import from those of a lower level and of its own, but no two from each other.
LEVELS = [
    ["cli"],
    ["api", "client"],
    ["pipeline"],
    ["steps"],
    ["sweeps", "ray_data", "compress"],
    ["runs", "serving"],
    ["inference", "cluster", "tracking", "tasks", "display"],
    ["engine"],
    ["data"],
    ["config"],
    ["redaction"],
]
ENGINE_LEVELS = [
    ["training"],
    ["loading", "optimizers"],
    ["checkpoint", "parallel", "inference", "pruning", "distillation"],
    ["model"],
    ["formats", "hardware"],
]
DATA_LEVELS = [
    ["pretraining"],
    ["corpus", "task_batches", "teacher_outputs", "predictions"],
    ["sources", "batches", "contents"],
    ["batch", "framing", "token_packing", "atomic"],
    ["sampling"],
    ["permutation"],
]

# Only what the fork server loads ahead for those above it, each by name.
NAMED_FROM_BELOW = {
    "headway.cluster.fork_server.launch": {
        "headway.serving.http.app",
        "headway.inference.model",
        "headway.sweeps.trials",
    },
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


def names_held_in(path: Path) -> Iterator[tuple[str, int]]:
    """Modules of Headway that a file names in strings, to import them later or elsewhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = re.fullmatch(r"headway\.([a-z]\w*)[\w.:]*", node.value)
            if found and ((PACKAGE / found[1]).is_dir() or (PACKAGE / f"{found[1]}.py").exists()):
                yield node.value.partition(":")[0], node.lineno


def level_of(name: str, levels: list[list[str]]) -> int:
    numbers = [number for number, names in enumerate(levels) if name in names]
    assert numbers, f"{name}: give it its level"
    return numbers[0]


def against_the_flow(package: str, levels: list[list[str]]) -> list[str]:
    """What a package's folders import from a higher level, or one of a level from another and back."""
    depth, wrong = package.count(".") + 1, []
    sideways: dict[tuple[str, str], str] = {}
    for path in FILES:
        module = module_of(path)
        if not module.startswith(f"{package}."):
            continue
        name = module.split(".")[depth]
        level = level_of(name, levels)
        known = NAMED_FROM_BELOW.get(module, set())
        named = [(held, line) for held, line in names_held_in(path) if held not in known]
        for imported, line in [*imports_of(path), *named]:
            if not imported.startswith(f"{package}.") or imported.startswith("headway.__"):
                continue
            other = imported.split(".")[depth]
            if other == name:
                continue
            place = f"{path.relative_to(ROOT)}:{line}: {name} imports {other}"
            if level_of(other, levels) < level:
                wrong.append(place)
            elif level_of(other, levels) == level:
                sideways[name, other] = place
    return wrong + [place for (name, other), place in sideways.items() if (other, name) in sideways]


@pytest.mark.parametrize(
    ("package", "levels"),
    [("headway", LEVELS), ("headway.engine", ENGINE_LEVELS), ("headway.data", DATA_LEVELS)],
)
def test_imports_flow_one_way(package, levels):
    wrong = against_the_flow(package, levels)
    assert not wrong, "\n".join(wrong)


def test_what_is_named_from_below_is_there_and_named():
    for module, names in NAMED_FROM_BELOW.items():
        path = (PACKAGE.parent / module.replace(".", "/")).with_suffix(".py")
        assert {held for held, _ in names_held_in(path)} == names


@pytest.mark.parametrize("package", ["engine", "data"])
def test_the_core_knows_neither_ray_nor_mlflow(package):
    names = {name.split(".")[0] for path in (PACKAGE / package).rglob("*.py") for name, _ in imports_of(path)}
    assert not names & {"ray", "mlflow", "yaml"}


def test_engine_and_data_load_no_ray_and_no_mlflow_when_they_run():
    code = (
        "import sys, headway.engine.training.trainer, headway.engine.model.encoder\n"
        "import headway.data.corpus.prepare\n"
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
    assert not {user for user in users if not user.startswith("tracking/")}


def test_what_travels_with_a_registered_model_imports_only_what_travels():
    files = [PACKAGE / "tracking" / "pyfunc_model.py"]
    files += [path for name in pyfunc.TRAVELS for path in [PACKAGE / name, *(PACKAGE / name).rglob("*.py")]]
    files = [path for path in files if path.is_file()]
    imported = {name for path in files for name, _ in imports_of(path) if name.startswith("headway.")}
    assert {name.split(".")[1] for name in imported} == {Path(name).stem for name in pyfunc.TRAVELS}


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
    code = "import sys, headway.cli.main; print([n for n in ('torch', 'ray', 'mlflow') if n in sys.modules])"
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
import headway, headway.cli.main, headway.config.pipeline
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


def test_no_folder_holds_more_than_17_files():
    numbers = Counter(str(path.parent.relative_to(ROOT)) for path in FILES)
    assert {folder: number for folder, number in numbers.items() if number > 17} == {}


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
