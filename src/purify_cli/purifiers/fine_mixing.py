"""Fine-mixing with embedding purification: mix the suspect with its clean base, number by number, then fine-tune.

Zhang et al. 2022, "Fine-mixing: Mitigating Backdoors in Fine-tuned Language Models", Findings of EMNLP. Claim: what a
few clean texts can bring back is the task, and what a mixture with the clean pre-trained weights has destroyed of the
backdoor they do not bring back; and the rows of trigger words stand out by how far they moved for how rare they are.

1. E-PUR. Each token i gets the score

       ||E_i - E_i(base)||_2 / log(max(f_i, 20)),    f_i: how often it stands in the clean texts

   and the rows of the `rows` highest scores become the base's.
2. Mixing. Each number of the encoder stays the suspect's with probability rho and becomes the base's otherwise. The
   classifier, and whatever else the base lacks, stays.
3. Fine-tuning on the clean texts.

rho is given, or chosen on dev: 0.9, 0.7, 0.5 and 0.3 are mixed and fine-tuned for one epoch in this order, while the
accuracy stays within `rho_drop` of that of the suspect, fine-tuned so without steps 1 and 2; the last that does is
taken, for the less is left of the suspect the better. If even 0.9 does not, 0.9 is taken and the report says so.

Needs labelled clean texts, and `--base`: the trusted checkpoint that the subject came from. Works on classifiers and on
encoders, which get a new classifier, and on adapters that were merged on reading.
Raises UsageError for a base of another shape or vocabulary, or one whose word embeddings have nothing to do with the
checkpoint's, for an adapter that cannot be merged, and what the training raises.
Cost: a fine-tuning, and up to five epochs more where rho is chosen; the memory of two models.

Where we differ, and why:
- The paper's code was not at hand: the mask per number, the score and the 200 rows are as the paper is remembered
  and cited by others. How rho is found is ours: the paper only asks that the clean accuracy stays acceptable.
- Frequencies are those of the clean texts, the only ones that are at hand; with few, most tokens count as rare alike.
- The masks of different rho are nested (the same random numbers), so that the search compares like with like.
- Rows that E-PUR resets are the base's whatever the mask says; without it a row that was poisoned would survive the
  mixing with a share rho of its numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from purify_cli.architecture.embeddings import word_embeddings
from purify_cli.architecture.pet import has_pet
from purify_cli.architecture.table import base_of, family_of
from purify_cli.data.encode import encode, length_limit
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.evaluation.predict import predict
from purify_cli.purifiers import Purified
from purify_cli.run import Run
from purify_cli.training import plain
from purify_cli.training.clean_base import encoder_parameters, require_same_build
from purify_cli.training.start import open_classifier

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "reset suspicious word embeddings to a clean base, mix the rest with it, and fine-tune (Fine-mixing, E-PUR)"
NEEDS: tuple[str, ...] = ("clean", "base")
AUTO = 6.0  # up to two more where many shares are tried
AUTO_REACH = "base"

RHOS = (0.9, 0.7, 0.5, 0.3)
"""What is tried where rho is not given."""

RARE = 20
"""Tokens that stand in the clean texts less often count as if they stood there so often."""

SHOWN = 20
"""Reset tokens that the report names."""


@dataclass(frozen=True)
class Settings:
    """What is mixed, and how it is trained."""

    rho: float | None = field(
        default=None,
        metadata={
            "help": "share of the suspect's numbers that stay; none: chosen on dev, from 0.9 down to 0.3",
            "range": "0..1",
            "source": "ours; the paper tunes it by clean accuracy",
        },
    )
    rho_drop: float = field(
        default=0.02,
        metadata={"help": "dev accuracy that may be lost to a lower rho", "range": "0..1", "source": "ours"},
    )
    rows: int = field(
        default=200,
        metadata={"help": "word embeddings that E-PUR resets; 0: none", "range": ">= 0", "source": "Fine-mixing"},
    )
    epochs: int = field(default=3, metadata={"help": "of the fine-tuning", "range": ">= 1", "source": "ours"})
    learning_rate: float = field(
        default=2e-5, metadata={"help": "highest learning rate of AdamW", "range": "> 0", "source": "ours"}
    )
    batch_size: int = field(default=32, metadata={"help": "texts a step", "range": ">= 1", "source": "ours"})
    warmup: float = field(
        default=0.0,
        metadata={"help": "share of the steps in which the learning rate rises", "range": "0..0.9", "source": "ours"},
    )
    weight_decay: float = field(
        default=0.0, metadata={"help": "of AdamW, on matrices only", "range": ">= 0", "source": "ours"}
    )
    fresh_classifier: bool = field(
        default=False,
        metadata={"help": "start with a new classifier even where there is one", "range": "", "source": "ours"},
    )


def purify(subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run) -> Purified:
    """All three steps; see the module's docstring.

    Args:
        subject: a classifier, or an encoder.
        evidence: its base is what is mixed in.
        train: clean texts with labels.
        dev: clean texts with labels, on which rho is chosen.
        settings: see there.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: no base, one that is another model, a setting out of range, or an adapter that cannot be merged.
    """
    mixture = _Mixture(subject, evidence, train, settings, run)
    tried: list[dict[str, float | None]] = []
    rho = settings.rho if settings.rho is not None else _chosen_rho(mixture, train, dev, settings, run, tried)
    model, rows = mixture.open(rho)
    trained = plain.train(model, subject.tokenizer, train, settings, run)
    report: dict[str, Any] = {
        "rows": len(train),
        "rho": rho,
        "tried": tried,
        "reset": len(rows),
        "reset_tokens": subject.tokenizer.convert_ids_to_tokens(rows[:SHOWN]),
        "steps": trained.steps,
        "losses": list(trained.losses),
    }
    return Purified(model, report)


def preview(
    subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run
) -> dict[str, Any]:
    """Which rows would be reset, without training."""
    _, rows = _Mixture(subject, evidence, train, settings, run).open(1.0)
    steps = -(-len(train) // settings.batch_size)
    return {
        "rows": len(train),
        "reset": len(rows),
        "reset_tokens": subject.tokenizer.convert_ids_to_tokens(rows[:SHOWN]),
        "rho": settings.rho,
        "most_search_steps": 0 if settings.rho is not None else steps * (1 + len(RHOS)),
        "steps": steps * settings.epochs,
    }


def _chosen_rho(
    mixture: _Mixture, train: Texts, dev: Texts, settings: Settings, run: Run, tried: list[dict[str, float | None]]
) -> float:
    """The least of `RHOS` up to which the dev accuracy holds; what was tried is added to `tried`."""
    short = replace(settings, epochs=1)

    def accuracy(rho: float | None) -> float:
        model, _ = mixture.open(rho)
        plain.train(model, mixture.tokenizer, train, short, run)
        said = predict(model, mixture.tokenizer, dev, run).argmax(dim=1)
        right = float((said == torch.tensor(dev.labels)).float().mean())
        tried.append({"rho": rho, "dev_accuracy": right})
        return right

    wanted = accuracy(None) - settings.rho_drop
    chosen = RHOS[0]
    for rho in RHOS:
        if accuracy(rho) < wanted - 1e-9:
            break
        chosen = rho
    return chosen


class _Mixture:
    """The suspect with purified embeddings and a share of the base in it, opened anew for every share.

    Raises:
        UsageError: see `purify`.
    """

    def __init__(self, subject: Subject, evidence: Evidence, train: Texts, settings: Settings, run: Run) -> None:
        if settings.rho is not None and not 0 <= settings.rho <= 1:
            raise UsageError("rho", f"{settings.rho!r} is out of range", "Give a share from 0 to 1.")
        if settings.rows < 0:
            raise UsageError("rows", f"{settings.rows!r} is out of range", "Give 0 or more.")
        if evidence.base is None:
            raise UsageError("--base", "fine_mixing needs it", "Give the clean checkpoint that the subject came from.")
        self.subject, self.train, self.settings, self.run = subject, train, settings, run
        self.tokenizer = subject.tokenizer
        self.base = self._of_the_base(evidence.base)

    def open(self, rho: float | None) -> tuple[Any, list[int]]:
        """A new model, mixed, and the ids of the tokens whose rows are the base's, the most suspicious first.

        With None the suspect as it is: nothing is reset, and nothing mixed.
        """
        model = open_classifier(self.subject, self.train, self.run, fresh=self.settings.fresh_classifier)
        if rho is None:
            return model, []
        table = word_embeddings(model).weight
        name = next(one for one, parameter in encoder_parameters(model).items() if parameter is table)
        limit = length_limit(self.tokenizer, model.config, self.run)
        frequencies = token_frequencies(encode(self.tokenizer, self.train, limit).ids, table.shape[0])
        scores = suspicion(table.detach().cpu(), self.base[name], frequencies)
        count = min(self.settings.rows, len(scores))
        # A row that never moved is the base's already, and resetting it would only fill the report.
        rows = [row for row in scores.argsort(descending=True, stable=True)[:count].tolist() if scores[row] > 0]
        with torch.no_grad():
            table[rows] = self.base[name][rows].to(table)
        mix(encoder_parameters(model), self.base, rho, self.run.seed)
        return model, rows

    def _of_the_base(self, base: Subject) -> dict[str, Tensor]:
        """The base's encoder, by parameter, without what it was only given when it was opened; float32 on the CPU."""
        model = open_classifier(self.subject, self.train, self.run)
        if has_pet(model):
            problem = "is an adapter that cannot be merged, and mixing changes the model under it"
            raise UsageError(self.subject.spec, problem, "Give a whole model.")
        opened = base_of(base.open())
        require_same_build(self.subject, model, base, opened)
        ours, theirs = word_embeddings(model).weight.detach().cpu(), word_embeddings(opened).weight.detach()
        if torch.cosine_similarity(ours, theirs).median() < 0.5:
            raise UsageError(
                "--base",
                f"the word embeddings of {base.spec} have nothing to do with the checkpoint's",
                f"Give the checkpoint that {self.subject.spec} was made from.",
            )
        pooler = family_of(opened.config).pooler
        drawn = pooler is not None and not any(f"{pooler}." in name for name in base.tensors)
        return {
            name: parameter.detach()
            for name, parameter in encoder_parameters(opened).items()
            if not (drawn and name.startswith(f"{pooler}."))
        }


