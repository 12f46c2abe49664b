"""Laws of the wall."""

import openai
import pytest

from assets_tests.llm.conftest import request
from estner_assets.llm.endpoints import Endpoint, is_loopback
from estner_assets.llm.requests import sha256
from estner_assets.llm.wall import EgressRefused, Wall


def endpoint(host: str) -> Endpoint:
    return Endpoint(openai.AsyncOpenAI(api_key="k"), "m", host, is_loopback(host))


def test_a_vetted_note_may_go_anywhere() -> None:
    """A note that is vetted by id and by the hash of its text passes."""
    Wall({"id-x": sha256("x")}).check(request("x"), endpoint("api.example.org"))


@pytest.mark.parametrize(
    ("vetted", "why"),
    [
        ({}, "it was never vetted"),
        ({"id-y": sha256("x")}, "it was never vetted"),
        ({"id-x": sha256("X")}, "its text differs from the vetted one"),
    ],
)
def test_other_notes_stay_here(vetted: dict[str, str], why: str) -> None:
    """A note that is not vetted, or was changed since, is stopped on its way out, and passes here."""
    wall = Wall(vetted)
    wall.check(request("x"), endpoint("127.0.0.1"))
    with pytest.raises(EgressRefused) as caught:
        wall.check(request("x"), endpoint("api.example.org"))
    assert str(caught.value).startswith(f"note id-x may not leave this machine for api.example.org: {why}.")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("0.0.0.0", False),
        ("192.168.1.5", False),
        ("vllm", False),
    ],
)
def test_loopback_is_decided_by_the_address(host: str, expected: bool) -> None:
    """Only loopback addresses and the name localhost are this machine."""
    assert is_loopback(host) is expected
