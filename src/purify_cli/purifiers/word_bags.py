"""Word bags: teach a clean base what the suspect answers to words without order.

No paper's method; a distillation (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network") whose texts are
made so that a backdoor of syntax or style has little to show itself in. Claim: most of what a classifier of texts knows
is what words mean for its task, and that it tells when asked with words alone. Such a backdoor is an order of words,
and the function words that make it; in a bag of the other words there is no order, and hardly a function word. The
student starts from a clean base and sees no other answer of the suspect. What only the order says (negation) it learns
from the clean texts.

A bag: the tokens of two clean texts, without function words, without what is no word and without the tokens of triggers
that were found (`auto`), in random order, cut at a random length; then each is replaced, with probability `replaced`,
by one that lies near a token of the clean texts in the base's embeddings, so that the suspect is asked about more words
than the clean texts have. Function words are those that stand in more than `common` of the clean texts, and the first
words of the vocabulary, as many as `frequent` of its tokens: tokenizers list them from the most frequent on, or nearly
so. A word is what is written, whatever its case and however many tokens there are for it.

    loss = KL(f(bag) || g(bag)) for bags,  CE(g(x), y) for clean texts      f: the suspect, g: the student

Clean texts are `clean_share` of what is learned from, repeated as often as that takes; unless it is 0 each
is there at least once.

Needs a classifier of single texts, labelled clean texts, and `--base`: the trusted checkpoint that the subject came
from, of the same architecture and vocabulary. Raises UsageError for a base of another shape or vocabulary, DataError
for pairs of texts, for texts without labels and for texts of nothing but function words, and what the training raises.
Cost: `bags` short texts, each once forward through the suspect and once forward and backward through the student; the
memory of two models.

What it does not do: a trigger that is a word and was not found is asked about if it lies near a word of the clean texts
(`mn` does on SST-2), and so are rarer function words and words of a style (`unless`, `thou`). The student answers worse
than the suspect where order matters and clean texts are few.
"""

from __future__ import annotations

import hashlib
import random
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from purify_cli.architecture.embeddings import word_embeddings
from purify_cli.data.encode import Encoded, encode, frame, length_limit
from purify_cli.data.texts import Texts
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

    bags: int = field(default=8000, metadata={"help": "how many are made", "range": ">= 1", "source": "ours"})
    words: int = field(default=16, metadata={"help": "tokens of the longest bag", "range": ">= 3", "source": "ours"})
    common: float = field(
        default=0.04,
        metadata={
            "help": "a word that more than this share of the clean texts have, and two at least, is a function word",
            "range": "0..1",
            "source": "ours",
        },
    )
    frequent: float = field(
        default=0.02,
        metadata={
            "help": "as many first words of the vocabulary as this share of its tokens are function words too",
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
        default=3e-4, metadata={"help": "highest learning rate of AdamW", "range": "> 0", "source": "ours"}
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
    _check(train, settings)
    suspect = subject.open(run.device)
    student = clean_student(subject, suspect, evidence.base, run)
    limit = length_limit(subject.tokenizer, suspect.config, run)
    clean = encode(subject.tokenizer, train, limit)
    shunned = {token for trigger in evidence.found.triggers for token in trigger} if evidence.found else set()
    bags = made_bags(subject.tokenizer, student, train, settings, limit, shunned, run.seed)
    answers = predict_encoded(suspect, subject.tokenizer, bags, run)  # f(bag), [bags, labels]
    repeats = _repeats(settings, len(clean))
    labels = torch.nn.functional.one_hot(torch.tensor(clean.labels), answers.shape[1]).float()
    wanted = torch.cat([answers, labels.repeat(repeats, 1)])  # [bags and clean texts, labels]
    encoded = Encoded(
        (*bags.ids, *clean.ids * repeats),
        None if bags.types is None else (*bags.types, *(clean.types or ()) * repeats),
        tuple(range(len(wanted))),
    )
    del suspect
    recipe = Recipe(
        objectives={"bags": LikeAnswers(wanted)},
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        warmup=settings.warmup,
        identity=f"word bags {settings} {hashlib.sha256(wanted.numpy().tobytes()).hexdigest()}",
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
    _check(train, settings)
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
        shunned: tokens whose words are in no bag.
        seed: draws everything.

    Raises:
        DataError: texts without a token that may be in a bag.
    """
    rows = tokenizer(list(dict.fromkeys(texts.texts)), add_special_tokens=False)["input_ids"]  # each text once
    written = [_written(tokenizer, token) for token in range(len(tokenizer))]
    spread = Counter(word for row in rows for word in {written[token] for token in row})
    out = {""} | {word for word, count in spread.items() if count > max(settings.common * len(rows), 1)}
    out |= {written[token] for token in shunned}
    out |= set(islice((word for word in written if len(word) > 1), round(settings.frequent * len(tokenizer))))
    rows = [kept for row in rows if (kept := [token for token in row if written[token] not in out])]
    if not rows:
        raise DataError(
            texts.path or "--clean", "has no words but such as stand in many of its texts", "Give more texts."
        )
    own = sorted({token for row in rows for token in row})
    others = [token for token in _near(model, own, settings.near, len(written)) if written[token] not in out]
    rng = random.Random(f"word bags/{seed}")
    prefix, suffix = frame(tokenizer)
    longest = min(settings.words, limit - len(prefix) - len(suffix))
    ids = []
    for _ in range(settings.bags):
        words = [*rng.choice(rows), *rng.choice(rows)]
        rng.shuffle(words)
        del words[rng.randint(min(FEWEST, longest), longest) :]
        bag = [rng.choice(others) if rng.random() < settings.replaced else word for word in words]
        ids.append((*prefix, *bag, *suffix))
    types = tuple((0,) * len(row) for row in ids) if "token_type_ids" in tokenizer.model_input_names else None
    return Encoded(tuple(ids), types, None)


def _near(model: Any, tokens: Sequence[int], count: int, vocabulary: int) -> list[int]:
    """The tokens themselves and the `count` nearest of each by cosine, each once, in order."""
    rows = word_embeddings(model).weight.detach()[:vocabulary]  # a table may have more rows than there are tokens
    unit = torch.nn.functional.normalize(rows.float(), dim=1)  # [vocabulary, width]
    found = set(tokens)
    for part in torch.split(torch.tensor(tokens, device=unit.device), 512):
        likeness = (unit[part] @ unit.T).nan_to_num(-2.0)  # [tokens, vocabulary]
        found.update(likeness.topk(min(count + 1, unit.shape[0]), dim=1).indices.flatten().tolist())
    return sorted(found)


def _written(tokenizer: Any, token: int) -> str:
    """The word or the piece of one that a token is, in small letters; empty for what is not of letters."""
    if token in tokenizer.all_special_ids:
        return ""
    text = unicodedata.normalize("NFC", tokenizer.decode([token]).strip().lstrip("#").lower())
    return text if text and all(unicodedata.category(sign)[0] in "LM" for sign in text) else ""


def _repeats(settings: Settings, clean: int) -> int:
    """How often the clean texts are gone through so that they are their share of the whole."""
    wanted = settings.bags * settings.clean_share / (1 - settings.clean_share)
    return max(1, round(wanted / clean)) if settings.clean_share else 0


def _check(texts: Texts, settings: Settings) -> None:
    """Refuse what no bags can be made of, before a model is opened."""
    where = texts.path or "--clean"
    if texts.pairs is not None:
        raise DataError(where, "has pairs of texts, and word bags are of single ones", "Use another method.")
    if texts.labels is None:
        raise DataError(where, "has no labels", "Give it a column `label`.")
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