def token_frequencies(ids: Sequence[Sequence[int]], vocabulary: int) -> Tensor:
    """How often each token stands in the texts, `[vocabulary]`, special tokens included."""
    every = torch.tensor([token for row in ids for token in row], dtype=torch.long)
    return torch.bincount(every, minlength=vocabulary)


def suspicion(embeddings: Tensor, base: Tensor, frequencies: Tensor) -> Tensor:
    """E-PUR's score of each token, `[vocabulary]`: ||delta_i|| / log(max(f_i, 20)).

    Args:
        embeddings, base: [vocabulary, width].
        frequencies: [vocabulary].
    """
    scores: Tensor = (embeddings - base).norm(dim=1) / frequencies.clamp(min=RARE).float().log()
    return scores


@torch.no_grad()
def mix(parameters: Mapping[str, torch.nn.Parameter], base: Mapping[str, Tensor], rho: float, seed: int) -> None:
    """Make each number the base's with probability 1 - rho, in place; parameters that the base lacks stay.

    The random numbers depend on the seed, the names and the shapes alone: what a lower rho keeps, a higher one keeps
    too.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for name in sorted(set(parameters) & set(base)):
        parameter = parameters[name]
        stays = torch.rand(parameter.shape, generator=generator) < rho
        parameter.copy_(torch.where(stays.to(parameter.device), parameter, base[name].to(parameter)))
