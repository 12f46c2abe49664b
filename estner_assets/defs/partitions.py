"""Partitions, read from the declarations: prompts, annotators, and their product, the cells."""

import dagster as dg

from estner_assets.declarations import Declarations
from estner_assets.resources.lineage import Partition
from estner_assets.settings import NO_PROMPT


def partitions_defs(declarations: Declarations) -> dict[str, dg.PartitionsDefinition[str] | None]:
    """Return the partitions definition of each kind of node."""
    prompts = dg.StaticPartitionsDefinition([*sorted(declarations.prompts), NO_PROMPT])
    annotators = dg.StaticPartitionsDefinition(list(declarations.annotators))
    cells = dg.MultiPartitionsDefinition({"annotator": annotators, "prompt": prompts})
    return {"none": None, "prompt": prompts, "annotator": annotators, "cell": cells}


def partition_key(partition: Partition) -> str | None:
    """Return Dagster's key of an asset partition."""
    if partition.annotator and partition.prompt:
        return dg.MultiPartitionKey({"annotator": partition.annotator, "prompt": partition.prompt})
    return partition.annotator or partition.prompt or None


def partition_of(context: dg.AssetExecutionContext, asset: str, kind: str) -> Partition:
    """Return the asset partition that a step makes."""
    match kind:
        case "prompt":
            return Partition(asset, prompt=context.partition_key)
        case "annotator":
            return Partition(asset, annotator=context.partition_key)
        case "cell":
            key = context.partition_key
            assert isinstance(key, dg.MultiPartitionKey)
            return Partition(asset, key.keys_by_dimension["annotator"], key.keys_by_dimension["prompt"])
        case _:
            return Partition(asset)
