"""Laws of the response store."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from estner_assets.llm.requests import Response
from estner_assets.llm.store import ResponseStore, StoreError
from estner_assets.ner.parsing import AnswerStatus


def response(key: str, text: str = "{}") -> Response:
    return Response(
        key,
        AnswerStatus.ANNOTATED,
        text,
        "",
        "stop",
        "fake-1 fp_7",
        10,
        5,
        0.25,
        "2026-01-01T00:00:00.000+00:00",
    )


def test_a_response_comes_back_whole(store: ResponseStore) -> None:
    """What is put is got, also in a new process, with the server's body to the letter."""
    full = response("k1", "tekst\x00 äöü \u2028")
    store.put(full, '{"choices": []}')
    with ResponseStore(store.path) as again:
        assert again.get_many(["k1", "k2", "k1"]) == {"k1": full}
        assert (again.raw_body("k1"), again.raw_body("k2")) == ('{"choices": []}', None)


def test_a_lone_surrogate_does_not_lose_the_answer(store: ResponseStore) -> None:
    """Text that UTF-8 cannot hold is stored with a replacement."""
    store.put(response("k", "a\ud83d"), "b\ud83d")
    assert (store.get_many(["k"])["k"].text, store.raw_body("k")) == ("a?", "b?")


def test_only_final_responses_are_stored(store: ResponseStore) -> None:
    """A failure is not kept, for it would stop the next try."""
    with pytest.raises(ValueError, match="failed is not final"):
        store.put(Response("k", AnswerStatus.FAILED), "")
    assert store.get_many(["k"]) == {}


def test_many_keys_are_looked_up_at_once(store: ResponseStore) -> None:
    """The number of keys has no limit."""
    for number in range(0, 1200, 400):
        store.put(response(str(number)), "")
    assert sorted(store.get_many(map(str, range(1201)))) == ["0", "400", "800"]


def test_one_owner_at_a_time(store: ResponseStore) -> None:
    """A claimed key is refused to others until its owner releases it, and to them only."""
    with ResponseStore(store.path) as other:
        assert [store.claim("k", "a"), store.claim("k", "a"), other.claim("k", "b")] == [True, True, False]
        other.release("k", "b")
        assert other.claim("k", "b") is False
        store.release("k", "a")
        assert [other.claim("k", "b"), store.claim("k", "a")] == [True, False]


def test_the_claims_of_a_dead_process_are_free(store: ResponseStore) -> None:
    """A process that is killed leaves no claim behind."""
    code = (
        "import sys, time; from pathlib import Path; from estner_assets.llm.store import ResponseStore;"
        "store = ResponseStore(Path(sys.argv[1]));"
        "print(store.claim('k', 'doomed'), flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(store.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert (process.stdout.readline(), store.claim("k", "heir")) == ("True\n", False)
        process.kill()
        process.wait()
    assert store.claim("k", "heir") is True


def test_threads_and_connections_do_not_lose_a_row(store: ResponseStore) -> None:
    """Writers at the same time all get through, and of those who claim one key exactly one gets it."""
    winners = []

    def work(number: int) -> None:
        with ResponseStore(store.path) as own:
            if own.claim("shared", f"owner-{number}"):
                winners.append(number)
            for row in range(5):
                own.put(response(f"{number}-{row}"), "")
            start.wait()

    start = threading.Barrier(6)
    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    keys = [f"{number}-{row}" for number in range(6) for row in range(5)]
    assert (len(store.get_many(keys)), len(winners)) == (30, 1)


def test_another_file_is_refused(tmp_path: Path) -> None:
    """A file that is no response store is named, not overwritten."""
    path = tmp_path / "x.sqlite3"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match=r"x\.sqlite3 is no response store .* move it away"):
        ResponseStore(path)
    assert path.read_bytes() == b"not a database" * 100
