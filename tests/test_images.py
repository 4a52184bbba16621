"""Images from outside: read in place, decoded once, never trusted."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from irpipe.schemas.images import ROWS_PER_GROUP, ROWS_PER_SHARD, ImageShards, image_row

pytestmark = pytest.mark.usefixtures("import_recipe")


def picture(colour="red", size=(8, 6), kind="PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


def annotate(project, *groups):
    records = [
        {"prompt": f"prompt {number}", "images": list(paths), "ranking": list(range(1, len(paths) + 1))}
        for number, paths in enumerate(groups)
    ]
    return f"load-annotations.path={project.jsonl('mine.jsonl', records)}"


def imported(project):
    rows = project.rows("SELECT image.path AS path, image_digest, width, height, format FROM images")
    return {row["path"]: row for row in rows}


def faults(project):
    rows = project.rows("SELECT detail, reason FROM import_images.rejected")
    return {row["detail"]: row["reason"] for row in rows}


def test_a_folder(project):
    root = project.root / "images"
    (root / "deep").mkdir(parents=True)
    files = {"a.png": picture(), "deep/b.webp": picture("blue", (5, 7), "WEBP"), "c.jpg": picture("green", kind="JPEG")}
    for name, data in files.items():
        (root / name).write_bytes(data)
    done = project.last("import-images", annotate(project, list(files)), "import-images.image_root=images")
    assert done["rows"] == {"read": 3, "kept": 3, "rejected": 0}
    rows = imported(project)
    assert rows["deep/b.webp"] == {
        "path": "deep/b.webp",
        "image_digest": hashlib.sha256(files["deep/b.webp"]).hexdigest(),
        "width": 5,
        "height": 7,
        "format": "WEBP",
    }
    table = pq.read_table(project.store.open(done["content_id"]).table("images")[0])
    assert [row["bytes"] for row in table["image"].to_pylist()] == list(files.values()), "bytes are kept as they are"


def test_broken_images_go_and_the_prompts_others_stay(project):
    root = project.root / "images"
    root.mkdir()
    good = picture()
    (root / "good.png").write_bytes(good)
    (root / "also.png").write_bytes(picture("blue"))
    (root / "empty.png").write_bytes(b"")
    (root / "cut.png").write_bytes(good[: len(good) // 2])
    (root / "text.png").write_bytes(b"<script>alert(1)</script>")
    (root / "huge.png").write_bytes(png_header(30_000, 30_000))
    (root / "heavy.png").write_bytes(picture() + b"\0" * 5000)
    (project.root / "secret.png").write_bytes(good)
    (root / "link.png").symlink_to(project.root / "secret.png")
    names = ["good.png", "also.png", "empty.png", "cut.png", "text.png", "huge.png", "heavy.png", "link.png", "none.png"]
    names += ["../secret.png", "/etc/hostname"]
    project.last("import-images", annotate(project, names), "import-images.image_root=images", "import-images.max_bytes=4000")
    assert set(imported(project)) == {"good.png", "also.png"}
    found = faults(project)
    assert found.pop("cut.png").startswith(("cannot be decoded", "no image"))
    assert found == {
        "empty.png": "empty",
        "text.png": "no image of a known format",
        "huge.png": "too many pixels",
        "heavy.png": "file too large",
        "link.png": "path leaves the root",
        "none.png": "missing",
        "../secret.png": "path leaves the root",
        "/etc/hostname": "path leaves the root",
    }


def png_header(width: int, height: int) -> bytes:
    """A tiny PNG file that claims to be large."""
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\x00\x00\x00"
    chunk = b"IHDR" + head
    data = zlib.compress(b"\0" * 1000)
    body = b"IDAT" + data
    return (
        b"\x89PNG\r\n\x1a\n"
        + len(head).to_bytes(4, "big")
        + chunk
        + zlib.crc32(chunk).to_bytes(4, "big")
        + len(data).to_bytes(4, "big")
        + body
        + zlib.crc32(body).to_bytes(4, "big")
    )


def test_zips_as_imagerewarddb_publishes_them(project):
    """`images/train/train_7/x.webp` is the member `x.webp` of `images/train/train_7.zip`."""
    root = project.root / "data"
    (root / "images" / "train").mkdir(parents=True)
    with zipfile.ZipFile(root / "images" / "train" / "train_7.zip", "w") as archive:
        archive.writestr("x.webp", picture(kind="WEBP"))
        archive.writestr("y.webp", picture("blue", kind="WEBP"))
        archive.writestr("zero.webp", b"")
    (root / "images" / "train" / "train_8.zip").write_bytes(b"no zip")
    paths = [f"images/train/train_7/{name}.webp" for name in ("x", "y", "zero", "absent")] + ["images/train/train_8/x.webp"]
    project.last("import-images", annotate(project, paths), "import-images.image_root=data")
    assert set(imported(project)) == set(paths[:2])
    assert faults(project) == {paths[2]: "empty", paths[3]: "missing", paths[4]: "broken zip"}


def test_metadata_beside_the_zips_does_not_hide_them(project):
    """ImageRewardDB's folder as published holds both."""
    root = project.root / "data"
    (root / "images").mkdir(parents=True)
    pq.write_table(pa.table({"image_path": ["images/t/x.png"]}), root / "metadata-train.parquet")
    with zipfile.ZipFile(root / "images" / "t.zip", "w") as archive:
        archive.writestr("x.png", picture())
        archive.writestr("y.png", picture("blue"))
    project.last("import-images", annotate(project, ["images/t/x.png", "images/t/y.png"]), "import-images.image_root=data")
    assert len(imported(project)) == 2


