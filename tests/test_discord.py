"""Choices from a chat: the accepted and the rejected ones of a recorded export, its doubtful cases, and damaged exports."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import zipfile
from collections import Counter

import pytest

from irpipe.pipeline.errors import InputError
from irpipe.schemas.prompts import clean
from irpipe.stages.load_annotations import discord
from irpipe.stages.load_annotations.discord import ChatOptions, records
from tests.conftest import SHARED

GOLDEN = SHARED / "golden"
BOT = "DreamBotMothership"
OPTIONS = ChatOptions(BOT)


@pytest.fixture
def export(shared, tmp_path):
    """The recorded export with its media."""
    folder = tmp_path / "export"
    folder.mkdir()
    shutil.copyfile(GOLDEN / "discord_export_a.json", folder / "discord_export_a.json")
    with zipfile.ZipFile(GOLDEN / "discord_export_a_media.zip") as media:
        media.extractall(folder)
    return folder / "discord_export_a.json"


@pytest.fixture
def expected(shared):
    return json.loads((GOLDEN / "discord_export_a_expected.json").read_text())


def choices(path, options=OPTIONS):
    """Prompt, images and chosen index of each accepted choice, by the message of the choice."""
    return {
        record.record: (record.prompt, record.images, record.ranks.index(1))
        for record in records(path, options)
        if record.dropped is None
    }


def as_recorded(cases):
    return {case["choice"]: (case["prompt"], case["images"], case["chosen_index"]) for case in cases}


class TestRecordedExport:
    def test_exactly_the_accepted_choices(self, export, expected):
        assert choices(export) == as_recorded(expected["accepted"])

    def test_every_rejected_one_is_named(self, export, expected):
        told = {record.record: record.dropped for record in records(export, OPTIONS) if record.dropped is not None}
        for case in expected["rejected"]:
            assert case["messages"][-1] in told, case["case"]
            assert f"message {case['messages'][-1]}" in told[case["messages"][-1]][1]
        reasons = {case["case"]: told[case["messages"][-1]][0] for case in expected["rejected"]}
        assert reasons == {
            "second_generation": "its images were made from an image",
            "another_user": "sent back by somebody else",
            "another_prompt": "sent back with another prompt",
            "image_conditioned": "its images were made from an image",
            "nsfw": "the answer is marked as not safe for work",
            "collage": "one collage of several images",
            "two_choices": "two images of one answer were sent back",
            "two_attachments": "several images sent back at once",
            "image_without_text": "no prompt with the image",
            "chat": "not a command",
            "another_bot": "the answer is another bot's",
            "foreign_picture": "the image is none of the answer's",
            "one_image": "one image is no choice",
        }

    def test_strict_and_lenient(self, export, expected):
        strict = {case["case"] for case in expected["ambiguous"] if case.get("strict") == "reject"}
        kept = as_recorded([case for case in expected["accepted"] if case["case"] not in strict])
        assert choices(export, ChatOptions(BOT, "reject")) == kept
        assert len(kept) == expected["counts"]["strict"]
        more = choices(export, ChatOptions(BOT, "accept"))
        (added,) = more.keys() - as_recorded(expected["accepted"]).keys()
        lenient = next(case for case in expected["ambiguous"] if case["case"] == "two_choices")["lenient"]
        assert more[added][2] == lenient["chosen_index"]

    def test_in_parts_and_read_twice(self, export, expected):
        """A dialogue may go on in the next part. Rows are places in the whole export."""
        whole = json.loads(export.read_text())
        for number, part in enumerate((slice(0, 70), slice(70, None))):
            piece = whole | {"messages": whole["messages"][part]}
            (export.parent / f"part-{number}.json").write_text(json.dumps(piece))
        export.unlink()
        assert choices(export.parent) == as_recorded(expected["accepted"])
        rows = [record.row for record in records(export.parent, OPTIONS)]
        assert len(set(rows)) == len(rows) and max(rows) < len(whole["messages"])

    def test_parts_are_ordered_by_time_and_attachments_are_none(self, export, expected):
        """As the exporter names its parts, and with an attachment of JSON among the media."""
        whole = json.loads(export.read_text())
        cuts = [0, 30, 60, 133]
        for number, name in enumerate(("chat.json", "chat [part 2].json", "chat [part 10].json")):
            piece = whole | {"messages": whole["messages"][cuts[number] : cuts[number + 1]]}
            (export.parent / name).write_text(json.dumps(piece))
        export.unlink()
        (export.parent / "discord_export_a.json_Files" / "settings.json").write_text("{}")
        assert choices(export.parent) == as_recorded(expected["accepted"])

    def test_paths_of_windows(self, export, expected):
        export.write_text(export.read_text().replace("discord_export_a.json_Files/", "discord_export_a.json_Files\\\\"))
        assert choices(export) == as_recorded(expected["accepted"])

    def test_another_bot(self, export):
        with pytest.raises(InputError) as error:
            choices(export, ChatOptions("Nobody"))
        assert "no answer is of the bot 'Nobody'" in str(error.value) and "bot=DreamBotMothership" in str(error.value)

    def test_the_layout_of_2022(self, export, expected):
        """Without the fields that were added since."""
        whole = json.loads(export.read_text())
        for message in whole["messages"]:
            for name in ("inlineEmojis", "forwardedMessage", "interaction"):
                message.pop(name, None)
            if (message.get("reference") or {}).get("type") == "Forward":
                message.pop("reference")
            elif message.get("reference"):
                message["reference"].pop("type")
        for name in ("dateRange", "exportedAt"):
            whole.pop(name, None)
        export.write_text(json.dumps(whole))
        assert choices(export) == as_recorded(expected["accepted"])

    def test_forgotten_answers_give_the_same_records(self, export, expected, monkeypatch):
        """With a short memory choices come out as they are found, and none is lost that follows its answer closely."""
        monkeypatch.setattr(discord, "WINDOW", 12)
        assert choices(export) == as_recorded(expected["accepted"])

    def test_in_a_pipeline(self, project, export, expected):
        project.recipe('recipe = "chat"\n[load-annotations]\nformat = "discord"\n')
        shutil.copytree(export.parent, project.root / "chat")
        (project.root / "secret").write_text("pepper")
        path = "load-annotations.path=chat/discord_export_a.json"
        done = project.last("load-annotations", path, "load-annotations.salt=secret")
        assert done["rows"]["kept"] == 18 and done["metrics"]["rejected_for"]["system message"] == 4
        rows = project.rows("SELECT prompt, annotator FROM annotations JOIN annotated_prompts USING (prompt_id)")
        users = {case["choice"]: case["user_id"] for case in expected["accepted"]}
        hashed = {hashlib.sha256(b"pepper" + user.encode()).hexdigest()[:16] for user in users.values()}
        assert {row["annotator"] for row in rows} == hashed
        assert {row["prompt"] for row in rows} == {clean(case["prompt"]) for case in expected["accepted"]}
        files = [file for file in (project.root / "artifacts").rglob("*") if file.is_file()]
        told = b"".join(file.read_bytes() for file in files)
        assert b"pepper" not in told and not any(user.encode() in told for user in users.values())
        few = project.last("load-annotations", path, "load-annotations.most_per_user=2")
        most = Counter(row["annotator"] for row in project.rows("SELECT annotator FROM annotations"))
        assert max(most.values()) == 2 and "more than 2 choices of one user" in few["metrics"]["rejected_for"]
        assert set(most) <= {f"user-{number}" for number in range(4)}

    def test_the_choices_images_are_imported(self, project, export):
        text = (
            '[load-annotations]\nformat = "discord"\npath = "chat/discord_export_a.json"\n[import-images]\nimage_root = "chat"\n'
        )
        project.recipe('recipe = "chat"\n' + text)
        shutil.copytree(export.parent, project.root / "chat")
        project.run("import-images", "import-images.max_rejected=1.0")
        # 18 choices of 4, 3, 2, 3, then 4 images; the last one's four were not downloaded.
        (row,) = project.rows("SELECT count(*) AS n FROM images")
        assert row["n"] == 4 * 18 - 1 - 2 - 1 - 4


class TestDamaged:
    def write(self, folder, messages, **more):
        path = folder / "x.json"
        path.write_text(json.dumps({"guild": {}, "channel": {}, "messages": messages} | more))
        return path

    def message(self, number, **more):
        author = {"id": "7", "name": "somebody", "isBot": False}
        return {
            "id": str(number),
            "type": "Default",
            "timestamp": "2022-08-13T09:39:52+00:00",
            "timestampEdited": None,
            "content": "",
            "author": author,
            "attachments": [],
        } | more

    def test_cut_off(self, export):
        text = export.read_text()
        export.write_text(text[: len(text) // 2])
        with pytest.raises(InputError, match=r"is no whole JSON after \d+ messages"):
            list(records(export, OPTIONS))

    def test_it_ends_in_the_middle_of_a_dialogue(self, export, expected):
        whole = json.loads(export.read_text())
        last = next(
            number for number, message in enumerate(whole["messages"]) if message["id"] == expected["accepted"][1]["choice"]
        )
        export.write_text(json.dumps(whole | {"messages": whole["messages"][: last + 1]}))
        assert choices(export) == as_recorded(expected["accepted"][:2])

    @pytest.mark.parametrize(
        ("messages", "told"),
        [
            ([], "has no messages"),
            ([{"id": "1"}], "message 0 of x.json is none of DiscordChatExporter: KeyError 'author'"),
            ([5], "message 0 of x.json is none"),
        ],
    )
    def test_another_kind_of_json(self, tmp_path, messages, told):
        with pytest.raises(InputError, match=told):
            list(records(self.write(tmp_path, messages), OPTIONS))

    def test_times_that_are_none(self, tmp_path):
        with pytest.raises(InputError, match=r"message 1 of x\.json is none"):
            list(records(self.write(tmp_path, [self.message(0), self.message(1, timestamp="yesterday")]), OPTIONS))

    def test_paths_out_of_the_export(self, tmp_path):
        (tmp_path / "secret.png").write_bytes(b"secret")
        folder = tmp_path / "export"
        folder.mkdir()
        (folder / "link.png").symlink_to(tmp_path / "secret.png")
        for url in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "..%2Fsecret.png"):
            attachment = {"id": "1", "url": url, "fileName": "a.png", "fileSizeBytes": 6}
            asked = self.message(0, content='!dream "x"', attachments=[attachment])
            (message,) = discord.read_messages(self.write(folder, [asked]))
            assert message.media[0].file is None, url

    def test_without_media(self, export, expected):
        """Then names and sizes alone tell, which is doubtful; what was renamed or encoded anew is lost."""
        shutil.rmtree(export.parent / "discord_export_a.json_Files")
        found = choices(export)
        renamed = {"renamed_file", "pasted_same_pixels_other_bytes", "reencoded_as_jpeg"}
        assert found == as_recorded([case for case in expected["accepted"] if case["case"] not in renamed])
        assert choices(export, ChatOptions(BOT, "reject")) == {}

    def test_memory_does_not_grow(self, export, monkeypatch):
        """What is remembered after ten times the export is what is remembered after one."""
        monkeypatch.setattr(discord, "WINDOW", 60)
        whole = json.loads(export.read_text())
        sizes = []
        for times in (1, 10):
            messages = []
            for turn in range(times):
                for message in copy.deepcopy(whole["messages"]):
                    message["id"] += str(turn)
                    if message.get("reference"):
                        message["reference"]["messageId"] += str(turn)
                    messages.append(message)
            export.write_text(json.dumps(whole | {"messages": messages}))
            chat = discord.Chat(OPTIONS)
            for message in discord.read_messages(export):
                list(chat.take(message))
            held = (chat._answers, chat._by_digest, chat._by_request, chat._requests, chat._latest, chat._picks)
            sizes.append(sum(map(len, held)))
        assert sizes[1] <= sizes[0] * 1.1


def test_a_source_without_validation_lends_from_its_training_prompts(project):
    """HPS v1 has two files. Prompts of its test stay there, and no more than the share moves."""
    project.recipe('recipe = "hps"\n[load-annotations]\nformat = "hps-json"\npath = "preferences"\n[split-prompts]\n')
    (project.root / "preferences").mkdir()
    for split, numbers in (("train", range(80)), ("test", range(80, 100))):
        rows = [
            {"human_preference": 0, "prompt": f"prompt {n}", "id": n, "file_path": [f"{n}_0.jpg", f"{n}_1.jpg"], "user_hash": "x"}
            for n in numbers
        ]
        (project.root / "preferences" / f"preference_{split}.json").write_text(json.dumps(rows))
    lent = project.last("split-prompts", "split-prompts.validation_share=0.1")["metrics"]["prompts_by_split"]
    assert lent == {"train": 70, "validation": 10, "test": 20}
    kept = project.last("split-prompts", "split-prompts.validation_share=0.0")["metrics"]["prompts_by_split"]
    assert kept == {"train": 80, "validation": 0, "test": 20}


def test_hpdv3(project):
    project.recipe('recipe = "hpdv3"\n[load-annotations]\nformat = "hpdv3-json"\npath = "all.json"\n')
    rows = [
        {"prompt": "a cat", "path1": "good.jpg", "path2": "bad.jpg", "confidence": 0.9},
        {"prompt": "a dog", "path1": "x.jpg"},
    ]
    (project.root / "all.json").write_text(json.dumps(rows))
    done = project.last("load-annotations", "load-annotations.max_rejected=1.0")
    assert done["metrics"]["rejected_for"] == {"missing field": 1}
    ranks = project.rows("SELECT path, rank FROM rankings JOIN annotation_images USING (image_id) ORDER BY rank")
    assert [(row["path"], row["rank"]) for row in ranks] == [("good.jpg", 1), ("bad.jpg", 2)]
    (project.root / "all.json").rename(project.root / "other.json")
    project.recipe('recipe = "hpdv3"\n[load-annotations]\npath = "other.json"\n')
    assert "format=hpdv3-json" in project.run("load-annotations", status=2).err
