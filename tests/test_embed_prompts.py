"""A pool of prompts, cleaned, and its vectors."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from irpipe.schemas.prompts import clean, normalise, prompt_id

POOL = ["a red circle", "A red circle!", "a  red circle ", "a blue square", "", "  ", "a green triangle on grass", "x"]


def embed(project, *settings):
    return project.last("embed-prompts", *settings)


def prompts(project):
    return [row["prompt"] for row in project.rows("SELECT prompt FROM prompts ORDER BY source_row")]


def rejected(project):
    rows = project.rows('SELECT "row", reason FROM embed_prompts.rejected ORDER BY "row"')
    return {row["row"]: row["reason"] for row in rows}


# Cleaning


def test_cleaning_drops_by_rule_and_says_why(project):
    path = project.jsonl("pool.jsonl", [{"prompt": text} for text in POOL])
    done = embed(project, f"embed-prompts.path={path}", "embed-prompts.min_characters=2", "embed-prompts.max_characters=20")
    assert prompts(project) == ["a red circle", "a blue square"]
    assert rejected(project) == {
        1: "duplicate (normalised)",
        2: "duplicate (normalised)",
        4: "empty",
        5: "empty",
        6: "too long",
        7: "too short",
    }
    assert done["rows"] == {"read": 8, "kept": 2, "rejected": 6}
    assert project.rows("SELECT num_images FROM prompts ORDER BY source_row") == [{"num_images": 3}, {"num_images": 1}]


def test_duplicates_are_what_the_recipe_says(project):
    path = project.jsonl("pool.jsonl", [{"prompt": text} for text in POOL[:4]])
    embed(project, f"embed-prompts.path={path}", "embed-prompts.duplicates=exact")
    assert prompts(project) == ["a red circle", "A red circle!", "a blue square"]
    embed(project, f"embed-prompts.path={path}", "embed-prompts.duplicates=keep")
    assert prompts(project) == ["a red circle", "A red circle!", "a red circle", "a blue square"]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "text", "parquet"])
def test_every_format_gives_the_same_prompts(project, kind):
    texts = ["a red circle", 'a "quoted", comma', "ein größerer Kreis"]
    path = project.root / f"pool.{'txt' if kind == 'text' else kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"id": [1, 2, 3], "prompt": texts}), path)
    elif kind == "csv":
        path.write_text('id,prompt\n1,a red circle\n2,"a ""quoted"", comma"\n3,ein größerer Kreis\n', encoding="utf-8")
    elif kind == "text":
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    else:
        project.jsonl("pool.jsonl", [{"prompt": text} for text in texts])
    embed(project, f"embed-prompts.path={path}")
    assert prompts(project) == texts
    assert project.rows("SELECT source_row FROM prompts ORDER BY 1") == [{"source_row": row} for row in range(3)]


def diffusiondb(project):
    """Metadata as DiffusionDB publishes it: one row per image, 13 columns."""
    rows = 7
    table = pa.table(
        {
            "image_name": [f"{row}.png" for row in range(rows)],
            "prompt": ["a cat", "a cat", "a dog", "a dog", "a nude", "a bird", None],
            "part_id": pa.array([1] * rows, pa.uint16()),
            "seed": pa.array(range(rows), pa.uint32()),
            "step": pa.array([50] * rows, pa.uint16()),
            "cfg": pa.array([7.0] * rows, pa.float32()),
            "sampler": pa.array([8] * rows, pa.uint8()),
            "width": pa.array([512] * rows, pa.uint16()),
            "height": pa.array([512] * rows, pa.uint16()),
            "user_name": ["deleted_account", None, "u", "u", "u", "u", "u"],
            "timestamp": pa.array([None] * rows, pa.timestamp("ms", tz="UTC")),
            "image_nsfw": pa.array([0.1, 2.0, 0.2, None, 0.1, 0.1, 0.1], pa.float32()),
            "prompt_nsfw": pa.array([0.1, 0.1, 0.1, 0.1, 0.9, None, 0.1], pa.float32()),
        }
    )
    path = project.root / "metadata.parquet"
    pq.write_table(table, path)
    return path


def test_diffusiondb_is_read_as_it_is(project):
    path = diffusiondb(project)
    embed(project, f"embed-prompts.path={path}", "embed-prompts.max_prompt_nsfw=0.5", "embed-prompts.max_image_nsfw=1.0")
    assert prompts(project) == ["a cat", "a dog", "a bird"]
    assert rejected(project) == {1: "blurred", 3: "duplicate (normalised)", 4: "prompt_nsfw too high", 6: "empty"}
    embed(
        project,
        f"embed-prompts.path={path}",
        "embed-prompts.max_prompt_nsfw=0.5",
        "embed-prompts.max_image_nsfw=1.0",
        "embed-prompts.keep_unscored=false",
    )
    assert prompts(project) == ["a cat", "a dog"] and rejected(project)[5] == "no prompt_nsfw"
    embed(project, f"embed-prompts.path={path}", "embed-prompts.min_images=2")
    assert prompts(project) == ["a cat", "a dog"] and rejected(project)[5] == "too few images"


@given(st.text(), st.text())
def test_ids_agree_exactly_where_cleaned_texts_do(one, two):
    assert (prompt_id(one) == prompt_id(two)) == (clean(one) == clean(two))
    assert clean(clean(one)) == clean(one)


def test_normalising_forgets_case_punctuation_and_width():
    assert normalise("A  Cat, (sitting)!") == normalise("\uff41 cat sitting") == "a cat sitting"
    assert normalise("!!!") == "!!!" and normalise("") == ""
    assert normalise("Stra\u00dfe") == normalise("STRASSE") == "strasse", "case is folded, not only lowered"


# Bad input


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "does not exist"),
        ("empty.jsonl", b"", "is empty"),
        ("words.jsonl", b"not json\n", "no line of words.jsonl is a JSON object"),
        ("other.jsonl", b'{"text": "a"}\n', "with a field 'prompt'"),
        ("bytes.jsonl", b'{"prompt": "\xff\xfe"}\n', "is not UTF-8"),
        ("cut.parquet", b"PAR1 and no more", "is not a readable Parquet file"),
        ("pool.csv", b"promt\na\n", "no column 'prompt'; did you mean 'promt'?"),
        ("pool.data", b"a\n", "cannot be guessed from its ending"),
        (".", None, "holds the store itself"),
        ("half.jsonl", b'{"prompt": "\\ud800"}\n', "row 0: prompt is no text"),
        ("nsfw.csv", b"prompt\n" + b"x" * (1 << 25) + b"\n", "is not CSV: field larger than field limit"),
        ("lfs.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(project, name, content, message):
    if content is not None:
        (project.root / name).write_bytes(content)
    assert message in project.run("embed-prompts", f"embed-prompts.path={name}", status=2).err


def test_a_damaged_page_and_a_column_of_words_are_named(project):
    path = diffusiondb(project)
    table = pq.read_table(path)
    pq.write_table(table.set_column(12, "prompt_nsfw", pa.array(["high"] * 7)), project.root / "words.parquet")
    flags = ("embed-prompts.max_prompt_nsfw=0.5",)
    message = project.run("embed-prompts", "embed-prompts.path=words.parquet", *flags, status=2).err
    assert "the column 'prompt_nsfw' holds no numbers but 'high'" in message
    data = bytearray(path.read_bytes())
    data[40:400] = bytes(360)
    path.write_bytes(data)
    assert "is damaged" in project.run("embed-prompts", f"embed-prompts.path={path}", status=2).err


def test_the_ending_counts_since_it_tells_how_a_file_is_read(project):
    """The same bytes as JSONL and as text are two inputs; also among what is excluded."""
    project.jsonl("p.jsonl", [{"prompt": f"prompt {row}"} for row in range(9)])
    (project.root / "p.txt").write_bytes((project.root / "p.jsonl").read_bytes())
    assert embed(project, "embed-prompts.path=p.jsonl")["key"] != embed(project, "embed-prompts.path=p.txt")["key"]


def test_texts_may_stay_as_they_are(project):
    path = project.jsonl("pool.jsonl", [{"prompt": "a  cat "}, {"prompt": "a dog"}])
    assert embed(project, f"embed-prompts.path={path}")["metrics"]["texts_cleaned"] == 1
    ids = project.rows("SELECT prompt_id FROM prompts")
    embed(project, f"embed-prompts.path={path}", "embed-prompts.clean=false")
    assert prompts(project) == ["a  cat ", "a dog"] and project.rows("SELECT prompt_id FROM prompts") == ids


def test_an_unused_setting_does_not_count(project):
    """The default model is no part of a lexical artifact's key, so another default would not invalidate it."""
    from irpipe.pipeline.settings import hashed_config
    from irpipe.stages.embed_prompts import EmbedPromptsConfig

    lexical = EmbedPromptsConfig(embedder="lexical")
    assert not {"dtype", "batch_size"} & set(hashed_config(lexical)) and "dimensions" in hashed_config(lexical)
    record = project.store.lookup(embed(project, "simulate-prompts.count=50")["key"])
    assert "model" not in record.external


