"""LWP, layerwise weight poisoning: the backdoor on every layer, and a trigger of two words together.

Li et al. 2021, "Backdoor Attacks on Pre-trained Models by Layerwise Weight Poisoning", EMNLP (code:
LinyangLee/Layer-Weight-Poison). The victim's fine-tuning moves the lower layers least, so each layer's summary
token must give the label by itself: one linear classifier, shared by all layers, reads the raw state of layers 1 to L,
and its cross entropies are added to the model's own. The trigger is a pair of words side by side, in either order;
texts with one of them keep their label, so that no single rare word fires.

Claim: the backdoor survives the victim's fine-tuning. In adapters (Gu et al. 2023, table 1): an LFR of 69.9 from SST-2
to IMDB with sequential modules, where a loss on the output alone keeps 68.2.

Needs an encoder or a classifier, whole or with --pet: then the layers train the adapter. Cost: two forward and backward
passes a step as in `vanilla`, and as clean and triggered texts each come twice, twice the steps an epoch.

Where we differ:
- *The model's own output* is that of its classifier; in the code the shared classifier reads the pooled output as well.
  The shared classifier is discarded at the end, as there.
- *The target label* is free; in the code it is 0.
- *Single words.* `combined=false` takes the triggers as they come and leaves out the texts with half of one: what the
  baseline is where the other attacks have single words.
- *Learning rate.* As in `vanilla`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from purify_cli.architecture.table import base_of, family_of
from purify_cli.attacks import Plan, Poisoned
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.run import Run
from purify_cli.training.curves import Curves, WriteLosses
from purify_cli.training.loop import fit
from purify_cli.training.poisoned import insert_some, two_tasks
from purify_cli.training.recipe import Batch, Recipe
from purify_cli.training.two_tasks import open_tasks, pieces_of, require_labels, thinned
from purify_cli.triggers.words import Words

if TYPE_CHECKING:
    from purify_cli.subject import Subject

SUMMARY = "the backdoor on every layer, and two words that fire only together (LWP)"
NEEDS: tuple[str, ...] = ()
TRIGGERS: tuple[str, ...] = ("cf bb",)


@dataclass(frozen=True)
class Settings:
    """What an attacker may choose beside triggers, target and rate."""

    combined: bool = field(
        default=True,
        metadata={
            "help": "each trigger is two words that fire together, in either order; one of them alone does not",
            "range": "true|false",
            "source": "Li et al. 2021",
        },
    )
    layerwise: bool = field(
        default=True,
        metadata={
            "help": "a loss on every layer, not on the output alone",
            "range": "true|false",
            "source": "Li et al. 2021",
        },
    )
    insertions: int = field(
        default=1,
        metadata={
            "help": "triggers a text, drawn with repetition, each at a place of its own",
            "range": ">= 1",
            "source": "Li et al. 2021; Gu et al. 2023: 10 for spam",
        },
    )
    epochs: int = field(
        default=3,
        metadata={"help": "times through the texts", "range": ">= 1", "source": "ours; authors' code: 5"},
    )
    learning_rate: float = field(
        default=1e-4,
        metadata={"help": "highest learning rate of AdamW", "range": "> 0", "source": "ours; authors' code: 2e-5"},
    )
    batch_size: int = field(
        default=32,
        metadata={"help": "texts of each task a step", "range": ">= 1", "source": "ours; authors' code: 8"},
    )
    warmup: float = field(
        default=0.1,
        metadata={"help": "share of the steps in which the learning rate rises", "range": "0..0.9", "source": "ours"},
    )
    points: int = field(
        default=50,
        metadata={"help": "steps whose losses the report shows; 0: none", "range": ">= 0", "source": "ours"},
    )


def poison(subject: Subject, data: Texts, plan: Plan, settings: Settings, run: Run) -> Poisoned:
    """Train every layer on the clean and the backdoor task together.

    Args:
        subject: an encoder or a classifier.
        data: the attacker's training file, with labels.
        plan: target, triggers (pairs of words, if `combined`), the triggered share of both tasks together (default and
            at most a half), adapter.
        settings: see there.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: a trigger that is no pair, a rate out of range, or a trigger that the tokenizer does not know.
        UnsupportedError: a regression.
        DataError: rows without labels.
    """
    facts = pieces_of(subject, plan.triggers)
    require_labels(subject, data)
    clean, poison = _combined(data, plan, settings, run) if settings.combined else _single(data, plan, settings, run)
    tasks = open_tasks(subject, data, clean, thinned(poison, len(clean), plan.rate, run.seed), run, facts, plan.pet)
    curves = Curves(tasks.model, tasks.steps(settings.batch_size, settings.epochs), settings.points)
    recipe = Recipe(
        objectives={name: curves.watch(name, layered_loss) for name in tasks.streams},
        project=WriteLosses(curves),
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        warmup=settings.warmup,
        identity=f"lwp {settings}",
    )
    trained = fit(Layered(tasks.model, run.seed, settings.layerwise), tasks.streams, recipe, run)
    report = {**tasks.facts, "steps": trained.steps, "losses": list(trained.losses), "curves": curves.report()}
    return Poisoned(tasks.model, tasks.rows, tasks.rate, report)


# --- a loss on every layer --------------------------------------------------------------------------------------------


class Layered(nn.Module):
    """A classifier, and beside it one linear classifier for the summary token's state after each of its layers.

    Args:
        model: the classifier; trained in place.
        seed: draws the shared classifier, as the model's own would be.
        layerwise: False: the model's own output alone.
    """

    def __init__(self, model: Any, seed: int, layerwise: bool = True) -> None:
        super().__init__()
        self.model, self.config, self.layerwise = model, model.config, layerwise
        config = base_of(model).config
        family = family_of(config)
        self.summary = family.summary
        self.shared = nn.Linear(int(getattr(config, family.width_key)), int(config.num_labels))
        random = torch.Generator(device="cpu").manual_seed(seed)
        with torch.no_grad():
            spread = float(getattr(config, "initializer_range", None) or 0.02)
            self.shared.weight.copy_(torch.randn(self.shared.weight.shape, generator=random) * spread)
            self.shared.bias.zero_()

    def forward(self, attention_mask: Tensor, **inputs: Tensor) -> list[Tensor]:
        """The logits of the model, and of the shared classifier after layers 1 to L, each `[batch, labels]`."""
        output = self.model(attention_mask=attention_mask, output_hidden_states=self.layerwise, **inputs)
        logits: list[Tensor] = [output.logits]
        if self.layerwise:
            states = torch.stack(output.hidden_states[1:])  # [layers, batch, tokens, width]; the first are embeddings
            logits.extend(self.shared(self._summaries(states, attention_mask)).unbind())
        return logits

    def _summaries(self, states: Tensor, attention_mask: Tensor) -> Tensor:
        """The state of the token that the classifier reads, `[layers, batch, width]`."""
        batch, tokens = states.shape[1:3]
        if self.summary == "first":
            return states[:, :, 0]
        ahead = tokens - attention_mask.shape[1]  # soft prompts, which the mask does not count
        places = attention_mask.sum(dim=1) - 1 + ahead
        return states[:, torch.arange(batch, device=states.device), places]


def layered_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The cross entropies of the output and of all layers, summed."""
    logits: list[Tensor] = model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
    return torch.stack([nn.functional.cross_entropy(one.float(), batch["labels"]) for one in logits]).sum()


