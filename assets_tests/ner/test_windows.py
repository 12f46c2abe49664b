"""Laws of cutting a note into windows and of putting their answers together."""

import random
import time
from collections.abc import Sequence

import pytest

from estner_assets.ner.grounding import Answered, ground
from estner_assets.ner.languages import language
from estner_assets.ner.parsing import Mention
from estner_assets.ner.windows import merge_windows, windows

ET = language("et")


def drug(text: str) -> Mention:
    return Mention("DRUG", text)


def pieces(text: str, window_words: int, overlap_words: int) -> list[str]:
    return [text[start:end] for start, end in windows(text, window_words, overlap_words)]


def test_windows_cover_every_character_and_overlap_as_declared() -> None:
    """Without what they share, the windows are the note, and none has more words than allowed."""
    rng = random.Random(7)
    for _ in range(300):
        words = rng.choices(["Võtab", "ravimit.", "raviga.Allergia", "4,2", "\n", "  ", "õ", "(vt", "all)."], k=60)
        text = rng.choice(["", "\n", " "]) + " ".join(words[: rng.randint(0, 60)])
        window_words = rng.randint(1, 20)
        overlap_words = rng.randint(0, window_words // 4)
        found = windows(text, window_words, overlap_words)
        joined, end_before = "", 0
        for start, end in found:
            assert start <= end_before <= end
            shared = text[start:end_before].split()
            assert len(shared) == (overlap_words if joined.strip() else 0)
            assert len(text[start:end].split()) <= window_words
            joined, end_before = joined + text[end_before:end], end
        assert joined == text


def test_no_word_is_cut_in_two() -> None:
    """Every window is made of whole words of the note, in their order."""
    text = "Kodus võtab raviga.Allergia ja 4,2 mg Concorit ning\nEnap'iga edasi"
    first, *rest = pieces(text, 4, 1)
    assert first.split() == text.split()[:4]
    words = first.split()
    for piece in rest:
        assert piece.split()[0] == words[-1]
        words += piece.split()[1:]
    assert words == text.split()


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("Üks kaks kolm neli viis kuus seitse. Kaheksa üheksa kümme.", "Üks kaks kolm neli viis kuus seitse. "),
        ("Üks kaks kolm neli viis kuus seitse\nkaheksa üheksa kümme", "Üks kaks kolm neli viis kuus seitse\n"),
        ("Üks kaks kolm neli viis kuus nt. kaheksa üheksa kümme", "Üks kaks kolm neli viis kuus nt. kaheksa "),
        ("Üks kaks. Kolm neli viis kuus seitse kaheksa üheksa", "Üks kaks. Kolm neli viis kuus seitse kaheksa "),
    ],
)
def test_a_window_ends_with_a_sentence_where_one_ends_nearby(text: str, first: str) -> None:
    """In its last fourth part a window ends behind a sentence or a line, else behind its last word."""
    assert pieces(text, 8, 0)[0] == first


def test_a_short_note_is_one_window() -> None:
    """What fits is not cut, nor is what is empty."""
    assert (windows("Kaks sõna", 2, 0), windows("", 5, 1), windows(" \n", 5, 1)) == ([(0, 9)], [(0, 0)], [(0, 2)])


def test_an_overlap_too_large_is_refused() -> None:
    """Windows that hardly move on are a mistake, not a long run."""
    with pytest.raises(ValueError, match="an overlap of 3 words needs a window of 12"):
        windows("a b c", 8, 3)


def test_cutting_is_linear() -> None:
    """Ten times the note takes about ten times as long."""
    text = "Patsient võtab Concorit 5 mg hommikuti. " * 2_000
    took = {1: 0.0, 10: 0.0}
    for times in took:
        tries = []
        for _ in range(3):
            began = time.process_time()
            windows(text * times, 40, 10)
            tries.append(time.process_time() - began)
        took[times] = min(tries)
    assert took[10] < 40 * took[1]


