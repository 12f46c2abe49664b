"""``table_asset`` turns a function of a ``Step`` into the asset of the table that is named like it.

Everything but the function comes from the declarations: the graph's edges, the table's columns, its group.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from estner_assets.declarations import Cell, Declarations, UnknownCellError
from estner_assets.defs.declared import publish_moved
from estner_assets.defs.partitions import asset_deps, partition_of, partitions_def
from estner_assets.defs.step import Made, Step
from estner_assets.graph import NODES
from estner_assets.planner import Planner
from estner_assets.project import Project
from estner_assets.resources.lineage import Partition
from estner_assets.tables import Table

OWNERS = ("team:estner",)
PROGRESS_LOG = logging.getLogger("estner.progress")
"""Where steps say how far they are, beside the run's own log."""
PROGRESS_LOG.setLevel(logging.INFO)
PROGRESS_LOG.propagate = False
BUILD_TAG = "estner/build"
"""Tag of the runs of one build, which share its budget."""
AssetFunction = Callable[[Step], Made]


class ProjectResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """The project that the assets work on."""

    root: str
    profile: str

    def open(self) -> Project:
        return Project.open(Path(self.root), self.profile)


def table_asset(function: AssetFunction) -> Callable[[Declarations], dg.AssetsDefinition]:
    """Return a maker of the asset definition, to be called once the declarations are known."""
    name = function.__name__

    def define(declarations: Declarations) -> dg.AssetsDefinition:
        node, table = NODES[name], declarations.tables[name]
        planner = Planner(declarations)

        @dg.asset(
            name=name,
            deps=list(asset_deps(planner, name)),
            partitions_def=partitions_def(planner, name),
            group_name=table.group,
            kinds=set(table.kinds),
            owners=list(OWNERS),
            description=f"**{table.grain}**\n\n{table.description}",
            code_version=node.code_version,
            metadata={"dagster/column_schema": column_schema(table), "dagster/table_name": f"estner.{name}"},
            output_required=False,
        )
        def asset(context: dg.AssetExecutionContext, project: ProjectResource) -> Iterator[Any]:
            yield from _make(function, context, project.open(), table)

        return asset

    define.__name__ = name
    return define


def _make(
    function: AssetFunction, context: dg.AssetExecutionContext, project: Project, table: Table
) -> Iterator[dg.MaterializeResult[Any]]:
    partition = partition_of(context, table.name, table.partitions)
    if table.partitions == "cell" and not _can_run(context, project, partition):
        return
    publish_moved(project, context.instance, list(Planner(project.declarations).inputs(partition)))
    build_id = context.run.tags.get(BUILD_TAG, context.run.run_id)
    step = Step(project, partition, lambda message: _log(context, message), build_id)
    made = function(step)
    version = step.publish(made, context.run.run_id)
    yield dg.MaterializeResult(
        data_version=dg.DataVersion(version),
        metadata={"dagster/row_count": len(made.rows), **made.metadata},
    )


def _log(context: dg.AssetExecutionContext, message: str) -> None:
    context.log.info(message)
    PROGRESS_LOG.info(message)


def _can_run(context: dg.AssetExecutionContext, project: Project, partition: Partition) -> bool:
    """Raise for a cell that is not declared; say so and return False for one that is not configured here.

    Dagster knows the cells of when the code location was loaded; keys and declarations may have changed since.
    """
    try:
        cell = project.declarations.check_cell(Cell(partition.annotator, partition.prompt))
    except UnknownCellError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    missing = Planner(project.declarations).not_configured.get(cell)
    if missing:
        context.log.warning(f"{partition} is not configured here and was left out: {missing}")
    return not missing


def column_schema(table: Table) -> dg.TableSchema:
    """Return the table's columns as the UI shows them."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                name,
                column.type,
                description=column.description,
                constraints=dg.TableColumnConstraints(nullable=column.nullable, unique=table.key == [name]),
            )
            for name, column in table.columns.items()
        ]
    )