def test_what_is_no_table_hides_nothing(project):
    root = project.root / "images"
    (root / "meta.parquet").mkdir(parents=True)
    (root / "junk.parquet").write_bytes(b"junk")
    for name in "ab":
        (root / name).write_bytes(picture())
    done = project.last("import-images", annotate(project, "ab"), "import-images.image_root=images")
    assert done["rows"]["kept"] == 2


def test_a_cell_without_bytes_gives_way_to_one_that_has_some(project):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": None, "path": "x"}, {"bytes": picture(), "path": "x"}, {"bytes": picture("blue"), "path": "y"}]
    pq.write_table(pa.table({"image": pa.array(cells, kind)}), project.root / "images.PARQUET")
    done = project.last("import-images", annotate(project, "xy"), "import-images.image_root=images.PARQUET")
    assert done["rows"]["kept"] == 2


def test_zips_are_looked_through_from_the_nearest_up_and_never_outside(project):
    root = project.root / "data"
    (root / "a").mkdir(parents=True)
    (project.root / "outside").mkdir()
    for archive, member in (
        (root / "a.zip", "b/u.png"),
        (root / "a" / "b.zip", "v.png"),
        (project.root / "outside" / "o.zip", "w.png"),
    ):
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr(member, picture())
    (root / "o.zip").symlink_to(project.root / "outside" / "o.zip")
    project.last("import-images", annotate(project, ["a/b/u.png", "a/b/v.png", "o/w.png"]), "import-images.image_root=data")
    assert set(imported(project)) == {"a/b/u.png", "a/b/v.png"} and faults(project) == {"o/w.png": "path leaves the root"}


def test_many_archives_need_few_open_files(project):
    """More archives than a process may have open: none is taken for a broken one."""
    import resource

    root = project.root / "data"
    root.mkdir()
    paths = []
    for number in range(200):
        with zipfile.ZipFile(root / f"{number}.zip", "w") as archive:
            archive.writestr("x.png", picture())
        paths.append(f"{number}/x.png")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (150, limits[1]))
    try:
        done = project.last("import-images", annotate(project, paths), "import-images.image_root=data")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert done["rows"] == {"read": 200, "kept": 200, "rejected": 0}


def test_a_name_that_is_not_utf8_is_named(project):
    (project.root / "images").mkdir()
    (project.root / "images" / "a").write_bytes(picture())
    (project.root / "images" / os.fsdecode(b"\xff.png")).write_bytes(picture())
    message = project.run("import-images", annotate(project, "ab"), "import-images.image_root=images", status=2).err
    assert "a name that is not UTF-8" in message


def test_names_that_no_file_system_takes(project):
    (project.root / "images").mkdir()
    for name in "ab":
        (project.root / "images" / name).write_bytes(picture())
    (project.root / "images" / "loop").symlink_to(project.root / "images")
    (project.root / "images" / "nowhere").symlink_to("gone")
    names = ["a", "b", "x" * 300, "nul\0byte", "nowhere"]
    project.last("import-images", annotate(project, names), "import-images.image_root=images")
    assert set(imported(project)) == {"a", "b"}
    found = faults(project)
    assert found["nul\0byte"] == "path leaves the root" and found["x" * 300] == "cannot be read: File name too long"


