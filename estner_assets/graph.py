"""The asset graph as data: what each asset is made from, and which declarations reach it.

``code_version`` is raised by hand when an asset's code changes what it makes from the same inputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Partitions = Literal["none", "prompt", "annotator", "cell"]


@dataclass(frozen=True, slots=True)
class Node:
    """An asset: its direct inputs (other assets) and settings (slices of the declarations).

    An unpartitioned node reads all partitions of a partitioned input, a cell its own annotator and prompt.
    """

    name: str
    inputs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    partitions: Partitions = "none"
    code_version: str = "1"


NODES: Mapping[str, Node] = {
    node.name: node
    for node in (
        Node("prompts", settings=("prompt",), partitions="prompt"),
        Node("annotators", settings=("annotator",), partitions="annotator"),
        Node("records", settings=("records",)),
        Node("gold_documents", settings=("gold",)),
        Node("gold_spans", inputs=("gold_documents",), settings=("gold", "entity_names")),
        Node("generator", inputs=("records",), settings=("generator",)),
        Node("synthetic_notes", inputs=("generator", "records"), settings=("sampling",)),
        Node("originality", inputs=("synthetic_notes", "records"), settings=("originality",)),
        Node("vetted_notes", inputs=("originality", "synthetic_notes")),
        Node(
            "annotations",
            inputs=("vetted_notes", "records", "prompts", "annotators"),
            settings=("entities", "annotation"),
            partitions="cell",
        ),
        Node("consensus", inputs=("annotations", "annotators"), settings=("entity_names",), partitions="cell"),
        Node(
            "ner_models",
            inputs=("annotations", "consensus"),
            settings=("entity_names", "tagger"),
            partitions="cell",
        ),
        Node(
            "predictions",
            inputs=("ner_models", "gold_documents"),
            settings=("gold_annotator",),
            partitions="cell",
        ),
        Node(
            "evaluation",
            inputs=("predictions", "gold_documents", "gold_spans"),
            settings=("entity_names", "systems", "evaluation"),
            partitions="cell",
        ),
        Node(
            "learning_curves",
            inputs=("annotations", "consensus", "gold_documents", "gold_spans"),
            settings=("entity_names", "tagger", "learning_curves"),
            partitions="cell",
        ),
        Node("leaderboard", inputs=("evaluation", "ner_models"), settings=("entity_names", "cells")),
        Node("agreement", inputs=("annotations",), settings=("entity_names",)),
        Node("reliability", inputs=("annotations",), settings=("entity_names",)),
        Node(
            "report",
            inputs=("leaderboard", "agreement", "reliability", "learning_curves", "originality", "generator"),
            settings=("report",),
        ),
    )
}
"""Every asset, inputs before what is made from them."""
