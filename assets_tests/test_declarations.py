"""Declarations are checked all at once, and a mistake says where it stands and what is allowed."""

from pathlib import Path

import pytest
import yaml

from assets_tests.projects import PROMPT, edit_yaml, write_yaml
from estner_assets.declarations import (
    Cell,
    DeclarationError,
    UnknownCellError,
    declarations_folder,
    load,
    project_root,
)
from estner_assets.settings import BudgetSettings, Price, Profile
from estner_assets.versions import prompt_content, setting

ENTITIES = {
    "DRUG": {"definition": "A name of a medicine.", "positive": ["Enap"], "negative": ["ravim"]},
    "PROCEDURE": {"definition": "A name of a procedure.", "positive": ["EKG"], "negative": ["uuring"]},
}


def problems(root: Path, profile: str = "demo") -> list[str]:
    with pytest.raises(DeclarationError) as caught:
        load(root, profile)
    return [str(problem) for problem in caught.value.problems]


def test_the_shipped_declarations_are_right() -> None:
    """The demo's load; the paper's profile has the published sizes and lacks nothing but private files."""
    demo = load(project_root(), "demo")
    path = declarations_folder(project_root()) / "profiles" / "paper.yaml"
    paper = Profile.model_validate({"key": "paper", **yaml.safe_load(path.read_text(encoding="utf-8"))})
    assert [line for line in problems(project_root(), "paper") if "there is no file data/private/" not in line] == []
    assert demo.labels == ("DRUG", "PROCEDURE")
    assert [entity.name for entity in demo.entities if not entity.enabled] == ["FAMILY"]
    generator, tagger = paper.generator, paper.tagger
    assert (generator.layers, generator.heads, generator.width) == (12, 12, 768)
    assert (tagger.model, tagger.epochs, tagger.learning_rate, tagger.batch_size, tagger.weight_decay) == (
        "xlm-roberta-base",
        8,
        2e-5,
        16,
        0.01,
    )
    assert paper.annotation.annotators == ["gpt-3.5-turbo", "gpt-4", "local-vllm", "consensus"]


def test_all_mistakes_are_found_at_once(root: Path) -> None:
    """One check names every mistake, with file and key."""
    declarations = root / "declarations"
    edit_yaml(declarations / "profiles" / "demo.yaml", "tagger", "epochs", value=0)
    edit_yaml(declarations / "profiles" / "demo.yaml", "tagger", "epoch", value=3)
    edit_yaml(declarations / "annotators.yaml", "lexicon", "prompts", value=["zero_shot"])
    edit_yaml(declarations / "annotators.yaml", "gpt", "prompts", value=["zero_shoot"])
    edit_yaml(declarations / "annotators.yaml", "reference", "spans", value="data/nowhere.jsonl")
    edit_yaml(declarations / "entities.yaml", "DRUG", "positive", value=[])
    (declarations / "prompts" / "broken.md").write_text(PROMPT.replace("{{ note }}", "{{ notes }}"))
    found = problems(root)
    expected = [
        ("entities.yaml", "DRUG.positive"),
        ("profiles/demo.yaml", "tagger.epochs"),
        ("profiles/demo.yaml", "tagger.epoch: unknown key"),
        ("prompts/broken.md", "notes"),
        ("annotators.yaml", "lexicon.prompts: unknown prompt 'zero_shot'; allowed: none"),
        ("annotators.yaml", "gpt.prompts: unknown prompt 'zero_shoot'; allowed: broken, zero_shot"),
        ("annotators.yaml", "reference.spans: there is no file data/nowhere.jsonl"),
    ]
    missing = [pair for pair in expected if not any(pair[0] in line and pair[1] in line for line in found)]
    assert missing == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("annotators.yaml", "lexicon: [", "annotators.yaml: is not valid YAML"),
        ("annotators.yaml", "lexicon:\n  kind: x\nlexicon:\n  kind: y\n", "key 'lexicon' twice"),
        ("annotators.yaml", "lexicon: 3\n", "lexicon: must be a mapping of settings"),
        ("annotators.yaml", "- a\n- b\n", "must be a YAML mapping"),
        ("annotators.yaml", "", "must be a YAML mapping"),
        ("entities.yaml", "? [a]\n: 1\n", "a key must be plain text"),
        ("prompts/zero_shot.md", "no front matter", "must start with YAML front matter"),
        ("prompts/zero_shot.md", PROMPT.replace("{{ note }}", "{% if %}"), "prompts/zero_shot.md: body"),
        ("prompts/zero_shot.md", PROMPT.replace("json", "xml"), "mode"),
        ("prompts/none.md", PROMPT, "'none' is reserved"),
        (
            "prompts/zero_shot.md",
            PROMPT.replace(
                "mode: json\n", "mode: json\nexamples: [{text: Enap, mentions: [{label: RAVIM, text: X}]}]\n"
            ),
            "examples[0]: unknown entity 'RAVIM'; allowed: DRUG, PROCEDURE, FAMILY",
        ),
    ],
)
def test_a_broken_file_is_named(root: Path, name: str, content: str, message: str) -> None:
    """A file that cannot be read as what it should be gives a message, never a traceback."""
    (root / "declarations" / name).write_text(content, encoding="utf-8")
    assert [line for line in problems(root) if message in line] != []


