"""Existing images of selected prompts: every layout, from real files, and every way they can be bad."""

from __future__ import annotations

import bz2
import csv
import hashlib
import io
import json
import struct
import tracemalloc
import zipfile
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin

from irpipe.pipeline.hashing import row_id, show_row_id
from irpipe.schemas.annotations import image_id
from irpipe.schemas.prompts import prompt_id
from tests.test_images import faults, picture, png_header

CAT, DOG, FOX = "a cat on a mat", "two dogs, oil on canvas", "a fox"
HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

pytestmark = pytest.mark.usefixtures("import_recipe")


def unlike(number: int) -> bytes:
    """A picture that no other number has."""
    return picture((number % 256, number // 256, 7))


def selecting(project, layout, root, *settings, prompts=(CAT, DOG)):
    """The settings of a run that selects all of a file's prompts and imports their images."""
    (project.root / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts), encoding="utf-8")
    few = () if any("min_images" in setting for setting in settings) else ("import-images.min_images=1",)
    return (
        "embed-prompts.path=prompts.txt",
        "select-prompts.method=random",
        f"select-prompts.count={len(prompts)}",
        f"import-images.layout={layout}",
        f"import-images.image_root={root}",
        *few,
        *settings,
    )


def importing(project, *arguments, **more):
    return project.last("import-images", *selecting(project, *arguments, **more))


def refused(project, *arguments, **more):
    return project.run("import-images", *selecting(project, *arguments, **more), status=2).err


def stored(project):
    """Prompt id, bytes and what is known of each image, by path."""
    artifact = project.store.open(project.store.newest("micro", "import-images").content_id)
    rows = pa.concat_tables(pq.read_table(file) for file in artifact.table("images")).to_pylist()
    assert all(row["image_id"] == image_id(row["prompt_id"], row["image"]["path"]) for row in rows)
    return {row["image"]["path"]: row | {"image": row["image"]["bytes"]} for row in rows}


def folder_of(root, images):
    for name, data in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


def zip_of(path, images):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in images.items():
            archive.writestr(name, data)


def id_of(prompt):
    return show_row_id(prompt_id(prompt))


def of_cat(*names):
    return [f"{id_of(CAT)}/{name}" for name in names]


# Folder


@pytest.mark.parametrize("packed", [folder_of, zip_of])
def test_a_folder_a_prompt(project, packed):
    images = {
        f"{id_of(CAT)}/0.png": unlike(0),
        f"{id_of(CAT)}/1.JPG": picture("blue", kind="JPEG"),
        f"{id_of(DOG)}/0.webp": unlike(2),
        f"{id_of(CAT)}/notes.txt": b"no image",
        f"{id_of('another')}/0.png": unlike(3),
        "0.png": unlike(4),
    }
    root = project.root / ("images" if packed is folder_of else "images.zip")
    packed(root, images)
    done = importing(project, "folder", root.name)
    assert done["rows"] == {"read": 3, "kept": 3, "rejected": 0}
    found = stored(project)
    assert {path: row["image"] for path, row in found.items()} == {name: images[name] for name in list(images)[:3]}
    assert {path: row["prompt_id"] for path, row in found.items()} == {
        name: prompt_id(DOG if id_of(DOG) in name else CAT) for name in list(images)[:3]
    }
    assert all(row[name] is None for row in found.values() for name in ("generator", "revision", "seed", "settings", "fault"))


def test_bad_images_are_refused_each_with_its_reason(project):
    root, good = project.root / "images", unlike(0)
    bad = {
        "empty.png": b"",
        "cut.png": good[: len(good) // 2],
        "text.png": b"<script>alert(1)</script>",
        "huge.png": png_header(30_000, 30_000),
        "heavy.png": good + b"\0" * 5000,
    }
    folder_of(root / id_of(CAT), {"good.png": good, **bad})
    (project.root / "secret.png").write_bytes(good)
    (root / id_of(CAT) / "link.png").symlink_to(project.root / "secret.png")
    (root / id_of(CAT) / "nowhere.png").symlink_to("gone")
    (project.root / "elsewhere").mkdir()
    (project.root / "elsewhere" / "x.png").write_bytes(good)
    (root / id_of(DOG)).symlink_to(project.root / "elsewhere")
    done = importing(project, "folder", "images", "import-images.max_bytes=4000")
    assert done["rows"] == {"read": 9, "kept": 1, "rejected": 8}
    found = {path.rpartition("/")[2]: reason for path, reason in faults(project).items()}
    assert found.pop("cut.png").startswith(("cannot be decoded", "no image"))
    assert found == {
        "empty.png": "empty",
        "text.png": "no image of a known format",
        "huge.png": "too many pixels",
        "heavy.png": "file too large",
        "link.png": "path leaves the root",
        "nowhere.png": "missing",
        "x.png": "path leaves the root",
    }


@pytest.mark.slow
def test_a_whole_image_of_900_million_pixels_is_never_decoded(project, monkeypatch):
    """100 kB of PNG that would take 900 MB."""
    row = zlib.compressobj()
    line = b"\0" * (1 + 30_000 * 3)
    data = b"".join(row.compress(line) for _ in range(30_000)) + row.flush()
    chunks = [(b"IHDR", struct.pack(">2I5B", 30_000, 30_000, 8, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        png += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    folder_of(project.root / "images" / id_of(CAT), {"bomb.png": png, "good.png": unlike(0)})
    load, decoded = PngImagePlugin.PngImageFile.load, []
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda image: (decoded.append(image.size), load(image))[1])
    assert importing(project, "folder", "images")["rows"] == {"read": 2, "kept": 1, "rejected": 1}
    assert faults(project) == {of_cat("bomb.png")[0]: "too many pixels"} and set(decoded) == {(8, 6)}


def test_a_zip_with_bombs_and_paths_that_leave_it(project):
    good = unlike(0)
    with zipfile.ZipFile(project.root / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(of_cat("good.png")[0], good)
        archive.writestr(of_cat("bomb.png")[0], b"\0" * 3_000_000)
        archive.writestr(of_cat("liar.png")[0], b"\0" * 3_000_000)
        archive.writestr(zipfile.ZipInfo(of_cat("other.png")[0]), good, zipfile.ZIP_BZIP2)
        archive.writestr(f"../{of_cat('out.png')[0]}", good)
        archive.writestr(f"/{of_cat('root.png')[0]}", good)
        link = zipfile.ZipInfo(of_cat("link.png")[0])
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    claim(project.root / "all.zip", of_cat("liar.png")[0], 100)
    done = importing(project, "folder", "all.zip", "import-images.max_bytes=1000000")
    assert done["rows"] == {"read": 7, "kept": 1, "rejected": 6}
    assert faults(project) == {
        of_cat("bomb.png")[0]: "file too large",
        of_cat("liar.png")[0]: "broken in its zip",
        of_cat("other.png")[0]: "compressed as a bomb may be",
        f"../{of_cat('out.png')[0]}": "path leaves the root",
        f"/{of_cat('root.png')[0]}": "path leaves the root",
        of_cat("link.png")[0]: "no image of a known format",
    }


def claim(archive, name, size):
    """Let a zip's directory say that a member is small."""
    data = bytearray(archive.read_bytes())
    at = data.rindex(name.encode()) - 46
    assert data[at : at + 4] == b"PK\1\2"
    data[at + 24 : at + 28] = struct.pack("<I", size)
    archive.write_bytes(data)


def test_a_block_that_expands_whole_is_not_begun(project):
    """A bzip2 member of some kilobytes that says it has 100 bytes and has 64 million."""
    zip_of(project.root / "all.zip", {of_cat("good.png")[0]: unlike(0)})
    member = of_cat("bomb.png")[0]
    with zipfile.ZipFile(project.root / "all.zip", "a", zipfile.ZIP_BZIP2) as archive:
        archive.writestr(member, bytes(64_000_000))
    assert len(bz2.compress(bytes(64_000_000))) < 4096, "zipfile expands all of it at the first read"
    claim(project.root / "all.zip", member, 100)
    flags = selecting(project, "folder", "all.zip")
    project.run("select-prompts", *(flag for flag in flags if not flag.startswith("import")))
    tracemalloc.start()
    try:
        project.run("import-images", *flags)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert faults(project) == {member: "compressed as a bomb may be"} and peak < 32_000_000


# Which images of a prompt


def test_from_four_to_nine_images_a_prompt(project):
    few = {f"{id_of(CAT)}/{number}.png": unlike(number) for number in range(3)}
    many = {f"{id_of(DOG)}/{number}.png": unlike(10 + number) for number in range(12)}
    enough = {f"{id_of(FOX)}/{number}.png": unlike(30 + number) for number in range(4)}
    folder_of(project.root / "images", few | many | enough | {f"{id_of(CAT)}/bad.png": b"bad"})
    done = importing(project, "folder", "images", "import-images.min_images=4", prompts=(CAT, DOG, FOX))
    assert done["rows"] == {"read": 20, "kept": 13, "rejected": 7} and done["metrics"]["prompts"] == 2
    first = sorted(many, key=row_id)[:9]
    assert set(stored(project)) == {*first, *enough}
    reasons = {path: reason for path, reason in faults(project).items() if not path.endswith("bad.png")}
    assert reasons == dict.fromkeys(few, "its prompt has fewer than min_images") | dict.fromkeys(
        set(many) - set(first), "more than max_images"
    )
    bad = project.rows("SELECT detail FROM import_images.rejected WHERE bad")
    assert [row["detail"] for row in bad] == [f"{id_of(CAT)}/bad.png"], "what a rule drops is not bad"


def test_bad_images_take_no_good_ones_place(project):
    names = sorted((f"{id_of(CAT)}/{number}.png" for number in range(8)), key=row_id)
    folder_of(project.root / "images", {name: b"" if place < 4 else unlike(place) for place, name in enumerate(names)})
    importing(project, "folder", "images", "import-images.min_images=3", "import-images.max_images=3")
    assert set(stored(project)) == set(names[4:7])


def test_prompts_without_images_are_told(project):
    prompts = (CAT, *(f"prompt {number}" for number in range(5)))
    folder_of(project.root / "images", {of_cat("0.png")[0]: unlike(0)})
    metrics = importing(project, "folder", "images", prompts=prompts)["metrics"]
    assert metrics["prompts_without_images"] == 5
    named = metrics["prompts_without_images_first"]
    assert len(named) == 3 and set(named) < {f"{id_of(prompt)} {prompt}" for prompt in prompts[1:]}


def test_no_selected_prompt_has_images(project):
    folder_of(project.root / "images", {f"{id_of('another')}/0.png": unlike(0)})
    message = refused(project, "folder", "images", prompts=(CAT,))
    assert "no selected prompt has images" in message
    assert f"images of {id_of(CAT)} {CAT!r}; found some of {id_of('another')!r}" in message
    table(project.root / "data", ".csv", [("a hen", "0.png")])
    assert f"images of {id_of(CAT)} {CAT!r}; found some of 'a hen'" in refused(project, "table", "data", prompts=(CAT,))
    (project.root / "none").mkdir()
    (project.root / "none" / "notes.txt").write_text("nothing")
    assert "found none of any prompt" in refused(project, "folder", "none", prompts=(CAT,))


def test_the_same_run_twice_is_one(project):
    folder_of(project.root / "images", {name: unlike(number) for number, name in enumerate(of_cat("0.png", "1.png"))})
    first = importing(project, "folder", "images")
    assert importing(project, "folder", "images")["key"] == first["key"]
    assert importing(project, "folder", "images", "import-images.max_images=8")["key"] != first["key"]
    zip_of(project.root / "images.zip", {name: unlike(number) for number, name in enumerate(of_cat("0.png", "1.png"))})
    assert importing(project, "folder", "images.zip")["content_id"] == first["content_id"], "what packs them does not show"


def test_an_image_that_changes_between_the_two_looks(project, monkeypatch):
    from irpipe.stages.import_images import run

    folder_of(project.root / "images", {of_cat("0.png")[0]: unlike(0)})
    choose = run.choose
    monkeypatch.setattr(
        run, "choose", lambda *given: (folder_of(project.root / "images", {of_cat("0.png")[0]: b"x"}), choose(*given))[1]
    )
    assert f"{of_cat('0.png')[0]} changed while it was read" in refused(project, "folder", "images")


def test_memory_does_not_grow_with_the_bytes_of_images(project, monkeypatch):
    """60 images of 1 MB each, 4 at a time."""
    from irpipe.stages.import_images import shards

    noise = bytes(1_000_000)
    root = project.root / "images"
    folder_of(root, {of_cat(f"{number:02}.png")[0]: unlike(number) + noise for number in range(60)})
    flags = selecting(project, "folder", "images")
    project.run("select-prompts", *(flag for flag in flags if not flag.startswith("import")))
    monkeypatch.setattr(shards, "_BLOCK", 4)
    tracemalloc.start()
    try:
        project.run("import-images", *flags)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(stored(project)) == 9 and peak < 30_000_000


# Table


def table(root, ending, rows, names=("prompt", "path")):
    root.mkdir(exist_ok=True)
    file = root / f"images{ending}"
    if ending == ".jsonl":
        file.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows), encoding="utf-8")
    elif ending == ".csv":
        with file.open("w", newline="", encoding="utf-8") as opened:
            csv.writer(opened).writerows([names, *rows])
    else:
        pq.write_table(pa.table({name: [row[place] for row in rows] for place, name in enumerate(names)}), file)
    return file


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_table_of_prompts_and_paths(project, ending):
    root = project.root / "data"
    folder_of(root, {"a/0.png": unlike(0), "1.png": unlike(1)})
    zip_of(root / "b" / "c.zip", {"2.png": unlike(2)})
    (project.root / "secret.png").write_bytes(unlike(3))
    (root / "link.png").symlink_to(project.root / "secret.png")
    bad = ["../secret.png", str(project.root / "secret.png"), "link.png", "a/../../secret.png"]
    rows = [
        (CAT, "a/0.png"),
        (f"  {CAT.replace(' ', '  ')}", "1.png"),
        (DOG, "b/c/2.png"),
        ("another", "1.png"),
        (CAT, "none.png"),
    ]
    rows += [(CAT, path) for path in bad]
    table(root, ending, [*rows, (DOG, "b/c/2.png"), (DOG, "1.png")])
    done = importing(project, "table", "data")
    assert done["rows"] == {"read": 10, "kept": 4, "rejected": 6} and done["metrics"]["files"] == 8
    kept = project.rows("SELECT image.path AS path, prompt_id FROM images ORDER BY path, prompt_id")
    expected = [("1.png", CAT), ("1.png", DOG), ("a/0.png", CAT), ("b/c/2.png", DOG)]
    assert {(row["path"], row["prompt_id"]) for row in kept} == {(path, id_of(prompt)) for path, prompt in expected}
    assert stored(project)["b/c/2.png"]["image"] == unlike(2)
    reasons = {"none.png": "missing", **dict.fromkeys(bad, "path leaves the root"), "of row 2": "listed twice"}
    assert faults(project) == reasons


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
def test_a_table_without_the_column(project, ending):
    table(project.root / "data", ending, [(CAT, "0.png")], names=("prompt", "file"))
    message = refused(project, "table", "data")
    assert ("with the fields 'prompt' and 'path'" if ending == ".jsonl" else "there is no column 'path'") in message


def test_rows_of_a_table_that_tell_no_image(project):
    root = project.root / "data"
    folder_of(root, {"0.png": unlike(0)})
    lines = [
        "{broken",
        "[1]",
        json.dumps({"prompt": CAT}),
        json.dumps({"prompt": 7, "path": "0.png"}),
        '{"prompt": "\\ud800", "path": "x"}',
    ]
    lines += [
        json.dumps({"prompt": CAT, "path": 7}),
        json.dumps({"prompt": None, "path": "x"}),
        json.dumps({"prompt": CAT, "path": "0.png"}),
    ]
    (root / "images.jsonl").write_text("\n".join(lines))
    done = importing(project, "table", "data")
    assert done["rows"] == {"read": 7, "kept": 1, "rejected": 6}
    assert done["metrics"]["rejected_for"] == {
        "no field 'prompt' or 'path'": 2,
        "not JSON": 1,
        "path is no text": 1,
        "prompt is no text": 2,
    }
    (root / "images.jsonl").unlink()
    (root / "images.csv").write_text(f'prompt,path\n"{CAT}",0.png\n{CAT},0.png,surplus\n{CAT}\n')
    assert importing(project, "table", "data")["metrics"]["rejected_for"] == {"more cells than columns": 1, "path is no text": 1}


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("text", ["text", "prompt", "caption"])
def test_an_image_folder_of_datasets(project, ending, text):
    """Metadata in several folders, each naming the files of its own: equal names in two folders are two images."""
    root = project.root / "data"
    for number, folder in enumerate(("", "more", "more/deep")):
        folder_of(root / folder, {"0.png": unlike(number), "not-named.png": unlike(10 + number)})
        table(root / folder, ending, [(CAT, "0.png")], names=(text, "file_name")).rename(root / folder / f"metadata{ending}")
    done = importing(project, "table", "data")
    assert done["rows"] == {"read": 3, "kept": 3, "rejected": 0}
    assert {path: row["image"] for path, row in stored(project).items()} == {
        "0.png": unlike(0),
        "more/0.png": unlike(1),
        "more/deep/0.png": unlike(2),
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("text", "file"), "there is no column 'path'"),
        (("words", "file_name"), "there is no column 'prompt'"),
    ],
)
def test_an_image_folder_without_the_column(project, names, message):
    table(project.root / "data", ".csv", [(CAT, "0.png")], names=names).rename(project.root / "data" / "metadata.csv")
    told = refused(project, "table", "data")
    assert message in told and "one of path, file_name" in told


def test_metadata_that_could_mean_two_things(project):
    root = project.root / "data"
    folder_of(root, {"0.png": unlike(0)})
    (root / "metadata.csv").write_text(f"prompt,text,file_name\n{CAT},{DOG},0.png\n")
    assert "prompt and text: which is meant?" in refused(project, "table", "data")
    (root / "metadata.jsonl").write_text("{}")
    assert "holds 2 tables: metadata.csv, metadata.jsonl" in refused(project, "table", "data")
    (root / "metadata.jsonl").rename(root / "images.jsonl")
    assert "holds 2 tables: images.jsonl, metadata.csv" in refused(project, "table", "data")


def test_a_table_is_named_by_its_folder(project):
    """A run's key counts what image_root names: were it the table, images could change behind it."""
    file = table(project.root / "data", ".csv", [(CAT, "0.png")])
    assert "the folder that holds the table and its images" in refused(project, "table", f"data/{file.name}")
    table(project.root / "data", ".jsonl", [(CAT, "0.png")])
    assert "holds 2 tables: images.csv, images.jsonl" in refused(project, "table", "data")
    (project.root / "empty").mkdir()
    (project.root / "empty" / "x").write_text("x")
    assert "holds 0 tables: none" in refused(project, "table", "empty")


# DiffusionDB


def part(number, images):
    """The files of a part, as published: `images` is {file name: (prompt, bytes)}."""
    told = {
        name: {"p": prompt, "se": 3312523387 + place, "c": 7.0, "st": 50, "sa": "k_lms"}
        for place, (name, (prompt, _)) in enumerate(images.items())
    }
    files = {name: data for name, (_, data) in images.items() if data is not None}
    return {f"part-{number:06}.json": json.dumps(told).encode(), **files}


PARTS = {
    1: {"aa.png": (CAT, unlike(1)), "bb.png": (DOG, unlike(2)), "cc.png": ("another", unlike(3))},
    2: {"dd.webp": (f"{CAT} ", unlike(4)), "ee.webp": (CAT, None), "../part-000001/aa.png": (CAT, None)},
}


def unpacked(root):
    for number, images in PARTS.items():
        folder_of(root / f"part-{number:06}", part(number, images))
    return root


def as_zips(root):
    for number, images in PARTS.items():
        zip_of(root / f"part-{number:06}.zip", part(number, images))
    return root


def below_folders(root):
    """DiffusionDB as its release has it: 2M below `images`, Large below two more folders."""
    folder_of(root / "images" / "part-000001", part(1, PARTS[1]))
    zip_of(root / "diffusiondb-large-part-1" / "part-000002.zip", part(2, PARTS[2]))
    (root / "metadata.parquet").write_bytes(b"not looked at")
    return root


def one_zip(root):
    zip_of(root.with_suffix(".zip"), {f"x/part-{n:06}/{name}": d for n, i in PARTS.items() for name, d in part(n, i).items()})
    return root.with_suffix(".zip")


def kept_beside_its_zip(root):
    unpacked(root)
    return as_zips(root)


@pytest.mark.parametrize("packed", [unpacked, as_zips, below_folders, one_zip, kept_beside_its_zip])
def test_diffusiondb(project, packed):
    root = packed(project.root / "db")
    done = importing(project, "diffusiondb", root.name)
    assert done["rows"] == {"read": 5, "kept": 3, "rejected": 2}
    found = stored(project)
    assert {path: (row["prompt_id"], row["image"]) for path, row in found.items()} == {
        "part-000001/aa.png": (prompt_id(CAT), unlike(1)),
        "part-000001/bb.png": (prompt_id(DOG), unlike(2)),
        "part-000002/dd.webp": (prompt_id(CAT), unlike(4)),
    }
    assert {name: found["part-000001/bb.png"][name] for name in ("generator", "revision", "seed", "settings")} == {
        "generator": "diffusiondb",
        "revision": None,
        "seed": 3312523388,
        "settings": '{"guidance": 7.0, "sampler": "k_lms", "steps": 50}',
    }
    assert faults(project) == {
        "part-000002/ee.webp": "missing",
        "part-000002/../part-000001/aa.png": "path leaves the root",
    }


@pytest.mark.parametrize("root", ["part-000001", "part-000001.zip"])
def test_a_part_of_diffusiondb_alone(project, root):
    (zip_of if root.endswith(".zip") else folder_of)(project.root / root, part(1, PARTS[1]))
    importing(project, "diffusiondb", root)
    assert set(stored(project)) == {"part-000001/aa.png", "part-000001/bb.png"}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        (b'{"aa.png": {"p": "a c', "the list of a part is not a JSON object"),
        (b"[1, 2]", "the list of a part is not a JSON object"),
        (b"[" * 100_000, "the list of a part is not a JSON object"),
        (b'{"\xff": 1}', "the list of a part is not UTF-8 text"),
        (None, "the list of a part cannot be read: missing"),
    ],
)
@pytest.mark.parametrize("packed", [folder_of, zip_of])
def test_a_part_without_a_readable_list(project, packed, told, message):
    files = part(1, PARTS[1]) | {"part-000001.json": told}
    packed(project.root / "db" / ("part-000001" + ".zip" * (packed is zip_of)), {n: d for n, d in files.items() if d is not None})
    error = refused(project, "diffusiondb", "db")
    assert message in error and "part-000001/part-000001.json" in error


