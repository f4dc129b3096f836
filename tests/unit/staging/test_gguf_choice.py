"""Which GGUF model of a source is meant, and what is refused before anything is copied."""

from __future__ import annotations

from pathlib import Path

import pytest
from faulty_s3 import faulty_s3
from inline_snapshot import snapshot
from small_gguf import gguf_bytes, write_gguf, write_parts

from blocks.services.early_checks import check_model
from blocks.storage.sources import open_model, open_source, resolve
from tasks.core.errors import ModelError, NotFoundError, SlipwayError, SpecError
from tasks.core.manifest import read_manifest
from tasks.core.settings import Settings
from tasks.core.sources import local_folder, split_variant
from tasks.core.spec import load_spec, parse_spec
from tasks.staging.apply import CopyPlan, plan_copy, repair_model, stage_model
from tasks.staging.gguf_choice import GgufFiles, choose_gguf, files_named, gguf_files
from tasks.staging.source import pin

SEVERAL = [
    "m-F16.gguf",
    "m-Q4_K_M.gguf",
    "m-Q8_0-00001-of-00002.gguf",
    "m-Q8_0-00002-of-00002.gguf",
    "mmproj.gguf",
]


@pytest.mark.parametrize(
    ("source", "place", "variant"),
    [
        ("file:/m#q4_k_m", "file:/m", "q4_k_m"),
        ("s3://b/m#UD-Q4_K_XL", "s3://b/m", "ud-q4_k_xl"),
        ("models:/m@champion#bf16", "models:/m@champion", "bf16"),
        ("file:/m#iq2_xxs", "file:/m", "iq2_xxs"),
        ("file:/m#mxfp4_moe", "file:/m", "mxfp4_moe"),
        ("file:/m#2", "file:/m#2", None),
        ("file:/a#q4_0/b", "file:/a#q4_0/b", None),
        ("file:/m#f17", "file:/m#f17", None),
        ("file:/m", "file:/m", None),
    ],
)
def test_only_names_of_quantizations_are_variants(source: str, place: str, variant: str | None) -> None:
    assert split_variant(source) == (place, variant)


def test_models_among_files() -> None:
    assert [
        (one.quantization, len(one.paths)) for one in gguf_files([*SEVERAL, "model.gguf", "README.md"])
    ] == [
        ("f16", 1),
        ("q4_k_m", 1),
        ("q8_0", 2),
        ("model", 1),
    ]
    assert gguf_files(["m.UD-Q4_K_XL.gguf"])[0].quantization == "ud-q4_k_xl"
    assert gguf_files(["m-00001-of-00001.gguf"])[0].paths == ("m-00001-of-00001.gguf",)


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["m-00001-of-00003.gguf", "m-00003-of-00003.gguf"], "m-00002-of-00003.gguf"),
        (["m-00002-of-00002.gguf"], "m-00001-of-00002.gguf"),
        (["m-00001-of-99999.gguf"], "m-00002-of-99999.gguf"),
        (["m-00001-of-00001.gguf", "m-00002-of-00001.gguf"], "m-…-of-00001.gguf"),
    ],
)
def test_a_missing_part_is_named(names: list[str], missing: str) -> None:
    with pytest.raises(ModelError, match=f"{missing} is missing"):
        gguf_files(names)


@pytest.mark.parametrize(
    ("variant", "formats", "chosen"),
    [
        ("q4_k_m", ["f16"], "m-Q4_K_M"),
        ("q8_0", [], "m-Q8_0"),
        (None, ["q8_0"], "m-Q8_0"),
        (None, ["f16"], "m-F16"),
        (None, ["q5_0", "q4_k_m"], "m-Q4_K_M"),
    ],
)
def test_the_source_or_the_candidates_choose(variant: str | None, formats: list[str], chosen: str) -> None:
    assert choose_gguf(SEVERAL, variant, formats, "file:/m").stem == chosen


def test_what_does_not_decide_lists_what_there_is() -> None:
    def refused(names: list[str], variant: str | None, *formats: str) -> str:
        with pytest.raises(SlipwayError) as error:
            choose_gguf(names, variant, formats, "file:/m")
        return str(error.value)

    assert [
        refused(SEVERAL, None, "as-is"),
        refused(SEVERAL, None, "f16", "q8_0"),
        refused(SEVERAL, "q2_k"),
        refused(["a-Q4_0.gguf", "b-Q4_0.gguf"], "q4_0"),
        refused(["mmproj-f16.gguf"], None),
    ] == snapshot(
        [
            "file:/m contains several GGUF models: f16, q4_k_m, q8_0 (choose one: model: file:/m#f16, or its name in tuning.candidates)",
            "file:/m contains several GGUF models: f16, q4_k_m, q8_0 (choose one: model: file:/m#f16, or its name in tuning.candidates)",
            "file:/m contains no GGUF model q2_k, but f16, q4_k_m, q8_0 (give the path of the .gguf file)",
            "file:/m contains several files for q4_0 (give the path of the .gguf file)",
            "file:/m contains no GGUF model (give the folder that contains the GGUF file)",
        ]
    )