def test_bytes_that_are_no_utf_8_are_named(root: Path) -> None:
    """A declaration in another encoding says so."""
    (root / "declarations" / "entities.yaml").write_bytes("DRUG: rav\u00fcm".encode("latin-1"))
    assert any("entities.yaml: is not UTF-8 at byte 9" in line for line in problems(root))


def test_an_unknown_profile_names_the_known_ones(root: Path) -> None:
    """A profile that does not exist: the message lists those that do."""
    with pytest.raises(DeclarationError, match="there is no profile 'demoo'; known: demo"):
        load(root, "demoo")


def test_one_mistake_is_one_message(root: Path) -> None:
    """A file that cannot be read does not make others look wrong; missing data files are named."""
    (root / "declarations" / "entities.yaml").write_text("DRUG: [", encoding="utf-8")
    assert len(problems(root)) == 1
    write_yaml(root / "declarations" / "entities.yaml", ENTITIES)
    edit_yaml(root / "declarations" / "profiles" / "demo.yaml", "records", "encoding", value="latin-99")
    assert len(problems(root)) == 1
    edit_yaml(root / "declarations" / "profiles" / "demo.yaml", "records", "encoding", value="utf-8")
    (root / "data" / "gold.jsonl").unlink()
    assert [line.split(": ")[1] for line in problems(root)] == ["gold.paths"]


def test_a_cell_that_is_not_declared_names_the_valid_ones(root: Path) -> None:
    """An unknown cell fails at once."""
    with pytest.raises(
        UnknownCellError, match=r"cell lexicon/zero_shot is not declared .* lexicon/none, reference/none"
    ):
        load(root, "demo").check_cell(Cell("lexicon", "zero_shot"))


def test_only_annotators_on_this_machine_may_read_gold(root: Path) -> None:
    """`score_on_gold` for a remote LLM is a mistake."""
    edit_yaml(root / "declarations" / "annotators.yaml", "gpt", "score_on_gold", value=True)
    assert any("only an annotator on this machine may read gold notes" in line for line in problems(root))


def test_trap_20_labels_come_from_the_declarations(root: Path) -> None:
    """The label map is the entities' order, whatever the data hold."""
    assert load(root, "demo").labels == ("DRUG", "PROCEDURE")
    edit_yaml(root / "declarations" / "entities.yaml", "FAMILY", "enabled", value=True)
    assert load(root, "demo").labels == ("DRUG", "PROCEDURE", "FAMILY")


def test_a_prompt_means_what_it_says_and_not_how_it_is_laid_out(root: Path) -> None:
    """Comments, titles and white space at edges do not count; the text does."""
    path = root / "declarations" / "prompts" / "zero_shot.md"
    before = prompt_content(load(root, "demo"), "zero_shot")
    path.write_text(PROMPT.replace("title: Zero-shot", "# remark\ntitle: Other").replace("JSON.", "JSON. ") + "\n\n")
    assert prompt_content(load(root, "demo"), "zero_shot") == before
    path.write_text(PROMPT.replace("JSON.", "JSON!"))
    assert prompt_content(load(root, "demo"), "zero_shot") != before