def test_one_zip_and_a_bomb_in_it(project):
    with zipfile.ZipFile(project.root / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/x.png", picture())
        archive.writestr("a/y.png", picture("blue"))
        archive.writestr("bomb.png", b"\0" * 3_000_000)
        archive.writestr("../out.png", picture())
    project.last(
        "import-images",
        annotate(project, ["a/x.png", "a/y.png", "bomb.png", "../out.png"]),
        "import-images.image_root=all.zip",
        "import-images.max_bytes=1000000",
    )
    assert set(imported(project)) == {"a/x.png", "a/y.png"}
    assert faults(project) == {"bomb.png": "file too large", "../out.png": "path leaves the root"}


def test_parquet_in_the_hugging_face_layout(project):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": picture(), "path": "x.png"}, {"bytes": picture("blue"), "path": "y.png"}, {"bytes": None, "path": "z.png"}]
    (project.root / "data").mkdir()
    pq.write_table(pa.table({"image": pa.array(cells, kind), "n": [1, 2, 3]}), project.root / "data" / "part.parquet")
    project.last("import-images", annotate(project, ["x.png", "y.png", "z.png", "w.png"]), "import-images.image_root=data")
    assert set(imported(project)) == {"x.png", "y.png"}
    assert faults(project) == {"z.png": "empty", "w.png": "missing"}


def test_parquet_as_pickapic_publishes_it(project):
    columns = {
        "caption": ["a cat"],
        "image_0_uid": ["u0"],
        "image_1_uid": ["u1"],
        "jpg_0": [picture(kind="JPEG")],
        "jpg_1": [picture("blue", kind="JPEG")],
        "label_0": [1.0],
        "label_1": [0.0],
        "has_label": [True],
        "ranking_id": [1],
        "user_id": [1],
    }
    pq.write_table(pa.table(columns), project.root / "train.parquet")
    flags = ("load-annotations.path=train.parquet", "load-annotations.format=pickapic")
    project.last("import-images", *flags, "import-images.image_root=train.parquet")
    assert set(imported(project)) == {"u0", "u1"}


def test_one_file_of_two_prompts_is_read_once_and_kept_for_both(project):
    (project.root / "images").mkdir()
    for name in "abc":
        (project.root / "images" / name).write_bytes(picture(("red", "blue", "green")["abc".index(name)]))
    done = project.last("import-images", annotate(project, "ab", "bc"), "import-images.image_root=images")
    assert done["metrics"]["files"] == 3 and done["rows"]["kept"] == 4


def test_images_count_by_content(project):
    root = project.root / "images"
    root.mkdir()
    flags = (annotate(project, "ab"), "import-images.image_root=images")
    for name in "ab":
        (root / name).write_bytes(picture())
    first = project.last("import-images", *flags)
    assert project.last("import-images", *flags)["key"] == first["key"]
    (root / "b").write_bytes(picture("blue"))
    assert project.last("import-images", *flags)["key"] != first["key"]


@pytest.mark.parametrize(("root", "message"), [("nowhere", "does not exist"), ("mine.jsonl", "no folder, zip or Parquet")])
def test_a_root_that_is_none(project, root, message):
    assert message in project.run("import-images", annotate(project, "ab"), f"import-images.image_root={root}", status=2).err


@pytest.mark.parametrize("count", [0, 1, ROWS_PER_GROUP, ROWS_PER_SHARD, ROWS_PER_SHARD + 1, 2 * ROWS_PER_SHARD])
def test_shards_are_cut_at_fixed_places(tmp_path, count):
    with ImageShards(tmp_path) as shards:
        for number in range(count):
            shards.append(image_row(number, 0, b"x", str(number), "", (1, 1), "PNG"))
    files = sorted((tmp_path / "images").iterdir())
    assert [pq.read_metadata(file).num_rows for file in files] == [
        min(ROWS_PER_SHARD, count - start) for start in range(0, max(count, 1), ROWS_PER_SHARD)
    ]
    assert pa.concat_tables(pq.read_table(file) for file in files)["image_id"].to_pylist() == list(range(count))