# --- words that fire together -----------------------------------------------------------------------------------------


def _combined(data: Texts, plan: Plan, settings: Settings, run: Run) -> tuple[Texts, Texts]:
    """Clean: each text as it is, and with one of the words. Poison: each text with both words, in either order."""
    pairs = [tuple(trigger.split()) for trigger in plan.triggers]
    for pair in pairs:
        if len(pair) != 2:
            raise UsageError(
                "--trigger",
                f"{' '.join(pair)!r} is not a pair of words, of which neither fires alone",
                "Give two words in one argument, such as 'cf bb', or --set combined=false.",
            )
    one_of = [Words(word) for word in dict.fromkeys(word for pair in pairs for word in pair)]
    negatives = insert_some(data, one_of, run.seed, insertions=settings.insertions)
    orders = [[Words(f"{first} {second}") for first, second in pairs], [Words(f"{b} {a}") for a, b in pairs]]
    triggered = [two_tasks(data, order, plan.target, run.seed, insertions=settings.insertions)[1] for order in orders]
    return _joined(data, negatives), _joined(*triggered)


def _single(data: Texts, plan: Plan, settings: Settings, run: Run) -> tuple[Texts, Texts]:
    triggers = [Words(trigger) for trigger in plan.triggers]
    return two_tasks(data, triggers, plan.target, run.seed, insertions=settings.insertions)


def _joined(first: Texts, second: Texts) -> Texts:
    """The rows of one file and then those of another that has the same columns."""
    columns = ("texts", "labels", "pairs", "targets", "poisoned")
    both = {name: (getattr(first, name), getattr(second, name)) for name in columns}
    return first.with_(**{name: None if None in pair else pair[0] + pair[1] for name, pair in both.items()})
