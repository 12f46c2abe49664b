"""Partitions, read from the declarations: prompts, annotators, and the declared pairs of them, the cells.

Cells are one dimension, so that the UI shows those that are declared and no others. In its backfill dialog
``lexicon/*`` selects an annotator over all its prompts, and ``*/few_shot_et`` a prompt over all its annotators.
"""

from collections.abc import Iterator

import dagster as dg

from estner_assets.declarations import Cell, Declarations
from estner_assets.graph import NODES
from estner_assets.planner import missing_configurations
from estner_assets.resources.lineage import Partition
from estner_assets.settings import NO_PROMPT


def partitions_defs(declarations: Declarations) -> dict[str, dg.PartitionsDefinition[str] | None]:
    """Return the partitions definition of each kind of node; cells that cannot be made here are left out."""
    prompts = dg.StaticPartitionsDefinition([*sorted(declarations.prompts), NO_PROMPT])
    annotators = dg.StaticPartitionsDefinition(list(declarations.annotators))
    cells = dg.StaticPartitionsDefinition([str(cell) for cell in _cells(declarations)])
    return {"none": None, "prompt": prompts, "annotator": annotators, "cell": cells}


def _cells(declarations: Declarations) -> list[Cell]:
    missing = missing_configurations(declarations)
    return [cell for cell in declarations.cells if cell not in missing]


def asset_deps(declarations: Declarations, asset: str) -> Iterator[dg.AssetDep]:
    """Yield what an asset is made from; a cell is made from its own prompt and annotator."""
    for source in NODES[asset].inputs:
        kinds = (NODES[source].partitions, NODES[asset].partitions)
        if kinds in (("prompt", "cell"), ("annotator", "cell")):
            cells: dict[str, set[str]] = {}
            for cell in _cells(declarations):
                cells.setdefault(cell.prompt if kinds[0] == "prompt" else cell.annotator, set()).add(str(cell))
            yield dg.AssetDep(source, partition_mapping=dg.StaticPartitionMapping(cells))
        else:
            yield dg.AssetDep(source)


def partition_key(partition: Partition) -> str | None:
    """Return Dagster's key of an asset partition."""
    return "/".join(key for key in (partition.annotator, partition.prompt) if key) or None


def partition_of(context: dg.AssetExecutionContext, asset: str, kind: str) -> Partition:
    """Return the asset partition that a step makes."""
    match kind:
        case "prompt":
            return Partition(asset, prompt=context.partition_key)
        case "annotator":
            return Partition(asset, annotator=context.partition_key)
        case "cell":
            annotator, _, prompt = context.partition_key.partition("/")
            return Partition(asset, annotator, prompt)
        case _:
            return Partition(asset)