def test_a_broken_zip_and_no_part(project):
    (project.root / "db").mkdir()
    (project.root / "db" / "part-000001.zip").write_bytes(b"no zip")
    assert "the list of a part cannot be read: broken zip" in refused(project, "diffusiondb", "db")
    zip_of(project.root / "outer.zip", {"part-000001.zip": b""})
    assert "holds no part of DiffusionDB" in refused(project, "diffusiondb", "outer.zip")
    (project.root / "file.zip").write_bytes(b"no zip")
    assert "is no folder and no readable zip" in refused(project, "diffusiondb", "file.zip")


def test_what_a_part_tells_of_an_image_is_not_trusted(project):
    told = {
        "aa.png": {"p": CAT, "se": -1, "c": float("nan"), "st": [50], "sa": None},
        "bb.png": {"p": CAT, "se": "7"},
        "cc.png": {"p": 7},
        "dd.png": 7,
        "ee.png": {"p": CAT, "se": 1 << 64},
    }
    files = {name: unlike(place) for place, name in enumerate(told)}
    folder_of(project.root / "db" / "part-000001", {"part-000001.json": json.dumps(told).encode(), **files})
    assert importing(project, "diffusiondb", "db")["rows"] == {"read": 5, "kept": 3, "rejected": 2}
    assert all(row["seed"] is None and row["settings"] is None for row in stored(project).values())
    assert set(faults(project).values()) == {"prompt is no text", "its part names no prompt"}


