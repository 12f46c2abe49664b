"""What can be made now: inputs first, failures hold back only what is made from them."""

from estner_assets.frontier import frontier
from estner_assets.planner import Plan, Step
from estner_assets.resources.lineage import Partition

NOTES, ONE = Partition("vetted_notes"), Partition("annotations", "a", "p")
MODEL, BOARD = Partition("ner_models", "a", "p"), Partition("leaderboard")


def step(partition: Partition, *waits_for: Partition, reason: str = "") -> Step:
    return Step(partition, "stale", (reason,) if reason else (), waits_for)


def is_fan_in(partition: Partition, source: Partition) -> bool:
    return partition == BOARD


def test_a_step_waits_for_its_inputs() -> None:
    """Only what waits for nothing is due; the others wait."""
    steps = (step(NOTES, reason="records changed"), step(ONE, NOTES), step(MODEL, ONE, reason="code 1 → 2"))
    found = frontier(Plan(steps, {}), None, {}, is_fan_in)
    assert ([one.partition for one in found.due], [one.partition for one in found.waiting]) == ([NOTES], [ONE, MODEL])


def test_what_has_no_reason_of_its_own_is_settled() -> None:
    """Once its inputs are up to date, a step that was here only because of them is up to date too, and so on."""
    found = frontier(Plan((step(ONE), step(MODEL, ONE), step(BOARD, MODEL)), {}), None, {}, is_fan_in)
    assert (found.settled, found.due, found.waiting) == ({ONE, MODEL, BOARD}, [], [])


def test_a_failure_holds_back_what_is_made_from_it_and_no_fan_in() -> None:
    """The failed cell's model cannot be made; the table over all cells does without it."""
    steps = (step(ONE, reason="new"), step(MODEL, ONE), step(BOARD, ONE, reason="annotations[b/p] changed"))
    found = frontier(Plan(steps, {}), None, {ONE: "server down"}, is_fan_in)
    assert found.held_back == {MODEL: "it is made from annotations[a/p], which failed"}
    assert [one.partition for one in found.due] == [BOARD]


def test_what_is_not_selected_holds_back_the_selected_and_no_fan_in() -> None:
    """A stale input outside the selection is never passed over in silence."""
    steps = (step(ONE, reason="new"), step(MODEL, ONE), step(BOARD, ONE, reason="annotations[b/p] changed"))
    found = frontier(Plan(steps, {}), {MODEL, BOARD}, {}, is_fan_in)
    assert found.held_back == {MODEL: "it is made from annotations[a/p], which is not selected; add --upstream"}
    assert [one.partition for one in found.due] == [BOARD]


def test_an_input_outside_the_selection_that_is_up_to_date_holds_back_nothing() -> None:
    """It stands in the plan only because of inputs that turned out the same."""
    steps = (step(ONE), step(MODEL, ONE, reason="profile tagger.epochs 1 → 2"))
    found = frontier(Plan(steps, {}), {MODEL}, {}, is_fan_in)
    assert ([one.partition for one in found.due], found.held_back) == ([MODEL], {})


def test_a_table_over_all_cells_that_nothing_else_moved_is_held_back() -> None:
    """It stays stale and says why, and so does what is made from it; neither counts as up to date."""
    report = Partition("report")
    steps = (step(ONE, reason="new"), step(BOARD, ONE), step(report, BOARD))
    found = frontier(Plan(steps, {}), {BOARD, report}, {}, is_fan_in)
    assert found.held_back == {
        BOARD: "it is made from annotations[a/p], which is not selected; add --upstream",
        report: "it is made from leaderboard, which is held back",
    }
    assert (found.settled, found.due) == (set(), [])
    changed = (step(ONE, reason="new"), step(BOARD, ONE), step(report, BOARD, reason="profile report changed"))
    assert [one.partition for one in frontier(Plan(changed, {}), {BOARD, report}, {}, is_fan_in).due] == [report]


def test_a_selected_table_over_one_that_is_not_selected_is_held_back() -> None:
    """A stale leaderboard outside the selection does not pass for a current one."""
    report = Partition("report")
    steps = (step(ONE, reason="new"), step(BOARD, ONE), step(report, BOARD))
    found = frontier(Plan(steps, {}), {report}, {}, is_fan_in)
    assert found.held_back == {report: "it is made from leaderboard, which is not selected; add --upstream"}
