"""Aliases of a registry in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from inline_snapshot import snapshot

from blocks.storage.model_registry import list_aliases, list_models, read_alias
from blocks.storage.sources import resolve
from tasks.core.errors import ModelError, NotFoundError, WrongUseError
from tasks.core.settings import Settings
from tasks.core.sources import ResolvedModel


@pytest.fixture
def settings(slipway_home: Path) -> Settings:
    registry = slipway_home / "registry"
    (registry / "tiny" / "aliases").mkdir(parents=True)
    (registry / "tiny" / "aliases" / "champion").write_text("3\n")
    (registry / "tiny" / "versions" / "3").mkdir(parents=True)
    (registry / "empty").mkdir()
    (registry / ".hidden").mkdir()
    return Settings.load()


def test_an_alias_resolves_to_its_versions_folder(settings: Settings) -> None:
    found = resolve("models:/tiny@champion", settings)
    assert found == ResolvedModel(f"file:{settings.registry}/tiny/versions/3", "3")
    assert read_alias("tiny", "champion", settings) == "3"
    assert list_models(settings) == ["empty", "tiny"]
    assert list_aliases("tiny", settings) == ["champion"]
    assert list_aliases("none", settings) == []


def test_folders_and_buckets_resolve_to_themselves(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(settings.home)
    assert resolve("file:registry", settings) == ResolvedModel(f"file:{settings.home}/registry")
    assert resolve("s3://bucket/a/b/", settings) == ResolvedModel("s3://bucket/a/b")


@pytest.mark.parametrize(
    "model",
    ["tiny", "models:/tiny", "models:/../x@a", "models:/tiny@../../x", "models:/a/b@c", "models:/tiny@a\n"],
)
def test_what_names_no_model_is_wrong_use(settings: Settings, model: str) -> None:
    with pytest.raises(WrongUseError, match="does not name a model"):
        resolve(model, settings)


def test_an_unknown_alias_or_model_says_what_there_is(settings: Settings) -> None:
    said = []
    for name, alias in [("tiny", "next"), ("empty", "champion"), ("other", "champion")]:
        with pytest.raises(NotFoundError) as error:
            read_alias(name, alias, settings)
        said.append(str(error.value).replace(settings.registry, "REGISTRY"))
    assert said == snapshot(
        [
            "file:REGISTRY does not have tiny@next (its aliases are champion)",
            "file:REGISTRY does not have empty@champion (it has no aliases)",
            "file:REGISTRY does not have other@champion (its models are empty, tiny)",
        ]
    )


@pytest.mark.parametrize("content", ["", "../../../etc", "a/b", "\xff\xfe", "v1 v2"])
def test_an_alias_that_holds_no_version_is_refused(settings: Settings, content: str) -> None:
    (Path(settings.registry) / "tiny" / "aliases" / "champion").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelError, match="which is not a version"):
        resolve("models:/tiny@champion", settings)


def test_the_folder_of_a_model_in_a_hugging_face_cache_means_its_main_snapshot(
    settings: Settings, tmp_path: Path
) -> None:
    cache, commit = tmp_path / "models--org--name", "c0" * 20
    (cache / "snapshots" / commit).mkdir(parents=True)
    only = resolve(f"file:{cache}", settings)  # downloaded by another revision
    assert (only.source, only.version) == (f"file:{cache}/snapshots/{commit}", commit)
    (cache / "snapshots" / ("d1" * 20)).mkdir()
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit + "\n")
    found = resolve(f"file:{cache}", settings)
    assert (found.source, found.version) == (f"file:{cache}/snapshots/{commit}", commit)
    (cache / "refs" / "main").write_text("../../etc")
    assert resolve(f"file:{cache}", settings).version is None