# ImageRewardDB


def test_imagerewarddb(project):
    root = project.root / "db"
    zip_of(root / "images" / "train" / "train_7.zip", {"x.webp": picture(kind="WEBP"), "y.webp": b""})
    zip_of(root / "images" / "test" / "test_1.zip", {"z.webp": unlike(1)})
    for split, rows in {
        "train": [
            ("images/train/train_7/x.webp", CAT),
            ("images/train/train_7/y.webp", CAT),
            ("images/train/train_7/o.webp", "another"),
        ],
        "test": [("images/test/test_1/z.webp", DOG), ("images/../../x.webp", DOG)],
    }.items():
        paths, prompts = zip(*rows, strict=True)
        pq.write_table(
            pa.table({"image_path": paths, "prompt": prompts, "rank": [1] * len(rows)}), root / f"metadata-{split}.parquet"
        )
    assert importing(project, "imagerewarddb", "db")["rows"] == {"read": 4, "kept": 2, "rejected": 2}
    assert {path: row["prompt_id"] for path, row in stored(project).items()} == {
        "images/train/train_7/x.webp": prompt_id(CAT),
        "images/test/test_1/z.webp": prompt_id(DOG),
    }
    assert faults(project) == {"images/train/train_7/y.webp": "empty", "images/../../x.webp": "path leaves the root"}


