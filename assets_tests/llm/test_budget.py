"""Laws of the ledger: no limit is exceeded, nothing is forgotten, sums are exact."""

import multiprocessing
import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from assets_tests.llm.conftest import annotator, request
from estner_assets.llm.budget import (
    Account,
    BudgetError,
    Ledger,
    LedgerError,
    OverBudget,
    Spending,
    budget_of,
)
from estner_assets.llm.prices import micros, worst_case
from estner_assets.llm.requests import Response
from estner_assets.ner.parsing import AnswerStatus
from estner_assets.settings import BudgetSettings, Price

PRICE = Price.model_validate(
    {"input_per_million": 0.15, "output_per_million": 0.6, "currency": "USD", "as_of": "2025-06-01"}
)
SETTINGS = BudgetSettings.model_validate({"currency": "USD", "max_cost_per_cell": 0.01})


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "spending.sqlite") as ledger:
        yield ledger


def account(cell: str = "a/p", build_id: str = "b1", currency: str = "USD", /, **limits: int) -> Account:
    return Account(build_id, cell, currency, limits)


def total(ledger: Ledger, build_id: str | None = None, cell: str | None = None, day: date | None = None) -> Decimal:
    """Return the cost of the one currency that was spent, in millionths; zero where nothing was."""
    return sum((one.cost or Decimal(0) for one in ledger.spent(build_id=build_id, cell=cell, day=day)), Decimal(0))


def millionths(amount: int) -> Decimal:
    return Decimal(amount).scaleb(-6)


# --- limits -----------------------------------------------------------------------------------------


def test_a_limit_is_reached_and_not_exceeded(ledger: Ledger) -> None:
    """The last millionth may be spent, one more may not; what is refused is not counted."""
    payer = account(build=100)
    verdicts = [ledger.reserve(payer, key, amount) for key, amount in [("a", 60), ("b", 41), ("c", 40), ("d", 1)]]
    assert verdicts == [None, OverBudget("build", 100, 60, 41, "USD"), None, OverBudget("build", 100, 100, 1, "USD")]
    assert ledger.spent() == [Spending("USD", 2, millionths(100), 2, millionths(100))]


def test_every_limit_counts_its_own_scope(ledger: Ledger) -> None:
    """A cell's limit counts the cell within this build, a build's the build, a day's all builds."""
    asked = [
        (account("a/p", "b1", cell=10), 10, None),
        (account("a/p", "b1", cell=10), 1, "cell"),
        (account("a/q", "b1", cell=10), 10, None),
        (account("a/p", "b2", cell=10), 10, None),
        (account("a/r", "b1", build=25), 6, "build"),
        (account("a/r", "b1", build=25), 5, None),
        (account("a/r", "b3", build=25, day=35), 1, "day"),
        (account("a/r", "b3", "EUR", day=35), 35, None),
    ]
    verdicts = [ledger.reserve(payer, str(number), amount) for number, (payer, amount, _) in enumerate(asked)]
    assert [verdict and verdict.scope for verdict in verdicts] == [scope for _, _, scope in asked]


def test_reserving_many_is_reserving_one_after_the_other(tmp_path: Path) -> None:
    """A group gets the same verdicts, and leaves the same sums, as its members one by one."""
    rng = random.Random(3)
    groups = [[(f"{group}-{one}", rng.randint(1, 60)) for one in range(7)] for group in range(6)]
    payer = account(cell=900, build=800, day=1000)
    with Ledger(tmp_path / "one.sqlite") as one, Ledger(tmp_path / "many.sqlite") as many:
        singly = [[one.reserve(payer, key, amount) for key, amount in group] for group in groups]
        assert [many.reserve_many(payer, group) for group in groups] == singly
        assert many.spent() == one.spent()
        assert len({verdict is None for group in singly for verdict in group}) == 2


def test_a_day_is_a_day_in_utc(tmp_path: Path) -> None:
    """The limit starts anew at midnight UTC, wherever the clock stands; a late settlement counts on its own day."""
    tallinn = timezone(timedelta(hours=3))
    times = iter(
        [
            datetime(2025, 6, 2, 1, 0, tzinfo=tallinn),
            datetime(2025, 6, 2, 2, 59, 59, tzinfo=tallinn),
            datetime(2025, 6, 2, 3, 0, tzinfo=tallinn),
        ]
    )
    payer = account(day=10)
    with Ledger(tmp_path / "spending.sqlite", clock=lambda: next(times)) as ledger:
        verdicts = [ledger.reserve(payer, key, 6) for key in "abc"]
        ledger.settle("a", 2)
        days = [total(ledger, day=day) for day in (date(2025, 6, 1), date(2025, 6, 2))]
    assert verdicts == [None, OverBudget("day", 10, 6, 6, "USD"), None]
    assert days == [millionths(2), millionths(6)]


