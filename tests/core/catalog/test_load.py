"""Loading a catalog: problems are collected, the first path wins, no two entries share a reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flexinfer.catalog import Catalog, search_paths
from flexinfer.errors import NotFound
from flexinfer.places import Home
from flexinfer.settings import CatalogSection

Write = Callable[..., Path]


def test_entries_are_found_by_name_whatever_the_file_is_called(
    tmp_path: Path, write: Write
) -> None:
    file = write("llm/x.yaml", "smol")
    catalog = Catalog.load([tmp_path])
    assert list(catalog.entries) == ["smol"]
    assert catalog.entries["smol"].file == file
    assert catalog.problems == ()


def test_a_file_that_is_wrong_does_not_hide_the_others(tmp_path: Path, write: Write) -> None:
    write("good.yaml", "good")
    broken = write("broken.yaml", "broken")
    broken.write_text(broken.read_text().replace("license", "licence"))
    catalog = Catalog.load([tmp_path, tmp_path / "absent"])
    assert list(catalog.entries) == ["good"]
    assert [problem.code for problem in catalog.problems] == [
        "catalog_unreadable",
        "document_invalid",
    ]
    assert (
        f"{broken}:6:3: unknown key 'licence'; did you mean 'license'?"
        in catalog.problems[1].message
    )


def test_of_one_name_in_two_paths_the_first_is_used(tmp_path: Path, write: Write) -> None:
    mine, theirs = write("mine/m.yaml", license="MIT"), write("theirs/m.yaml", license="Zlib")
    catalog = Catalog.load([tmp_path / "mine", tmp_path / "theirs"])
    assert catalog.entries["m"].entry.spec.license.expression == "MIT"
    (hidden,) = catalog.hidden
    assert (hidden.loaded.file, hidden.by) == (theirs, mine)
    assert catalog.problems == ()


def test_two_entries_may_not_publish_under_one_reference(tmp_path: Path, write: Write) -> None:
    first = write("a.yaml", "a", repository="shared")
    second = write("b.yaml", "b", repository="shared")
    catalog = Catalog.load([tmp_path])
    assert list(catalog.entries) == ["a"]
    (problem,) = catalog.problems
    assert problem.code == "reference_conflict"
    assert problem.message == (
        f"{second}:9:14: shared:q8-0 is published by entry 'a' already ({first})"
    )


def test_a_rule_beyond_the_schema_keeps_an_entry_out(tmp_path: Path, write: Write) -> None:
    file = write("m.yaml", license="Apache 2.0")
    catalog = Catalog.load([tmp_path])
    assert not catalog.entries
    assert catalog.problems[0].message.startswith(f"{file}:6:25: licence 'Apache 2.0'")


def test_a_variant_is_found_and_the_first_where_none_is_named(tmp_path: Path, write: Write) -> None:
    write("m.yaml")
    catalog = Catalog.load([tmp_path])
    assert catalog.find("m")[1].name == "q8-0"
    assert catalog.find("m", "q4-0")[1].name == "q4-0"


def test_an_unknown_entry_names_the_nearest(tmp_path: Path, write: Write) -> None:
    write("m.yaml", "smollm2")
    with pytest.raises(
        NotFound, match=r"'smolm2' does not exist \(.*\); did you mean 'smollm2'"
    ) as refused:
        Catalog.load([tmp_path]).find("smolm2")
    assert refused.value.code == "entry_not_found"


def test_an_unknown_entry_names_the_one_that_it_begins_and_where_all_are(
    tmp_path: Path, write: Write
) -> None:
    write("m.yaml", "smollm2-135m-instruct")
    catalog = Catalog.load([tmp_path])
    with pytest.raises(NotFound, match="did you mean 'smollm2-135m-instruct'"):
        catalog.find("smollm2")
    with pytest.raises(NotFound, match=r"'nope' does not exist \(see flexinfer catalog list\)$"):
        catalog.find("nope")


def test_an_unknown_variant_names_the_known_and_the_nearest(tmp_path: Path, write: Write) -> None:
    write("m.yaml")
    with pytest.raises(NotFound, match=r"\(known: q8-0, q4-0\); did you mean 'q4-0'") as refused:
        Catalog.load([tmp_path]).find("m", "q4_0")
    assert refused.value.code == "variant_not_found"


def test_an_entry_not_found_says_which_files_could_not_be_used(
    tmp_path: Path, write: Write
) -> None:
    file = write("m.yaml")
    file.write_text("kind: [")
    with pytest.raises(NotFound) as refused:
        Catalog.load([tmp_path]).find("m")
    assert str(file) in refused.value.message


def _searched(tmp_path: Path, *named: str) -> list[Path]:
    section = CatalogSection(paths=tuple(Path(name) for name in named))
    return list(search_paths(section, Home(tmp_path / "home"), tmp_path / "cwd"))


def test_entries_are_looked_for_in_the_order_of_the_readme(tmp_path: Path) -> None:
    for folder in ("cwd/catalogs", "home/catalogs", "cwd/extra"):
        (tmp_path / folder).mkdir(parents=True)
    found = _searched(tmp_path, "extra", "/absent")
    assert found[:2] == [tmp_path / "cwd/extra", Path("/absent")]
    assert found[2:4] == [tmp_path / "cwd/catalogs", tmp_path / "home/catalogs"]
    # The built-in ones: this clone's.
    assert found[4:] == [Path(__file__).resolve().parents[3] / "catalogs"]


def test_customary_folders_that_are_absent_are_not_named(tmp_path: Path) -> None:
    assert len(_searched(tmp_path)) == 1


def test_a_folder_is_searched_once(tmp_path: Path) -> None:
    (tmp_path / "cwd/catalogs").mkdir(parents=True)
    assert _searched(tmp_path, "catalogs", "./catalogs")[:-1] == [tmp_path / "cwd/catalogs"]
