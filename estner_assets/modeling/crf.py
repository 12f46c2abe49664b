"""A linear-chain CRF over BIO tags (Lample et al. 2016, section 2.2), in log space and batched.

Shapes: ``emissions`` (batch, steps, tags) float, ``mask`` (batch, steps) bool with True first in every row,
``tags`` (batch, steps) int64. Tag sequences that are no valid BIO have no weight, neither in training nor in
decoding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from estner_assets.ner.bio import OUTSIDE

FORBIDDEN = -1e4
"""Score of an impossible transition: far below any real one, and finite, so that no gradient is NaN."""


def bio_constraints(tags: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return what BIO forbids, 0 or FORBIDDEN: (tags,) for the first tag, (tags, tags) for from x to."""
    start = torch.zeros(len(tags))
    transitions = torch.zeros(len(tags), len(tags))
    for to, tag in enumerate(tags):
        if tag.startswith("I-"):
            start[to] = FORBIDDEN
            for origin, before in enumerate(tags):
                if before == OUTSIDE or before[2:] != tag[2:]:
                    transitions[origin, to] = FORBIDDEN
    return start, transitions


def viterbi(emissions: Tensor, mask: Tensor, start: Tensor, transitions: Tensor) -> list[list[int]]:
    """Return the best tag sequence of every row, as long as the row's mask."""
    score = start + emissions[:, 0]
    pointers = []
    for step in range(1, emissions.shape[1]):
        best, pointer = (score.unsqueeze(2) + transitions).max(dim=1)
        score = torch.where(mask[:, step, None], best + emissions[:, step], score)
        pointers.append(pointer)
    lengths = mask.sum(dim=1).tolist()
    history = torch.stack(pointers).tolist() if pointers else []
    last = score.argmax(dim=1).tolist()
    return [_walk_back(history, row, length, last[row]) for row, length in enumerate(lengths)]


def _walk_back(history: list[list[list[int]]], row: int, length: int, last: int) -> list[int]:
    path = [last] if length else []
    for step in range(length - 2, -1, -1):
        path.append(history[step][row][path[-1]])
    return path[::-1]


class LinearChainCrf(nn.Module):
    """Learned transitions between tags, under BIO's constraints."""

    start_constraint: Tensor
    constraint: Tensor

    def __init__(self, tags: Sequence[str]) -> None:
        super().__init__()
        start, transitions = bio_constraints(tags)
        self.register_buffer("start_constraint", start, persistent=False)
        self.register_buffer("constraint", transitions, persistent=False)
        self.start = nn.Parameter(torch.zeros(len(tags)))
        self.end = nn.Parameter(torch.zeros(len(tags)))
        self.transitions = nn.Parameter(torch.zeros(len(tags), len(tags)))

    def negative_log_likelihood(self, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        """Return -log p(tags | emissions) of every row, shape (batch,). Every row has at least one step."""
        return self.log_partition(emissions, mask) - self._score(emissions, tags, mask)

    def log_partition(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """Return the log of the summed weight of all tag sequences, shape (batch,): the forward algorithm."""
        transitions = self.transitions + self.constraint
        first, *later = emissions.unbind(dim=1)
        alpha = self.start + self.start_constraint + first
        for emission, present in zip(later, mask[:, 1:].unsqueeze(2).unbind(dim=1), strict=True):
            moved = torch.logsumexp(alpha.unsqueeze(2) + transitions, dim=1) + emission
            alpha = torch.where(present, moved, alpha)
        return torch.logsumexp(alpha + self.end, dim=1)

    def marginals(self, emissions: Tensor, mask: Tensor) -> Tensor:
        """Return p(tag at step | emissions), shape of ``emissions``, 0 where masked.

        They are the gradient of the log partition by the emissions (Eisner 2016), so no backward pass is
        written.
        """
        with torch.enable_grad():
            leaf = emissions.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_partition(leaf, mask).sum(), leaf)
        return gradient * mask.unsqueeze(2)

    def decode(self, emissions: Tensor, mask: Tensor) -> list[list[int]]:
        """Return the most probable tag sequence of every row."""
        last = mask.sum(dim=1) - 1
        ended = emissions.clone()
        ended[torch.arange(len(last)), last] += self.end
        return viterbi(ended, mask, self.start + self.start_constraint, self.transitions + self.constraint)

    def _score(self, emissions: Tensor, tags: Tensor, mask: Tensor) -> Tensor:
        chosen = emissions.gather(2, tags.unsqueeze(2)).squeeze(2)
        moves = (self.transitions + self.constraint)[tags[:, :-1], tags[:, 1:]]
        last = tags.gather(1, (mask.sum(dim=1) - 1).unsqueeze(1)).squeeze(1)
        inner = (chosen * mask).sum(dim=1) + (moves * mask[:, 1:]).sum(dim=1)
        return inner + (self.start + self.start_constraint)[tags[:, 0]] + self.end[last]
