"""A small project for tests: real files, real declarations, sizes that take seconds."""

import csv
import json
import random
import shutil
from pathlib import Path

import yaml

PACKAGE = Path(__file__).parent.parent / "estner_assets"
DRUGS = ("aspiriin", "metformiin", "enalapriil", "simvastatiin", "bisoprolool")
PROCEDURES = ("EKG", "koronaarangiograafia", "bronhoskoopia")
CLOSINGS = ("Enesetunne hea", "Kaebusi ei ole", "Jälgimine perearsti juures", "Kontroll kuu aja pärast")

PROFILE = {
    "description": "A study for tests.",
    "language": "et",
    "records": {"paths": ["data/records.csv"], "format": "csv"},
    "gold": {"paths": ["data/gold.jsonl"]},
    "generator": {
        "vocabulary_size": 400,
        "layers": 1,
        "heads": 2,
        "width": 32,
        "context_tokens": 96,
        "epochs": 4,
        "batch_size": 16,
        "learning_rate": 5e-3,
    },
    "sampling": {"notes": 60, "max_new_tokens": 60, "batch_size": 32, "min_patients": 2},
    "originality": {"max_run_words": 30, "min_words": 2, "drop_unfinished": False},
    "annotation": {"notes": 30, "annotators": ["lexicon", "reference"]},
    "tagger": {"epochs": 10, "learning_rate": 1e-2, "batch_size": 8},
    "evaluation": {"bootstrap_samples": 50},
    "learning_curves": {"sizes": [10], "subsets": 1, "steps": 30},
}
ANNOTATORS = {
    "lexicon": {
        "kind": "lexicon",
        "title": "Term list",
        "terms": "data/terms.tsv",
        "language": "et",
        "prompts": ["none"],
        "score_on_gold": True,
    },
    "reference": {
        "kind": "reference",
        "title": "Reference spans",
        "spans": "data/reference.jsonl",
        "prompts": ["none"],
    },
    "gpt": {
        "kind": "openai",
        "title": "A remote LLM",
        "model": "gpt-test",
        "api_key_env": "ESTNER_TEST_UNSET_KEY",
        "prompts": ["zero_shot"],
    },
}
PROMPT = """---
title: Zero-shot
language: en
mode: json
max_answer_tokens: 100
---
### user
Find mentions of {{ labels | join(", ") }}. Answer with JSON.
{{ note }}
"""


def write_project(root: Path) -> Path:
    """Write a whole small project into ``root`` and return it."""
    declarations, data = root / "declarations", root / "data"
    for folder in (declarations / "prompts", declarations / "profiles", data):
        folder.mkdir(parents=True)
    shutil.copy(PACKAGE / "declarations" / "entities.yaml", declarations)
    write_yaml(declarations / "annotators.yaml", ANNOTATORS)
    write_yaml(declarations / "profiles" / "demo.yaml", PROFILE)
    (declarations / "prompts" / "zero_shot.md").write_text(PROMPT, encoding="utf-8")
    notes = list(fictional_notes(160, seed=1))
    write_records(data / "records.csv", [text for text, _ in notes])
    write_doccano(data / "reference.jsonl", [(f"r{number:03}", *note) for number, note in enumerate(notes)])
    gold = fictional_notes(20, seed=2)
    write_doccano(data / "gold.jsonl", [(f"g{number:03}", *note) for number, note in enumerate(gold)])
    terms = [f"DRUG\t{drug}" for drug in DRUGS] + [f"PROCEDURE\t{procedure}" for procedure in PROCEDURES]
    (data / "terms.tsv").write_text("\n".join(["label\tterm", *terms]) + "\n", encoding="utf-8")
    return root


def write_yaml(path: Path, content: object) -> None:
    """Write a declaration."""
    path.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")


def edit_yaml(path: Path, *keys: str, value: object) -> None:
    """Set one key of a declaration."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    target = content
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    write_yaml(path, content)


def fictional_notes(count: int, seed: int) -> list[tuple[str, list[list[object]]]]:
    """Return texts with their spans as ``[start, end, label]``; no two texts are the same."""
    rng = random.Random(seed)
    notes: list[tuple[str, list[list[object]]]] = []
    for number in range(count):
        drug, procedure = rng.choice(DRUGS), rng.choice(PROCEDURES)
        parts = [
            (f"Patsient {number + 1000 * seed} kasutab ravimit ", None),
            (drug, "DRUG"),
            (f" {rng.randint(1, 80)} mg, tehti ", None),
            (procedure, "PROCEDURE"),
            (f". {rng.choice(CLOSINGS)}.", None),
        ]
        text, spans = "", []
        for part, label in parts:
            if label:
                spans.append([len(text), len(text) + len(part), label])
            text += part
        notes.append((text, spans))
    return notes


def write_records(path: Path, texts: list[str]) -> None:
    """Write records of forty patients with two conditions."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["record_id", "patient_id", "date", "genre", "age_group", "sex", "diagnosis", "text"])
        for number, text in enumerate(texts):
            patient = number % 40
            sex, diagnosis = ("naine", "I10") if patient % 2 else ("mees", "J18")
            writer.writerow([f"r{number:03}", f"p{patient}", "2020-01-31", "anamnees", "6", sex, diagnosis, text])


def write_doccano(path: Path, notes: list[tuple[str, str, list[list[object]]]]) -> None:
    """Write annotated notes, one JSON object a line."""
    lines = [json.dumps({"id": key, "text": text, "label": spans}, ensure_ascii=False) for key, text, spans in notes]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