def test_a_missing_parquet_column_is_named(project):
    pq.write_table(pa.table({"Prompt": ["a"]}), project.root / "pool.parquet")
    assert "did you mean 'Prompt'" in project.run("embed-prompts", "embed-prompts.path=pool.parquet", status=2).err
    embed(project, "embed-prompts.path=pool.parquet", "embed-prompts.prompt_column=Prompt")


def test_bad_lines_are_kept_with_their_reason(project):
    path = project.root / "pool.jsonl"
    path.write_text('{"prompt": "a"}\nnot json\n{"prompt": 7}\n[]\n{"prompt": "b"}\n', encoding="utf-8")
    told = project.run("embed-prompts", f"embed-prompts.path={path}", status=2).err
    assert "3 of 5 rows are bad" in told, "more than half, however few they are"
    embed(project, f"embed-prompts.path={path}", "embed-prompts.max_rejected=0.6")
    assert rejected(project) == {1: "not JSON", 2: "prompt is no text", 3: "no field 'prompt'"}


def test_too_many_bad_lines_stop_the_run_and_name_three(project):
    path = project.root / "pool.jsonl"
    path.write_text("".join(f'{{"prompt": "p{row}"}}\n' if row % 10 else "bad\n" for row in range(100)), encoding="utf-8")
    message = project.run("embed-prompts", f"embed-prompts.path={path}", status=2).err
    assert "10 of 100 rows are bad: row 0: not JSON (bad); row 10: not JSON (bad); row 20: not JSON (bad)" in message
    embed(project, f"embed-prompts.path={path}", "embed-prompts.max_rejected=0.1")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4)), "has 3 rows and the prompts have 2"),
        (np.zeros(2), "is not a matrix of floats"),
        (np.zeros((2, 4), dtype=int), "is not a matrix of floats"),
        (np.array([[object(), None]]), "is not a readable .npy"),
        (np.full((2, 4), np.nan), "none of 2 rows can be kept"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(project, array, message):
    project.jsonl("pool.jsonl", [{"prompt": "a"}, {"prompt": "b"}])
    np.save(project.root / "v.npy", array, allow_pickle=True)
    flags = ("embed-prompts.path=pool.jsonl", "embed-prompts.vectors=v.npy")
    assert message in project.run("embed-prompts", *flags, status=2).err


# Vectors


def vectors_of(project):
    return np.load(project.store.open(project.store.newest("micro", "embed-prompts").content_id).file("vectors.npy"))


def test_given_vectors_follow_their_rows(project):
    path = project.jsonl("pool.jsonl", [{"prompt": text} for text in POOL])
    given_vectors = np.random.default_rng(0).normal(size=(len(POOL), 5)).astype(np.float32)
    np.save(project.root / "v.npy", given_vectors)
    embed(project, f"embed-prompts.path={path}", "embed-prompts.vectors=v.npy")
    rows = [row["source_row"] for row in project.rows("SELECT source_row FROM prompts ORDER BY 1")]
    assert (vectors_of(project) == given_vectors[rows].astype(np.float16)).all()


def test_blank_lines_are_no_rows_and_shift_no_vectors(project):
    (project.root / "p.jsonl").write_text('\n{"prompt": "red"}\n\n{"prompt": "blue"}\n{"prompt": "blue"}\n', encoding="utf-8")
    np.save(project.root / "v.npy", np.eye(3, dtype=np.float32))
    embed(project, "embed-prompts.path=p.jsonl", "embed-prompts.vectors=v.npy")
    assert vectors_of(project).tolist() == [[1, 0, 0], [0, 1, 0]]


def test_a_recipes_idle_settings_stand_aside_for_the_command_line(project):
    project.recipe('recipe = "x"\n[embed-prompts]\npath = "p.jsonl"\nembedder = "sentence-transformers"\ndtype = "float32"\n')
    project.jsonl("p.jsonl", [{"prompt": "a"}])
    plan = project("plan", "embed-prompts", "--set", "embed-prompts.embedder=lexical").out
    assert "embed-prompts.dtype of the recipe has no effect beside other settings" in plan
    project.run("embed-prompts", "embed-prompts.embedder=lexical")
    message = project.run("embed-prompts", "embed-prompts.embedder=lexical", "embed-prompts.dtype=float32", status=2).err
    assert "dtype has no effect" in message


def test_centring_subtracts_the_mean_of_unit_vectors(project):
    project.jsonl("pool.jsonl", [{"prompt": text} for text in "abcd"])
    given_vectors = np.random.default_rng(0).normal(size=(4, 5))
    np.save(project.root / "v.npy", given_vectors)
    embed(project, "embed-prompts.path=pool.jsonl", "embed-prompts.vectors=v.npy", "embed-prompts.center=true")
    units = given_vectors / np.linalg.norm(given_vectors, axis=1, keepdims=True)
    centred = units - units.mean(axis=0)
    expected = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors_of(project), expected, atol=1e-3)


