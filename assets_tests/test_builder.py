"""A build makes exactly what is out of date, on a real instance, a real DuckDB and a real HTTP server."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from assets_tests.builds import (
    CELL_ASSETS,
    FINAL_ASSETS,
    URL,
    change_records,
    edit_prompt,
    of_cell,
    rebuild,
    remade,
    rows,
    versions,
)
from assets_tests.llm.fake_openai import FakeOpenAI
from assets_tests.projects import PROMPT, edit_yaml
from estner_assets.graph import NODES
from estner_assets.planner import Planner
from estner_assets.project import Project
from estner_assets.resources.lineage import Partition


def test_a_build_fills_every_table(built: Path) -> None:
    """After a build every declared table has rows, and every row of a cell carries its provenance."""
    project = Project.open(built, "demo")
    counts = {name: rows(built, f"select count(*) as n from {name}")[0]["n"] for name in project.declarations.tables}
    assert [name for name, count in counts.items() if not count] == ["consensus"]  # of which none is declared
    for name, table in project.declarations.tables.items():
        if table.partitions == "cell":
            loose = rows(
                built,
                f"select * from {name} t anti join materializations m on m.is_current and m.asset = '{name}' "
                "and m.annotator = t.annotator and m.prompt = t.prompt "
                "and m.run_id = t.run_id and m.data_version = t.data_version",
            )
            assert loose == []


def test_a_cell_without_a_key_is_shown_as_not_configured(built: Path) -> None:
    """It stands on the leaderboard with what is missing, is never failed, and has no row anywhere else."""
    found = rows(built, "select distinct status, remark, f1 from leaderboard where annotator = 'gpt'")
    assert found == [
        {
            "status": "not_configured",
            "remark": "not configured: set the environment variable ESTNER_TEST_UNSET_KEY",
            "f1": None,
        }
    ]
    assert rows(built, "select * from annotations where annotator = 'gpt'") == []


def test_nothing_changed_makes_nothing(copied: Path, server: FakeOpenAI) -> None:
    """A second build makes nothing, sends nothing, and changes no row."""
    before = versions(copied)
    assert remade(copied) == set()
    assert (versions(copied), server.questions) == (before, [])


def test_one_prompt_edited_remakes_its_cells_alone(copied: Path, server: FakeOpenAI) -> None:
    """Exactly the prompt's cells and the final tables are remade; all others keep version and run."""
    before = versions(copied)
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    cell = of_cell(CELL_ASSETS, "stub/second")
    assert remade(copied) == {"prompts[second]"} | cell | FINAL_ASSETS
    after = versions(copied)
    moved = {str(partition) for partition in after if after[partition] != before[partition]}
    assert moved == {"prompts[second]"} | cell | FINAL_ASSETS
    assert {note["messages"][-1]["content"].split("\n")[0] for note in server.questions} == {
        "Find mentions of DRUG, PROCEDURE. List drugs alone, as JSON."
    }
    assert len(server.questions) == 30


def test_an_edit_that_grounds_to_the_same_spans_stops_at_the_annotations(copied: Path) -> None:
    """Early cutoff: the annotations are made again, come out the same, and nothing after them is touched."""
    edit_prompt(copied, "second", "Answer with one JSON object.")
    assert remade(copied) == {"prompts[second]", "annotations[stub/second]"}