def test_a_variant_may_be_of_the_dynamic_kind() -> None:
    names = ["m-UD-Q4_K_M.gguf", "m-Q8_0.gguf"]
    assert choose_gguf(names, "q4_k_m", (), "x").stem == "m-UD-Q4_K_M"
    assert choose_gguf([*names, "m-Q4_K_M.gguf"], "q4_k_m", (), "x").stem == "m-Q4_K_M"


def test_the_other_parts_of_a_file() -> None:
    assert files_named("m-00002-of-00002.gguf").paths == ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf")
    assert files_named("m.gguf") == GgufFiles("m", ("m.gguf",))
    with pytest.raises(ModelError, match="fewer parts"):
        files_named("m-00002-of-99999.gguf")


def planned(source: str, *formats: str, convertible: bool = True) -> CopyPlan:
    opened = open_model(source, formats, endpoint=None)
    return plan_copy(pin(opened), "auto", convertible=convertible, servable=True)


def test_one_file_of_a_folder_of_anything(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m-Q4_K_M.gguf")
    (tmp_path / "LICENSE").write_text("MIT")
    (tmp_path / "mmproj-f16.gguf").write_bytes(gguf_bytes({"general.architecture": "clip"}))
    for name in ("other.gguf", "model.safetensors", "config.json", "weights.bin"):
        (tmp_path / name).write_bytes(b"something else")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "locked").symlink_to("/proc/1/mem")
    plan = planned(f"file:{tmp_path}/m-Q4_K_M.gguf")
    assert [(file.path, file.kind) for file in plan.files] == [("LICENSE", "side"), ("m-Q4_K_M.gguf", "gguf")]
    assert plan.findings == snapshot(
        (
            "m-Q4_K_M.gguf: llama, 2 layers, hidden 64, context 512, q4_k_m (1 q4_k, 1 f32 tensors), tokenizer gpt2, a chat template",
            "mmproj-f16.gguf is a vision projector and was not copied: the model is served as text",
        )
    )


def test_a_split_model_by_any_of_its_parts_is_staged_verified_and_repaired(tmp_path: Path) -> None:
    source, staged = tmp_path / "source", tmp_path / "staged"
    source.mkdir()
    paths = write_parts(source)
    write_gguf(source / "m-Q8_0.gguf")
    pinned = pin(open_source(f"file:{paths[1]}", endpoint=None))
    plan = plan_copy(pinned, "auto", convertible=True, servable=True)
    assert [file.path for file in plan.files] == [path.name for path in paths]
    stage_model(pinned, plan, staged, leases=tmp_path, own=True)
    assert [(staged / path.name).read_bytes() for path in paths] == [path.read_bytes() for path in paths]
    manifest = read_manifest(staged)
    assert manifest.source == f"file:{paths[0]}"
    (staged / paths[2].name).write_bytes(b"damaged")
    again = pin(open_source(manifest.source, endpoint=None))
    assert repair_model(again, staged, leases=tmp_path).restaged == (paths[2].name,)
    assert (staged / paths[2].name).read_bytes() == paths[2].read_bytes()


def cut(folder: Path) -> None:
    path = write_gguf(folder / "m.gguf")
    path.write_bytes(path.read_bytes()[:-1])


def gap(folder: Path) -> None:
    write_parts(folder)[1].unlink()


def swapped(folder: Path) -> None:
    first, second, _ = write_parts(folder)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


def pointer(folder: Path) -> None:
    (folder / "m.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32)


def projector(folder: Path) -> None:
    write_gguf(folder / "mmproj-m.gguf")


def adapter(folder: Path) -> None:
    write_gguf(folder / "lora.gguf", general__type="adapter")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (cut, "is cut off: its tensors end at"),
        (gap, "m-Q4_K_M-00002-of-00003.gguf is missing: 2 of 3 parts"),
        (swapped, "says that it is part 2 of 3, not 1 of 3"),
        (pointer, "is a Git LFS pointer"),
        (projector, "contains only a vision projector"),
        (adapter, "is a LoRA adapter"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_copied(
    make: object, why: str, tmp_path: Path
) -> None:
    assert callable(make)
    make(tmp_path)
    with pytest.raises(ModelError, match=why):
        planned(f"file:{tmp_path}")
    with pytest.raises(ModelError, match=why):  # `slipway stage copy` takes a folder with all that is in it
        plan_copy(pin(open_source(f"file:{tmp_path}", endpoint=None)), "auto", convertible=False)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"m\.gguf does not exist"):
        planned(f"file:{tmp_path}/m.gguf")


def test_engines_that_load_folders_are_told_which_do(tmp_path: Path) -> None:
    write_gguf(tmp_path / "m.gguf")
    with pytest.raises(
        ModelError, match=r"only GGUF files, which the engine does not serve \(use engine: llama.cpp"
    ):
        planned(f"file:{tmp_path}", convertible=False)


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({}, None),
        ({"tuning": {"candidates": ["as-is"]}}, None),
        ({"tuning": {"candidates": ["q4_k_m"]}}, None),
        ({"tuning": {"candidates": ["q8_0"]}}, "is a GGUF model in q4_k_m, from which q8_0 cannot be made"),
        ({"engine": "transformers", "tuning": {"candidates": ["f16"]}}, "a GGUF model, which transformers does not serve"),
        ({"tuning": {"context": 513}}, "tuning.context is 513, but the model supports at most 512 tokens"),
        ({"tuning": {"load_generator": "guidellm"}}, "guidellm needs the model's tokenizer.json"),
    ],
)  # fmt: skip
def test_the_spec_is_checked_against_the_header(
    spec: dict[str, object], why: str | None, tmp_path: Path, slipway_home: Path
) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    asked = parse_spec({"name": "chat", "model": f"file:{path}", **spec})
    if why is None:
        check_model(asked, Settings.load())
        return
    with pytest.raises(SpecError, match=why):
        check_model(asked, Settings.load())


