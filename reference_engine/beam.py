"""Beam search over one request: which hypotheses live on, which are complete, when to stop.  No torch.

The rules are those of transformers' ``generate`` (version 5), so that scores can be compared number by number.  With W
hypotheses alive and E ids that end a text, each round

1. takes the max(2, 1 + E) * W best continuations by summed log-probability;
2. moves those among the best W that end here to the finished ones, with score = sum / length ** length_penalty, and keeps
   the W best finished;
3. lets the W best of the others live on.

It stops when ``max_tokens`` is reached, when W are finished and ``early_stopping`` is true, or when no living
hypothesis can beat the worst of W finished ones: judged at the present length (``early_stopping`` false), or at the most
favourable length ("never").
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field

from reference_engine.outputs import TokenLogprob
from reference_engine.request import SamplingParams


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Generated tokens with their log-probabilities.  ``total`` is the sum of those."""

    steps: tuple[TokenLogprob, ...] = ()
    total: float = 0.0

    def extend(self, step: TokenLogprob) -> Hypothesis:
        return Hypothesis((*self.steps, step), self.total + step.logprob)


@dataclass(frozen=True, slots=True)
class Finished:
    """A complete hypothesis.  ``ended``: by one of the ending ids (else by length)."""

    hypothesis: Hypothesis
    score: float
    ended: bool


@dataclass(slots=True, eq=False)
class BeamSearch:
    """The state of one request's search.  ``alive`` is ordered, best first; its items are (seq_id, hypothesis)."""

    params: SamplingParams
    ends: frozenset[int]
    alive: list[tuple[int, Hypothesis]] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    _arrived: dict[int, tuple[TokenLogprob, ...]] = field(default_factory=dict)

    @property
    def candidates_per_row(self) -> int:
        """How many of a row's best tokens are needed: enough also if all ids that end a text must be left out."""
        return self._num_kept + len(self.ends)

    @property
    def _num_kept(self) -> int:
        return max(2, 1 + len(self.ends)) * self.params.beam_width

    def offer(self, seq_id: int, best: tuple[TokenLogprob, ...]) -> None:
        """The most likely next tokens of one living hypothesis, best first."""
        if not self.alive:
            self.alive = [(seq_id, Hypothesis())]
        self._arrived[seq_id] = best

    @property
    def has_fault(self) -> bool:
        """Whether the logits of one hypothesis were not finite."""
        return not all(self._arrived.values())

    @property
    def is_complete(self) -> bool:
        """Whether all living hypotheses have offered theirs, so that the round can be decided."""
        return bool(self.alive) and all(seq_id in self._arrived for seq_id, _ in self.alive)

    def decide(self) -> list[tuple[int, Hypothesis]]:
        """Close the round: (parent's seq_id, hypothesis) of those that live on, best first; [] when the search is over.

        Sequences get their ids later: set ``alive`` to the new ones.
        """
        length = 1 + len(self.alive[0][1].steps)
        must_go_on = length <= self.params.min_tokens
        candidates = [
            (parent, hypothesis.extend(step))
            for parent, hypothesis in self.alive
            for step in self._arrived[parent]
            if not (must_go_on and step.token in self.ends)
        ]
        candidates.sort(key=lambda candidate: -candidate[1].total)
        del candidates[self._num_kept :]
        self._arrived = {}
        width, at_limit = self.params.beam_width, length >= self.params.max_tokens
        living: list[tuple[int, Hypothesis]] = []
        for rank, (parent, hypothesis) in enumerate(candidates):
            ended = hypothesis.steps[-1].token in self.ends
            if not (ended or at_limit):
                living.append((parent, hypothesis))
            elif rank < width:
                self.finished.append(Finished(hypothesis, self._score(hypothesis.total, length), ended))
        self.finished.sort(key=lambda done: -done.score)
        del self.finished[width:]
        del living[width:]
        return living if living and self._can_improve(living[0][1].total, length) else []

    def _score(self, total: float, length: int) -> float:
        return float(total / length**self.params.length_penalty)

    def _can_improve(self, best_total: float, length: int) -> bool:
        if len(self.finished) < self.params.beam_width:
            return True
        if self.params.early_stopping is True:
            return False
        if self.params.early_stopping == "never" and self.params.length_penalty > 0:
            length = self.params.max_tokens
        return self._score(best_total, length) > self.finished[-1].score

    def results(self) -> SequenceOf[Finished]:
        """The n best, best first."""
        return self.finished[: self.params.n]
