"""Laws of the taggers, trained for real on notes small enough for seconds."""

import json
import random
from collections.abc import Sequence
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

from estner_assets.modeling.charcnn import recase
from estner_assets.modeling.crf import LinearChainCrf
from estner_assets.modeling.encoder_tagger import EncoderTagger
from estner_assets.modeling.fitting import length_buckets
from estner_assets.modeling.taggers import load_tagger, split_documents, train_tagger
from estner_assets.ner.bio import label_names
from estner_assets.ner.metrics import strict
from estner_assets.ner.spans import Document, Span, SpanError, check_spans
from estner_assets.ner.tokens import tokenize
from estner_assets.settings import TaggerSettings

LABELS = ["PROCEDURE", "DRUG"]
STEMS = [
    "metoprol",
    "tamoksif",
    "raamipr",
    "varfar",
    "amoksits",
    "heparo",
    "ketopro",
    "digoks",
    "nitrofur",
    "doksor",
]
UNSEEN_STEMS = ["lisinopr", "salbutam", "furosem"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def note(index: int, stems: Sequence[str]) -> Document:
    """Return a note with one or two drugs, known by their ending alone, and maybe a procedure."""
    rng = random.Random(index)
    words: list[tuple[str, str | None]] = [("Patsient", None), ("saabusemosse", None), ("kaebusega", None)]
    for _ in range(rng.randint(1, 2)):
        drug = rng.choice(stems) + rng.choice(["iin", "ool", "iini"])
        words += [
            (rng.choice(["saab", "jätkata", "määratud"]), None),
            (drug, "DRUG"),
            ("50", None),
            ("mg.", None),
        ]
    if index % 2:
        words += [
            ("Tehti", None),
            (rng.choice(["kõhu UH", "koormus-EKG", "KT"]), "PROCEDURE"),
            ("eile.", None),
        ]
    text, spans = "", []
    for word, label in words:
        text += " " if text else ""
        if label:
            spans.append(Span(len(text), len(text) + len(word), label))
        text += word
    return Document(f"n{index:04}", text, tuple(spans))


NOTES = [note(index, STEMS) for index in range(120)]
UNSEEN = [note(index, UNSEEN_STEMS) for index in range(1000, 1040)]
SETTINGS = TaggerSettings(epochs=6, learning_rate=5e-3, batch_size=8, casing_augmentation=0.1, seed=1)


def quiet(_: str) -> None:
    """Drop progress lines."""


def brute_force(crf: LinearChainCrf, emissions: torch.Tensor, tags: list[str]) -> dict[tuple[int, ...], float]:
    """Return the score of every valid BIO sequence."""
    scores = {}
    for path in product(range(len(tags)), repeat=len(emissions)):
        names = ["O", *(tags[tag] for tag in path)]
        pairs = pairwise(names)
        if all(not now.startswith("I-") or before[1:] == now[1:] for before, now in pairs):
            score = crf.start[path[0]] + crf.end[path[-1]] + sum(emissions[i, tag] for i, tag in enumerate(path))
            score += sum(crf.transitions[a, b] for a, b in pairwise(path))
            scores[path] = float(score)
    return scores


def test_crf_is_the_sum_over_all_valid_sequences() -> None:
    """Likelihood, marginals and decoding equal those of enumeration, row by row, whatever the padding."""
    torch.manual_seed(3)
    tags = label_names(["X", "Y"])
    crf = LinearChainCrf(tags)
    for parameter in crf.parameters():
        torch.nn.init.normal_(parameter)
    crf.requires_grad_(False)
    emissions, lengths = torch.randn(4, 4, 5) * 2, [4, 1, 3, 2]
    mask = torch.arange(4) < torch.tensor(lengths).unsqueeze(1)
    paths, marginals = crf.decode(emissions, mask), crf.marginals(emissions, mask)
    for row, length in enumerate(lengths):
        scores = brute_force(crf, emissions[row, :length], tags)
        total = torch.tensor(list(scores.values())).logsumexp(0)
        assert paths[row] == list(max(scores, key=scores.__getitem__))
        gold = torch.zeros(4, 4, dtype=torch.long)
        gold[row, :length] = torch.tensor(paths[row])
        loss = crf.negative_log_likelihood(emissions, gold, mask)[row]
        assert float(loss) == pytest.approx(float(total) - max(scores.values()), abs=1e-4)
        expected = torch.zeros(4, 5)
        for path, score in scores.items():
            for step, tag in enumerate(path):
                expected[step, tag] += float(torch.exp(torch.tensor(score) - total))
        torch.testing.assert_close(marginals[row], expected, atol=1e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tagger trained on all notes."""
    folder = tmp_path_factory.mktemp("model")
    report = train_tagger(NOTES, LABELS, SETTINGS, folder, quiet)
    assert (report.train_notes, report.validation_notes) == (102, 18)
    assert report.best_validation_f1 == max(row["validation_f1"] for row in report.curve)
    assert report.curve[-1]["step"] == report.steps
    assert sum(1 for _ in report.curve) == report.epochs
    return folder


def test_words_never_seen_are_found_by_their_letters(trained: Path) -> None:
    """Drugs of unseen stems are found, with offsets in the text and confidences in 0..1."""
    tagger = load_tagger(trained)
    predicted = tagger.predict([document.text for document in UNSEEN])
    assert tuple(tagger.labels) == tuple(LABELS)
    assert strict([document.spans for document in UNSEEN], predicted, "DRUG").f1 > 0.85
    for document, spans in zip(UNSEEN, predicted, strict=True):
        assert check_spans(document.text, spans, LABELS) == spans
        assert all(0 < span.confidence <= 1 for span in spans)


def test_a_text_is_read_the_same_alone_and_among_others(trained: Path) -> None:
    """Neither order nor neighbours change what is found; empty texts and texts without words have nothing."""
    tagger = load_tagger(trained)
    texts = [
        "",
        " \n",
        *(document.text for document in UNSEEN),
        " ".join(document.text for document in NOTES),
    ]

    def places(spans: tuple[Span, ...]) -> list[tuple[int, int, str]]:
        return [(span.start, span.end, span.label) for span in spans]

    together = [places(spans) for spans in tagger.predict(texts)]
    assert together[:2] == [[], []]
    assert [places(tagger.predict([text])[0]) for text in texts] == together
    assert [places(spans) for spans in tagger.predict(texts[::-1])] == together[::-1]
    assert tagger.predict([]) == []


def test_same_documents_in_any_order_give_the_same_files(tmp_path: Path) -> None:
    """Training hangs on the documents and the seed, not on their order or on what torch drew before."""
    train_tagger(NOTES[:30], LABELS, SETTINGS, tmp_path / "a", quiet, max_steps=6)
    torch.rand(3)
    before = torch.get_rng_state()
    train_tagger(NOTES[:30][::-1], LABELS, SETTINGS, tmp_path / "b", quiet, max_steps=6)
    assert torch.equal(torch.get_rng_state(), before)
    for file in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_trap_20_and_22_a_subset_without_a_label_permutes_nothing(tmp_path: Path) -> None:
    """Trained on notes without the first label, the tagger calls drugs drugs, by the declared label map."""
    only_drugs = [document for document in NOTES if all(span.label == "DRUG" for span in document.spans)]
    train_tagger(only_drugs, LABELS, SETTINGS, tmp_path, quiet)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["labels"] == LABELS
    predicted = load_tagger(tmp_path).predict([document.text for document in only_drugs])
    assert strict([document.spans for document in only_drugs], predicted, None).f1 > 0.9


def test_trap_21_validation_has_every_combination_of_labels() -> None:
    """Both parts have their share of notes with each label, share no note, and do not hang on the order."""
    rare = [Document(f"r{i}", "KT", (Span(0, 2, "PROCEDURE"),)) for i in range(10)]
    documents = [Document(f"o{i}", "KT") for i in range(70)] + rare
    train, validation = split_documents(documents, 0.2, seed=5)
    assert sorted(document.document_id for document in train + validation) == sorted(
        document.document_id for document in documents
    )
    assert (len(validation), sum(bool(document.spans) for document in validation)) == (16, 2)
    assert split_documents(documents[::-1], 0.2, seed=5) == (train, validation)
    assert split_documents(documents, 0.2, seed=6) != (train, validation)
    assert [len(part) for part in split_documents(documents[:2], 0.01, seed=5)] == [1, 1]
    assert [len(part) for part in split_documents(documents[:1], 0.4, seed=5)] == [1, 0]


def test_trap_21_training_stops_when_validation_no_longer_improves(tmp_path: Path) -> None:
    """The epochs are a bound, validation decides; the report says which of both ended it."""
    settings = SETTINGS.model_copy(update={"epochs": 40, "early_stopping_patience": 2})
    report = train_tagger(NOTES[:60], LABELS, settings, tmp_path, quiet)
    assert report.stopped_early
    assert report.epochs < 40
    scores = [row["validation_f1"] for row in report.curve]
    assert max(scores[-2:]) <= max(scores[:-2]) == report.best_validation_f1


def test_trap_21_fixed_steps_are_exact_whatever_the_size(tmp_path: Path) -> None:
    """With max_steps small and large training sets get the same number of steps."""
    reports = [train_tagger(NOTES[:size], LABELS, SETTINGS, tmp_path, quiet, max_steps=11) for size in (4, 60)]
    assert [(report.steps, report.stopped_early) for report in reports] == [(11, False), (11, False)]


def test_small_and_empty_training_sets(tmp_path: Path) -> None:
    """One note or no span still trains; no note, no label, a note twice or a wrong span raises."""
    report = train_tagger(NOTES[:1], LABELS, SETTINGS, tmp_path, quiet, max_steps=2)
    assert (report.train_notes, report.validation_notes, report.best_validation_f1) == (1, 0, 0.0)
    bare = [Document(document.document_id, document.text) for document in NOTES[:20]]
    report = train_tagger(bare, LABELS, SETTINGS, tmp_path, quiet)
    assert (report.epochs, report.stopped_early) == (SETTINGS.epochs, False)
    assert load_tagger(tmp_path).predict([bare[0].text]) == [()]
    with pytest.raises(ValueError, match="no documents"):
        train_tagger([], LABELS, SETTINGS, tmp_path, quiet)
    with pytest.raises(ValueError, match="no labels"):
        train_tagger(NOTES, [], SETTINGS, tmp_path, quiet)
    with pytest.raises(ValueError, match="given twice"):
        train_tagger([NOTES[0], NOTES[0]], LABELS, SETTINGS, tmp_path, quiet)
    with pytest.raises(SpanError, match="unknown label 'DRUG'"):
        train_tagger(NOTES, ["PROCEDURE"], SETTINGS, tmp_path, quiet)


def test_trap_24_casing_augmentation_leaves_tokens_and_changes_their_case() -> None:
    """A share of texts comes in lower, upper and title case; the others are as they are."""
    words = ["Sai", "ASA", "5", "mg"]
    rng = random.Random(0)
    seen = {tuple(recase(words, 0.9, rng)) for _ in range(100)}
    assert seen == {
        ("Sai", "ASA", "5", "mg"),
        ("sai", "asa", "5", "mg"),
        ("SAI", "ASA", "5", "MG"),
        ("Sai", "Asa", "5", "Mg"),
    }
    assert {tuple(recase(words, 0.0, rng)) for _ in range(20)} == {tuple(words)}


def test_batches_hold_every_item_once_within_both_bounds() -> None:
    """Length buckets lose nothing, and a long note makes its batch smaller."""
    lengths = [5] * 20 + [90, 300, 40, 40, 40]
    batches = length_buckets(lengths, batch_size=8, max_cells=100, rng=random.Random(1))
    assert sorted(index for batch in batches for index in batch) == list(range(25))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or (len(batch) <= 8 and len(batch) * longest <= 100)


def test_a_folder_without_a_tagger_is_refused(tmp_path: Path) -> None:
    """Neither an empty folder nor another project's model is loaded."""
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        load_tagger(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(ValueError, match="is of kind None"):
        load_tagger(tmp_path)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of 64 positions with another project's three labels, as Hugging Face would deliver it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator([document.text for document in NOTES], trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=3,
    )
    BertForTokenClassification(config).save_pretrained(folder)
    return folder


def test_trap_23_gold_at_the_end_of_a_long_note_stays_in_training_and_prediction(
    checkpoint: Path, tmp_path: Path
) -> None:
    """A checkpoint of 64 positions learns, loads again and finds a mention behind 600 words."""
    settings = SETTINGS.model_copy(
        update={
            "model": str(checkpoint),
            "epochs": 12,
            "learning_rate": 4e-3,
            "max_tokens": 512,
            "dropout": 0.0,
        }
    )
    report = train_tagger(NOTES, LABELS, settings, tmp_path, quiet)
    tagger = load_tagger(tmp_path)
    assert (report.model, tuple(tagger.labels)) == (str(checkpoint), tuple(LABELS))
    text = "Patsient saabusemosse kaebusega jätkata " * 150 + "metoprolool 50 mg."
    start = text.index("metoprolool")
    [spans] = tagger.predict([text])
    assert len(text.split()) > 600
    assert (spans[-1].start, spans[-1].end, spans[-1].label) == (start, start + 11, "DRUG")
    assert tagger.predict(["", " "]) == [(), ()]
    short = tagger.predict([document.text for document in NOTES])
    assert strict([document.spans for document in NOTES], short, None).f1 > 0.9


def test_trap_23_every_token_of_a_long_text_has_a_window(checkpoint: Path) -> None:
    """Windows fit the model's positions, and together they hold every token of the text."""
    tagger = EncoderTagger.from_checkpoint(str(checkpoint), LABELS, max_tokens=512)
    texts = [" ".join(document.text for document in NOTES[:20]), NOTES[0].text]
    tokens = [tokenize(text) for text in texts]
    windows = tagger.windows(texts, tokens)
    assert max(len(window.ids) for window in windows) == 64
    for text, row in enumerate(tokens):
        seen = {token for window in windows if window.text == text for _, token in window.firsts}
        assert seen == set(range(len(row)))
    assert all(len({token for _, token in window.firsts}) == len(window.firsts) for window in windows)


def test_trap_24_a_share_of_the_notes_is_recased_in_place():
    """Casing varies for the declared share, repeatably, and no character moves."""
    from estner_assets.modeling.encoder_tagger import recased

    texts = ["Võtab Enapit", "straße ja EKG"] * 50
    varied = recased(texts, 0.5, seed=1)
    assert varied == recased(texts, 0.5, seed=1)
    assert recased(texts, 0.0, seed=1) == texts
    assert [len(text) for text in varied] == [len(text) for text in texts]
    changed = sum(one != other for one, other in zip(texts, varied, strict=True))
    assert 25 <= changed <= 60
    assert {text.casefold() for text in varied} == {text.casefold() for text in texts}
