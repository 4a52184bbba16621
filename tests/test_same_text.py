"""Which prompts are the same text: what can be seen tells them apart, what cannot be seen does not."""

from __future__ import annotations

import random
import sys
import unicodedata

import pytest

from irpipe.schemas.prompts import clean, normalise, prompt_id

# A phrase in each of several scripts, with vowel signs, tone marks, joined letters and digits where the script has them.
PHRASES = {
    "Latin": "une forêt près de l'eau 3",
    "Vietnamese": "một con mèo ngồi trên ghế",
    "Greek": "ένα κόκκινο σπίτι στη θάλασσα",
    "Cyrillic": "красная ёлка и йод",
    "Arabic": "قِطَّةٌ عَلَى السَّجَّادَةِ ٣",
    "Persian": "می‌خواهم خانه‌ها را ببینم",  # noqa: RUF001 # they are these letters
    "Hebrew": "שָׁלוֹם עוֹלָם",
    "Devanagari": "दिल का चित्र ५",
    "Bengali": "একটি লাল বাড়ি",
    "Tamil": "செடி மற்றும் பூ",
    "Telugu": "ఒక ఎర్ర ఇల్లు",
    "Malayalam": "ഒരു ചുവന്ന വീട്",
    "Sinhala": "රතු නිවසක්",
    "Thai": "กินข้าวที่บ้าน",
    "Lao": "ແມວສີແດງ",
    "Khmer": "ផ្ទះពណ៌ក្រហម",
    "Burmese": "အနီရောင်အိမ်",
    "Tibetan": "ཁང་པ་དམར་པོ",
    "Ethiopic": "ቀይ ቤት",
    "Georgian": "წითელი სახლი",
    "Armenian": "կարմիր տուն",
    "Korean": "빨간 집 앞의 고양이",
    "Japanese": "赤い家とがっこう",
    "Chinese": "红色的房子",
    "emoji": "a photo of a 🐱 and 👩🏽 ❤ 🇫🇷",
}
UNSEEN = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cf"]
UNSEEN = [one for one in UNSEEN if not 0xE0000 <= ord(one) < 0xE0080]  # of which flags are spelt
BLANK = [*UNSEEN, *"\u034f\u115f\u1160\u17b4\u17b5\u180b\u2800\u3164\ufe0e\ufe0f\uffa0\U000e0100", *" \t\n\u00a0\u3000"]


@pytest.mark.parametrize("phrase", PHRASES.values(), ids=PHRASES)
class TestOfEveryScript:
    def test_no_visible_letter_is_lost(self, phrase):
        """Without any one of its letters, marks, digits or signs a phrase is another one."""
        whole = normalise(phrase)
        for place, letter in enumerate(phrase):
            if unicodedata.category(letter)[0] in "LMNS":
                assert normalise(phrase[:place] + phrase[place + 1 :]) != whole, (place, letter)

    def test_what_cannot_be_seen_changes_nothing(self, phrase):
        draw = random.Random(phrase)
        for unseen in UNSEEN:
            place = draw.randrange(len(phrase) + 1)
            assert normalise(phrase[:place] + unseen + phrase[place:]) == normalise(phrase), (place, hex(ord(unseen)))

    def test_neither_does_case_form_spacing_nor_punctuation(self, phrase):
        for same in (
            phrase.upper(),
            unicodedata.normalize("NFD", phrase),
            unicodedata.normalize("NFKC", phrase),
            f"  {phrase} !",
            phrase.replace(" ", ",  "),
            f"«{phrase}»…",
        ):
            assert normalise(same) == normalise(phrase), same

    def test_it_is_its_own_form(self, phrase):
        assert normalise(normalise(phrase)) == normalise(phrase)


def test_every_letter_mark_number_and_symbol_of_unicode_counts():
    """But for variation selectors and fillers, which show nothing, and signs that only count at a number."""
    lost = set()
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code))[0] in "LMNS" and normalise(f"a {chr(code)}") == normalise("a"):
            lost.add(code)
    selectors = {*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)}
    fillers = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}
    signs = {0x2044, 0x207B, 0x208B, 0x2212}
    assert lost - selectors == fillers | signs
    assert all(normalise(f"a {chr(code)}5") != normalise("a 5") for code in signs - {0x2044})


def test_two_texts_of_one_form_differ_only_in_what_does_not_count():
    """Over random texts: equal forms have equal letters, marks and symbols; only those of a form's own are ever written anew."""
    draw = random.Random(0)
    pool = [letter for phrase in PHRASES.values() for letter in phrase] + list(".,-+/%#!?'0123456789 ")
    forms: dict[str, str] = {}
    for _ in range(20_000):
        text = "".join(draw.choices(pool, k=draw.randint(1, 3)))
        kept = forms.setdefault(normalise(text), text)
        assert seen(text) == seen(kept) or not any(map(str.isalnum, text)), (text, kept)


def seen(text):
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text.replace("\u200c", "")).casefold())
    return [letter for letter in folded if unicodedata.category(letter)[0] in "LMNS"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a thermometer at 5 degrees", "a thermometer at -5 degrees"),
        ("a thermometer at 5 degrees", "a thermometer at +5 degrees"),
        ("C++ logo", "C# logo"),
        ("C logo", "C# logo"),
        ("f/1.8", "f/18"),
        ("f/1.8", "f/1 8"),
        ("1/2 cup", "12 cup"),
        (".5 cups", "5 cups"),
        ("50% grey", "50 grey"),
        ("3,5 m", "35 m"),
        ("flag of \U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "flag of \U0001f3f4"),
        ("\U0001f1eb\U0001f1f7", "\U0001f1e9\U0001f1ea"),
        ("\U0001f44d\U0001f3fb", "\U0001f44d\U0001f3ff"),
        ("5\u00b0", "5"),
        ("\u2642", "\u2640"),
    ],
)
def test_signs_and_points_tell_prompts_apart(one, other):
    assert normalise(one) != normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ko\u00adala", "koala"),
        ("ko\u200bala", "koala"),
        ("\ufeffa cat", "a cat"),
        ("a\u2060 cat", "a cat"),
        ("\u2764\ufe0f", "\u2764"),
        ("at \u22125", "at -5"),
        ("\u00bd cup", "1/2 cup"),
        ("cat\U0001f431", "cat \U0001f431"),
        ("a cat, sitting.", "A cat (sitting)"),
        ("#cat #dog", "cat dog"),
        ("a well-known cat", "a well known cat"),
        ("1. a cat", "1 a cat"),
        ("\uff21 cat", "a cat"),
    ],
)
def test_what_is_the_same_to_the_eye_is_the_same(one, other):
    assert normalise(one) == normalise(other)


def test_a_text_of_nothing_visible_is_empty():
    for blank in BLANK:
        for text in (blank, blank * 3, f" {blank}\n{blank}"):
            assert normalise(text) == "" and clean(text) == "", hex(ord(blank))
    assert clean("a\u200bb") == "a\u200bb" and prompt_id("\u200b") == prompt_id("")


def test_punctuation_alone_is_kept():
    assert [normalise(text) for text in ("!!!", " ... ", "?!")] == ["!!!", "...", "?!"]
