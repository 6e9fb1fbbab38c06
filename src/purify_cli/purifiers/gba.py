"""GBA: adapt with a prompt, and broadcast to the rows of the embedding what the words of the clean texts learn.

Anonymous: "Gradient Broadcast Adaptation: Defending against the backdoor attack in pre-trained models", submitted to
ICLR 2022, section 3. Claim: triggers are rare words; fine-tuning never moves their rows, so the backdoor stays. Let
every row take part in every step and it does not.

The text goes in with a soft template (section 3.3), the answer is read at [MASK] as a word of the whole vocabulary V:

    p(w|x) = exp(E_w . h_[MASK] / T) / sum_w' exp(E_w' . h_[MASK] / T)          equation 1
    loss   = -log p(class token of y | x)
    g_w    = dL/dE_w + lambda Q_w                                               equation 3
    Q_w    = p(w|x) / p(y|x) * (1/N) sum_{w' in x} dL/dE_w'                     equation 4

With Adam, equation 1 alone broadcasts already: the softmax over the vocabulary gives every row a gradient, and Adam
makes steps of full length of the smallest. What the pull should add is in figure 3: rare rows merge into the crowd. The
readings of equations 3 and 4 (`broadcast`):

- `crowd` (default; ours, after figure 3): after each update every row w of a rare word that is not in the batch goes
      E_w <- c + exp(-lambda s_t) (E_w - c),    s_t = 2 (S - t) / (S (S + 1)),    t = 0 .. S - 1
  with c the mean row of the clean texts' tokens and S the number of steps. The s_t sum to 1 and fall linearly: a row
  that nothing else moves ends at exp(-lambda) of its way from the crowd, however long the training is.
  Rare is a word that at most a share `rare` of the clean texts has. One that they do have can be learned anew from
  them; one that they never have ends in the crowd. Texts to come will hold such words, the clean ones hold none: so in
  training a share `swapped` of their tokens is swapped for words that they never have. A trigger that a few clean texts
  have is not learned anew from so few: words that the clean texts contradict (`data.usage`), by what the checkpoint as
  given answers to those texts, are pulled as well.
- `gradient`, the literal one: lambda Q_w is added to the gradient, which the clipping and Adam see. p(y|x) is floored.
- `none`: prompt tuning alone.

A regression has two class tokens, for its lowest and its highest score; a score between them wants both, in proportion.

Needs labelled clean texts; an encoder, a classifier or a regression that sums up in its first token, has a [MASK], and
whose hidden states are as wide as its embeddings (BERT, RoBERTa, DistilBERT, DeBERTa). An MLM head is not used:
equation 1 reads the embedding itself. Comes out as a plain sequence classifier, whose tokenizer frames each text with
the prompt: when the prompt has been learned, a fresh classification head is trained on the frozen encoder, so that
anything that loads a classifier can use it. The report says how often head and class tokens agree.
Raises what the training raises; UsageError for class tokens that are none.
Cost: two forward passes over the clean texts, and `epochs` of training with a product [batch, width] x [width, V] a
step; with `raised` again for each lambda.

Where we differ from the paper, and why:
- The mask comes first and not last, for classification heads read the first token (`architecture.prompt`). On a small
  BERT this left less of the trigger than the paper's order did, at the same accuracy.
- T, lambda, the learning rate and the length of training are not in the paper. Those here were chosen on texts apart
  from every test file (docs/benchmarks.md).
- The class tokens and the special tokens are not pulled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from purify_cli.architecture.classifier import (
    classifier_parameters,
    output_layer,
    replace_classifier,
    states_known,
)
from purify_cli.architecture.embeddings import word_embeddings
from purify_cli.architecture.pet import has_pet
from purify_cli.architecture.prompt import add_prompt
from purify_cli.architecture.table import base_of, family_of
from purify_cli.data.encode import Encoded, encode, length_limit
from purify_cli.data.texts import Texts
from purify_cli.data.usage import Usage
from purify_cli.errors import UsageError
from purify_cli.evaluation.predict import asked, predict
from purify_cli.purifiers import Purified
from purify_cli.run import Run
from purify_cli.training.class_tokens import class_tokens
from purify_cli.training.loop import Trained, fit
from purify_cli.training.plain import task_loss
from purify_cli.training.recipe import Batch, Gradients, Recipe
from purify_cli.training.start import open_classifier

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "adapt with a prompt while the embeddings of words that clean texts never use merge into the crowd (GBA)"
NEEDS: tuple[str, ...] = ("clean",)
REGRESSION = True
AUTO = 4.0
AUTO_REACH = "weights"


@dataclass(frozen=True)
class Settings:
    """The prompt, the broadcast, and how long."""

    class_tokens: str = field(
        default="",
        metadata={
            "help": "a word for each label, in the order of their ids, comma-separated; empty: proposed",
            "range": "",
            "source": "GBA table 1: terrible,good",
        },
    )
    width: int = field(
        default=2, metadata={"help": "soft tokens of the template", "range": ">= 0", "source": "GBA section 3.3"}
    )
    temperature: float = field(
        default=10.0, metadata={"help": "T of equation 1", "range": "> 0", "source": "ours; not in the paper"}
    )
    broadcast: Literal["crowd", "gradient", "none"] = field(
        default="crowd",
        metadata={
            "help": "how equations 3 and 4 are read",
            "range": "crowd|gradient|none",
            "source": "ours, after figure 3; GBA: gradient",
        },
    )
    pull: float = field(
        default=7.0,
        metadata={"help": "lambda of equation 3", "range": ">= 0", "source": "ours; GBA: 0.5 in table 3, for gradient"},
    )
    rare: float = field(
        default=0.0,
        metadata={
            "help": "share of the clean texts up to which a word is pulled into the crowd; 0: words of none of them",
            "range": "0..1",
            "source": "ours",
        },
    )
    contradicted: float = field(
        default=0.01,
        metadata={
            "help": "with crowd: pull also words whose clean texts a classifier answers with one wrong label, if less "
            "likely than this by accident, for a word; 0: none",
            "range": "0..1",
            "source": "ours",
        },
    )
    swapped: float | None = field(
        default=None,
        metadata={
            "help": "with crowd: share of the tokens swapped, in training, for words that no clean text has; none: the "
            "share of such words to be expected in other texts (Good and Turing's estimate)",
            "range": "0..1",
            "source": "ours",
        },
    )
    raised: int = field(
        default=0,
        metadata={
            "help": "how often lambda may be doubled, while dev accuracy holds; 0: lambda is fixed",
            "range": ">= 0",
            "source": "GBA section 5.3",
        },
    )
    max_drop: float = field(
        default=0.02,
        metadata={
            "help": "with raised: how far the dev accuracy may fall below that of prompt tuning alone",
            "range": "0..1",
            "source": "ours",
        },
    )
    least: float = field(
        default=1e-3, metadata={"help": "floor of p(y|x) in equation 4", "range": "> 0", "source": "ours"}
    )
    epochs: int = field(default=3, metadata={"help": "of the adaptation", "range": ">= 1", "source": "GBA table 3"})
    head_epochs: int = field(
        default=2,
        metadata={"help": "of the classification head, encoder frozen", "range": ">= 1", "source": "ours"},
    )
    learning_rate: float = field(
        default=2e-4, metadata={"help": "of AdamW, in the adaptation", "range": "> 0", "source": "ours"}
    )
    head_rate: float = field(
        default=1e-3, metadata={"help": "of AdamW, for the head", "range": "> 0", "source": "ours"}
    )
    warmup: float = field(
        default=0.1,
        metadata={"help": "share of the steps in which the learning rate rises", "range": "0..0.9", "source": "ours"},
    )
    batch_size: int = field(default=32, metadata={"help": "texts a step", "range": ">= 1", "source": "ours"})


@dataclass(frozen=True)
class _Adapted:
    """A model that was adapted with one lambda."""

    model: Any
    tokenizer: Any
    pull: float
    accuracy: float
    report: Mapping[str, Any]


def purify(subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run) -> Purified:
    """Adapt, with one lambda or with growing ones, and train a head; see the module's docstring.

    Args:
        subject: a classifier, a regression, or an encoder.
        evidence: not used.
        train: clean texts with labels.
        dev: clean texts with labels, by which lambda is raised and the head compared with the class tokens.
        settings: see there.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: a setting out of range, an adapter, or class tokens that are not one known piece each.
        UnsupportedError: no [MASK], or a family that the prompt does not fit.
    """
    _check(settings)
    best = _adapt(subject, train, dev, settings, run)
    tried = [{"pull": best.pull, "accuracy": best.accuracy}]
    if settings.raised:
        alone = _adapt(subject, train, dev, replace(settings, broadcast="none"), run).accuracy
        tried.insert(0, {"pull": 0.0, "accuracy": alone})
        for doubled in range(1, settings.raised + 1):
            if tried[-1]["accuracy"] < alone - settings.max_drop:
                break
            more = _adapt(subject, train, dev, replace(settings, pull=settings.pull * 2**doubled), run)
            tried.append({"pull": more.pull, "accuracy": more.accuracy})
            if more.accuracy >= alone - settings.max_drop:
                best = more
    report = {**best.report, "pull": best.pull, "tried": tried}
    if settings.raised and best.accuracy < tried[0]["accuracy"] - settings.max_drop:
        why = f"lambda {best.pull:g} costs more than {settings.max_drop:g} of the accuracy on dev: begin with less"
        return Purified(best.model, report, best.tokenizer, met=False, reasons=(why,))
    return Purified(best.model, report, best.tokenizer)


def preview(
    subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run
) -> dict[str, Any]:
    """The label map, and how many rows of the embedding no clean text has."""
    _check(settings)
    model = open_classifier(subject, train, run, regression=True)
    tokens = class_tokens(settings.class_tokens, _label_names(model), subject.tokenizer, train)
    stream = encode(subject.tokenizer, train, length_limit(subject.tokenizer, model.config, run))
    seen = {token for text in stream.ids for token in text} | set(tokens) | set(subject.tokenizer.all_special_ids)
    return {
        "class_tokens": subject.tokenizer.convert_ids_to_tokens(list(tokens)),
        "rows_never_seen": word_embeddings(model).num_embeddings - len(seen),
        "steps": math.ceil(len(train) / settings.batch_size) * (settings.epochs + settings.head_epochs),
    }


def _label_names(model: Any) -> list[str]:
    """The names of the labels; of a regression names for the ends of its scores."""
    if model.config.num_labels == 1:
        return ["low", "high"]
    return [model.config.id2label[label] for label in range(model.config.num_labels)]


def _check(settings: Settings) -> None:
    wrong = {
        "width": settings.width < 0,
        "temperature": not settings.temperature > 0,
        "pull": not settings.pull >= 0,
        "rare": not 0 <= settings.rare <= 1,
        "contradicted": not 0 <= settings.contradicted <= 1,
        "swapped": settings.swapped is not None and not 0 <= settings.swapped <= 1,
        "raised": settings.raised < 0,
        "max_drop": not 0 <= settings.max_drop <= 1,
        "least": not settings.least > 0,
        "head_epochs": settings.head_epochs < 1,
    }
    for name, bad in wrong.items():
        if bad:
            raise UsageError(name, f"{getattr(settings, name)!r} is out of range")


def _adapt(subject: Subject, train: Texts, dev: Texts, settings: Settings, run: Run) -> _Adapted:
    model = open_classifier(subject, train, run, regression=True)
    if has_pet(model):
        problem = "is an adapter, and the embeddings lie in its base"
        raise UsageError(subject.spec, problem, "Give the base, or an adapter that can be merged.")
    tokens = class_tokens(settings.class_tokens, _label_names(model), subject.tokenizer, train)
    pulls = settings.broadcast == "crowd" and settings.pull > 0
    answering = subject.task == "classifier" and pulls and settings.contradicted > 0
    answers = predict(model, subject.tokenizer, train, run).argmax(dim=1) if answering else None  # before it is changed
    tokenizer = add_prompt(model, subject.tokenizer, settings.width, run.seed)
    stream = encode(tokenizer, train, length_limit(tokenizer, model.config, run))
    usage = Usage(stream, {*tokenizer.all_special_ids, *tokens}, word_embeddings(model).num_embeddings)
    contradicted = torch.zeros_like(usage.free)
    if answers is not None:
        contradicted = usage.contradicted(answers, model.config.num_labels, settings.contradicted)
    swap = Swap(usage, settings) if settings.broadcast == "crowd" else None
    answer = PromptAnswer(tokens, settings.temperature, _span(model, train), swap)
    steps = math.ceil(len(stream) / settings.batch_size) * settings.epochs
    broadcast = Broadcast(model, answer, usage, settings, steps, usage.rare(settings.rare) | contradicted)
    before = broadcast.distance(model)
    recipe = Recipe(
        objectives={"task": answer},
        combine=broadcast.add_pull if settings.broadcast == "gradient" else None,
        project=broadcast.merge if settings.broadcast == "crowd" else None,
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        warmup=settings.warmup,
        identity=f"GBA {settings} {tokens} {contradicted.nonzero()[:, 0].tolist()}",
    )
    adapted = fit(model, {"task": stream}, recipe, run)
    after = broadcast.distance(model)
    head = _train_head(model, tokenizer, stream, swap, settings, run)

    states = _mask_states(model, tokenizer, encode(tokenizer, dev, length_limit(tokenizer, model.config, run)), run)
    with torch.no_grad(), states_known(model, states):
        said = model(input_ids=torch.zeros_like(states[:, :1], dtype=torch.long)).logits.float()  # [texts, labels]
    meant = answer.of_tokens(model, states)  # [texts, labels]
    right = torch.tensor(dev.labels or (), device=states.device)
    if answer.span is None:
        accuracy, agrees = (said.argmax(dim=1) == right), (said.argmax(dim=1) == meant.argmax(dim=1))
        accuracy, agrees = accuracy.float().mean(), agrees.float().mean()
    else:  # of a regression Pearson's correlations
        accuracy, agrees = (torch.corrcoef(torch.stack([said[:, 0], other]))[0, 1] for other in (right, meant[:, 0]))
    report = {
        "class_tokens": tokenizer.convert_ids_to_tokens(list(tokens)),
        "broadcast": settings.broadcast,
        "steps": adapted.steps + head.steps,
        "losses": list(adapted.losses),
        "head_losses": list(head.losses),
        "head_agrees": float(agrees),
        "rows_never_seen": int(usage.unseen.sum()),
        "contradicted": tokenizer.convert_ids_to_tokens(contradicted.nonzero()[:, 0].tolist()),
        "swapped": swap.share if swap is not None else 0.0,
        "crowd_distance": {"before": before, "after": after},
    }
    return _Adapted(model, tokenizer, settings.pull, float(accuracy), report)


def _span(model: Any, train: Texts) -> tuple[float, float] | None:
    """The ends of a regression's scores; None for a classifier."""
    if model.config.num_labels > 1:
        return None
    low, high = min(train.labels or (0.0,)), max(train.labels or (0.0,))
    if low == high:
        raise UsageError("--clean", f"all of its scores are {low:g}", "Give texts with different ones.")
    return float(low), float(high)


