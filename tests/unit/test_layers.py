"""What import-linter cannot hold: pure modules load no orchestrator and no SDK, not even indirectly."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.core.spec_kinds import EngineKind

ROOT = Path(__file__).parent.parent.parent
HEAVY = ("prefect", "docker", "boto3", "pandas", "great_expectations", "kubernetes")
PURE_ROOMS = ("models", "plan", "report")


def pure_modules() -> list[str]:
    folders = [ROOT / "tasks" / "core", ROOT / "tasks" / "engines"]
    files = [path for folder in folders for path in folder.glob("*.py")]
    files += [path for room in PURE_ROOMS for path in (ROOT / "tasks").glob(f"*/**/{room}.py")]
    files += [path for path in (ROOT / "tasks").rglob("*.py") if _says_pure(path)]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    return sorted({name.removesuffix(".__init__") for name in modules})


def _says_pure(path: Path) -> bool:
    return re.search(r"\bPure\b", ast.get_docstring(ast.parse(path.read_text())) or "") is not None


def test_pure_modules_load_nothing_heavy() -> None:
    modules = pure_modules()
    assert {"tasks.core.spec", "tasks.environment.locks"} <= set(modules)
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = [found for found in {HEAVY!r} if found in sys.modules]\n"
        "    assert not heavy, f'{name} loads {heavy}'\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize("package", ["tasks", "flows", "blocks", "deployments"])
def test_packages_load_nothing_by_themselves(package: str) -> None:
    for path in (ROOT / package).rglob("__init__.py"):
        assert path.read_text() == "", f"{path} is not empty"


def test_pure_modules_look_at_nothing_but_their_own_tables() -> None:
    effects = {
        "now",
        "monotonic",
        "environ",
        "getenv",
        "read_bytes",
        "write_text",
        "unlink",
        "mkdir",
        "is_dir",
    }
    for package in ("tasks", "blocks"):
        for path in filter(_says_pure, (ROOT / package).rglob("*.py")):
            used = {
                node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
            }
            assert not used & effects, f"{path} says that it is pure, and uses {used & effects}"


def test_no_module_asks_which_target_it_is() -> None:
    """What differs between targets is in the tables of `spec_kinds.py` and `targets.py`."""
    faults = "kind is Target.DOCKER\nkind == TargetKind.PROCESS"
    assert sorted(_asked_targets(faults)) == [1, 2]
    found = {
        path.relative_to(ROOT).as_posix()
        for package in ("tasks", "flows", "blocks", "deployments")
        for path in (ROOT / package).rglob("*.py")
        if list(_asked_targets(path.read_text()))
    }
    assert found == {"tasks/core/spec_kinds.py"}


def _asked_targets(source: str) -> Iterator[int]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                if isinstance(side, ast.Attribute) and ast.unparse(side.value) in ("Target", "TargetKind"):
                    yield node.lineno


def test_child_processes_are_started_in_blocks_only() -> None:
    for package in ("tasks", "flows", "deployments"):
        for path in (ROOT / package).rglob("*.py"):
            if "worker" in path.parts or path.name == "daemon.py":
                continue  # these are child processes themselves
            text = path.read_text()
            assert "import subprocess" not in text, f"{path} imports subprocess"
            assert "from subprocess" not in text, f"{path} imports subprocess"


STAGES = (
    "environment compatibility staging loading quantization batching rollout health leaks registry knowledge"
)
COMPOSES = (
    "blocks/services/",
    "blocks/candidates/open.py",
    "blocks/engine/tool_environment.py",
    "blocks/engine/torch_backend.py",
    "blocks/packages/inspect_environment.py",
    "blocks/prefect/every_service.py",
)
"""Where adapters are put together with what stages do."""
NAMED = {"blocks/packages/managers.py": "PackageTool", "blocks/storage/model_source.py": "ModelSource"}
"""Protocols that stages declare next to their effects; `sources.py` opens what `model_source.py` makes."""
NAMED |= {"blocks/storage/sources.py": "ModelSource", "blocks/packages/uv.py": "unlike_record"}
"""`unlike_record` compares installed files with their package's own list, for stage and adapter alike."""


def test_adapters_know_of_stages_their_models_and_pure_helpers() -> None:
    found = []
    for path in (ROOT / "blocks").rglob("*.py"):
        where = path.relative_to(ROOT).as_posix()
        if where.startswith(COMPOSES):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(STAGES):
                names = [alias.name for alias in node.names]
                if names != [NAMED.get(where)] and not all(
                    map(_may_be_known, _modules(node.module or "", names))
                ):
                    found.append(f"{where} imports {', '.join(names)} of {node.module}")
    assert not found


def _modules(module: str, names: list[str]) -> list[Path]:
    """The files that `from module import names` reads."""
    file = ROOT.joinpath(*module.split("."))
    return [file / f"{name}.py" for name in names] if file.is_dir() else [file.with_suffix(".py")]


def _may_be_known(file: Path) -> bool:
    return file.name == "models.py" or _says_pure(file)


def test_no_module_outside_tasks_engines_asks_which_engine_it_is() -> None:
    """What differs between engines is on their cards."""
    faults = 'kind is EngineKind.VLLM\nkind == "vllm"\n{"vllm": 1}[kind]\nEngineKind("vllm")'
    assert sorted(_asked_kinds(faults)) == [1, 2, 3, 4]
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for package in ("tasks", "flows", "blocks", "deployments")
        for path in (ROOT / package).rglob("*.py")
        if "engines" not in path.parent.parts[-2:]
        for line in _asked_kinds(path.read_text())
    ]
    # The default, which a spec may leave out.
    assert [where.partition(":")[0] for where in found] == ["tasks/core/spec_kinds.py"], found


def test_schemes_of_sources_are_written_in_one_place() -> None:
    """`conda.py` reads the addresses that a package manager writes."""
    found = [
        path.relative_to(ROOT).as_posix()
        for package in ("tasks", "flows", "blocks", "deployments")
        for path in (ROOT / package).rglob("*.py")
        if {"file:", "models:/"} & {_text(node) for node in ast.walk(ast.parse(path.read_text()))}
    ]
    assert sorted(found) == ["blocks/packages/conda.py", "tasks/core/sources.py"]


def _asked_kinds(source: str) -> Iterator[int]:
    """Lines with a member of `EngineKind`, or with an engine's name that something is compared with or looked up by."""
    names = {kind.value for kind in EngineKind}
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="EngineKind")):
                yield node.lineno
            case ast.Call(func=ast.Name(id="EngineKind"), args=[ast.Constant()]):
                yield node.lineno
            case ast.Compare() if names & {_text(one) for one in (node.left, *node.comparators)}:
                yield node.lineno
            case ast.MatchValue() if _text(node.value) in names:
                yield node.lineno
            case ast.Dict() if names & {_text(key) for key in node.keys}:
                yield node.lineno


def _text(node: ast.AST | None) -> str | None:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def test_the_supervisor_needs_the_standard_library_only() -> None:
    """It serves on while the environment it was started from is rebuilt, and reads nothing it was not given."""
    rollout = ROOT / "tasks" / "rollout"
    for path in (*rollout.glob("daemon/*.py"), *rollout.glob("proxy/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                known = name.split(".")[0] in sys.stdlib_module_names or name.startswith(
                    ("tasks.rollout.daemon.", "tasks.rollout.proxy.")
                )
                assert known, f"{path.name} imports {name}"
