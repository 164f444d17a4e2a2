from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexinfer.errors import IntegrityError, InvalidInput, NotFound, ResourceExhausted
from flexinfer.oci import Descriptor, Layout, Manifest
from flexinfer.oci.index import Index
from flexinfer.oci.layout import expand
from flexinfer.oci.recovery import rebuild_index

CONFIG = Descriptor.of(b"{}", media_type="application/vnd.cncf.model.config.v1+json")

TAG_MANY = """
import sys
from pathlib import Path
from flexinfer.oci import Layout
layout = Layout(Path(sys.argv[1]))
found = layout.resolve(sys.argv[2])
for number in range(20):
    layout.tag(f"smol:{sys.argv[3]}-{number}", found)
"""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "layout")
    made.prepare()
    return made


def _manifest(layout: Layout, note: str = "") -> Descriptor:
    layout.blobs.put_bytes(b"{}")
    weights = layout.blobs.put_bytes(b"weights")
    layer = Descriptor(
        media_type="application/vnd.cncf.model.weight.v1.raw", digest=weights, size=7
    )
    manifest = Manifest(config=CONFIG, layers=(layer,), annotations={"note": note} if note else {})
    return layout.put_manifest(manifest.to_bytes())


def test_an_empty_layout_is_one_that_others_accept(layout: Layout) -> None:
    assert json.loads((layout.root / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((layout.root / "index.json").read_bytes())
    assert (index["schemaVersion"], index["manifests"]) == (2, [])


def test_preparing_again_changes_nothing(layout: Layout) -> None:
    layout.tag("smol:x", _manifest(layout))
    before = (layout.root / "index.json").read_bytes()
    Layout(layout.root).prepare()
    assert (layout.root / "index.json").read_bytes() == before


@pytest.mark.parametrize("left", ["marker", "blob"])
def test_a_layout_that_lost_its_index_is_not_taken_for_an_empty_one(
    layout: Layout, left: str
) -> None:
    if left == "blob":
        layout.blobs.put_bytes(b"weights")
        (layout.root / "oci-layout").unlink()
    (layout.root / "index.json").unlink()
    for use in (Layout(layout.root).prepare, layout.tags):
        with pytest.raises(IntegrityError) as caught:
            use()
        assert caught.value.code == "index_missing"
    assert not (layout.root / "index.json").exists()


def test_a_layout_whose_making_was_cut_off_is_made_anew(layout: Layout) -> None:
    (layout.root / "oci-layout").unlink()
    Layout(layout.root).prepare()
    assert (layout.root / "oci-layout").exists()
    assert layout.tags() == ()


def test_the_index_is_written_before_the_marker_that_promises_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = os.rename

    def rename(source: Any, target: Any) -> None:
        order.append(Path(target).name)
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    Layout(tmp_path / "new").prepare()
    assert order == ["index.json", "oci-layout"]


def test_a_rebuilt_index_has_every_whole_manifest_and_no_other_blob(layout: Layout) -> None:
    found = _manifest(layout)
    note = layout.put_manifest(Manifest(config=CONFIG, layers=(), subject=found).to_bytes())
    broken = _manifest(layout, "broken")
    layout.blobs.put_bytes(b'{"schemaVersion": 2, "but": "no manifest"}')
    path = layout.blobs.path(broken.digest)
    path.unlink()
    path.write_bytes(b'{"schemaVersion": 2}')
    (layout.root / "index.json").unlink()
    (layout.root / "oci-layout").unlink()
    again = Layout(layout.root)
    assert rebuild_index(again) == ((f"recovered:{found.digest[7:23]}", found),)
    assert {one.digest for one in again.index().manifests()} == {found.digest, note.digest}
    assert again.index().referrers(found.digest) == ((note,), ())
    assert (layout.root / "oci-layout").exists()
    assert rebuild_index(again) is None


def test_an_index_is_not_rebuilt_from_what_could_not_all_be_read(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = _manifest(layout)
    (layout.root / "index.json").unlink()
    real = os.open

    def refused(path: Any, *rest: Any, **more: Any) -> int:
        if str(path) == str(layout.blobs.path(found.digest)):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *rest, **more)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(ResourceExhausted):
        rebuild_index(layout)
    assert not (layout.root / "index.json").exists()


def test_a_manifest_whose_blobs_are_collected_meanwhile_is_not_entered(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = layout.blobs.put_bytes(b"weights")
    layout.blobs.put_bytes(b"{}")
    layer = Descriptor(media_type="a/b", digest=weights, size=7)
    manifest = Manifest(config=CONFIG, layers=(layer,))
    descriptor = Descriptor.of(manifest.to_bytes(), media_type=manifest.describe().media_type)
    layout.blobs.put_bytes(manifest.to_bytes())
    real = layout.change

    def change(decide: Callable[[Index], Index]) -> None:
        layout.blobs.path(weights).unlink()  # by a collection, between the look and the lock
        real(decide)

    monkeypatch.setattr(layout, "change", change)
    with pytest.raises(NotFound) as caught:
        layout.enter(descriptor, manifest)
    assert caught.value.code == "blob_missing"
    assert layout.index().known(descriptor.digest) is None


@pytest.mark.parametrize("name", ["smollm2-135m-instruct:q8-0", "llm/smol.x:V1.0", "a:build-0f"])
def test_skopeo_reads_the_same_manifest(layout: Layout, name: str) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("skopeo is not installed")
    found = _manifest(layout)
    layout.tag(name, found)
    done = subprocess.run(
        [skopeo, "inspect", "--raw", f"oci:{layout.root}:{name}"], capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == layout.blobs.path(found.digest).read_bytes()


def test_what_skopeo_wrote_is_read_and_its_referrers_are_found(
    layout: Layout, tmp_path: Path
) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("skopeo is not installed")
    found = _manifest(layout)
    note = Manifest(config=CONFIG, layers=(), subject=found)
    layout.tag("smol:x", found)
    layout.tag("smol:note", layout.put_manifest(note.to_bytes()))
    other = Layout(tmp_path / "other")
    for name in ("smol:x", "smol:note"):
        subprocess.run(
            [skopeo, "copy", "--quiet", f"oci:{layout.root}:{name}", f"oci:{other.root}:{name}"],
            check=True, timeout=60,
        )  # fmt: skip
    assert other.resolve("smol:x").digest == found.digest
    assert [one.digest for one in other.referrers(found.digest)] == [note.describe().digest]


def test_another_process_and_its_changes_are_seen(layout: Layout) -> None:
    other = Layout(layout.root)
    assert other.tags() == ()
    layout.tag("smol:x", _manifest(layout))
    assert [name for name, _ in other.tags()] == ["smol:x"]


def test_the_index_is_parsed_once_for_many_reads(layout: Layout) -> None:
    layout.tag("smol:x", _manifest(layout))
    assert layout.index() is layout.index()


def test_our_own_change_is_not_parsed_again(layout: Layout) -> None:
    made = layout.index().with_manifest(_manifest(layout), subject=None)
    changed = made.with_tag("smol:x", made.manifests()[0].digest)
    layout.change(lambda index: changed)
    assert layout.index() is changed


def test_processes_that_tag_at_once_lose_no_name(layout: Layout) -> None:
    found = _manifest(layout)
    runs = [
        subprocess.Popen([sys.executable, "-c", TAG_MANY, str(layout.root), found.digest, str(n)])
        for n in range(3)
    ]
    assert [run.wait(60) for run in runs] == [0, 0, 0]
    assert len(layout.tags()) == 60


def test_thousands_of_names_stay_usable(layout: Layout) -> None:
    found = _manifest(layout)
    entries = [
        Descriptor.of(b"%d" % number, media_type=found.media_type).to_json()
        | {"annotations": {"org.opencontainers.image.ref.name": f"many:{number}"}}
        for number in range(5000)
    ]
    index = {"schemaVersion": 2, "manifests": [*entries, found.to_json()]}
    (layout.root / "index.json").write_text(json.dumps(index))
    layout.tag("smol:x", found)
    assert layout.resolve("smol:x") == found
    assert len(layout.tags()) == 5001


def test_untagging_forgets_the_name_only(layout: Layout) -> None:
    found = _manifest(layout)
    layout.tag("smol:x", found)
    layout.untag("smol:x")
    assert layout.tags() == ()
    assert layout.resolve(found.digest) == found
    with pytest.raises(NotFound):
        layout.untag("smol:x")


def test_the_first_digits_are_enough_where_they_are_unique(layout: Layout) -> None:
    found = _manifest(layout)
    assert expand(layout, found.digest[7:19]) == found
    with pytest.raises(NotFound):
        expand(layout, "0" * 12 if found.digest[7] != "0" else "1" * 12)
    _manifest(layout, "other")
    with pytest.raises(InvalidInput) as caught:
        expand(layout, "")
    assert caught.value.code == "reference_ambiguous"


def test_a_manifest_whose_bytes_changed_is_refused(layout: Layout) -> None:
    found = _manifest(layout)
    path = layout.blobs.path(found.digest)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data.replace(b"weight", b"weighs"))
    with pytest.raises(IntegrityError) as caught:
        layout.manifest(found.digest)
    assert caught.value.code == "manifest_digest"


def test_a_symbolic_link_is_never_a_blob(layout: Layout, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"weights")
    digest = layout.blobs.put_bytes(b"weights")
    layout.blobs.path(digest).unlink()
    layout.blobs.path(digest).symlink_to(secret)
    with pytest.raises(Exception, match="cannot read"):
        layout.blobs.open(digest)
