"""Small real-looking notes and settings for the tests of the generator."""

import random

from estner_assets.ner.conditions import Condition, ConditionedNote
from estner_assets.settings import GeneratorSettings

HEART = Condition("anamnees", "7", "naine", "I10")
LUNG = Condition("päevik", "3", "mees", "J45")
WORDS = {
    HEART: ["vererõhk", "süda", "pulss", "metoprolool", "rütm", "EKG", "valu", "rinnus"],
    LUNG: ["köha", "hingamine", "salbutamool", "kops", "vilin", "spirograafia", "õhupuudus", "röga"],
}
TINY = GeneratorSettings(
    vocabulary_size=330,
    layers=1,
    heads=2,
    width=32,
    context_tokens=64,
    epochs=2,
    batch_size=8,
    learning_rate=1e-2,
)


def tiny_notes(count: int) -> list[ConditionedNote]:
    """``count`` notes of up to 40 patients; the words of each diagnosis are its own."""
    rng = random.Random(0)
    notes = []
    for index in range(count):
        condition = rng.choice([HEART, LUNG])
        text = " ".join(rng.choice(WORDS[condition]) for _ in range(rng.randint(4, 10)))
        notes.append(ConditionedNote(f"r{index:04}", f"p{index % 40}", condition, f"{text}.\nOlek hea."))
    return notes
