"""Other annotation packages on the same task; runs in the package's own environment and prints a JSON line.

``python annotate_peer_runs.py PEER ADDRESS CALLS CONCURRENCY``: each note is one call. Time and CPU time (of child
processes, too) are taken from the first note handed over to the last answer, without imports.
"""

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TASK = "Find all drugs and procedures in the clinical note and answer with JSON only. " * 8
NOTE = "Patsient tuleb korduvale vastuvõtule. Kodus võtab Concor COR 5 mg. Tehti EKG, kaebusi ei ole. " * 8


def notes(count: int) -> list[str]:
    """Return so many different notes."""
    return [f"{index}: {NOTE}" for index in range(count)]


def _byte_encoding() -> None:
    """Give tiktoken an encoding of single bytes, for where it cannot download its own: only counts differ."""
    import tiktoken

    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("bytes", pat_str=r"(?s).", mergeable_ranks=ranks, special_tokens={})
    for name in ("get_encoding", "encoding_for_model"):
        setattr(tiktoken, name, lambda *_: encoding)


def langextract(address: str, calls: int, concurrency: int) -> Any:
    """``extract`` with a thread per call; its documents are held in memory, nothing is stored."""
    import langextract as lx
    from langextract.providers.openai import OpenAILanguageModel

    # `extract` makes an OpenAI client for model ids that it knows only
    model = OpenAILanguageModel("gpt-4o-mini", api_key="none", base_url=address, max_workers=concurrency)
    example = lx.data.ExampleData(text="Võtab Enapi.", extractions=[lx.data.Extraction("drug", "Enapi")])
    documents = [lx.data.Document(text=text, document_id=str(index)) for index, text in enumerate(notes(calls))]

    def run() -> int:
        found = lx.extract(
            documents,
            prompt_description=TASK,
            examples=[example],
            model=model,
            max_char_buffer=5000,
            batch_length=calls,
            max_workers=concurrency,
            show_progress=False,
        )
        return sum(bool(document.extractions) for document in found)

    return run


def curator(address: str, calls: int, concurrency: int) -> Any:
    """``LLM`` with its online processor: answers go to files and a cache below a folder."""
    folder = tempfile.mkdtemp(prefix="curator-", dir=os.environ.get("TMPDIR"))
    os.environ |= {"TELEMETRY_ENABLED": "0", "OPENAI_API_KEY": "none", "CURATOR_DISABLE_RICH_DISPLAY": "1"}
    from bespokelabs import curator as package

    _byte_encoding()

    class Annotator(package.LLM):  # type: ignore[misc, name-defined]
        def prompt(self, row: dict[str, str]) -> str:
            return f"{TASK}\n{row['text']}"

        def parse(self, row: dict[str, str], answer: str) -> dict[str, str]:
            return {"answer": answer}

    limits = {"max_requests_per_minute": 10**6, "max_tokens_per_minute": 10**9}
    backend = {"base_url": address, "max_concurrent_requests": concurrency, "max_retries": 1, **limits}
    annotator = Annotator(model_name="gpt-4o-mini", backend="openai", backend_params=backend)

    def run() -> int:
        found = annotator([{"text": text} for text in notes(calls)], working_dir=folder)
        rows = getattr(found, "dataset", found)
        return sum(bool(row["answer"]) for row in rows)

    return run


def autolabel(address: str, calls: int, concurrency: int) -> Any:
    """``LabelingAgent.run``: one call after the other, in chunks; ``concurrency`` cannot be set."""
    folder = Path(tempfile.mkdtemp(prefix="autolabel-", dir=os.environ.get("TMPDIR")))
    os.chdir(folder)
    os.environ |= {"OPENAI_API_KEY": "none", "OPENAI_API_BASE": address}
    import pandas
    from autolabel import AutolabelDataset, LabelingAgent

    _byte_encoding()

    config = {
        "task_name": "Bench",
        "task_type": "named_entity_recognition",
        "dataset": {"label_column": "label", "text_column": "text", "delimiter": ","},
        "model": {"provider": "openai", "name": "gpt-3.5-turbo"},
        "prompt": {
            "task_guidelines": TASK,
            "labels": ["drug", "procedure"],
            "example_template": "Note: {text}\nOutput: {label}",
        },
    }
    agent = LabelingAgent(config=config, cache=False)
    frame = pandas.DataFrame({"text": notes(calls), "label": ["{}"] * calls})

    def run() -> int:
        labelled = agent.run(AutolabelDataset(frame, config), skip_eval=True)
        return int(labelled.df["label_successfully_labeled"].sum())

    return run


def spacy_llm(address: str, calls: int, concurrency: int) -> Any:
    """``nlp.pipe`` with spacy.NER.v3: one call after the other; ``concurrency`` cannot be set."""
    os.environ |= {"OPENAI_API_KEY": "none"}
    import spacy
    from spacy_llm.models.rest.openai.model import OpenAI

    # it asks api.openai.com whether the key is good, whatever the endpoint
    OpenAI._verify_auth = lambda self: None
    nlp = spacy.blank("et")
    config = {
        "task": {"@llm_tasks": "spacy.NER.v3", "labels": ["DRUG", "PROCEDURE"], "description": TASK},
        "model": {"@llm_models": "spacy.GPT-4.v3", "name": "gpt-4", "endpoint": f"{address}/chat/completions"},
    }
    nlp.add_pipe("llm", config=config)

    def run() -> int:
        return sum(bool(document.ents) for document in nlp.pipe(notes(calls)))

    return run


RUNS = {
    "langextract": langextract,
    "bespokelabs-curator": curator,
    "refuel-autolabel": autolabel,
    "spacy-llm": spacy_llm,
}


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    """Measure once."""
    peer, address, calls, concurrency = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    run = RUNS[peer](address, calls, concurrency)
    before, began = _cpu_s(), time.monotonic()
    answered = run()
    figures = {"answered": answered, "elapsed_s": time.monotonic() - began, "cpu_s": _cpu_s() - before}
    print("\n" + json.dumps(figures))


if __name__ == "__main__":
    main()