def test_comments_and_layout_make_nothing_stale(copied: Path) -> None:
    """Comments, key order, titles and white space in declarations are no change."""
    prompt = copied / "declarations" / "prompts" / "second.md"
    text = prompt.read_text(encoding="utf-8")
    text = text.replace("title: Zero-shot\nlanguage: en\n", "# a remark\nlanguage: en\ntitle: Another title\n")
    prompt.write_text(text.replace("JSON.\n", "JSON.  \n") + "\n\n", encoding="utf-8")
    for name in ("annotators.yaml", "profiles/demo.yaml", "entities.yaml"):
        path = copied / "declarations" / name
        path.write_text("# a remark\n\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert remade(copied) == set()


def test_there_and_back_again_asks_nothing(copied: Path, server: FakeOpenAI) -> None:
    """A → B → A ends in sync, with the first result, from stored answers."""
    before = {partition: version for partition, (version, _) in versions(copied).items()}
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    rebuild(copied)
    server.questions.clear()
    (copied / "declarations" / "prompts" / "second.md").write_text(PROMPT, encoding="utf-8")
    assert "annotations[stub/second]" in remade(copied)
    after = {partition: version for partition, (version, _) in versions(copied).items()}
    assert {str(one) for one in after if after[one] != before[one]} <= {"report"}
    assert server.questions == []


def test_settings_reach_only_what_uses_them(copied: Path, server: FakeOpenAI) -> None:
    """The tagger's learning rate reaches models and curves: no generator, no LLM call."""
    edit_yaml(copied / "declarations" / "profiles" / "demo.yaml", "tagger", "learning_rate", value=1e-3)
    assets = {partition.partition("[")[0] for partition in remade(copied)}
    assert {"ner_models", "learning_curves"} <= assets
    assert assets <= {"ner_models", "predictions", "evaluation", "learning_curves"} | FINAL_ASSETS
    assert server.questions == []


def test_other_records_reach_everything_and_answers_stay(copied: Path, server: FakeOpenAI) -> None:
    """All that is made from records is remade; only texts without an answer are asked about; back again, none is."""
    texts = "select distinct v.text from annotations a join vetted_notes v using (note_id) where a.annotator = 'stub'"
    answered = {row["text"] for row in rows(copied, texts)}
    original = (copied / "data" / "records.csv").read_text(encoding="utf-8")
    change_records(copied)
    assets = {one.partition("[")[0] for one in remade(copied)}
    untouched = {"prompts", "annotators", "gold_documents", "gold_spans", "consensus"}
    assert assets == set(NODES) - untouched
    asked = {row["text"] for row in rows(copied, texts)} - answered
    assert (len(server.questions), bool(asked)) == (len(asked), True)
    server.questions.clear()
    (copied / "data" / "records.csv").write_text(original, encoding="utf-8")
    remade(copied)
    assert server.questions == []


def test_an_entity_definition_reaches_llm_annotations_alone(copied: Path) -> None:
    """Another wording of a definition: LLM cells are asked again, the generator and rules are not touched."""
    edit_yaml(copied / "declarations" / "entities.yaml", "DRUG", "definition", value="Names of medicines only.")
    assert remade(copied) == {"annotations[stub/zero_shot]", "annotations[stub/second]"}


def test_a_failing_cell_holds_back_only_itself(copied: Path) -> None:
    """A cell that cannot be made fails with its reason; the others and the final tables are made."""
    (copied / "data" / "terms.tsv").write_text("label\tterm\nDRUG\n", encoding="utf-8")
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    outcome = rebuild(copied)
    assert [str(partition) for partition in outcome.failed] == ["annotations[lexicon/none]"]
    assert "terms.tsv" in next(iter(outcome.failed.values()))
    assert of_cell(CELL_ASSETS, "stub/second") | FINAL_ASSETS <= {str(partition) for partition in outcome.built}


def test_a_cell_without_answers_fails_and_keeps_what_it_had(
    copied: Path, server: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the server is down the cell fails and its last annotations stand; once it is back they are made."""
    before = versions(copied)[Partition("annotations", "stub", "second")]
    edit_yaml(copied / "declarations" / "annotators.yaml", "stub", "retries", value=0)
    edit_prompt(copied, "second", "List drugs alone, as JSON.")
    with monkeypatch.context() as patch:
        patch.setenv(URL, "http://127.0.0.1:9/v1")
        outcome = rebuild(copied)
    failure = outcome.failed[Partition("annotations", "stub", "second")]
    assert failure.startswith("EndpointError: no connection to 127.0.0.1")
    assert versions(copied)[Partition("annotations", "stub", "second")] == before
    assert server.questions == []
    assert "annotations[stub/second]" in remade(copied)
    assert len(server.questions) == 30


def test_a_renamed_prompt_is_a_new_cell_and_the_old_one_is_gone(copied: Path, server: FakeOpenAI) -> None:
    """The leaderboard shows declared cells alone; the old cell's making stays in the lineage; nothing is asked."""
    prompts = copied / "declarations" / "prompts"
    (prompts / "second.md").rename(prompts / "third.md")
    edit_yaml(copied / "declarations" / "annotators.yaml", "stub", "prompts", value=["zero_shot", "third"])
    assert of_cell(CELL_ASSETS, "stub/third") | {"leaderboard"} <= remade(copied)
    found = rows(copied, "select distinct prompt from leaderboard where annotator = 'stub' order by 1")
    assert [row["prompt"] for row in found] == ["third", "zero_shot"]
    assert rows(copied, "select count(*) as n from lineage where prompt = 'second' and asset = 'evaluation'") == [
        {"n": 1}
    ]
    assert server.questions == []


def test_a_deleted_model_is_made_again(copied: Path) -> None:
    """Without its files a model counts as missing; trained again it is the same, and nothing after it is stale."""
    folder = rows(copied, "select folder from ner_models where annotator = 'lexicon'")[0]["folder"]
    shutil.rmtree(copied / folder)
    assert remade(copied) == {"ner_models[lexicon/none]"}
    assert (copied / folder).is_dir()
    assert remade(copied) == set()


def test_trap_4_what_was_judged_is_what_is_annotated(built: Path) -> None:
    """One stored text, known by its hash, from sampling through the verdict to the annotation."""
    broken = rows(
        built,
        """
        select s.note_id from synthetic_notes s
        join vetted_notes v using (note_id)
        left join originality o on o.note_id = s.note_id and o.decision = 'kept'
        left join annotations a on a.note_id = s.note_id
        where v.text <> s.text or v.text_sha256 <> sha256(s.text) or o.note_id is null
            or coalesce(a.text_sha256, v.text_sha256) <> v.text_sha256
        """,
    )
    kept = rows(built, "select count(*) as n from originality where decision = 'kept'")
    assert (broken, rows(built, "select count(*) as n from vetted_notes")) == ([], kept)


def test_bad_records_leave_the_last_good_tables(copied: Path) -> None:
    """A broken file of records: a clear error with its line, and every table as it was."""
    before = versions(copied)
    with (copied / "data" / "records.csv").open("a", encoding="utf-8") as file:
        file.write("r000,p1,2020-01-01,anamnees,6,mees,J18,tekst\n")
    outcome = rebuild(copied)
    assert list(outcome.failed.values()) == [
        f"{copied}/data/records.csv, line 162: record_id 'r000' stands already in records.csv, line 2"
    ]
    assert versions(copied) == before


def test_the_lineage_of_a_figure_is_one_query(copied: Path) -> None:
    """From an F1 back to the prompt's text, in DuckDB alone."""
    found = rows(
        copied,
        """
        with recursive chain as (
            select asset, annotator, prompt, data_version, inputs from lineage
            where is_current and asset = 'evaluation' and annotator = 'stub' and prompt = 'second'
            union
            select l.asset, l.annotator, l.prompt, l.data_version, l.inputs
            from chain c, unnest(c.inputs) as t(i)
            join lineage l on l.asset = i.name and l.annotator = i.annotator and l.prompt = i.prompt
                and l.data_version = i.version and i.kind = 'asset'
        )
        select json_extract_string(v.content, '$.body') as body
        from chain c, unnest(c.inputs) as t(i) join declaration_versions v
            on v.name = i.name and v.annotator = i.annotator and v.prompt = i.prompt and v.version = i.version
        where c.asset = 'prompts' and i.name = 'prompt'
        """,
    )
    assert [row["body"].split("\n")[1] for row in found] == [
        'Find mentions of {{ labels | join(", ") }}. Answer with JSON.'
    ]


BUILD = """
import sys
from pathlib import Path
from assets_tests.builds import rebuild
rebuild(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("after_s", [4.0, 9.0])
def test_a_killed_build_goes_on_to_the_same_end(copied: Path, undisturbed: Path, after_s: float) -> None:
    """Kill −9 while everything is made from new records; the next build ends where an undisturbed one does."""
    change_records(copied)
    process = subprocess.Popen([sys.executable, "-c", BUILD, str(copied)], cwd=Path(__file__).parent.parent)
    time.sleep(after_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert rebuild(copied).failed == {}
    ended, expected = versions(copied), versions(undisturbed)
    lasting = [one for one in expected if one.asset != "report"]
    assert {one: ended[one][0] for one in lasting} == {one: expected[one][0] for one in lasting}
    project = Project.open(copied, "demo")
    assert Planner(project.declarations).plan(project.warehouse).steps == ()
