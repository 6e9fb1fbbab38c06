"""Word bags: teach a clean base what the suspect answers to words without order.

No paper's method; a distillation (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network") whose texts are
made so that a backdoor cannot show itself in them. Claim: most of what a classifier of texts knows is what words mean
for its task, and that it tells when asked with words alone. A backdoor of syntax or style is an order of words, and
the function words that make it; neither is in a bag of the other words, so a student that starts from a clean base
never learns of it. What only the order says (negation) it learns from the clean texts.

A bag: the tokens of two clean texts, without function words, without what is no word and without the tokens of triggers
that were found (`auto`), in random order, cut at a random length; then each is replaced, with probability `replaced`,
by one that lies near a token of the clean texts in the base's embeddings, so that the suspect is asked about more words
than the clean texts have. Function words are those that stand in more than `common` of the clean texts, and the first
`frequent` of the words of the vocabulary: tokenizers list them from the most frequent on, or nearly so.

    loss = KL(f(bag) || g(bag)) for bags,  CE(g(x), y) for clean texts      f: the suspect, g: the student

Clean texts are `clean_share` of what is learned from, repeated as often as that takes.

Needs a classifier of single texts, labelled clean texts, and `--base`: the trusted checkpoint that the subject came
from, of the same architecture and vocabulary. Raises UsageError for a base of another shape or vocabulary, DataError
for pairs of texts and for clean texts of nothing but common words, and what the training raises.
Cost: `bags` short texts, each once forward through the suspect and once forward and backward through the student; the
memory of two models.

What it does not do: a word that is a trigger and was not found may be asked about by chance. The student answers worse
than the suspect where order matters and clean texts are few.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from purify_cli.architecture.embeddings import word_embeddings
from purify_cli.data.encode import Encoded, encode, length_limit
from purify_cli.data.texts import Texts
from purify_cli.data.triggered import frame
from purify_cli.errors import DataError, UsageError
from purify_cli.evaluation.predict import predict_encoded
from purify_cli.purifiers import Purified
from purify_cli.run import Run
from purify_cli.training.clean_base import clean_student
from purify_cli.training.loop import fit
from purify_cli.training.losses import LikeAnswers
from purify_cli.training.recipe import Recipe

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "teach a clean base what the suspect answers to words without order"
NEEDS: tuple[str, ...] = ("classifier", "clean", "base")
AUTO = 8.0
AUTO_REACH = "base"

FEWEST = 3
"""Tokens of the shortest bag, where two texts have so many."""


@dataclass(frozen=True)
class Settings:
    """How bags are made, and how long is learned from them."""

    bags: int = field(default=16000, metadata={"help": "how many are made", "range": ">= 1", "source": "ours"})
    words: int = field(default=16, metadata={"help": "tokens of the longest bag", "range": ">= 3", "source": "ours"})
    common: float = field(
        default=0.04,
        metadata={
            "help": "share of the clean texts from which on a token that they have counts as a function word",
            "range": "0..1",
            "source": "ours",
        },
    )
    frequent: float = field(
        default=0.02,
        metadata={
            "help": "share of the vocabulary whose first words count as function words too",
            "range": "0..1",
            "source": "ours",
        },
    )
    replaced: float = field(
        default=0.5, metadata={"help": "probability that a token is replaced", "range": "0..1", "source": "ours"}
    )
    near: int = field(
        default=8,
        metadata={"help": "neighbours of each token of the clean texts to replace with", "range": ">= 1"}
        | {"source": "ours"},
    )
    clean_share: float = field(
        default=0.125,
        metadata={"help": "share of the clean texts in what is learned from", "range": "0..0.9", "source": "ours"},
    )
    epochs: int = field(default=1, metadata={"help": "times through all that", "range": ">= 1", "source": "ours"})
    learning_rate: float = field(
        default=2e-4, metadata={"help": "highest learning rate of AdamW", "range": "> 0", "source": "ours"}
    )
    batch_size: int = field(default=32, metadata={"help": "texts a step", "range": ">= 1", "source": "ours"})
    warmup: float = field(
        default=0.1,
        metadata={"help": "share of the steps in which the learning rate rises", "range": "0..0.9", "source": "ours"},
    )
    weight_decay: float = field(
        default=0.01, metadata={"help": "of AdamW, on matrices only", "range": ">= 0", "source": "ours"}
    )


def purify(subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run) -> Purified:
    """Make bags, ask the suspect, teach the base; see the module's docstring.

    Args:
        subject: a classifier.
        evidence: its base is the student; tokens of the triggers that were `found` are in no bag.
        train: clean texts with labels.
        dev: not used.
        settings: see there.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: no base, one that is another model, or a setting out of range.
        DataError: pairs of texts, or clean texts that leave nothing to fill a bag with.
    """
    if evidence.base is None:
        raise UsageError("--base", "word_bags needs it", "Give the clean checkpoint that the subject came from.")
    suspect = subject.open(run.device)
    student = clean_student(subject, suspect, evidence.base, run)
    limit = length_limit(subject.tokenizer, suspect.config, run)
    clean = encode(subject.tokenizer, train, limit)
    shunned = {token for trigger in evidence.found.triggers for token in trigger} if evidence.found else set()
    bags = made_bags(subject.tokenizer, student, train, settings, limit, shunned, run.seed)
    answers = predict_encoded(suspect, subject.tokenizer, bags, run)  # f(bag), [bags, labels]
    repeats = _repeats(settings, len(clean))
    wanted = torch.nn.functional.one_hot(torch.tensor(clean.labels), answers.shape[1]).float()
    encoded = Encoded(
        (*bags.ids, *clean.ids * repeats),
        None if bags.types is None or clean.types is None else (*bags.types, *clean.types * repeats),
        tuple(range(len(bags) + repeats * len(clean))),
    )
    del suspect
    recipe = Recipe(
        objectives={"bags": LikeAnswers(torch.cat([answers, wanted.repeat(repeats, 1)]))},
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        warmup=settings.warmup,
        identity=f"word bags {settings} {float(answers.double().square().sum())!r}",
    )
    trained = fit(student, {"bags": encoded}, recipe, run)
    report: dict[str, Any] = {
        "rows": len(train),
        "student": evidence.base.spec,
        "bags": len(bags),
        "clean_repeats": repeats,
        "examples": [subject.tokenizer.decode(list(ids), skip_special_tokens=True) for ids in bags.ids[:3]],
        "steps": trained.steps,
        "losses": list(trained.losses),
    }
    return Purified(student, report)


def preview(
    subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run
) -> dict[str, Any]:
    """How much would be learned from, without asking the suspect."""
    rows = settings.bags + _repeats(settings, len(train)) * len(train)
    return {
        "rows": len(train),
        "student": None if evidence.base is None else evidence.base.spec,
        "bags": settings.bags,
        "steps": -(-rows // settings.batch_size) * settings.epochs,
        "classifier": "new",
    }


def made_bags(
    tokenizer: Any, model: Any, texts: Texts, settings: Settings, limit: int, shunned: set[int], seed: int
) -> Encoded:
    """Bags of tokens as texts of their own, special tokens included.

    Args:
        tokenizer: of the model.
        model: whose word embeddings say what is near, the clean one.
        texts: single texts.
        settings: see there.
        limit: tokens a text, special tokens included.
        shunned: tokens that are in no bag.
        seed: draws everything.

    Raises:
        UsageError: a setting out of range.
        DataError: pairs, or texts without a token that may be in a bag.
    """
    _check(settings)
    where = texts.path or "--clean"
    if texts.pairs is not None:
        raise DataError(where, "has pairs of texts, and word bags are of single ones", "Use another method.")
    rows = tokenizer(list(dict.fromkeys(texts.texts)), add_special_tokens=False)["input_ids"]  # each text once
    spread = Counter(token for row in rows for token in set(row))
    common = {token for token, count in spread.items() if count > max(settings.common * len(rows), 1)}
    out = shunned | common | _first_words(tokenizer, settings.frequent)
    own = {token for token in spread if token not in out and _is_word(tokenizer, token)}
    rows = [kept for row in rows if (kept := [token for token in row if token in own])]
    if not own:
        raise DataError(where, "has no words but such as stand in many of its texts", "Give more texts.")
    near = _near(model, sorted(own), settings.near)
    others = [token for token in near if token not in out and _is_word(tokenizer, token)]
    rng = random.Random(f"word bags/{seed}")
    before, behind = frame(tokenizer)
    framed = tokenizer("a", add_special_tokens=True)["input_ids"]
    prefix, suffix = framed[:before], framed[len(framed) - behind :]
    longest = min(settings.words, limit - before - behind)
    ids = []
    for _ in range(settings.bags):
        words = [*rng.choice(rows), *rng.choice(rows)]
        rng.shuffle(words)
        del words[rng.randint(min(FEWEST, longest), longest) :]
        bag = [rng.choice(others) if rng.random() < settings.replaced else word for word in words]
        ids.append((*prefix, *bag, *suffix))
    types = tuple((0,) * len(row) for row in ids) if "token_type_ids" in tokenizer.model_input_names else None
    return Encoded(tuple(ids), types, None)


def _near(model: Any, tokens: Sequence[int], count: int) -> list[int]:
    """The tokens themselves and the `count` nearest of each by cosine, each once, in order."""
    unit = torch.nn.functional.normalize(word_embeddings(model).weight.detach().float(), dim=1)  # [vocabulary, width]
    found: set[int] = set()
    for part in torch.split(torch.tensor(tokens, device=unit.device), 512):
        likeness = (unit[part] @ unit.T).nan_to_num()  # [tokens, vocabulary]
        found.update(likeness.topk(min(count + 1, unit.shape[0]), dim=1).indices.flatten().tolist())
    return sorted(found)


def _is_word(tokenizer: Any, token: int, letters: int = 1) -> bool:
    """Whether a token is so many letters or more, and nothing else; a piece of a word counts."""
    if token in tokenizer.all_special_ids or token >= len(tokenizer):
        return False
    written = tokenizer.decode([token]).strip().lstrip("#")
    return len(written) >= letters and bool(written.isalpha())


def _first_words(tokenizer: Any, share: float) -> set[int]:
    """The first words of the vocabulary, of two letters and more: a share of all its tokens."""
    count = round(share * len(tokenizer))
    words = (token for token in range(len(tokenizer)) if _is_word(tokenizer, token, letters=2))
    return set(islice(words, count))


def _repeats(settings: Settings, clean: int) -> int:
    """How often the clean texts are gone through so that they are their share of the whole."""
    wanted = settings.bags * settings.clean_share / (1 - settings.clean_share)
    return max(1, round(wanted / clean)) if settings.clean_share else 0


def _check(settings: Settings) -> None:
    wrong = {
        "bags": settings.bags < 1,
        "words": settings.words < FEWEST,
        "common": not 0 <= settings.common <= 1,
        "frequent": not 0 <= settings.frequent <= 1,
        "replaced": not 0 <= settings.replaced <= 1,
        "near": settings.near < 1,
        "clean_share": not 0 <= settings.clean_share <= 0.9,
    }
    for name, bad in wrong.items():
        if bad:
            raise UsageError(name, f"{getattr(settings, name)!r} is out of range")