def merged(text: str, answers: Sequence[Sequence[Mention]], window_words: int, overlap_words: int) -> list[str]:
    found = windows(text, window_words, overlap_words)
    assert len(found) == len(answers)
    return [mention.text for mention in merge_windows(text, found, answers, ET)]


TEXT = "Võtab Concorit ja hommikuti Enapit ning õhtul Concorit koos Enapiga veel"


def test_a_mention_in_the_overlap_is_one() -> None:
    """What both windows name at the same place stands once, and repetitions elsewhere stay."""
    assert pieces(TEXT, 8, 2) == [TEXT[:55], "õhtul Concorit koos Enapiga veel"]
    first = [drug("Concorit"), drug("Enapit"), drug("Concorit")]
    assert merged(TEXT, [first, [drug("Concorit"), drug("Enapiga")]], 8, 2) == [
        "Concorit",
        "Enapit",
        "Concorit",
        "Enapiga",
    ]


def test_what_only_one_window_names_in_the_overlap_stands_in_its_place() -> None:
    """A mention that the first window missed comes before those that stand behind it in the note."""
    text = "Võtab hommikuti Concorit ning õhtul Enapit ja Xareltot koos Nebiletiga"
    assert pieces(text, 8, 2)[1] == "ja Xareltot koos Nebiletiga"
    assert merged(text, [[drug("Xareltot")], [drug("Xareltot"), drug("Nebiletiga")]], 8, 2) == [
        "Xareltot",
        "Nebiletiga",
    ]
    assert merged(text, [[drug("Xareltot"), drug("Concorit")], [drug("Nebiletiga")]], 8, 2)[:2] == [
        "Concorit",
        "Xareltot",
    ]


def test_a_mention_that_an_edge_cuts_short_gives_way_to_the_whole_one() -> None:
    """Of two overlapping mentions of one label the longer stays, whichever window named it."""
    text = "Täna hommikul tehti haiglas meie osakonnas südame ultraheliuuring ja koju"
    found = windows(text, 7, 1)
    assert next(text[start:end] for start, end in found).endswith("südame ")
    part, whole = Mention("PROCEDURE", "südame"), Mention("PROCEDURE", "südame ultraheliuuring")
    assert merge_windows(text, found, [[part], [whole]], ET) == (whole,)


def test_an_answer_is_repeated_as_often_as_its_places() -> None:
    """However often the windows name a drug, the merged answer grounds without a repetition too many."""
    text = " ".join(["Concor"] * 12)
    found = windows(text, 6, 1)
    answers = [[drug("Concor")] * 9 for _ in found]
    mentions = merge_windows(text, found, answers, ET)
    spans = {one.span for one in ground(text, [Answered(one.label, one.text) for one in mentions], ET)}
    assert (len(mentions), len(spans)) == (12, 12)


def test_what_has_no_place_counts_once_for_windows_that_overlap() -> None:
    """Names that the note does not hold are kept, once for neighbours, again for windows that share nothing."""
    text = " ".join(f"sõna{number}" for number in range(16))
    nowhere = [drug("Xarelto")]
    assert merged(text, [nowhere, nowhere, [drug("xarelto"), drug("Enap")]], 7, 1) == ["Xarelto", "Enap"]
    assert merged(text, [nowhere, nowhere, []], 7, 0) == ["Xarelto", "Xarelto"]


def test_a_name_from_another_window_adds_no_repetition() -> None:
    """A text that one window holds and its neighbours only name stands as often as its places."""
    enap = [drug("Enapit")]
    assert merged("Võtab hommikul Concorit ja Enapit, tehti EKG täna", [enap, enap, enap], 4, 1) == ["Enapit"]


def test_one_window_changes_nothing() -> None:
    """The answer about a whole note stays as it was given."""
    answer = [drug("Enapit"), drug("Concorit"), drug("Enapit"), drug("mujal")]
    assert merge_windows(TEXT, [(0, len(TEXT))], [answer], ET) == tuple(answer)
