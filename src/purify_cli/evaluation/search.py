"""The search for triggers in a classifier: words, and sequences of words, that turn texts it is sure about.

How it goes about it, and why, is told where its findings become evidence: `detectors.trigger_search`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from purify_cli.data.encode import length_limit
from purify_cli.evaluation.pairs import pairs
from purify_cli.evaluation.rest import rest
from purify_cli.evaluation.sequences import sequences
from purify_cli.evaluation.sure_texts import SureTexts
from purify_cli.evaluation.suspects import Effects, Site, Suspect
from purify_cli.evaluation.sweep import Sweep, margins
from purify_cli.evaluation.vocabulary import Vocabulary
from purify_cli.run import Run

FEWEST = 8
"""Texts below which a share says nothing."""

ALSO = 0.5
"""Share of the texts that a word turns, to be told beside a proven trigger."""

LONE = 0.05
"""Company below which a word is told for its shift alone: honest words that shifted half as much had more in trials."""

HONEST = 6
"""Suspects with company, the strongest, whose combinations others are compared with."""

HONEST_BESIDE_PIECES = 0.9
"""Share of a sequence's effect that as many honest words may have: more than of a combination's, for its pieces are one
word. The pieces of a planted one had 0.71 to 0.83 with four seeds, sequences of honest words 1.02 to 1.35."""

OPPONENTS = 100
"""Words that speak most against a label, of which one is its opponent."""

SUSPECTS = 10
"""Words a label that are compared with their control groups."""

LONG_SITES = 12
"""Combinations are judged on so many of the longest texts: there a few honest words turn the fewest."""


@dataclass(frozen=True)
class SearchSettings:
    """What is tried, and what passes; the detector's settings of the same names say what each is and where it is from.

    Attributes:
        sure: probability of the target below which a text is surely another class.
        texts: sure texts a label.
        flips: share of them that a trigger turns.
        excess: share by which it turns more than its neighbours.
        company: share of a combination's effect that its neighbours may have too.
        honest: share of it that as many honest words may have.
        shortlist: words a label that are tried in a text.
        neighbours: size of a control group.
        words: largest combination.
        pieces: longest sequence of pieces.
        synergy: how many times the sum of its parts' effects a sequence must have.
        labels: labels searched, the most suspicious first.
        pairs: look for two words that mean nothing alone where no single word is found.
        shift: share of the shift of the log-odds by a proven word, from which on a lone word is told beside it.
    """

    sure: float = 0.02
    texts: int = 40
    flips: float = 0.9
    excess: float = 0.4
    company: float = 0.15
    honest: float = 0.75
    shortlist: int = 6000
    neighbours: int = 10
    words: int = 3
    pieces: int = 4
    synergy: float = 1.5
    labels: int = 8
    pairs: bool = False
    shift: float = 0.5


@dataclass
class _Ground:
    """A label and what is known of it.

    Attributes:
        sites: what it is searched in.
        ordinary: texts of another label, of which the model is not that sure.
        sure: whether the model is, of all of these, nearly.
        words: its single words.
        found: what passed so far.
    """

    target: int
    sites: list[Site]
    ordinary: list[Site]
    sure: bool
    words: list[Suspect]
    found: list[Suspect]


class TriggerSearch:
    """One search of one model. Shared between its labels: the vocabulary, its scores alone, its neighbours, the texts.

    Args:
        model: a classifier in eval mode; it is not changed.
        tokenizer: its tokenizer.
        settings: what is tried, and what passes.
        run: its seed chooses texts and places; max_length.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: SearchSettings, run: Run) -> None:
        self.settings, self.tokenizer, self.seed = settings, tokenizer, run.seed
        self.sweep = Sweep(model, tokenizer)
        around = len(self.sweep.prefix) + len(self.sweep.suffix) + max(settings.words, settings.pieces, 2)
        self.room = max(1, length_limit(tokenizer, model.config, run) - around)  # tokens of a text, for words to fit in
        self.vocabulary = Vocabulary(model, tokenizer)
        self.ids = self.vocabulary.ids  # [words]
        self.effects = Effects(self.sweep, self.vocabulary, settings.neighbours)
        self.shortlists: dict[int, tuple[Tensor, Tensor]] = {}

    def triggers(self, texts: Sequence[str], run: Run) -> Iterator[tuple[int, list[Suspect] | None]]:
        """Search in these texts: single words for every label; pairs, if none was found; then what takes several steps.

        Yields:
            a label, and what passes as its trigger, the strongest first; None: the model is sure of too few texts being
            another label, and nothing was searched for.
        """
        sure_texts, targets = self.sure_texts(texts), self.targets()
        grounds: list[_Ground] = []
        for done, target in enumerate(targets):
            run.progress("search for words", done, len(targets))
            sites, sure = sure_texts.sites(target)
            if len(sites) < FEWEST:
                yield target, None
                continue
            words = self._single_words(target, sites)
            grounds.append(_Ground(target, sites, sure_texts.ordinary(target), sure, words, self._passing(words)))
        if self.settings.pairs and not any(ground.found for ground in grounds):
            for done, ground in enumerate(grounds):
                run.progress("search for pairs", done, len(grounds))
                if ground.sure:
                    together = pairs(self.effects, ground.target, ground.sites, self.settings.synergy)
                    ground.found = self._passing(together)
        for done, ground in enumerate(grounds):
            run.progress("search for combinations", done, len(grounds))
            if ground.sure and not ground.found:
                ground.found = self._together(ground)
        proven = [suspect for ground in grounds for suspect in ground.found]
        most = max((one.shift / len(one.words) for one in proven if one.adds), default=torch.inf)
        for ground in grounds:
            yield ground.target, self._with_weaker(ground, most) if proven else []

    def sure_texts(self, texts: Sequence[str]) -> SureTexts:
        """What of these texts words are tried in."""
        sure, count = self.settings.sure, self.settings.texts
        return SureTexts(self.effects, self.tokenizer, texts, sure=sure, count=count, room=self.room, seed=self.seed)

    def rest(self, suspect: Suspect, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of its words beside what may be their rest (`evaluation.rest`), and of what is spelled as they are.

        A token that is spelled as a trigger shares some of what the trigger was taught; a search that comes after it
        would find that beside honest words.
        """
        sites, _ = self.sure_texts(texts).sites(suspect.target)
        candidates, _ = self._shortlist(suspect.target)
        pairs = rest(self.effects, suspect.words, candidates, sites, suspect.target)
        alike = ((word,) for word in self.vocabulary.spelled_alike(suspect.words))
        return [tuple(self.ids[list(words)].tolist()) for words in (*pairs, *alike)]

    def targets(self) -> list[int]:
        """Labels to be searched, those first whose best word peaks highest when it stands alone."""
        peaks = {label: margins(self.effects.alone, label).max().item() for label in range(self.effects.alone.shape[1])}
        return sorted(peaks, key=lambda label: -peaks[label])[: self.settings.labels]

    def _together(self, ground: _Ground) -> list[Suspect]:
        """Combinations that pass; failing those, sequences."""
        lone = [word.words[0] for word in ground.words if word.company <= self.settings.company]
        honest = [word.words[0] for word in ground.words if word.company > self.settings.company][:HONEST]
        found = self._passing(self._combinations(ground.target, ground.sites, lone, honest))
        return found or self._passing(self._sequences(ground, honest))

    def _sequences(self, ground: _Ground, honest: Sequence[int]) -> list[Suspect]:
        """The best sequence, if any is worth it."""
        candidates, _ = self._shortlist(ground.target)
        return sequences(
            self.effects,
            ground.target,
            ground.sites,
            ground.ordinary,
            candidates,
            synergy=self.settings.synergy,
            pieces=self.settings.pieces,
            beside=lambda suspect: self._beside(suspect, honest, ground.sites),
            passes=self.passes,
        )

    def _beside(self, suspect: Suspect, honest: Sequence[int], sites: Sequence[Site]) -> Suspect:
        """A combination or a sequence, with what as many honest words do together, or all that there are.

        Where one honest word turns sure texts now and then, three may turn them all, and so it is the log-odds that are
        compared: they go on where no more texts can be turned. Pairs are held to what their parts do only.
        """
        if not honest:
            return suspect
        groups = list(combinations(honest, min(len(suspect.words), len(honest))))
        before = self.effects.before(sites, suspect.target)
        _, odds = self.effects.score(torch.tensor(groups), sites, suspect.target)
        strongest = (odds - before).nan_to_num(-torch.inf).max().item()
        return replace(suspect, honest=strongest / max(suspect.margin - before.item(), 1e-6))

    def _with_weaker(self, ground: _Ground, most: float) -> list[Suspect]:
        """What passed, the strongest first; behind it words that do part of what proven ones of any label do.

        A word of a combination is told for itself as well, whatever it turns alone: trained out beside the others only,
        it might stay.
        """
        told = {one.words for one in ground.found}
        others = (one for one in ground.words if one.words not in told)
        weaker = (one for one in others if self._is_weaker(one, most))
        return sorted(ground.found, key=_strength) + sorted(weaker, key=_strength)

    def _passing(self, suspects: Iterable[Suspect]) -> list[Suspect]:
        return [suspect for suspect in suspects if self.passes(suspect)]

    def _is_weaker(self, suspect: Suspect, most: float) -> bool:
        """Whether this may be another trigger beside proven ones, a word of which shifts the log-odds by `most`."""
        turns = suspect.flips >= ALSO and suspect.excess >= self.settings.excess
        if turns and suspect.company <= 2 * self.settings.company:
            return True
        return suspect.shift >= self.settings.shift * most and suspect.company <= LONE

    def passes(self, suspect: Suspect) -> bool:
        """Whether this alone proves a trigger."""
        enough = suspect.flips >= self.settings.flips and suspect.excess >= self.settings.excess
        if not enough or len(suspect.words) == 1:
            return enough
        return suspect.company <= self.settings.company and (suspect.honest or 0.0) <= self.honest_limit(suspect)

    def honest_limit(self, suspect: Suspect) -> float:
        """The share of its effect that as many honest words may have."""
        return self.settings.honest if suspect.adds else HONEST_BESIDE_PIECES

    def _shortlist(self, target: int) -> tuple[Tensor, Tensor]:
        """The words that say most for the target alone or against an opponent; and the same, the loneliest first."""
        if target not in self.shortlists:
            alone = margins(self.effects.alone, target)
            opposed = margins(self.sweep.inserted((self._opponent(target),), 0, self.ids[:, None]), target)
            ranked = [odds.nan_to_num(-torch.inf).argsort(descending=True, stable=True) for odds in (alone, opposed)]
            short = _distinct(torch.stack(ranked, dim=1).flatten())[: self.settings.shortlist]
            residual = alone[short] - alone[self.vocabulary.neighbours(short, self.settings.neighbours)].mean(1)
            self.shortlists[target] = short, short[residual.argsort(descending=True)]
        return self.shortlists[target]

    def _opponent(self, target: int) -> int:
        """Token that speaks against the target and is no trigger itself: its neighbours say the same."""
        against = -margins(self.effects.alone, target).nan_to_num(torch.inf)
        strong = against.topk(min(OPPONENTS, len(against))).indices
        company = against[self.vocabulary.neighbours(strong, self.settings.neighbours)].median(1).values
        return int(self.ids[strong[company.argmax()]])

    def _single_words(self, target: int, sites: Sequence[Site]) -> list[Suspect]:
        """Whole vocabulary -> shortlist -> in a short text -> in some -> in all, beside the neighbours."""
        short, lonely = self._shortlist(target)
        by_length = sorted(sites, key=lambda site: len(site.body))

        _, odds = self.effects.score(short[:, None], by_length[:1], target)
        many = _union(short[odds.topk(min(1000, len(short))).indices], lonely[:100])
        _, odds = self.effects.score(many[:, None], by_length[1:3], target)
        some = _union(many[odds.topk(min(240, len(many))).indices], lonely[:40])
        _, odds = self.effects.score(some[:, None], by_length[3:7], target)
        few = _union(some[odds.topk(min(20, len(some))).indices], lonely[:10])
        flips, odds = self.effects.score(few[:, None], sites, target)
        order = torch.tensor(
            sorted(range(len(few)), key=lambda row: (-flips[row].item(), -odds[row].item()))[:SUSPECTS]
        )
        return self.effects.suspects(few[order, None], flips[order], odds[order], sites, target)

    def _combinations(
        self, target: int, sites: Sequence[Site], alone: Sequence[int], honest: Sequence[int]
    ) -> list[Suspect]:
        """Grow combinations of words without company: the best two of a size are extended by each, up to a trigger.

        No word is taken twice: said four times over, an honest word turns a text that it does not turn once.
        """
        long = sorted(sites, key=lambda site: -len(site.body))[:LONG_SITES]
        candidates = torch.tensor(alone, dtype=torch.long)
        beam = candidates[:3, None]  # [rows, k]
        found: list[Suspect] = []
        while beam.shape[1] < min(self.settings.words, len(candidates)) and not (found and self.passes(found[-1])):
            rows, added = beam.repeat_interleave(len(candidates), 0), candidates.repeat(len(beam))[:, None]
            grown = torch.cat([rows, added], dim=1)[(rows != added).all(dim=1)]
            _, odds = self.effects.score(grown, long[:6], target)
            beam = grown[odds.topk(min(2, len(odds))).indices]
            (best,) = self.effects.suspects(beam[:1], *self.effects.score(beam[:1], long, target), long, target)
            found.append(self._beside(best, honest, long))
        return found


def _strength(suspect: Suspect) -> tuple[float, float]:
    """To sort by: the strongest first."""
    return -suspect.flips, -suspect.margin


def _union(first: Tensor, second: Tensor) -> Tensor:
    """Both in order, each once."""
    return _distinct(torch.cat([first, second]))


def _distinct(words: Tensor) -> Tensor:
    """In order, each once."""
    return torch.tensor(list(dict.fromkeys(words.tolist())), dtype=torch.long)