def test_a_refusal_says_what_to_do(ledger: Ledger) -> None:
    """The message names the limit, what is counted, what was wanted, and where to raise it."""
    ledger.reserve(account(day=5_000_000), "a", 4_980_000)
    assert str(ledger.reserve(account(day=5_000_000), "b", 30_001)) == (
        "not asked: max_cost_per_day is 5.000000 USD, 4.980000 USD are spent or reserved, and this request may cost "
        "0.030001 USD; raise the limit in the profile's `budget` to go on"
    )


# --- what reservations become -----------------------------------------------------------------------


def test_a_settled_reservation_counts_what_it_came_to(ledger: Ledger) -> None:
    """Less than the worst case makes room, more is counted in full, and a release leaves nothing."""
    payer = account(build=100)
    ledger.reserve_many(payer, [("less", 50), ("more", 30), ("kept", 5), ("released", 15)])
    assert ledger.reserve(payer, "more room", 1) is not None
    ledger.settle_many({"less": 10, "more": 33, "kept": None})
    ledger.release("released")
    assert ledger.spent() == [Spending("USD", 3, millionths(48), 0, millionths(0))]
    assert [ledger.reserve(payer, "rest", 53), ledger.reserve(payer, "rest", 52)] == [
        OverBudget("build", 100, 48, 53, "USD"),
        None,
    ]


def test_another_try_leaves_the_first_counted(ledger: Ledger) -> None:
    """A try that timed out may have been charged: only the newest try is settled or released."""
    payer = account()
    for amount in (10, 20, 30):
        ledger.reserve(payer, "k", amount)
    ledger.release("k")
    ledger.settle("k", 4)
    assert ledger.spent() == [Spending("USD", 2, millionths(14), 1, millionths(10))]
    assert str(ledger.spent()[0]) == "0.000014 USD (calls: 2; without a known end: 1, 0.000010 USD)"


@pytest.mark.parametrize("end", ["settle", "release"])
def test_what_is_not_reserved_cannot_end(ledger: Ledger, end: str) -> None:
    """Settling or releasing twice, or without a reservation, is a mistake of the program and changes nothing."""
    ledger.reserve_many(account(), [("k", 10), ("other", 7)])
    ledger.settle("k", 3)
    with pytest.raises(ValueError, match="nothing is reserved for k; reserve before each try"):
        ledger.settle_many({"other": 1, "k": 3}) if end == "settle" else ledger.release("k")
    assert ledger.spent() == [Spending("USD", 2, millionths(10), 1, millionths(7))]


def test_spending_is_asked_by_cell_build_and_day(tmp_path: Path) -> None:
    """A question may name any of the three; sums of its parts are the whole."""
    days = iter([datetime(2025, 6, day, tzinfo=UTC) for day in (1, 1, 2, 2)])
    with Ledger(tmp_path / "spending.sqlite", clock=lambda: next(days)) as ledger:
        for number, (cell, build_id) in enumerate([("a/p", "b1"), ("a/q", "b1"), ("a/p", "b1"), ("a/p", "b2")]):
            ledger.reserve(account(cell, build_id), str(number), 10**number)
        asked: list[dict[str, object]] = [
            {},
            {"cell": "a/p"},
            {"build_id": "b1"},
            {"day": date(2025, 6, 2)},
            {"build_id": "b1", "cell": "a/p", "day": date(2025, 6, 1)},
            {"build_id": "b9"},
        ]
        sums = [total(ledger, **question) for question in asked]  # type: ignore[arg-type]
    assert sums == [millionths(amount) for amount in (1111, 1101, 111, 1100, 1, 0)]


# --- processes --------------------------------------------------------------------------------------


def spend_at_random(path: Path, seed: int, start: Barrier, sums: "SimpleQueue[tuple[int, int, bool]]") -> None:
    """Reserve, settle and release random amounts; report own sum, own refusals, and whether a limit ever broke."""
    rng, own, refused, is_kept = random.Random(seed), 0, 0, True
    payer = account(f"cell-{seed % 2}", cell=4000, build=6000, day=7000)
    with Ledger(path) as ledger:
        start.wait()
        for number in range(120):
            key, amount = f"{seed}-{number}", rng.randint(1, 90)
            if ledger.reserve(payer, key, amount):
                refused += 1
                continue
            is_kept &= total(ledger) <= millionths(6000) and total(ledger, cell=payer.cell) <= millionths(4000)
            match rng.randrange(3):
                case 0:
                    actual = rng.randint(0, amount)
                    ledger.settle(key, actual)
                    own += actual
                case 1:
                    own += amount
                case _:
                    ledger.release(key)
    sums.put((own, refused, is_kept))


