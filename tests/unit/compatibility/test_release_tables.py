"""The tables of builds, pins and wheels: each row agrees with others, and speaks at both of its edges."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tasks.compatibility import builds, glibc, pins
from tasks.compatibility.conditions import contains
from tasks.compatibility.models import Survey
from tasks.compatibility.plan import judge
from tasks.compatibility.rules import BuildRow, GlibcRow, PinRow, ReleaseRow, load_tables
from tasks.core.facts import Facts

TABLES = load_tables()
FROM_BUILDS = ("BUILD-CUDA", "BUILD-CUDA-OPTIONAL")


def first(releases: str) -> str:
    """The release with which a row begins."""
    return next(spec.version for spec in SpecifierSet(releases) if spec.operator in (">=", "=="))


def messages(packages: dict[str, str], rules: tuple[str, ...], **facts: str | list[str] | None) -> str:
    known = Facts.model_validate({"packages": packages, **facts})
    return "\n".join(one.message for one in judge(Survey(facts=known)).findings if one.rule in rules)


@pytest.mark.parametrize("row", TABLES.pins, ids=lambda row: f"{row.package} {row.releases}")
def test_what_a_release_asks_for_can_be_had(row: PinRow) -> None:
    """Both ends of a row: the version that is told satisfies all rows of that release."""
    release = first(row.releases)
    for required, wanted in pins.wanted_of(row.package, release, TABLES).items():
        told = next((spec.version for spec in SpecifierSet(wanted) if spec.operator in (">=", "==")), None)
        packages = {row.package: release, required: told or "0.1"}
        assert [pin for pin in pins.broken_pins(packages, TABLES) if pin.package == row.package] == []


@pytest.mark.parametrize("row", TABLES.builds, ids=lambda row: f"{row.package} {row.releases}")
def test_each_build_needs_torch_for_its_cuda(row: BuildRow) -> None:
    """A torch for another CUDA is refused or flagged, one for the same is not."""
    majors = {cuda.partition(".")[0] for cuda in row.cuda}
    other = next(major for major in ("11", "12", "13", "14") if major not in majors)
    packages = {row.package: first(row.releases), "torch": f"2.9.1+cu{other}0"}
    assert messages(packages, FROM_BUILDS) != ""
    for major in majors:
        same = {**packages, "torch": f"2.9.1+cu{major}0"}
        assert messages(same, FROM_BUILDS) == ""


@pytest.mark.parametrize("row", [row for row in TABLES.builds if row.lacks], ids=lambda row: row.releases)
def test_code_that_a_wheel_lacks_is_missed_there_alone(row: BuildRow) -> None:
    release = first(row.releases)
    named = f"{release}+cu130"
    engine, dtype = next(iter(row.engines), "sglang"), next(iter(row.types), None)

    def lacking(version: str, capability: str, used: str = engine, weights: str | None = dtype) -> list[str]:
        packages = {row.package: version}
        return [name for name, _ in builds.without_code(packages, used, weights, capability, TABLES)]

    for part in row.lacks:
        (edge,) = SpecifierSet(part)
        inside = [one.cc for one in TABLES.capabilities if contains(part, one.cc)]
        outside = [one.cc for one in TABLES.capabilities if not any(contains(p, one.cc) for p in row.lacks)]
        first_in, last_out = (min, max) if edge.operator == ">=" else (max, min)
        at_edge = first_in(inside, key=Version)
        assert lacking(release, at_edge) == [f"{row.package} {release}"]
        assert lacking(release, last_out(outside, key=Version)) == []
        assert lacking(named, at_edge) == ([f"{row.package} {named}"] if row.any_build else [])
        assert not row.engines or lacking(release, at_edge, used="another") == []
        assert not row.types or lacking(release, at_edge, weights="float16") == []


@pytest.mark.parametrize(
    ("bitsandbytes", "cuda", "dtype", "found"),
    [
        ("0.43.0", "12.4", "bnb-nf4", True),
        ("0.43.1", "12.4", "bnb-nf4", False),
        ("0.45.2", "12.8", "nf4", True),
        ("0.45.3", "12.8", "bnb-int8", False),
        ("0.46.0", "12.9", "bnb-nf4", True),
        ("0.46.1", "12.9", "bnb-nf4", False),
        ("0.47.0", "13.0", "bnb-nf4", True),
        ("0.49.2", "13.2", "bnb-nf4", True),
        ("0.50.0", "12.9", "bnb-nf4", False),
        ("0.43.0", "12.4", "float16", False),
    ],
)
def test_a_package_may_load_only_the_build_for_the_very_cuda(
    bitsandbytes: str, cuda: str, dtype: str, found: bool
) -> None:
    """It blocks where it is used: for weights of its types."""
    packages = {"bitsandbytes": bitsandbytes, "torch": f"2.8.0+cu{cuda.replace('.', '')}"}
    said = messages(packages, ("BUILD-CUDA",), dtype=dtype, engine="transformers")
    assert ("it loads only a build for the very CUDA of torch" in said) is (found and cuda != "13.0")
    assert (said != "") is found


@pytest.mark.parametrize(
    ("package", "version", "torch", "found"),
    [
        ("flashinfer", "0.1.4+cu121torch2.4", "2.4.1+cu121", False),
        ("flashinfer", "0.1.4+cu121torch2.3", "2.4.1+cu121", True),
        ("flash-attn", "2.7.4.post1+cu12torch2.6cxx11abiFALSE", "2.6.0+cu124", False),
        ("flash-attn", "2.7.4.post1+cu12torch2.6cxx11abiTRUE", "2.6.0+cu124", True),
        ("flash-attn", "2.7.4.post1+cu12torch2.6cxx11abiTRUE", "2.6.0+cu126", False),
        ("flash-attn", "2.8.3+cu12torch2.8cxx11abiFALSE", "2.8.0+cu128", True),
        ("flash-attn", "2.8.3+cu12torch2.8cxx11abiTRUE", "2.8.0+cu128", False),
        ("exllamav2", "0.0.11+cu121.torch2.1.0", "2.2.0+cu121", True),
    ],
)
def test_a_build_that_names_its_torch_needs_it(package: str, version: str, torch: str, found: bool) -> None:
    said = messages({package: version, "torch": torch}, ("PIN-BROKEN",))
    assert ("undefined symbol" in said) is found


@pytest.mark.parametrize("row", TABLES.glibc, ids=lambda row: f"{row.package} {row.releases} {row.build}")
def test_each_wheel_needs_its_glibc(row: GlibcRow) -> None:
    version = first(row.releases) + (f"+{row.build}" if row.build else "")
    major, minor = row.glibc.split(".")
    rules, packages = ("GLIBC-WHEEL",), {row.package: version}
    below = f"{major}.{int(minor) - 1}"
    own = {
        "engine": row.package,
        "engine_version": version,
        "cpu": row.platform,
        "cuda_build": None,
        "gpus": [],
    }
    host = own if row.platform else {}
    assert row.glibc in messages(packages, rules, glibc=below, **host)
    assert messages(packages, rules, glibc=row.glibc, **host) == ""


def test_the_rows_of_a_release_do_not_overlap() -> None:
    """Of builds and wheels the first row counts: a second one for the same release would never be read."""
    for table, key in (
        (TABLES.builds, lambda row: row.package),
        (TABLES.glibc, lambda row: (row.package, row.build, row.platform)),
    ):
        for row in table:
            begin = first(row.releases)
            holding = [one for one in table if key(one) == key(row) and begin in SpecifierSet(one.releases)]
            assert holding == [row]


@pytest.mark.parametrize(
    "row", [row for row in TABLES.releases if row.torch], ids=lambda row: f"{row.package} {row.version}"
)
def test_the_releases_agree_with_the_pins(row: ReleaseRow) -> None:
    """The torch that a release is listed with is the one that it pins, and for the CUDA of its build."""
    assert pins.wanted_of(row.package, row.version, TABLES)["torch"].removeprefix("==") == row.torch
    torch = builds.torch_release(row.torch, TABLES)
    assert torch is not None
    packages = {row.package: row.version, "torch": row.torch}
    assert builds.mismatched(packages, torch.cuda[0], TABLES) == ()


names = st.sampled_from(
    ["vllm", "sglang", "sgl-kernel", "flash-attn", "bitsandbytes", "xformers", "torch", "transformers"]
)
versions = st.from_regex(
    r"[0-9]{1,2}(\.[0-9]{1,2}){0,2}(\.post[0-9])?(\+cu1[0-9]{1,2}|\+cpu|\+cu12torch2\.8)?", fullmatch=True
)


@given(st.dictionaries(names, versions, max_size=5), st.sampled_from([None, "11.8", "12.8", "13.0"]))
@settings(max_examples=100, deadline=None)
def test_any_packages_get_an_answer_without_gaps(packages: dict[str, str], cuda: str | None) -> None:
    facts = Facts.model_validate(
        {"packages": packages, "cuda_build": cuda, "engine": "vllm", "glibc": "2.31"}
    )
    for finding in judge(Survey(facts=facts)).findings:
        if finding.rule in (
            "PIN-BROKEN",
            "PIN-NEAR",
            *FROM_BUILDS,
            "GLIBC-WHEEL",
            "MIXED-CUDA",
            "BUILD-CONTRADICTS",
        ):
            assert "?" not in finding.message + finding.fix
            assert "None" not in finding.message + finding.fix


def test_another_build_is_one_that_fits_the_host() -> None:
    """The cu129 wheel of 0.21.0 asks for glibc 2.34: below that the next release is told."""
    facts = Facts(packages={"torch": "2.11.0+cu126"}, glibc="2.28")
    near = builds.nearest_build("vllm", "0.21.0", "12", facts, TABLES)
    assert near is not None
    assert (near.local, glibc.fits("vllm", "0.21.0+cu129", "2.28", TABLES)) == ("0.22.1+cu129", False)
    wheel = builds.nearest_build("vllm", "0.33.0", "12", Facts(packages={}), TABLES)
    assert wheel is not None
    assert wheel.local == "0.31.0+cu129"