def _mask_states(model: Any, tokenizer: Any, stream: Encoded, run: Run, swap: Swap | None = None) -> Tensor:
    """The state of each text's [MASK] after the last layer, [texts, width], on the device; of a model in eval mode."""

    def ask(batch: Batch) -> Tensor:
        state: Tensor = base_of(model)(**(swap(batch) if swap else batch)).last_hidden_state[:, 0]
        return state

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(run.seed)
        return asked(ask, word_embeddings(model).embedding_dim, tokenizer, stream, run).to(run.device)


def _train_head(
    model: Any, tokenizer: Any, stream: Encoded, swap: Swap | None, settings: Settings, run: Run
) -> Trained:
    """A fresh classification head, and pooler where there is one, on the states that the encoder now gives."""
    replace_classifier(model, model.config.num_labels, run.seed)
    if model.config.num_labels == 1:
        with torch.no_grad():  # where the scores are: a small learning rate would be long on its way there
            output_layer(model).bias.fill_(sum(stream.labels or ()) / len(stream))
    opened = {id(model.get_parameter(name)) for name in classifier_parameters(model)}
    pooler = getattr(base_of(model), family_of(base_of(model).config).pooler or "", None)
    if pooler is not None:
        draw = torch.Generator().manual_seed(run.seed)
        opened |= {id(parameter) for parameter in pooler.parameters()}
        with torch.no_grad():
            pooler.dense.weight.copy_(torch.randn(pooler.dense.weight.shape, generator=draw) * 0.02)
            pooler.dense.bias.zero_()
    loss, states = task_loss(model), _mask_states(model, tokenizer, stream, run, swap)

    def objective(model: nn.Module, batch: Batch) -> Tensor:
        with states_known(model, states[batch["input_ids"][:, 0]]):
            return loss(model, batch)

    recipe = Recipe(
        objectives={"task": objective},
        trainable=lambda name, parameter: id(parameter) in opened,
        learning_rate=settings.head_rate,
        epochs=settings.head_epochs,
        batch_size=settings.batch_size,
        identity=f"GBA head {swap and swap.share} {states.sum()}",
    )
    rows = Encoded(tuple((row,) for row in range(len(stream))), None, stream.labels)  # for each text the row of states
    return fit(model, {"task": rows}, recipe, run)


