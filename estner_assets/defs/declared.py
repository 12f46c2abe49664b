"""Prompts and annotators: tables of what is declared, published only when the content has moved."""

import json
from collections.abc import Iterable

import dagster as dg

from estner_assets.defs.partitions import partition_key
from estner_assets.defs.step import Made, Step
from estner_assets.graph import NODES
from estner_assets.planner import Planner
from estner_assets.project import Project
from estner_assets.resources.lineage import Partition
from estner_assets.settings import NO_PROMPT
from estner_assets.versions import annotator_content, content_version, prompt_content

DECLARED = ("prompts", "annotators")
"""Assets that are published from their declaration, without a run."""


def prompts(step: Step) -> Made:
    """One row per prompt that is declared."""
    key = step.partition.prompt
    content = prompt_content(step.declarations, key)
    prompt = step.declarations.prompts.get(key)
    row = {
        "version": content_version(content),
        "title": prompt.title if prompt else "For annotators that take no prompt",
        "language": content.get("language", ""),
        "mode": content["mode"],
        "body": content.get("body", ""),
        "declaration": json.dumps(content, ensure_ascii=False, sort_keys=True),
    }
    body = content.get("body", "") if key != NO_PROMPT else ""
    return Made([row], {"version": row["version"], "body": dg.MetadataValue.md(f"```jinja\n{body}\n```")})


def annotators(step: Step) -> Made:
    """One row per annotator that is declared."""
    key = step.partition.annotator
    content = annotator_content(step.declarations, key)
    row = {
        "version": content_version(content),
        "title": step.declarations.annotators[key].title,
        "kind": content["kind"],
        "model": content.get("model"),
        "declaration": json.dumps(content, ensure_ascii=False, sort_keys=True),
    }
    return Made([row], {"version": row["version"], "kind": row["kind"]})


def publish_moved(project: Project, instance: dg.DagsterInstance, partitions: Iterable[Partition]) -> None:
    """Publish those of the partitions whose declaration moved, so that no step reads old text.

    A row and a runless materialization each; nothing is written for a declaration that stayed the same.
    """
    declared = [one for one in partitions if one.asset in DECLARED]
    state = project.warehouse.current() if declared else {}
    planner = Planner(project.declarations)
    for partition in declared:
        made_before = state.get(partition)
        expected, _ = planner.expected_inputs(partition, state)
        code_version = NODES[partition.asset].code_version
        if made_before and (made_before.inputs, made_before.code_version) == (tuple(expected), code_version):
            continue
        step = Step(project, partition, lambda message: None)
        made = prompts(step) if partition.asset == "prompts" else annotators(step)
        version = step.publish(made, "declared")
        instance.report_runless_asset_event(
            dg.AssetMaterialization(
                partition.asset,
                partition=partition_key(partition),
                metadata=made.metadata,
                tags={"dagster/data_version": version},
            )
        )