def test_files_one_folder_below_are_pointed_at(tmp_path: Path, slipway_home: Path) -> None:
    (tmp_path / "UD-Q4_K_XL").mkdir()
    write_gguf(tmp_path / "UD-Q4_K_XL" / "m.gguf")
    (tmp_path / "config.json").write_text("{}")
    spec = parse_spec({"name": "chat", "model": f"file:{tmp_path}"})
    with pytest.raises(
        ModelError, match=r"its folder UD-Q4_K_XL has GGUF files \(set model: file:.*/UD-Q4_K_XL\)"
    ):
        check_model(spec, Settings.load())


def test_safetensors_are_not_served_as_they_are(random_model: Path, slipway_home: Path) -> None:
    spec = parse_spec({"name": "chat", "model": f"file:{random_model}", "tuning": {"candidates": ["as-is"]}})
    with pytest.raises(SpecError, match="as-is is for models that come quantized or as GGUF"):
        check_model(spec, Settings.load())


def test_paths_in_a_spec(tmp_path: Path) -> None:
    """A link keeps its name if its target's says nothing, as in a Hugging Face cache; a variant stays behind a folder."""
    cache = tmp_path / "models--org--m"
    snapshot_of = cache / "snapshots" / ("a" * 40)
    snapshot_of.mkdir(parents=True)
    (cache / "blobs").mkdir()
    write_gguf(cache / "blobs" / ("b" * 64))
    (snapshot_of / "m-Q4_0.gguf").symlink_to(f"../../blobs/{'b' * 64}")
    write_gguf(tmp_path / "real.gguf")
    (tmp_path / "link.gguf").symlink_to("real.gguf")
    (tmp_path / "link").symlink_to(cache)
    spec = tmp_path / "spec.yaml"

    def model(text: str) -> str:
        spec.write_text(f"name: m\nmodel: {text}\n")
        return load_spec(spec).model

    commit = snapshot_of.relative_to(tmp_path)
    assert model(f"file:{commit}/m-Q4_0.gguf") == f"file:{snapshot_of}/m-Q4_0.gguf"
    assert model("file:link.gguf") == f"file:{tmp_path}/real.gguf"
    assert model("file:link#Q4_0") == f"file:{cache}#q4_0"
    assert local_folder("file:/m#q4_0") == Path("/m")
    assert [file.path for file in planned(f"file:{snapshot_of}/m-Q4_0.gguf").files] == ["m-Q4_0.gguf"]


def test_aliases_and_buckets_take_a_variant(slipway_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = slipway_home / "registry" / "tiny" / "versions" / "3"
    version.mkdir(parents=True)
    (slipway_home / "registry" / "tiny" / "aliases").mkdir()
    (slipway_home / "registry" / "tiny" / "aliases" / "champion").write_text("3")
    for name in ("m-Q4_K_M.gguf", "m-Q8_0.gguf"):
        write_gguf(version / name)
    found = resolve("models:/tiny@champion#Q8_0", Settings.load())
    assert (found.source, found.version) == (f"file:{version}#q8_0", "3")
    assert [file.path for file in planned(found.source).files] == ["m-Q8_0.gguf"]
    assert resolve("s3://b/m/#q8_0", Settings.load()).source == "s3://b/m#q8_0"


def test_the_same_from_s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    write_parts(tmp_path, "m-Q8_0", 2)
    write_gguf(tmp_path / "m-Q4_K_M.gguf")
    objects = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with faulty_s3() as server:
        server.upload(objects)
        for source in ("s3://bucket/m#q8_0", "s3://bucket/m/m-Q8_0-00001-of-00002.gguf"):
            opened = open_model(source, (), endpoint=server.endpoint)
            assert opened.name == "s3://bucket/m/m-Q8_0-00001-of-00002.gguf"
            plan = plan_copy(pin(opened), "auto", convertible=True, servable=True)
            assert [file.path for file in plan.files] == [
                "m-Q8_0-00001-of-00002.gguf",
                "m-Q8_0-00002-of-00002.gguf",
            ]
        with pytest.raises(NotFoundError, match=r"x\.gguf does not exist"):
            open_model("s3://bucket/m/x.gguf", (), endpoint=server.endpoint).list_files()
