"""What a run that was asked for by API may start."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tasks.core.allowed import (
    Allowed,
    Kind,
    Program,
    check_allowed,
    programs_of_code,
    programs_of_environment,
    programs_of_rollout,
)
from tasks.core.errors import SpecError, WrongUseError
from tasks.core.spec_kinds import Target
from tasks.core.spec_sections import OWN_PYTHON, Environment, Rollout, Serving

LIST = Allowed.parse(
    'folders = ["/opt/engines"]\naddresses = ["https://wheels.example/cu126/", "git+https://git.example/", '
    '"git+ssh://git@code.example/team/"]\n'
    'images = ["base", "registry.example/python:3.12"]\n',
    "allowed.toml",
)


@pytest.mark.parametrize(
    ("kind", "value", "held"),
    [
        (Kind.FOLDER, "/opt/engines", True),
        (Kind.FOLDER, "/opt/engines/a/b", True),
        (Kind.FOLDER, "/opt/engines-of-mine", False),
        (Kind.FOLDER, "/opt", False),
        (Kind.FOLDER, "opt/engines", False),
        (Kind.FOLDER, "/", False),
        (Kind.ADDRESS, "https://wheels.example/cu126/x-1-py3-none-any.whl", True),
        (Kind.ADDRESS, "git+https://git.example/x.git", True),
        (Kind.ADDRESS, "https://wheels.example/cu127/x.whl", False),
        (Kind.ADDRESS, "https://wheels.example/cu126/../evil.whl", False),
        (Kind.ADDRESS, "https://wheels.example/cu126/%2e%2e/evil.whl", False),
        (Kind.ADDRESS, "https://wheels.example/cu126/%252e%252e/evil.whl", False),
        (Kind.ADDRESS, "https://wheels.example/cu126/%25252e%25252e/evil.whl", False),
        (Kind.ADDRESS, "https://wheels.example/cu126/a/..", False),
        (Kind.ADDRESS, "https://wheels.example/cu126/./x.whl", False),
        (Kind.ADDRESS, "https://wheels.example/cu126/..%2fevil.whl", False),
        (Kind.ADDRESS, "https://wheels.example/cu126/..?x=/y.whl", False),
        (Kind.ADDRESS, "https://wheels.example/cu126/..\\evil\\x-1-py3-none-any.whl", False),
        (Kind.ADDRESS, "https://wheels.example/cu126/..%5cevil.whl", False),
        (Kind.ADDRESS, "https://wheels.example/cu126/..%255cevil.whl", False),
        (Kind.ADDRESS, "https://wheels.example/cu126/.\t./evil.whl", False),
        (Kind.ADDRESS, "https://me:word@wheels.example/cu126/x.whl", False),
        (Kind.ADDRESS, "https://wheels.example/cu126/@evil.example/x.whl", True),
        (Kind.ADDRESS, "https://wheels.example\\@evil.example/cu126/x.whl", False),
        (Kind.ADDRESS, "HTTPS://Wheels.Example/cu126/x-1.5-..whl#sha256=0", True),
        (Kind.ADDRESS, "https://wheels.example/CU126/x.whl", False),
        (Kind.ADDRESS, "https://wheels.example:8443/cu126/x.whl", False),
        (Kind.ADDRESS, "https://[wheels.example/cu126/x.whl", False),
        (Kind.ADDRESS, "git+ssh://git@code.example/team/x.git@v1", True),
        (Kind.ADDRESS, "git+ssh://me@code.example/team/x.git", False),
        (Kind.ADDRESS, "git+ssh://code.example/team/x.git", False),
        (Kind.FOLDER, "/opt/engines/..\\evil.whl", False),
        (Kind.ADDRESS, "https://wheels.example.evil.example/cu126/x.whl", False),
        (Kind.ADDRESS, "http://wheels.example/cu126/x.whl", False),
        (Kind.IMAGE, "base", True),
        (Kind.IMAGE, "base:1", True),
        (Kind.IMAGE, "base@sha256:" + "0" * 64, True),
        (Kind.IMAGE, "baseless:1", False),
        (Kind.IMAGE, "evil.example/base:1", False),
        (Kind.IMAGE, "registry.example/python:3.12", True),
        (Kind.IMAGE, "registry.example/python:3.13", False),
    ],
)
def test_the_list_holds_what_it_names(kind: Kind, value: str, held: bool) -> None:
    program = Program(key="request.x", kind=kind, value=value)
    assert LIST.holds(program) is held
    assert not Allowed().holds(program)
    if not held:
        with pytest.raises(WrongUseError, match=r"^request\.x is ") as caught:
            check_allowed([program], LIST, "/home/allowed.toml")
        assert caught.value.fix is not None
        assert caught.value.fix.endswith(f"`{kind}` in /home/allowed.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("folders = [", "not TOML"),
        (f"folders = {'[' * 5000}", "not TOML"),
        (f"folders = {'9' * 5000}", "not TOML"),
        ('folder = ["/opt"]', "folder: Extra inputs"),
        ('folders = "/opt"', "folders: "),
        ('folders = ["opt"]', "'opt' is not an absolute path"),
        ('addresses = ["https://wheels.example"]', "ends with /"),
        ('addresses = ["wheels.example/"]', "is not an address"),
        ('addresses = ["https://[::1/"]', "addresses: Invalid IPv6 URL"),
        (r'folders = ["/opt/\u0000"]', "control character"),
        ("images = [1]", "images.0: "),
    ],
)
def test_a_damaged_list_is_named_and_allows_nothing(text: str, said: str) -> None:
    with pytest.raises(WrongUseError, match=f"^/home/allowed.toml: .*{said}"):
        Allowed.parse(text, "/home/allowed.toml")


ENVIRONMENTS: list[tuple[dict[str, Any], list[tuple[str, Kind, str]]]] = [
    ({"requirements": ["numpy>=2", "torch[cuda]==2.13"], "torch_backend": "cu126"}, []),
    ({"manager": "system", "path": "/tmp/e"}, [("path", Kind.FOLDER, "/tmp/e")]),
    ({"wheels": "/tmp/w"}, [("wheels", Kind.FOLDER, "/tmp/w")]),
    ({"requirements": ["x @ file:///tmp/x%20y.whl"]}, [("requirements", Kind.FOLDER, "/tmp/x y.whl")]),
    ({"requirements": ["x @ file://localhost/tmp/x.whl"]}, [("requirements", Kind.FOLDER, "/tmp/x.whl")]),
    ({"requirements": ["x @ https://a.example/x.whl"]}, [("requirements", Kind.ADDRESS, "https://a.example/x.whl")]),
    ({"requirements": ["x @ file://a.example/x.whl"]}, [("requirements", Kind.ADDRESS, "file://a.example/x.whl")]),
    ({"requirements": ["x @ git+https://a.example/x"]}, [("requirements", Kind.ADDRESS, "git+https://a.example/x")]),
    ({"requirements": ["x @ git+file:///tmp/x"]}, [("requirements", Kind.FOLDER, "/tmp/x")]),
    ({"requirements": ["a", "x @ ../x.whl ; python_version > '3'"]}, [("requirements", Kind.FOLDER, "../x.whl")]),
    ({"manager": "conda", "channels": ["conda-forge", "nvidia/label/cuda-12.6"], "requirements": ["numpy >=2"]}, []),
    ({"manager": "conda", "channels": ["/tmp/c"]}, [("channels", Kind.FOLDER, "/tmp/c")]),
    ({"manager": "conda", "channels": ["../c"]}, [("channels", Kind.FOLDER, "../c")]),
    ({"manager": "conda", "channels": ["~/c"]}, [("channels", Kind.FOLDER, "~/c")]),
    ({"manager": "conda", "channels": ["file:///tmp/c"]}, [("channels", Kind.FOLDER, "/tmp/c")]),
    ({"manager": "conda", "channels": ["https://a.example/c"]}, [("channels", Kind.ADDRESS, "https://a.example/c")]),
    ({"manager": "conda", "channels": ["c"], "requirements": ["c::x", "conda-forge/label/a::x >=1"]}, []),
    (
        {"manager": "conda", "channels": ["c"], "requirements": ["file:///tmp/c::x", "/tmp/x-1-0.conda", "x[channel='https://a.example/c']"]},
        [
            ("requirements", Kind.FOLDER, "/tmp/c"),
            ("requirements", Kind.FOLDER, "/tmp/x-1-0.conda"),
            ("requirements", Kind.ADDRESS, "https://a.example/c"),
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "expected"), ENVIRONMENTS)
def test_what_an_environment_would_run(keys: dict[str, Any], expected: list[tuple[str, Kind, str]]) -> None:
    found = programs_of_environment(Environment.model_validate(keys), "environment")
    assert [(one.key.removeprefix("environment."), one.kind, one.value) for one in found] == expected


@pytest.mark.parametrize(
    "keys",
    [
        {"requirements": ["x @ https://[a.example/x.whl"]},
        {"manager": "conda", "channels": ["https://[a.example/c"]},
    ],
)
def test_an_address_that_is_none_is_named(keys: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"^'https://\[a\.example/\w.*' is not an address"):
        programs_of_environment(Environment.model_validate(keys), "environment")


def test_a_base_image_counts_where_it_is_used() -> None:
    own = Rollout(base_image="evil.example/base:1")
    found = programs_of_rollout(own, Target.DOCKER, "rollout")
    assert found == [Program(key="rollout.base_image", kind=Kind.IMAGE, value="evil.example/base:1")]
    assert programs_of_rollout(own, Target.PROCESS, "rollout") == []
    assert (
        programs_of_rollout(Rollout(base_image=f"python:{OWN_PYTHON}-slim"), Target.DOCKER, "rollout") == []
    )


def test_an_image_of_an_engines_makers_counts_instead_of_a_base() -> None:
    own = Rollout(base_image="evil.example/base:1", image="evil.example/vllm:1")
    found = programs_of_rollout(own, Target.DOCKER, "rollout")
    assert found == [Program(key="rollout.image", kind=Kind.IMAGE, value="evil.example/vllm:1")]


def test_a_model_whose_code_is_run_counts_as_a_program() -> None:
    trusted = Serving(trust_remote_code=True)
    for model, expected in (
        ("file:/models/own", (Kind.FOLDER, "/models/own")),
        ("s3://bucket/own", (Kind.ADDRESS, "s3://bucket/own")),
        ("models:/own@champion", (Kind.ADDRESS, "models:/own@champion")),
    ):
        (found,) = programs_of_code(trusted, model, "serving")
        assert (found.key, found.kind, found.value) == ("serving.trust_remote_code", *expected)
        assert programs_of_code(Serving(), model, "serving") == []
    listed = Allowed(folders=(Path("/models"),), addresses=("s3://bucket/",))
    held = [
        listed.holds(programs_of_code(trusted, model, "serving")[0])
        for model in ("file:/models/own", "s3://bucket/own", "s3://other/own", "models:/own@champion")
    ]
    assert held == [True, True, False, False]


def test_folders_of_the_list_are_paths() -> None:
    assert LIST.folders == (Path("/opt/engines"),)