def test_imagerewarddb_without_its_metadata_or_a_column(project):
    (project.root / "db").mkdir()
    (project.root / "db" / "x.png").write_bytes(unlike(0))
    assert "holds no metadata-*.parquet" in refused(project, "imagerewarddb", "db")
    pq.write_table(pa.table({"image": ["x"], "prompt": ["x"]}), project.root / "db" / "metadata-train.parquet")
    assert "there is no column 'image_path'" in refused(project, "imagerewarddb", "db")


# Parquet


@pytest.mark.parametrize("column", ["prompt", "caption", "text"])
def test_parquet_with_images_in_it(project, column):
    """Two prompts have a `0.png` each, as where a folder a prompt was packed."""
    cells = [{"bytes": unlike(0), "path": "0.png"}, {"bytes": unlike(1), "path": "0.png"}, {"bytes": unlike(2), "path": None}]
    cells += [
        {"bytes": None, "path": "gone.png"},
        {"bytes": b"text", "path": "text.png"},
        None,
        {"bytes": unlike(9), "path": "9.png"},
    ]
    prompts = [CAT, DOG, DOG, DOG, CAT, CAT, None]
    root = project.root / "data"
    (root / "deep").mkdir(parents=True)
    pq.write_table(pa.table({"image": pa.array(cells, HF_IMAGE), column: prompts}), root / "deep" / "0.parquet")
    pq.write_table(pa.table({"image": [unlike(5)] * 70 + [unlike(6)], column: ["another"] * 70 + [CAT]}), root / "1.parquet")
    assert importing(project, "parquet", "data")["rows"] == {"read": 7, "kept": 4, "rejected": 3}
    kept = {row["image_digest"]: row for row in project.rows("SELECT image_digest, image.path AS path, prompt_id FROM images")}
    digests = {hashlib.sha256(unlike(number)).hexdigest(): number for number in range(9)}
    assert {digests[digest]: row["path"] for digest, row in kept.items()} == {
        0: "deep/0.parquet/0",
        1: "deep/0.parquet/1",
        2: "deep/0.parquet/2",
        6: "1.parquet/70",
    }
    assert {digests[digest]: row["prompt_id"] for digest, row in kept.items()} == {
        number: id_of(prompt) for number, prompt in {0: CAT, 1: DOG, 2: DOG, 6: CAT}.items()
    }
    assert faults(project) == {
        "deep/0.parquet/3": "empty",
        "deep/0.parquet/4": "no image of a known format",
        "deep/0.parquet/5": "empty",
    }


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [b""], "words": ["x"]}, "which column holds the prompts? none"),
        ({"image": [b""], "prompt": ["x"], "text": ["x"]}, "which column holds the prompts? prompt and text"),
        ({"picture": [b""], "prompt": ["x"]}, "there is no column 'image'"),
        ({"image": [7], "prompt": ["x"]}, "the column 'image' holds no images but int64"),
        ({"image": [{"path": "x"}], "prompt": ["x"]}, "the column 'image' holds no images but struct<path: string>"),
        ({"image": [{"path": b"x", "bytes": b"x"}], "prompt": [7]}, "none of 1 rows can be kept: row 0: prompt is no text"),
    ],
)
def test_parquet_of_another_shape(project, columns, message):
    pq.write_table(pa.table(columns), project.root / "images.parquet")
    assert message in refused(project, "parquet", "images.parquet")


