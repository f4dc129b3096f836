"""A shared library under another name is still that library."""

from __future__ import annotations

import ctypes
import io
import shutil
from pathlib import Path

import numpy
import pytest
from elftools.elf.elffile import ELFFile

from tasks.core.errors import SlipwayError
from tasks.engines.card import SystemLibrary
from tasks.environment.libraries import FOLDER, bring, named


@pytest.fixture
def mangled() -> Path:
    """A library that a wheel carries under a mangled name: numpy's OpenBLAS."""
    return next((Path(numpy.__file__).parent.parent / "numpy.libs").glob("libscipy_openblas*"))


def soname_of(content: bytes) -> str:
    section = ELFFile(io.BytesIO(content)).get_section_by_name(".dynamic")
    return str(next(section.iter_tags("DT_SONAME")).soname)


def test_a_library_gets_the_name_that_loaders_look_for(mangled: Path, tmp_path: Path) -> None:
    content = mangled.read_bytes()
    assert soname_of(content) == mangled.name
    renamed = named(content, "libblas.so.3")
    assert soname_of(renamed) == "libblas.so.3"
    assert len(renamed) == len(content)
    target = tmp_path / "libblas.so.3"
    target.write_bytes(renamed)
    assert ctypes.CDLL(str(target)).scipy_cblas_ddot64_ is not None


def test_what_is_no_library_or_has_too_short_a_name_is_refused(mangled: Path) -> None:
    with pytest.raises(SlipwayError, match=r"the copy of libblas\.so\.3 is not a shared library"):
        named(b"not a library", "libblas.so.3")
    with pytest.raises(SlipwayError, match="the new name is longer"):
        named(mangled.read_bytes(), "lib" + "x" * 100)


def test_a_library_is_put_where_the_environments_python_loads_it(mangled: Path, tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    (packages / "carrier.libs").mkdir(parents=True)
    shutil.copy(mangled, packages / "carrier.libs")
    library = SystemLibrary(
        soname="libblas.so.3", package="libblas3", wheel="carrier", file="carrier.libs/lib*"
    )
    bring(tmp_path, [library])
    assert soname_of((tmp_path / FOLDER / "libblas.so.3").read_bytes()) == "libblas.so.3"
    (start,) = (packages / "slipway_libraries.pth").read_text().splitlines()
    assert start.startswith("import ")
    assert "libblas.so.3" in start


def test_a_wheel_that_brings_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    library = SystemLibrary(
        soname="libblas.so.3", package="libblas3", wheel="carrier", file="carrier.libs/lib*"
    )
    with pytest.raises(SlipwayError, match=r"carrier does not contain libblas\.so\.3") as refused:
        bring(tmp_path, [library])
    assert "libblas3" in str(refused.value.fix)


def test_nothing_to_bring_leaves_the_environment_alone(tmp_path: Path) -> None:
    (tmp_path / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    bring(tmp_path, [])
    assert not (tmp_path / FOLDER).exists()
