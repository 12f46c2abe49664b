"""Where a figure came from: in DuckDB with one query each, and as `estner why` prints it."""

from pathlib import Path

import pytest

from assets_tests.builds import change_records, edit_prompt, rebuild, rows
from assets_tests.projects import edit_yaml
from estner_assets.builder import Options
from estner_assets.project import Project
from estner_assets.provenance import Making, NeverMadeError, as_json, provenance
from estner_assets.resources.lineage import Partition
from estner_assets.selection import Selection

EVALUATION = Partition("evaluation", "stub", "second")


def chain(root: Path, partition: Partition) -> Making:
    return provenance(Project.open(root, "demo").warehouse, partition)


def makings(making: Making) -> dict[str, Making]:
    """Return the whole chain by partition."""
    found = {str(making.partition): making}
    for source in making.sources:
        found |= makings(source)
    return found


def test_one_query_says_what_produced_a_figure(built: Path) -> None:
    """Prompt text, model, tagger settings, corpus version and code of an evaluation, from one table function."""
    found = {
        (row["name"], row["kind"]): row
        for row in rows(
            built,
            "select name, kind, version, code_version, content ->> '$.body' as body, content ->> '$.model' as model, "
            "content ->> '$.learning_rate' as learning_rate from provenance_of('evaluation', 'stub', 'second')",
        )
    }
    assert "Answer with JSON." in found["prompt", "setting"]["body"]
    assert found["annotator", "setting"]["model"] == "stub"
    assert found["tagger", "setting"]["learning_rate"] == "0.01"
    assert (
        found["records", "asset"]["version"]
        == rows(built, "select distinct data_version from records")[0]["data_version"]
    )
    assert {"generator", "vetted_notes", "annotations", "ner_models", "predictions"} <= {name for name, _ in found}
    assert {row["code_version"] for row in found.values()} == {"1"}


def test_one_query_says_which_cells_used_a_version_of_a_prompt(copied: Path) -> None:
    """Old makings are found by the old text's version, and its text is still there."""
    old = rows(copied, "select version from prompts where prompt = 'second'")[0]["version"]
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    rebuild(copied)
    used = """
        select m.asset, m.annotator, m.prompt, m.is_current, v.content ->> '$.body' as body
        from declaration_versions v
        join materialization_inputs of_prompt on of_prompt.name = 'prompt' and of_prompt.version = v.version
        join materialization_inputs i on i.source_id = of_prompt.materialization_id
        join materializations m on m.materialization_id = i.materialization_id
        where v.name = 'prompt' and v.prompt = 'second' and v.version = ? and m.prompt = 'second'
    """
    found = Project.open(copied, "demo").warehouse.query(used, [old])
    assert [{name: row[name] for name in ("asset", "annotator", "prompt", "is_current")} for row in found] == [
        {"asset": "annotations", "annotator": "stub", "prompt": "second", "is_current": False}
    ]
    assert "Answer with JSON." in found[0]["body"]


def test_one_query_says_what_changed_between_two_leaderboards(copied: Path) -> None:
    """The scores that moved, and the declarations that differ; both leaderboards stay readable."""
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    edit_yaml(copied / "declarations" / "profiles" / "demo.yaml", "evaluation", "bootstrap_samples", value=60)
    rebuild(copied)
    runs = rows(copied, "select distinct run_id, materialized_at from leaderboard_history order by materialized_at")
    earlier, later = (row["run_id"] for row in runs)
    warehouse = Project.open(copied, "demo").warehouse
    changes = warehouse.query("select * from leaderboard_changes(?, ?)", [earlier, later])
    assert {(row["annotator"], row["prompt"]) for row in changes} <= {("stub", "second")}
    assert all(row["change"] == row["f1_after"] - row["f1_before"] for row in changes)
    causes = warehouse.query(
        "select distinct setting, annotator, prompt from leaderboard_causes(?, ?) order by all", [earlier, later]
    )
    assert [tuple(row.values()) for row in causes] == [("evaluation", "", ""), ("prompt", "", "second")]


def test_a_database_of_an_earlier_version_learns_its_chains(copied: Path) -> None:
    """Without source ids a chain is refused with the remedy; the next build fills them in, and makes nothing."""
    project = Project.open(copied, "demo")
    before = as_json(chain(copied, EVALUATION))
    with project.warehouse.writing() as connection:
        connection.execute("update materialization_inputs set source_id = null")
        connection.execute("update warehouse_schema set version = 'earlier' where name = '(all)'")
    with pytest.raises(NeverMadeError, match="run `estner build` once"):
        chain(copied, EVALUATION)
    assert rebuild(copied).built == []
    assert as_json(chain(copied, EVALUATION)) == before


def test_two_makings_of_one_partition_are_told_apart(copied: Path) -> None:
    """Cells of two corpora behind one leaderboard: both records stand in its chain, each with its own file."""
    change_records(copied)
    assert rebuild(copied, Options(selection=Selection(prompt="second"))).failed == {}
    nested = str(as_json(chain(copied, Partition("leaderboard"))))
    versions = rows(
        copied,
        "select version from ancestry((select materialization_id from materializations "
        "where is_current and asset = 'leaderboard')) where kind = 'asset' and name = 'records'",
    )
    assert len({row["version"] for row in versions}) == 2
    assert [nested.count(f"'asset': 'records', 'data_version': '{row['version']}', 'code") for row in versions] == [
        1,
        1,
    ]


def test_a_chain_names_the_making_that_was_read(copied: Path) -> None:
    """Two prompts with equal answers: an evaluation that early cutoff left alone keeps the prompt that it came from."""
    edit_prompt(copied, "second", "Answer with one JSON object.")
    rebuild(copied)
    texts = {
        name: makings(chain(copied, partition))["prompts[second]"].settings[0][2]["body"]
        for name, partition in (
            ("evaluation", EVALUATION),
            ("annotations", Partition("annotations", "stub", "second")),
        )
    }
    assert "Answer with JSON." in texts["evaluation"]
    assert "Answer with one JSON object." in texts["annotations"]


def test_a_chain_holds_every_input_and_setting(built: Path) -> None:
    """The chain has each making once as an object, with its settings and their contents, and reads as JSON."""
    found = chain(built, EVALUATION)
    assert [str(source.partition) for source in found.sources] == [
        "gold_documents",
        "gold_spans",
        "predictions[stub/second]",
    ]
    everything = makings(found)
    assert everything["annotations[stub/second]"].sources[-1] is everything["vetted_notes"]
    assert {name for name, _, _ in everything["ner_models[stub/second]"].settings} == {"entity_names", "tagger"}
    nested = as_json(found)
    assert (nested["asset"], nested["made_from"][2]["made_from"][1]["asset"]) == (
        "evaluation[stub/second]",
        "ner_models[stub/second]",
    )


def test_what_was_never_made_has_no_chain(built: Path) -> None:
    """The message names what there is."""
    with pytest.raises(NeverMadeError) as caught:
        chain(built, Partition("evaluation", "stub", "third"))
    assert str(caught.value) == (
        "evaluation[stub/third] was never made; there are evaluation[lexicon/none], evaluation[stub/second], "
        "evaluation[stub/zero_shot]"
    )