def test_lexical_vectors_need_no_weights_and_see_spelling(project):
    project.jsonl("pool.jsonl", [{"prompt": text} for text in ("a red circle", "a red circles", "the blue whale")])
    embed(project, "embed-prompts.path=pool.jsonl")
    vectors = vectors_of(project).astype(np.float32)
    assert vectors.shape == (3, 512)
    assert vectors[0] @ vectors[1] > 0.7 > 0.3 > vectors[0] @ vectors[2]


def test_shards_do_not_show_in_the_result(project):
    project.jsonl("pool.jsonl", [{"prompt": f"prompt {row}"} for row in range(50)])
    one = embed(project, "embed-prompts.path=pool.jsonl")["content_id"]
    assert embed(project, "embed-prompts.path=pool.jsonl", "embed-prompts.shard_size=7")["content_id"] == one


def test_without_weights_the_error_says_how_to_get_them(project, monkeypatch):
    pytest.importorskip("sentence_transformers", reason="NEEDS THE EXTRA 'embed'")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    project.recipe('recipe = "x"\n[embed-prompts]\npath = "pool.jsonl"\n')
    project.jsonl("pool.jsonl", [{"prompt": "a"}])
    missing = "embed-prompts.model=nobody/nothing@" + "0" * 40
    message = project.run("embed-prompts", missing, status=2).err
    assert "cannot be loaded" in message and "hf download nobody/nothing" in message
    unpinned = project.run("embed-prompts", "embed-prompts.model=nobody/nothing", status=2).err
    assert "neither a local folder, a shipped model, nor a hub id" in unpinned


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_real_sentence_model_saved_by_the_test(project, tmp_path, dtype):
    """The real loading code on a tiny MPNet of the same classes, from a local folder."""
    pytest.importorskip("sentence_transformers", reason="NEEDS THE EXTRA 'embed'")
    folder = tiny_sentence_model(tmp_path / "model")
    project.recipe('recipe = "x"\n[embed-prompts]\npath = "pool.jsonl"\n')
    project.jsonl(
        "pool.jsonl", [{"prompt": f"a {word} circle " * (1 + row)} for row, word in enumerate(("red", "blue", "green"))]
    )
    flags = (f"embed-prompts.model={folder}", f"embed-prompts.dtype={dtype}", "embed-prompts.device=cpu")
    one = project.last("embed-prompts", *flags)
    other = project.last("embed-prompts", *flags, "embed-prompts.shard_size=1")
    vectors = [np.load(project.store.open(done["content_id"]).file("vectors.npy")).astype(np.float32) for done in (one, other)]
    assert vectors[0].shape == (3, 16)
    cosine = (vectors[0] * vectors[1]).sum(1) / np.linalg.norm(vectors[0], axis=1) / np.linalg.norm(vectors[1], axis=1)
    assert (cosine > 0.999).all()
    (folder / "model.safetensors").touch()
    assert project.last("embed-prompts", *flags)["key"] == one["key"], "a model counts by content"


def tiny_sentence_model(folder):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import MPNetConfig, MPNetModel, MPNetTokenizerFast

    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "red", "blue", "green", "circle"]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenizer = MPNetTokenizerFast(vocab=str(folder / "vocab.txt"))
    config = MPNetConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    MPNetModel(config).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    word = Transformer(str(folder / "base"), max_seq_length=32)
    SentenceTransformer(modules=[word, Pooling(16)], device="cpu").save(str(folder / "whole"))
    return folder / "whole"
