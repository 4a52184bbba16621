"""A name is never an identity: equal names of different images are two things, or an error that shows both places."""

from __future__ import annotations

import warnings
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.test_existing_images import CAT, DOG, HF_IMAGE, importing, unlike
from tests.test_images import annotate, faults

pytestmark = pytest.mark.usefixtures("import_recipe")
SEVERAL = "several different images have this name"


def hugging_face(path, images):
    """Images of the Hugging Face layout: (prompt, bytes, path)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = pa.array([{"bytes": data, "path": name} for _, data, name in images], HF_IMAGE)
    pq.write_table(pa.table({"image": cells, "prompt": [prompt for prompt, _, _ in images]}), path)


def digests(project):
    return [row["image_digest"] for row in project.rows("SELECT image_digest FROM images")]


def test_base_names_that_repeat_per_prompt_are_images_of_their_own(project):
    images = [
        (prompt, unlike(10 * number + image), f"{image}.png") for number, prompt in enumerate((CAT, DOG)) for image in (0, 1)
    ]
    images += [(CAT, unlike(50), "0.png"), (CAT, unlike(51), "1.png")]
    hugging_face(project.root / "data" / "0.parquet", images)
    assert importing(project, "parquet", "data")["rows"] == {"read": 6, "kept": 6, "rejected": 0}
    assert len(set(digests(project))) == 6


@pytest.mark.parametrize("name", ["0.png", "images/0.png"])
def test_annotated_images_of_a_name_that_several_have(project, name):
    """The annotations join by the name alone: it cannot be told which is meant."""
    hugging_face(project.root / "data" / "a.parquet", [(CAT, unlike(1), name), (CAT, unlike(2), "b.png")])
    hugging_face(project.root / "data" / "deep" / "a.parquet", [(DOG, unlike(3), name), (DOG, unlike(4), "c.png")])
    done = project.last("import-images", annotate(project, [name, "b.png"], [name, "c.png"]), "import-images.image_root=data")
    assert done["rows"] == {"read": 4, "kept": 2, "rejected": 2}
    assert faults(project) == {f"{name}: image of row 0 of a.parquet and image of row 0 of deep/a.parquet": SEVERAL}


def test_equal_images_of_one_name_are_one(project):
    for folder in ("a", "b"):
        hugging_face(project.root / "data" / f"{folder}.parquet", [(CAT, unlike(1), "0.png"), (CAT, unlike(2), "1.png")])
    done = project.last("import-images", annotate(project, ["0.png", "1.png"]), "import-images.image_root=data")
    assert done["rows"] == {"read": 2, "kept": 2, "rejected": 0}


def test_a_path_that_two_rows_of_parquet_have(project):
    hugging_face(project.root / "data" / "train.parquet", [(CAT, unlike(1), "images/0.png"), (CAT, unlike(2), "images/1.png")])
    hugging_face(project.root / "data" / "test.parquet", [(CAT, unlike(3), "images/0.png"), (CAT, unlike(2), "images/1.png")])
    done = importing(project, "parquet", "data")
    assert done["rows"] == {"read": 4, "kept": 1, "rejected": 3}
    assert faults(project) == {"images/0.png": SEVERAL, "of row 1": "listed twice"}


def doubled(path, name, *contents):
    """A zip with several members of one name."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        for number, data in enumerate(contents):
            archive.writestr(name, data)
            archive.writestr(f"{number}.png", data)


@pytest.mark.parametrize(("other", "kept"), [(2, 2), (1, 3)])
def test_members_of_a_zip_with_one_name(project, other, kept):
    doubled(project.root / "images.zip", "same.png", unlike(1), unlike(other))
    done = project.last("import-images", annotate(project, ["same.png", "0.png", "1.png"]), "import-images.image_root=images.zip")
    assert done["rows"]["kept"] == kept
    assert faults(project) == ({} if kept == 3 else {"same.png": SEVERAL})


def test_a_zip_in_a_folder_with_several_places_for_a_name(project):
    """`a/b.png` is looked for as `b.png` and as `a/b.png` in a.zip."""
    (project.root / "data").mkdir()
    with zipfile.ZipFile(project.root / "data" / "a.zip", "w") as archive:
        archive.writestr("b.png", unlike(1))
        archive.writestr("a/b.png", unlike(2))
        archive.writestr("c.png", unlike(3))
        archive.writestr("a/c.png", unlike(3))
        archive.writestr("d.png", unlike(4))
    done = project.last("import-images", annotate(project, ["a/b.png", "a/c.png", "a/d.png"]), "import-images.image_root=data")
    assert done["rows"]["kept"] == 2 and faults(project) == {"a/b.png": SEVERAL}