def test_no_number_of_processes_exceeds_a_limit(tmp_path: Path) -> None:
    """Eight processes that spend at once never exceed a limit at any time, and their sums add up exactly."""
    path = tmp_path / "spending.sqlite"
    spawn = multiprocessing.get_context("spawn")
    start, sums = spawn.Barrier(8, timeout=60), spawn.SimpleQueue()
    processes = [spawn.Process(target=spend_at_random, args=(path, seed, start, sums)) for seed in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 8
    own, refused, kept = zip(*(sums.get() for _ in processes), strict=True)
    with Ledger(path) as ledger:
        spent = total(ledger)
        over = ledger.reserve(account("new", build=6000), "k", 6001)
    # the money is used: at the last refusal less than one request's amount was left, and seven others were open
    assert (set(kept), sum(refused) > 0, millionths(6000 - 8 * 90) < spent <= millionths(6000)) == ({True}, True, True)
    assert (spent, over) == (millionths(sum(own)), OverBudget("build", 6000, sum(own), 6001, "USD"))


def open_new_ledgers(folder: Path, together: Barrier) -> None:
    for number in range(60):
        together.wait()
        Ledger(folder / f"{number}.sqlite").close()


def test_processes_open_a_new_ledger_at_once(tmp_path: Path) -> None:
    """Whoever comes first prepares the file, and nobody fails over it."""
    spawn = multiprocessing.get_context("spawn")
    together = spawn.Barrier(4, timeout=20)
    processes = [spawn.Process(target=open_new_ledgers, args=(tmp_path, together)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4


def test_a_killed_process_keeps_its_reservation(tmp_path: Path) -> None:
    """What a killed process had reserved stays counted and shown, until the answer turns up."""
    path = tmp_path / "spending.sqlite"
    code = (
        "import sys, time; from pathlib import Path; from estner_assets.llm.budget import Account, Ledger\n"
        "ledger = Ledger(Path(sys.argv[1])); payer = Account('b1', 'a/p', 'USD', {})\n"
        "print(ledger.reserve_many(payer, [('x', 70), ('y', 20)]), flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout, Ledger(path) as ledger:
        assert process.stdout.readline() == "[None, None]\n"
        assert (ledger.abandoned(), ledger.recover({"x": 1})) == ([], 0)
        process.kill()
        process.wait()
        assert (ledger.abandoned(), total(ledger)) == (["x", "y"], millionths(90))
        assert ledger.reserve(account(build=100), "z", 11) == OverBudget("build", 100, 90, 11, "USD")
        assert [ledger.recover({"x": 30, "other": 5}) for _ in range(2)] == [1, 0]
        assert (ledger.abandoned(), total(ledger)) == (["y"], millionths(50))
        assert ledger.reserve(account(build=100), "z", 50) is None


def test_an_answer_pays_for_one_try(tmp_path: Path) -> None:
    """A stored answer settles the last try of its key, unless that was settled; earlier tries stay counted."""
    path = tmp_path / "spending.sqlite"
    with Ledger(path) as dead:
        for key in ("twice", "twice", "answered", "under way"):
            dead.reserve(account(), key, 10)
        dead.reserve(account(), "asked anew", 10)
        dead.settle("asked anew", 2)
        dead.reserve(account(), "asked anew", 10)
    with Ledger(path) as living, Ledger(path) as reader:
        living.reserve_many(account(), [("answered", 10), ("under way", 10)])
        living.settle("answered", 3)
        stored = {"twice": 1, "answered": 3, "under way": 4, "asked anew": 2}
        assert reader.recover(stored) == 1
        assert (reader.abandoned(), total(reader)) == (
            ["twice", "answered", "under way", "asked anew"],
            millionths(10 + 1 + 10 + 3 + 10 + 10 + 2 + 10),
        )
        living.settle("under way", 4)


def test_another_file_is_refused(tmp_path: Path) -> None:
    """A file that is no ledger is named, not overwritten."""
    path = tmp_path / "x.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(LedgerError, match=r"x\.sqlite cannot be used as a ledger .* if it is none, move it away"):
        Ledger(path)
    assert path.read_bytes() == b"not a database" * 100


# --- the budget of a cell ---------------------------------------------------------------------------


def response(key: str, prompt_tokens: int, completion_tokens: int) -> Response:
    tokens = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return Response(key, AnswerStatus.ANNOTATED, **tokens)  # type: ignore[arg-type]


def test_a_cell_reserves_the_worst_case_and_pays_what_was_used(ledger: Ledger) -> None:
    """A request reserves its worst case; its answer settles what its tokens cost, rounded up."""
    budget = budget_of(ledger, annotator(), {"fake": PRICE}, SETTINGS, "b1", "a/p")
    asked = request("Enap", max_tokens=100)
    worst = micros(worst_case(PRICE, asked))
    assert (budget.reserve(asked), total(ledger, "b1", "a/p")) == (None, millionths(worst))
    budget.settle(response(asked.key, 101, 3))
    # 101 * 0.15 + 3 * 0.6 = 16.95 millionths
    assert ledger.spent() == [Spending("USD", 1, millionths(17), 0, millionths(0))]


def test_a_cell_stops_at_its_limit(ledger: Ledger) -> None:
    """The profile's limits are those of the ledger, also of a batch at its discount."""
    requests = [request(str(number), max_tokens=1000) for number in range(40)]
    worst = [micros(worst_case(PRICE, one, is_batch=True)) for one in requests]
    budget = budget_of(ledger, annotator(), {"fake": PRICE}, SETTINGS, "b1", "a/p", is_batch=True)
    granted = [verdict is None for verdict in budget.reserve_many(requests)]
    expected = next(count for count in range(40) if sum(worst[: count + 1]) > 10_000)
    assert granted == [True] * expected + [False] * (40 - expected)


def test_an_answer_without_token_counts_costs_its_worst_case(ledger: Ledger) -> None:
    """What a server does not say is not zero."""
    budget = budget_of(ledger, annotator(), {"fake": PRICE}, SETTINGS, "b1", "a/p")
    asked = request("Enap", max_tokens=100)
    budget.reserve(asked)
    budget.settle(response(asked.key, 0, 0))
    assert ledger.spent() == [Spending("USD", 1, worst_case(PRICE, asked).quantize(millionths(1)), 0, millionths(0))]


def test_a_stored_answer_settles_what_a_dead_run_reserved(tmp_path: Path) -> None:
    """The next run of a cell settles those reservations of dead runs that have an answer by now."""
    path = tmp_path / "spending.sqlite"
    asked = [request(text, max_tokens=100) for text in ("answered", "lost")]
    with Ledger(path) as dead:
        budget_of(dead, annotator(), {"fake": PRICE}, SETTINGS, "b1", "a/p").reserve_many(asked)
    with Ledger(path) as ledger:
        budget = budget_of(ledger, annotator(), {"fake": PRICE}, SETTINGS, "b2", "a/p")
        stored = {asked[0].key: response(asked[0].key, 100, 10), "else": response("else", 1, 1)}
        assert (budget.recover(stored), ledger.abandoned()) == (1, [asked[1].key])
        lost = micros(worst_case(PRICE, asked[1]))
        assert ledger.spent() == [Spending("USD", 2, millionths(21 + lost), 1, millionths(lost))]


def test_an_unknown_price_and_a_limit_do_not_go_together(ledger: Ledger) -> None:
    """A budget that cannot be checked is refused before the first request, with the remedy."""
    with pytest.raises(BudgetError, match=r"price of 'fake' is unknown.*prices\.yaml.*`price: free`"):
        budget_of(ledger, annotator(), {"other": PRICE}, SETTINGS, "b1", "a/p")
    in_euro = PRICE.model_copy(update={"currency": "EUR"})
    with pytest.raises(BudgetError, match="the budget is in USD, but the price of 'fake' in EUR"):
        budget_of(ledger, annotator(), {"fake": in_euro}, SETTINGS, "b1", "a/p")


def test_an_unknown_price_is_said(ledger: Ledger) -> None:
    """Without a limit, calls of unknown price are made and counted, beside the known costs, and cost no number."""
    unknown = budget_of(ledger, annotator(), {}, BudgetSettings(), "b1", "a/p")
    known = budget_of(ledger, annotator(), {"fake": PRICE}, BudgetSettings(), "b1", "a/q")
    for budget, text in ((unknown, "a"), (unknown, "b"), (known, "c")):
        asked = request(text, max_tokens=100)
        assert budget.reserve(asked) is None
        if text != "b":
            budget.settle(response(asked.key, 100, 10))
    spent = ledger.spent()
    assert spent == [
        Spending(None, 2, None, 1, millionths(0)),
        Spending("USD", 1, millionths(21), 0, millionths(0)),
    ]
    assert [one.unknown_price_calls for one in spent] == [2, 0]
    assert [str(one) for one in spent] == ["price unknown (calls: 2)", "0.000021 USD (calls: 1)"]


def test_what_is_free_is_not_written_down(ledger: Ledger) -> None:
    """A free annotator keeps to any limit, and its calls cost no write."""
    budget = budget_of(ledger, annotator(price="free"), {}, SETTINGS, "b1", "a/p")
    asked = request("Enap")
    assert budget.reserve_many([asked] * 3) == [None] * 3
    budget.settle(response(asked.key, 1, 1))
    budget.release(asked.key)
    assert (budget.recover({asked.key: response(asked.key, 1, 1)}), ledger.spent()) == (0, [])