def test_the_files_behind_a_setting_count(root: Path) -> None:
    """A change in a term list or in a file of records is a change of the setting."""
    declarations = load(root, "demo")
    before = [setting(declarations, "annotator", "lexicon"), setting(declarations, "records")]
    for name in ("terms.tsv", "records.csv"):
        with (root / "data" / name).open("a") as file:
            file.write("\n")
    after = [setting(declarations, "annotator", "lexicon"), setting(declarations, "records")]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, False]


def test_an_unknown_annotator_names_the_known_ones(root: Path) -> None:
    """A profile may only name declared annotators."""
    path = root / "declarations" / "profiles" / "demo.yaml"
    edit_yaml(path, "annotation", "annotators", value=["lexikon"])
    assert problems(root) == [
        "declarations/profiles/demo.yaml: annotation.annotators: unknown annotator 'lexikon'; "
        "allowed: lexicon, reference, gpt"
    ]


PRICE = {"input_per_million": 0.15, "output_per_million": 0.6, "currency": "USD", "as_of": "2025-06-01"}


def test_a_price_is_declared_by_model(root: Path) -> None:
    """Prices are read with their model's name; a project without the file knows no price, which is no mistake."""
    assert load(root, "demo").prices == {}
    write_yaml(root / "declarations" / "prices.yaml", {"Qwen/Qwen2.5-7B": PRICE})
    assert load(root, "demo").prices == {"Qwen/Qwen2.5-7B": Price.model_validate(PRICE)}


def test_the_shipped_prices_are_the_published_lists() -> None:
    """The models of the paper and of the demo have a price in USD per million tokens, looked up on a given day."""
    prices = load(project_root(), "demo").prices
    shown = {
        model: (f"{one.input_per_million:.2f}", f"{one.output_per_million:.2f}", one.currency, str(one.as_of))
        for model, one in prices.items()
    }
    assert shown == {
        "gpt-3.5-turbo": ("0.50", "1.50", "USD", "2025-06-01"),
        "gpt-4": ("30.00", "60.00", "USD", "2025-06-01"),
        "gpt-4o-mini": ("0.15", "0.60", "USD", "2025-06-01"),
        "gpt-4o": ("2.50", "10.00", "USD", "2025-06-01"),
    }


def test_mistakes_in_prices_and_budgets_are_named(root: Path) -> None:
    """A price without a currency, a misspelt `free` and a limit without a currency say where they stand."""
    write_yaml(root / "declarations" / "prices.yaml", {"gpt-test": {**PRICE, "currency": ""}, "gpt": 3})
    edit_yaml(root / "declarations" / "annotators.yaml", "gpt", "price", value="fre")
    edit_yaml(root / "declarations" / "profiles" / "demo.yaml", "budget", value={"max_cost_per_day": 5})
    starts = [
        "declarations/annotators.yaml: gpt.openai.price: Input should be a valid dictionary or instance of Price",
        "declarations/profiles/demo.yaml: budget: Value error, a limit needs `currency`, such as USD",
        "declarations/prices.yaml: gpt-test: Value error, a price needs `currency` (such as USD) and `as_of`",
        "declarations/prices.yaml: gpt: must be a mapping of settings",
    ]
    found = problems(root)
    assert [line[: len(start)] for line, start in zip(found, starts, strict=True)] == starts


def test_money_changes_no_answer(root: Path) -> None:
    """A new price or budget moves the version of nothing."""
    names = (("annotator", "gpt"), ("annotation", Cell("gpt", "zero_shot")), ("report", None))
    before = [setting(load(root, "demo"), *name) for name in names]
    write_yaml(root / "declarations" / "prices.yaml", {"gpt-test": PRICE})
    edit_yaml(root / "declarations" / "annotators.yaml", "gpt", "price", value=PRICE)
    edit_yaml(
        root / "declarations" / "profiles" / "demo.yaml", "budget", value={"currency": "USD", "max_cost_per_day": 5}
    )
    after = load(root, "demo")
    assert after.annotators["gpt"].price == Price.model_validate(PRICE)  # type: ignore[union-attr]
    assert after.profile.budget == BudgetSettings.model_validate({"currency": "USD", "max_cost_per_day": 5})
    assert [setting(after, *name) for name in names] == before
