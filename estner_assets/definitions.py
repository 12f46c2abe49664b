"""The code location: everything that Dagster is told, put together from the declarations."""

import dagster as dg

from estner_assets.declarations import Declarations, load
from estner_assets.defs.everything import graph_definitions
from estner_assets.syncing import sync_definitions


def definitions_of(declarations: Declarations) -> dg.Definitions:
    """Return the definitions of a project."""
    return dg.Definitions.merge(graph_definitions(declarations), sync_definitions(declarations))


@dg.definitions
def defs() -> dg.Definitions:
    """Load the project that ESTNER_PROJECT and ESTNER_PROFILE name."""
    return definitions_of(load())