def test_parquet_that_is_none(project):
    (project.root / "images.parquet").write_bytes(b"PAR1 junk")
    assert "is not a readable Parquet file" in refused(project, "parquet", "images.parquet")
    folder_of(project.root / "images", {"x.png": unlike(0)})
    pq.write_table(pa.table({"image": [unlike(0)], "prompt": [CAT]}), project.root / "outside.parquet")
    (project.root / "images" / "link.parquet").symlink_to(project.root / "outside.parquet")
    assert "is no Parquet file and holds none" in refused(project, "parquet", "images"), "a link does not lead out"


def test_an_image_in_parquet_that_is_too_large(project):
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "PNG")
    pq.write_table(pa.table({"image": [unlike(0), buffer.getvalue()], "prompt": [CAT, CAT]}), project.root / "i.parquet")
    importing(project, "parquet", "i.parquet", "import-images.max_bytes=1000")
    assert faults(project) == {"i.parquet/1": "file too large"}


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("import-images.min_images=2",), "min_images has no effect: layout = 'annotated' takes every image"),
        (("import-images.max_images=5",), "max_images has no effect: layout = 'annotated' takes every image"),
        (("import-images.layout=folder", "import-images.min_images=10"), "min_images = 10 is more than max_images = 9"),
        (("import-images.layout=zip",), "should be 'annotated', 'folder', 'table'"),
    ],
)
def test_settings_that_do_not_fit(project, settings, message):
    assert message in project.run("import-images", "import-images.image_root=.", *settings, status=2).err


def test_what_is_read_depends_on_the_layout(project):
    (project.root / "images").mkdir()
    (project.root / "images" / "x").write_bytes(b"x")
    flags = ("--set", "import-images.image_root=images")
    path = project.jsonl("mine.jsonl", [{"prompt": "a", "images": ["x", "y"], "ranking": [1, 2]}])
    steps = project("plan", "import-images", "--json", *flags, "--set", f"load-annotations.path={path}").json
    assert steps[-2]["stage"] == "load-annotations"
    steps = project("plan", "import-images", "--json", *flags, "--set", "import-images.layout=folder").json
    assert steps[-2]["stage"] == "select-prompts"
