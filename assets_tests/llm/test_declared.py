"""Laws of the prompts and annotators that come with the package."""

from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter

import estner_assets
from estner_assets.llm.questions import Note, Questions
from estner_assets.settings import NO_PROMPT, Annotator, Entity, LlmAnnotator, Prompt

FOLDER = Path(estner_assets.__file__).parent / "declarations"
ADAPTER: TypeAdapter[Annotator] = TypeAdapter(Annotator)


def read(name: str) -> dict[str, dict[str, object]]:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def prompt(path: Path) -> Prompt:
    _, front_matter, body = path.read_text(encoding="utf-8").split("---\n", 2)
    return Prompt.model_validate({"key": path.stem, "body": body, **yaml.safe_load(front_matter)})


ENTITIES = [Entity.model_validate({"name": key, **body}) for key, body in read("entities.yaml").items()]
ANNOTATORS = [ADAPTER.validate_python({"key": key, **body}) for key, body in read("annotators.yaml").items()]
PROMPTS = {path.stem: prompt(path) for path in sorted((FOLDER / "prompts").glob("*.md"))}
CELLS = [
    (annotator, PROMPTS[key])
    for annotator in ANNOTATORS
    for key in annotator.prompts
    if isinstance(annotator, LlmAnnotator) and key != NO_PROMPT
]


@pytest.mark.parametrize(("annotator", "prompt"), CELLS, ids=lambda value: value.key)
def test_every_declared_cell_renders(annotator: LlmAnnotator, prompt: Prompt) -> None:
    """Each cell's prompt becomes messages that end with the user's question about the very note or word."""
    enabled = [entity for entity in ENTITIES if entity.enabled]
    questions = Questions([Note("1", "Kodus võtab Nebiletti.")], annotator, prompt, enabled)
    last = [request.messages[-1] for request in questions]
    words = ["Kodus", "võtab", "Nebiletti"] if prompt.mode == "tag_words" else ["Kodus võtab Nebiletti."]
    assert [message.role for message in last] == ["user"] * len(words)
    assert [word in message.content for word, message in zip(words, last, strict=True)] == [True] * len(words)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=lambda value: value.key)
def test_the_mentions_of_examples_stand_in_their_texts(prompt: Prompt) -> None:
    """A few-shot example answers with what its text says, in the text's order for each label."""
    for example in prompt.examples:
        for label in {mention.label for mention in example.mentions}:
            position = 0
            for mention in example.mentions:
                if mention.label == label:
                    position = example.text.index(mention.text, position) + len(mention.text)
