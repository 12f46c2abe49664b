"""Partitions, read from the declarations: prompts, annotators, and the declared pairs of them, the cells.

Cells are one dimension, so that the UI shows those that are declared and no others. In its backfill dialog
``lexicon/*`` selects an annotator over all its prompts, and ``*/few_shot_et`` a prompt over all its annotators.
"""

from collections.abc import Iterator

import dagster as dg

from estner_assets.graph import NODES
from estner_assets.planner import Planner
from estner_assets.resources.lineage import Partition


def partitions_def(planner: Planner, asset: str) -> dg.PartitionsDefinition[str] | None:
    """Return the partitions of an asset; cells that cannot be made here are left out."""
    if NODES[asset].partitions == "none":
        return None
    return dg.StaticPartitionsDefinition(
        [key for one in planner.partitions(NODES[asset]) if (key := partition_key(one))]
    )


def asset_deps(planner: Planner, asset: str) -> Iterator[dg.AssetDep]:
    """Yield what an asset is made from, partition by partition as the plan sees it."""
    edges: dict[str, dict[str, set[str]]] = {source: {} for source in NODES[asset].inputs}
    for partition in planner.partitions(NODES[asset]):
        for source in planner.inputs(partition):
            keys = partition_key(source), partition_key(partition)
            if keys[0] and keys[1]:
                edges[source.asset].setdefault(keys[0], set()).add(keys[1])
    for name, mapping in edges.items():
        is_partitioned = NODES[name].partitions != "none" and NODES[asset].partitions != "none"
        yield dg.AssetDep(name, partition_mapping=dg.StaticPartitionMapping(mapping) if is_partitioned else None)


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