# --- equation 1 -------------------------------------------------------------------------------------------------------


class PromptAnswer:
    """Objective: the cross entropy of the class token of y among all words of the vocabulary, at [MASK].

    Args:
        tokens: id of the class token of each label; of a regression those of the lowest and the highest score.
        temperature: T.
        span: of a regression the lowest and the highest score: a score between them wants both tokens, each with the
            probability that lies where the score does.
        swap: what is done to each batch before, if anything.

    Attributes:
        batch: the last one.
        log_p: ln p(w|x) of its texts, `[batch, V]`.
        gradient: dL/dE of each of its tokens, once the gradient was asked for, `[batch, tokens, width]`.
    """

    def __init__(
        self,
        tokens: tuple[int, ...],
        temperature: float,
        span: tuple[float, float] | None = None,
        swap: Swap | None = None,
    ) -> None:
        self.tokens, self.temperature, self.span, self.swap = tokens, temperature, span, swap
        self.batch: Batch = {}
        self.log_p = self.gradient = torch.empty(0)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean over the batch."""
        if self.swap is not None:
            batch = self.swap(batch)
        texts = {name: tensor for name, tensor in batch.items() if name != "labels"}
        watch = word_embeddings(model).register_forward_hook(self._watch)
        try:
            mask = base_of(model)(**texts).last_hidden_state[:, 0]  # h_[MASK], [batch, width]
        finally:
            watch.remove()
        # Not mask @ weight.T: its gradient lies transposed, and is added to that of the rows at several times the cost.
        scores = nn.functional.linear(mask / self.temperature, word_embeddings(model).weight)  # [batch, V]
        log_p = scores.float().log_softmax(dim=-1)
        self.batch, self.log_p = batch, log_p.detach()
        return -self.of_label(log_p).mean()

    def of_label(self, log_p: Tensor) -> Tensor:
        """Ln p(y|x) of each text's label, `[batch]`, from `[batch, V]`."""
        labels = self.batch["labels"]
        if self.span is None:
            wanted = nn.functional.one_hot(labels, len(self.tokens)).to(log_p)  # [batch, labels]
        else:
            low, high = self.span
            share = (labels.to(log_p) - low) / (high - low)
            wanted = torch.stack([1 - share, share], dim=1)
        return (log_p[:, list(self.tokens)] * wanted).sum(dim=1)

    def of_tokens(self, model: nn.Module, states: Tensor) -> Tensor:
        """What the class tokens say of texts whose h_[MASK] is `[texts, width]`, without gradients.

        Returns:
            their scores, `[texts, labels]`; of a regression the score that their probabilities stand for, `[texts, 1]`.
        """
        rows = word_embeddings(model).weight.detach()[list(self.tokens)].float()  # [labels, width]
        scores = states @ rows.T / self.temperature
        return scores if self.span is None else scores.softmax(dim=1) @ scores.new_tensor(self.span)[:, None]

    def _watch(self, module: nn.Module, inputs: tuple[Tensor, ...], rows: Tensor) -> None:
        if rows.requires_grad:
            rows.register_hook(self._arrived)  # type: ignore[no-untyped-call]  # torch has no types for it

    def _arrived(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach()


# --- equations 3 and 4 ------------------------------------------------------------------------------------------------


class Swap:
    """Swaps tokens of a batch for words that no clean text has, drawn anew for each."""

    def __init__(self, usage: Usage, settings: Settings) -> None:
        self.free, self.others = usage.free, usage.unseen.nonzero()[:, 0]
        self.share = usage.strange if settings.swapped is None else settings.swapped
        if not len(self.others):
            self.share = 0.0

    def __call__(self, batch: Batch) -> Batch:
        """The batch with other `input_ids`, drawn from torch's generator: who calls seeds it."""
        if self.share == 0:
            return batch
        ids = batch["input_ids"].cpu()
        chosen = (torch.rand(ids.shape) < self.share) & self.free[ids]
        others = self.others[torch.randint(len(self.others), ids.shape)]
        return {**batch, "input_ids": torch.where(chosen, others, ids).to(batch["input_ids"].device)}


class Broadcast:
    """What moves the rows of the embedding beside their own gradients.

    Args:
        model: its rows are moved.
        answer: of the same training; it knows what the step's batch was and said.
        usage: of the rows by the clean texts.
        settings: lambda, and the floor of p(y|x).
        steps: of the whole training.
        pulled: the rows that are pulled into the crowd, `[V]` bool.
    """

    def __init__(
        self, model: Any, answer: PromptAnswer, usage: Usage, settings: Settings, steps: int, pulled: Tensor
    ) -> None:
        weight = word_embeddings(model).weight
        self.answer, self.settings, self.steps = answer, settings, steps
        self.name = next(name for name, parameter in model.named_parameters() if parameter is weight)
        self.share, self.unseen, self.pulled = usage.share.to(weight), usage.unseen, pulled

    def add_pull(self, gradients: Mapping[str, Gradients], step: int) -> Gradients:
        """Equation 3: dL/dE + lambda Q; the other gradients as they are."""
        (found,) = gradients.values()
        return {**found, self.name: found[self.name] + self.settings.pull * self.q()}

    def q(self) -> Tensor:
        """Equation 4 for every word at once, the mean over the batch, `[V, width]`.

        The loss is a mean over the batch, and so are the gradients of its tokens.
        """
        log_p = self.answer.log_p
        of_y = self.answer.of_label(log_p).clamp(min=math.log(self.settings.least))  # [batch]
        ratio = (log_p - of_y[:, None]).exp()  # [batch, V]
        attended = self.answer.batch["attention_mask"].to(self.answer.gradient)  # [batch, tokens]
        summed = (self.answer.gradient * attended[:, :, None]).sum(dim=1)  # [batch, width]
        return ratio.T @ (summed / attended.sum(dim=1, keepdim=True))

    def merge(self, model: nn.Module, step: int) -> None:
        """Pull every row that is to be pulled, and is not in the batch, towards the crowd."""
        weight = word_embeddings(model).weight
        pulled = self.pulled.to(weight.device, copy=True)
        pulled[self.answer.batch["input_ids"].flatten()] = False
        share = 2 * (self.steps - step) / (self.steps * (self.steps + 1))  # s_t
        weight.lerp_(self._crowd(weight), -math.expm1(-self.settings.pull * share) * pulled[:, None].to(weight))

    def distance(self, model: nn.Module) -> float:
        """RMSE from the crowd of the rows that clean texts never use, their mean (figure 3)."""
        weight = word_embeddings(model).weight.detach()
        return float((weight[self.unseen] - self._crowd(weight)).square().mean(dim=1).sqrt().mean())

    def _crowd(self, weight: Tensor) -> Tensor:
        """The mean row of the clean texts' tokens, `[width]`."""
        return self.share.to(weight) @ weight
