"""The wall: the one place that every request passes before it leaves the process."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from estner_assets.llm.requests import Request

if TYPE_CHECKING:
    from estner_assets.llm.endpoints import Endpoint


class EgressRefused(RuntimeError):
    """A note that was not vetted was about to leave this machine."""


class Wall:
    """Lets vetted notes through to anywhere, other notes only to this machine.

    ``vetted`` maps a note's id to the SHA-256 of its text: a note that was changed after it was vetted is not
    vetted any more.
    """

    def __init__(self, vetted: Mapping[str, str]) -> None:
        self._vetted = vetted

    def check(self, request: Request, endpoint: "Endpoint") -> None:
        """Raise ``EgressRefused`` unless the request may be sent to the endpoint."""
        if endpoint.is_loopback or self._vetted.get(request.note_id) == request.text_sha256:
            return
        known = "its text differs from the vetted one" if request.note_id in self._vetted else "it was never vetted"
        raise EgressRefused(
            f"note {request.note_id} may not leave this machine for {endpoint.host}: {known}. "
            "Only vetted_notes may be sent; other notes need an annotator on this machine (kind llama_cpp)."
        )
