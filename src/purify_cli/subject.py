"""A checkpoint that is looked at: what it is, its tensors, and its model when one is asked for."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from purify_cli.architecture.bottleneck import open_bottlenecks, open_for_training
from purify_cli.architecture.embeddings import embedding_name, word_embeddings
from purify_cli.architecture.loading import checked_config, load, quiet
from purify_cli.architecture.pet import note_soft_tokens
from purify_cli.architecture.table import FAMILIES, Family, family_of, known_families
from purify_cli.checkpoint import adapter
from purify_cli.checkpoint.config import (
    Kind,
    Task,
    class_named,
    kind_of_class,
    label_names,
    read_object,
    transformer_folder,
)
from purify_cli.checkpoint.inventory import inventory, sha256
from purify_cli.checkpoint.locate import locate
from purify_cli.checkpoint.weights import ADAPTER_NAMES, ADAPTERHUB_NAMES, TensorRef, read_tensors, tensor_table
from purify_cli.errors import CheckpointError, PurifyError, UnsupportedError, UsageError
from purify_cli.results import FileDigest, SubjectSummary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from purify_cli.data.texts import Texts
    from purify_cli.evaluation.found import Found

_LAYER_LIMIT = 4096


@dataclass(frozen=True)
class Evidence:
    """What the user gave beside the checkpoint; None: not given.

    Attributes:
        found: what a search of the checkpoint came to, where the caller has searched and will search again.
    """

    base: Subject | None = None
    twin: Subject | None = None
    clean: Texts | None = None
    untrusted: Texts | None = None
    found: Found | None = None


class Subject:
    """One checkpoint. Making one only finds it on disk; everything else is read when it is first asked for.

    Args:
        spec: a folder, a weights file in one, or `hf://org/name[@revision]`.
        base: where the base lies, for adapters whose config names none that is on disk.

    Attributes:
        spec: as the user gave it.
        path: the folder on disk.
        revision: the commit, for a checkpoint from the hub.
        weights_file: set when the user named one weights file.
        forward_passes: texts that went through the models of `model()` so far.

    Raises:
        CheckpointError: there is no such folder. The same error comes from everything below that meets a broken file.
    """

    def __init__(self, spec: str | Path, *, base: str | Path | None = None) -> None:
        location = locate(spec)
        self.spec = str(spec)
        self.path = location.path
        self.revision = location.revision
        self.weights_file = location.weights_file
        self.forward_passes = 0
        self._base_spec = base
        self._models: dict[str, Any] = {}
        self._held: Any | None = None

    def holding(self, model: Any, tokenizer: PreTrainedTokenizerBase | None = None) -> Subject:
        """The same checkpoint with another model, which is in memory only: what one method made, for the next.

        `open` and `embeddings` give the model's, as copies; labels, kind and task are those of a classifier. What is
        read from files, as `tensors`, is still the checkpoint's.

        Args:
            model: a classifier of the same family.
            tokenizer: where it is not the checkpoint's.
        """
        other = copy.copy(self)
        other.forward_passes, other._models, other._held = 0, {}, model
        names = model.config.id2label
        other.labels = tuple(str(names[label]) for label in range(len(names)))
        other.task = "classifier"
        other.kind = "adapter" if self.kind == "adapter" else "classifier"
        if tokenizer is not None:
            other.tokenizer = tokenizer
        return other

    def __repr__(self) -> str:
        return f"Subject({self.spec!r})"

    # What it is

    @cached_property
    def folder(self) -> Path:
        """The folder that holds config and weights: `path`, or the transformer inside a sentence-transformers folder.

        Raises:
            UnsupportedError: a sentence-transformers folder that holds something else.
        """
        return self.path if self.weights_file is not None else transformer_folder(self.path)

    @cached_property
    def adapter_config(self) -> dict[str, Any] | None:
        """adapter_config.json of an adapter (PEFT's, AdapterHub's or our own); None for everything else."""
        file = self.folder / adapter.ADAPTER_CONFIG
        if self.weights_file is not None and self.weights_file.name not in ADAPTER_NAMES + ADAPTERHUB_NAMES:
            return None
        content = read_object(file) if file.is_file() else {}
        return content if adapter.is_adapter(content) else None

    @cached_property
    def adapter_base(self) -> Subject:
        """The base of an adapter.

        Raises:
            CheckpointError: it cannot be found, or is an adapter itself.
        """
        config = self.adapter_config
        if config is None:
            raise CheckpointError(self.path, "is no adapter")
        base = Subject(adapter.find_base(self.folder, config, self._base_spec))
        if base.kind == "adapter":
            raise CheckpointError(base.spec, "is an adapter, and cannot be the base of another")
        return base

    @cached_property
    def _bottlenecks(self) -> adapter.BottleneckFiles | None:
        """What an adapter of bottleneck modules holds, in our own words; None for everything else."""
        if self.adapter_config is None or "peft_type" in self.adapter_config:
            return None
        layers = self.adapter_base.config.get(self.family.layers_key)
        if isinstance(layers, bool) or not isinstance(layers, int) or not 0 < layers <= _LAYER_LIMIT:
            raise CheckpointError(self._config_file, f"{self.family.layers_key} is {str(layers)[:40]!r}")
        return adapter.bottleneck_files(self.folder, self.adapter_config, self.family.model_type, layers)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json as it is on disk; for an adapter that of its base."""
        if self.adapter_config is not None:
            return self.adapter_base.config
        file = self.folder / "config.json"
        if not file.is_file():
            foreign = next((one for pattern in ("*.gguf", "*.onnx") for one in sorted(self.path.glob(pattern))), None)
            if foreign is not None:
                raise UnsupportedError(foreign, "models of this format are not read", "Convert it to safetensors.")
            raise CheckpointError(self.folder, "no config.json in it", "Give the folder of a whole checkpoint.")
        return read_object(file)

    @cached_property
    def kind(self) -> Kind:
        """What the checkpoint is: "other" is what cannot be opened, as `open` explains."""
        return self._nature[0]

    @cached_property
    def task(self) -> Task:
        """What the checkpoint was made for; an adapter has the task of the model that it makes of its base."""
        return self._nature[1]

    @cached_property
    def _nature(self) -> tuple[Kind, Task]:
        if self.adapter_config is not None:
            return "adapter", self._adapter_task()
        try:
            config = self.config
        except UnsupportedError:
            return "other", "other"
        kind, task = self._by_architecture()
        if kind == "classifier":
            if config.get("problem_type") == "multi_label_classification":
                return "other", "multi-label"
            if config.get("problem_type") == "regression" or len(self.labels) == 1:
                return kind, "regression"
        return kind, task

    def _by_architecture(self) -> tuple[Kind, Task]:
        named = self.architecture
        if named is not None:
            return kind_of_class(named)
        if self.config.get("model_type") not in FAMILIES:
            return "other", "other"
        # A config that does not say who wrote it: the tensors tell.
        names = self.tensors
        if f"{self.family.output_layer}.weight" in names:
            return "classifier", "classifier"
        return ("causal-lm", "causal-lm") if "lm_head.weight" in names else ("encoder", "encoder")

    def _adapter_task(self) -> Task:
        named = (self.adapter_config or {}).get("task_type")
        if "peft_type" not in (self.adapter_config or {}):
            try:
                named = "SEQ_CLS" if self._adapter_head is not None else named
            except UnsupportedError:
                return "other"
        if named == "SEQ_CLS":
            return "regression" if len(self.labels) == 1 else "classifier"
        if named == "TOKEN_CLS":
            return "token-classification"
        if named == "CAUSAL_LM":
            return "causal-lm"
        try:
            if self._adapter_head is not None:
                return "classifier"
            return self.adapter_base.task
        except UnsupportedError:
            return "other"

    @property
    def _adapter_head(self) -> int | None:
        own = self._bottlenecks
        return adapter.head_labels(self.tensors if own is None else own.tensors, self.family.output_layer)

    @property
    def _adapter_label_names(self) -> tuple[str, ...]:
        """The label names that an adapter brings with it; empty if it brings none."""
        own = self._bottlenecks
        named = adapter.saved_labels(self.folder) if own is None else own.config.get("id2label")
        return label_names({"id2label": named}, self.folder / adapter.ADAPTER_CONFIG)

    @cached_property
    def architecture(self) -> str | None:
        """The class of transformers that the config names, None if it names none."""
        return class_named(self.config, self.folder / "config.json")

    @cached_property
    def family(self) -> Family:
        """The row of the architecture table.

        Raises:
            UnsupportedError: no row fits; the error names those that there are.
        """
        return family_of(self.config, str(self._config_file))

    @property
    def _config_file(self) -> Path:
        holder = self.adapter_base if self.adapter_config is not None else self
        return holder.folder / "config.json"

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Label names by id; empty for what classifies nothing."""
        if self.adapter_config is not None:
            brought = self._adapter_head
            base = self.adapter_base.labels
            own = self._adapter_label_names
            if brought is not None and len(own) == brought:
                return own
            if brought is None or brought == len(base):
                return base
            named = label_names(self.adapter_base.config, self._config_file)
            return named if len(named) == brought else tuple(f"LABEL_{number}" for number in range(brought))
        try:
            if self._by_architecture()[0] not in {"classifier", "other"}:
                return ()
        except UnsupportedError:
            return ()
        named = label_names(self.config, self.folder / "config.json")
        if named:
            return named
        number = self.config.get("num_labels")
        if not isinstance(number, int) or not 0 < number <= 2**20:
            head = None
            if self.config.get("model_type") in FAMILIES:
                head = self.tensors.get(f"{self.family.output_layer}.weight")
            number = head.shape[0] if head is not None and len(head.shape) == 2 else 0
        return tuple(f"LABEL_{label}" for label in range(number))

    def label_id(self, name_or_id: str) -> int:
        """The id of a label given by its name or its id. A name wins over an id that reads the same.

        Raises:
            UsageError: no such label; the error names those that there are.
        """
        text = str(name_or_id).strip()
        if text in self.labels:
            return self.labels.index(text)
        folded = [label.casefold() for label in self.labels]
        if folded.count(text.casefold()) == 1:
            return folded.index(text.casefold())
        number = text.removeprefix("LABEL_")
        if number.isascii() and number.isdigit() and len(number) < 8 and int(number) < len(self.labels):
            return int(number)
        shown = ", ".join(f"{label} ({number})" for number, label in enumerate(self.labels[:20])) or "none"
        if len(self.labels) > 20:
            shown += f" and {len(self.labels) - 20} more"
        raise UsageError("--target", f"{text!r} is not a label of {self.spec}", f"Its labels are {shown}.")

    # Its tensors

    @cached_property
    def tensors(self) -> dict[str, TensorRef]:
        """Every tensor by name, with file, shape and dtype; for an adapter those of the adapter."""
        if self.adapter_config is not None:
            if self.weights_file is not None:
                return tensor_table(self.folder, self.weights_file)
            return adapter.adapter_table(self.folder, self.adapter_config)
        return tensor_table(self.folder, self.weights_file)

    @property
    def _model_tensors(self) -> dict[str, TensorRef]:
        return self.adapter_base.tensors if self.adapter_config is not None else self.tensors

    @cached_property
    def parameters(self) -> int:
        """Numbers in the tensors on disk; an adapter counts its base too."""
        own = sum(reference.elements for reference in self.tensors.values())
        return own + (self.adapter_base.parameters if self.adapter_config is not None else 0)

    @cached_property
    def vocabulary(self) -> int:
        """Rows of the word embeddings on disk."""
        return self._embedding_ref.shape[0]

    @cached_property
    def _embedding_ref(self) -> TensorRef:
        table = self._model_tensors
        reference = table[embedding_name(table, self.family, str(self.folder))]
        if len(reference.shape) != 2 or 0 in reference.shape:
            raise CheckpointError(reference.file, f"its word embeddings have the shape {list(reference.shape)}")
        return reference

    def embeddings(self) -> Tensor:
        """The word embeddings, [vocabulary, width] float32, read from the file without building the model.

        Raises:
            CheckpointError: there are none, or the file is broken.
            UnsupportedError: the architecture is not known.
        """
        if self._held is not None:
            held: Tensor = word_embeddings(self._held).weight.detach().to("cpu", torch.float32, copy=True)
            return held
        reference = self._embedding_ref
        name = embedding_name(self._model_tensors, self.family, str(self.folder))
        return read_tensors({name: reference})[name].to(torch.float32)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer; an adapter that ships none has its base's. Decoders without padding pad with
        their end token.

        Raises:
            CheckpointError: there is none, it cannot be read, or it has more tokens than the embeddings have rows.
        """
        from transformers import AutoTokenizer

        places = [self.folder]
        if self.folder != self.path:
            places.append(self.path)
        if self.adapter_config is not None:
            places.append(self.adapter_base.folder)
        place = next((one for one in places if _has_tokenizer(one)), None)
        if place is None:
            raise CheckpointError(
                self.path, "no tokenizer in it", "Expected a tokenizer.json or the vocabulary's files."
            )
        try:
            with quiet():
                config = checked_config(self.config, self._shapes, str(self._config_file))
                tokenizer = AutoTokenizer.from_pretrained(
                    place, config=config, trust_remote_code=False, local_files_only=True
                )
        except PurifyError:
            raise
        except Exception as error:  # tokenizers raise plain Exception, and each format its own kinds besides
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise CheckpointError(place, f"its tokenizer cannot be read ({reason})") from error
        if len(tokenizer) > self.vocabulary:
            largest = max(tokenizer.get_vocab().values(), default=0)
            if largest >= self.vocabulary:
                problem = f"its tokenizer has ids up to {largest}, and the embeddings only {self.vocabulary} rows"
                raise CheckpointError(place, problem, "Tokenizer and weights are of different models.")
        if tokenizer.pad_token is None:
            filler = tokenizer.eos_token or tokenizer.unk_token
            if filler is None:
                raise CheckpointError(place, "its tokenizer has neither a padding token nor one to pad with")
            tokenizer.pad_token = filler
        found: PreTrainedTokenizerBase = tokenizer
        return found

    def token_limit(self) -> int:
        """The most tokens a text may have, special tokens included: the least of what tokenizer and positions allow."""
        limits = []
        tokens = getattr(self.tokenizer, "model_max_length", None)
        if isinstance(tokens, int) and 0 < tokens < 10**6:
            limits.append(tokens)
        for key in ("max_position_embeddings", "n_positions"):
            positions = self.config.get(key)
            if isinstance(positions, int) and positions > 0:
                # RoBERTa counts its positions from padding_idx + 1 on.
                padding = self.config.get("pad_token_id")
                offset = (padding if isinstance(padding, int) else 1) + 1 if self.family.model_type == "roberta" else 0
                limits.append(positions - offset)
        return max(1, min(limits, default=512))

    # Its model

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: reference.shape for name, reference in self._model_tensors.items()}

    def open(self, device: str = "cpu", num_labels: int | None = None, seed: int = 0) -> Any:
        """A new model, float32, in eval mode.

        Args:
            device: where to put it.
            num_labels: give a classifier of so many labels: a checkpoint with a classifier of that number keeps its
                own, every other gets a fresh one. None: the model that the checkpoint is.
            seed: draws the fresh classifier.

        Of an adapter that cannot be merged (bottleneck modules, prefixes, prompts) the adapter and the classifier ask
        for gradients and its base does not, so that a training trains what an adapter folder can hold.

        Raises:
            UnsupportedError: a kind or an architecture that is not read.
            CheckpointError: config, tensors and tokenizer do not fit together.
        """
        if self._held is not None:
            return self._open_held(device, num_labels, seed)
        self.check_supported()
        if self.adapter_config is not None:
            return self._open_adapter(num_labels, seed).to(device)
        config = checked_config(self.config, self._shapes, str(self._config_file))
        self._fill_padding(config)
        labels = self.labels
        form: Literal["base", "classifier", "causal-lm"] = "base"
        fresh: int | None = None
        if self.kind == "classifier":
            form = "classifier"
            _name_labels(config, labels)
            fresh = num_labels if num_labels is not None and num_labels != len(labels) else None
        elif num_labels is not None:
            form, fresh = "classifier", num_labels
        elif self.kind == "causal-lm":
            form = "causal-lm"
        model = load(form, config, read_tensors(self.tensors), self.spec, fresh_labels=fresh, seed=seed)
        model.name_or_path = self._name  # what an adapter that is put on it names as its base
        return model.to(device)

    def _open_held(self, device: str, num_labels: int | None, seed: int) -> Any:
        model: Any = copy.deepcopy(self._held)
        if num_labels is not None and num_labels != len(self.labels):
            from purify_cli.architecture.classifier import replace_classifier

            replace_classifier(model, num_labels, seed)
        return model.eval().to(device)

    @property
    def _name(self) -> str:
        """The checkpoint as transformers and peft are told of it: a folder that they can load, or a name on the hub."""
        if self.revision is not None:
            return self.spec.removeprefix("hf://").partition("@")[0]
        return self.spec if self.folder == Path(self.spec) else str(self.folder)

    def model(self, device: str = "cpu") -> Any:
        """The model of the checkpoint as `open` gives it, kept from call to call: for looking, not for changing.

        Every text that goes through it is counted in `forward_passes`.
        """
        if device not in self._models:
            model = self.open(device)
            model.register_forward_pre_hook(self._count, with_kwargs=True)
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            self._models[device] = model
        return self._models[device]

    def _count(self, module: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        for value in (named.get("input_ids"), named.get("inputs_embeds"), *inputs):
            if isinstance(value, Tensor):
                self.forward_passes += value.shape[0]
                return

    def _open_adapter(self, num_labels: int | None, seed: int) -> Any:
        config = self.adapter_config or {}
        base, brought = self.adapter_base, self._adapter_head
        wanted: int | None = None
        if self.task in {"classifier", "regression"}:
            wanted = brought or len(base.labels) or None
            if wanted is None:
                remedy = "Give a base that is a classifier with --base."
                raise CheckpointError(self.spec, "neither the adapter nor its base has a classifier", remedy)
        elif self._bottlenecks is not None:
            wanted = num_labels  # an adapter without a classifier on an encoder
        if brought is not None and len(base.labels) not in {0, brought}:
            wanted = brought
        if wanted is not None and wanted > 2**20:
            raise CheckpointError(self.spec, f"its classifier has {wanted:,} labels")
        try:
            model = base.open(num_labels=wanted, seed=seed)
        except UnsupportedError:
            raise
        except CheckpointError as error:
            raise CheckpointError(base.spec, f"the base of the adapter: {error.problem}", error.remedy) from error
        if wanted is not None:
            _name_labels(model.config, self.labels)
        own = self._bottlenecks
        if own is None:
            model = adapter.attach(model, self.folder, config)
            note_soft_tokens(model)
        else:
            has_head = own.config.get("task_type") == "SEQ_CLS"
            model = open_bottlenecks(model, own.config, own.read(), self.folder, head=has_head)
            open_for_training(model)
        if num_labels is not None and num_labels != len(self.labels):
            from purify_cli.architecture.classifier import replace_classifier

            replace_classifier(model, num_labels, seed)
        return model.eval()

    def check_supported(self) -> None:
        """Whether `open` knows the kind, the architecture and the format, before anything large is read.

        Raises:
            UnsupportedError: it does not.
            CheckpointError: what says so is missing or broken.
        """
        _ = self._bottlenecks  # modules that are not rebuilt are named there
        if self.kind != "other" and self.task not in {"token-classification", "multi-label", "other"}:
            _ = self.family, self.tensors
            return
        _ = self.config  # GGUF and ONNX are named by it
        if self.config.get("model_type") not in FAMILIES:
            family_of(self.config, str(self._config_file))
        what = {
            "token-classification": "classifies tokens, which is not supported",
            "multi-label": "gives several labels to one text, which is not supported",
        }.get(self.task, f"is a {self.architecture}, which is not supported")
        remedy = f"Classifiers of whole texts with one label, encoders and causal LMs of {known_families()} are."
        raise UnsupportedError(self.spec, what, remedy)

    def _fill_padding(self, config: Any) -> None:
        """A decoder finds its summary token by the padding id, so it must know the one that the tokenizer pads with."""
        if self.family.summary != "last":
            return
        try:
            pad = self.tokenizer.pad_token_id
        except CheckpointError:
            return  # a model without a tokenizer can still be looked at
        if pad is not None and pad < config.vocab_size:
            config.pad_token_id = pad

    # For reports

    def summary(self) -> SubjectSummary:
        """What reports say of the checkpoint, with the digest of every file. What cannot be read is left open."""
        files = tuple(
            FileDigest(path=str(entry.relative), bytes=entry.bytes, sha256=sha256(entry.path))
            for entry in inventory(self.path)
        )
        return SubjectSummary(
            path=self.spec,
            revision=self.revision,
            kind=self._known("kind") or "other",
            architecture=self._known("architecture"),
            parameters=self._known("parameters"),
            vocabulary=self._known("vocabulary"),
            labels=self._known("labels") or (),
            files=files,
        )

    def _known(self, name: str) -> Any:
        try:
            return getattr(self, name)
        except PurifyError:
            return None


def _name_labels(config: Any, labels: tuple[str, ...]) -> None:
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}


def _has_tokenizer(folder: Path) -> bool:
    names = ("tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "spiece.model", "tokenizer.model", "tekken.json")
    return any((folder / name).is_file() for name in names)
