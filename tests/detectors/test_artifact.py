from __future__ import annotations

import bz2
import collections
import gzip
import io
import json
import lzma
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch

import hostile
from purify_cli.detectors import artifact
from purify_cli.errors import Incomplete
from purify_cli.results import Finding
from purify_cli.run import Run


def scan(folder: Path, file: Path | None = None) -> tuple[list[Finding], str | None]:
    """The findings, and why the scan is incomplete or None."""
    findings: list[Finding] = []
    subject: Any = SimpleNamespace(path=folder, weights_file=file)
    try:
        for finding in artifact.detect(subject, SimpleNamespace(), artifact.Settings(), Run()):
            findings.append(finding)
    except Incomplete as incomplete:
        return findings, incomplete.reason
    return findings, None


def rules(findings: list[Finding], level: str = "error") -> set[str]:
    return {finding.rule for finding in findings if finding.level == level}


@pytest.fixture(autouse=True)
def _nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("a payload was run")

    monkeypatch.setattr(os, "system", run)
    monkeypatch.setattr(subprocess, "Popen", run)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hostile.weights(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "_name_or_path": "org/name"}))
    return tmp_path


def put(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def corrupt_crc(archive: bytes) -> bytes:
    """The same archive with the checksums of its directory off by one."""
    changed = bytearray(archive)
    at = archive.find(b"PK\x01\x02")
    while at >= 0:
        changed[at + 16] ^= 1
        at = archive.find(b"PK\x01\x02", at + 4)
    return bytes(changed)


def rename_local(archive: bytes, old: bytes, new: bytes) -> bytes:
    """The same archive with another name of the same length in the member's own header."""
    at = archive.index(old)
    return archive[:at] + new + archive[at + len(old) :]


def tarred(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def legacy_with(payload: bytes, place: int) -> bytes:
    """A legacy torch file whose pickle number `place` (of five) is another one."""
    data = hostile.torch_legacy()
    file = io.BytesIO(data)
    parts = []
    for _ in range(5):
        start = file.tell()
        for opcode, _, _ in __import__("pickletools").genops(file):
            if opcode.name == "STOP":
                break
        parts.append(data[start : file.tell()])
    rest = data[file.tell() :]
    parts[place] = payload
    return b"".join(parts) + rest


EVIL = hostile.payload()
HIDDEN_PICKLES: dict[str, tuple[str, bytes]] = {
    "protocol 0": ("weights.bin", hostile.payload(0)),
    "protocol 1": ("weights.bin", hostile.payload(1)),
    "protocol 5": ("weights.bin", hostile.payload(5)),
    "no extension": ("weights", EVIL),
    "the name of a text": ("README.txt", EVIL),
    "the name of a picture": ("logo.png", hostile.payload(0)),
    "the name of a config": ("generation_config.json", EVIL),
    "the name of safetensors": ("other.safetensors", EVIL),
    "deep in a folder": ("a/b/c/x.dat", EVIL),
    "gzip": ("x.gz", gzip.compress(EVIL)),
    "gzip in gzip": ("x", gzip.compress(gzip.compress(EVIL))),
    "bz2": ("x.bin", bz2.compress(EVIL)),
    "xz": ("x.bin", lzma.compress(EVIL)),
    "old lzma": ("x.bin", lzma.compress(EVIL, format=lzma.FORMAT_ALONE)),
    "zlib": ("x.joblib", zlib.compress(EVIL)),
    "torch zip": ("pytorch_model.bin", hostile.torch_zip({"a": hostile.RunsSystem()})),
    "torch zip in gzip": ("m.pt", gzip.compress(hostile.torch_zip({"a": hostile.RunsSystem()}))),
    "deflated zip": ("x.zip", hostile.zipped({"a/b": EVIL}, zipfile.ZIP_DEFLATED)),
    "bz2 zip": ("x.zip", hostile.zipped({"a/b": EVIL}, zipfile.ZIP_BZIP2)),
    "lzma zip": ("x.zip", hostile.zipped({"a/b": EVIL}, zipfile.ZIP_LZMA)),
    "zip in zip": ("x", hostile.zipped({"y": hostile.zipped({"z": EVIL}, zipfile.ZIP_DEFLATED)})),
    "zip behind other bytes": ("x", b"#!/bin/sh\n" + hostile.zipped({"z": EVIL})),
    "pickle before a zip": ("x", EVIL + hostile.zipped({"z": b"fine"})),
    "legacy torch": ("m.bin", hostile.torch_legacy({"a": hostile.RunsSystem()})),
    "legacy torch, first pickle": ("m.bin", legacy_with(EVIL, 0)),
    "legacy torch, protocol": ("m.bin", legacy_with(EVIL, 1)),
    "legacy torch, system": ("m.bin", legacy_with(EVIL, 2)),
    "legacy torch, storage keys": ("m.bin", legacy_with(EVIL, 4)),
    "legacy torch, behind the storages": ("m.bin", hostile.torch_legacy() + EVIL),
    "second of two pickles": ("m.pkl", pickle.dumps({"a": 1}) + EVIL),
    "behind a pickle and raw bytes": ("m.pkl", pickle.dumps({"a": 1}) + b"\xff" * 1000 + EVIL),
    "object array": ("a.npy", hostile.object_array()),
    "object array of another name": ("a.txt", hostile.object_array()),
    "object array in npz": ("a.npz", hostile.zipped({"a.npy": hostile.object_array()})),
    "tar": ("a.tar", tarred({"a/b": EVIL})),
    "tar in gzip": ("a.nemo", gzip.compress(tarred({"a/b": EVIL}))),
    "cut off behind the call": ("m.bin", EVIL[:-1]),
    "broken behind the call": ("m.bin", EVIL[:-1] + b"\xff\xff"),
    "gzip cut off behind the call": ("m.bin", gzip.compress(EVIL + os.urandom(100))[:-40]),
    "tensor's own bytes": (
        "m.pkl",
        pickle.dumps(torch.storage._load_from_bytes).replace(b"\x94.", b"\x94")
        + b"C"
        + bytes([len(EVIL)])
        + EVIL
        + b"\x85R.",
    ),
    "zip with a wrong checksum": ("m.bin", corrupt_crc(hostile.zipped({"m/data.pkl": EVIL}))),
    "zip without its tail": ("m.bin", hostile.zipped({"m/data.pkl": EVIL})[:-30]),
    "zip whose names disagree": ("m.bin", rename_local(hostile.zipped({"m/data.pkl": EVIL}), b"data", b"tada")),
}


@pytest.mark.parametrize("case", HIDDEN_PICKLES)
def test_payload_is_found_wherever_it_hides(folder: Path, case: str) -> None:
    name, data = HIDDEN_PICKLES[case]
    put(folder, name, data)
    findings, _ = scan(folder)
    found = [finding for finding in findings if finding.rule == "PA101" and finding.level == "error"]
    assert found, findings
    assert found[0].where.file == name
    assert found[0].evidence["global"].endswith(".system")


UNKNOWN = {
    "a loader of other pickles": ("torch", "load"),
    "another package": ("some_package.module", "function"),
    "a part of torch": ("torch.hub", "load"),
    "a builtin": ("builtins", "print"),
    "what leads to anything": ("builtins", "__import__"),
    "through a harmless module": ("collections", "abc.sys.modules.get"),
    "a method of a harmless class": ("builtins", "str.format"),
    "numpy's evaluator": ("numpy.testing._private.utils", "runstring"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_default_is_deny(folder: Path, case: str) -> None:
    put(folder, "x.bin", hostile.calls(*UNKNOWN[case], "argument"))
    assert rules(scan(folder)[0]) & {"PA101", "PA102"}


def test_global_by_computed_name(folder: Path) -> None:
    # The name comes from a list, so that no string stands before STACK_GLOBAL.
    put(folder, "x.bin", b"\x80\x04]" + hostile.short("os") + b"\x93)R.")
    assert rules(scan(folder)[0]) & {"PA101", "PA102"}


def test_memo_index_behind_a_nul(folder: Path) -> None:
    # The C unpickler reads "0\0junk" as 0.
    data = b"\x80\x02cos\nsystem\np0\x00junk\n0g0\x00other\n(S'x'\ntR."
    put(folder, "x.bin", data)
    assert "PA101" in rules(scan(folder)[0])


@pytest.mark.parametrize(
    "data",
    [
        hostile.calls("transformers.training_args", "TrainingArguments", "folder"),
        hostile.calls("builtins", "getattr", "text", "format"),
        hostile.calls("torch.storage", "_load_from_bytes", "no bytes"),
        # getattr(IntervalStrategy, "__init_subclass__"), and getattr kept as a value
        b"\x80\x04cbuiltins\ngetattr\nctransformers.trainer_utils\nIntervalStrategy\n\x8c\x08__class_\x86R.",
        b"\x80\x04cbuiltins\ngetattr\n\x85.",
        # collections.defaultdict(TrainingArguments): the class would be called
        b"\x80\x04ccollections\ndefaultdict\nctransformers.training_args\nTrainingArguments\n\x85R.",
        # attributes of a class set by BUILD
        b"\x80\x04ccollections\nOrderedDict\nN}\x8c\x01aK\x01s\x86b.",
        # the result of a call is called
        b"\x80\x04ccollections\nOrderedDict\n)R)R.",
    ],
)
def test_harmless_globals_used_otherwise(folder: Path, data: bytes) -> None:
    put(folder, "x.bin", data)
    assert "PA102" in rules(scan(folder)[0]) or "PA101" in rules(scan(folder)[0])


def _benign(folder: Path) -> None:
    from transformers import Seq2SeqTrainingArguments, TrainingArguments

    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    out = str(folder / "out")
    torch.save(TrainingArguments(output_dir=out, report_to=[]), folder / "training_args.bin")
    torch.save(Seq2SeqTrainingArguments(output_dir=out, report_to=[]), folder / "training_args_seq2seq.bin")
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    torch.save(scheduler.state_dict(), folder / "scheduler.pt")
    random_states = {
        "python": random.getstate(),
        "numpy": numpy.random.get_state(),
        "cpu": torch.random.get_rng_state(),
        "scalar": numpy.float64(1.5),
        "generator": numpy.random.default_rng(0),
    }
    torch.save(random_states, folder / "rng_state.pth")
    with (folder / "random_states_0.pkl").open("wb") as file:
        pickle.dump(random_states, file)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    torch.save(model.state_dict(), folder / "legacy.bin", _use_new_zipfile_serialization=False)
    parameters = collections.OrderedDict(model.named_parameters())
    torch.save(parameters, folder / "parameters.pt")
    torch.save(parameters, folder / "parameters_legacy.pt", _use_new_zipfile_serialization=False)
    torch.save({"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(2).to_sparse()}, folder / "kinds.pt")
    for protocol in range(6):
        with (folder / f"state_{protocol}.pkl").open("wb") as file:
            pickle.dump(model.state_dict(), file, protocol)
        with (folder / f"plain_{protocol}.pkl").open("wb") as file:
            pickle.dump({"a": {1, 2}, "b": b"bytes", "c": bytearray(b"x"), "d": 1j, "e": Path("x")}, file, protocol)
    numpy.save(folder / "array.npy", numpy.arange(10))
    numpy.savez_compressed(folder / "arrays.npz", a=numpy.arange(10), b=numpy.ones((3, 3)))


def test_ordinary_files_raise_nothing(folder: Path) -> None:
    _benign(folder)
    put(folder, "README.md", "---\ntags: []\n---\n# A model\n")
    put(folder, "tokenizer.json", json.dumps({"model": {"vocab": {"__class__": 0, "os": 1}}}))
    put(folder, "vocab.txt", "cat\ndog\n.\nR\n[PAD]\n")
    put(folder, "merges.txt", "#version: 0.2\nc o\ni n\n")
    put(folder, "tf_model.h5", b"\x89HDF\r\n\x1a\n" + bytes(100))
    put(folder, "flax_model.msgpack", b"\x81\xa6params\x80")
    put(folder, "model.onnx", b"\x08\x07\x12\x07pytorch")
    put(folder, ".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n")
    put(folder, "model.safetensors.index.json", json.dumps({"weight_map": {"layer.weight": "model.safetensors"}}))
    findings, reason = scan(folder)
    assert not findings
    assert reason is None


def test_enum_by_getattr_as_python_3_11_wrote_it(folder: Path) -> None:
    put(
        folder,
        "training_args.bin",
        hostile.zipped(
            {
                "t/data.pkl": b"\x80\x02c__builtin__\ngetattr\nq\x00"
                b"ctransformers.trainer_utils\nIntervalStrategy\nq\x01"
                b"X\x05\x00\x00\x00STEPSq\x02\x86q\x03Rq\x04."
            }
        ),
    )
    assert scan(folder) == ([], None)


def test_raw_numbers_behind_a_pickle_raise_nothing(folder: Path) -> None:
    numbers = numpy.random.default_rng(0).standard_normal(2_000_000, dtype=numpy.float32)
    put(folder, "numbers.dat", pickle.dumps(1) + numbers.tobytes())
    assert scan(folder) == ([], None)


def test_torchs_option_without_checksums_raises_nothing(folder: Path) -> None:
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(hostile.state(), folder / "pytorch_model.bin")
    finally:
        torch.serialization.set_crc32_options(before)
    assert scan(folder) == ([], None)


def test_hub_cache_layout_raises_nothing(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    hostile.weights(blobs)
    (blobs / "model.safetensors").rename(blobs / "0123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    assert scan(snapshot) == ([], None)


def test_links_that_leave(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    put(elsewhere, "secret.bin", EVIL)
    (folder / "a.bin").symlink_to(elsewhere / "secret.bin")
    (folder / "b").symlink_to(elsewhere)
    (folder / "c.bin").symlink_to("../../../../../../etc/passwd")
    findings, reason = scan(folder)
    assert {finding.where.file for finding in findings if finding.rule == "PA108"} == {"a.bin", "b", "c.bin"}
    assert not any(finding.rule == "PA101" for finding in findings), "a link that leaves was followed"
    assert reason is not None


def test_pipe_is_not_opened(folder: Path) -> None:
    os.mkfifo(folder / "weights.bin")
    findings, _ = scan(folder)
    assert [(finding.rule, finding.where.file) for finding in findings] == [("PA104", "weights.bin")]


@pytest.mark.parametrize("name", ["../other.bin", "/etc/passwd", "a/../../b.bin", "C:\\x.bin", "..\\x.bin"])
def test_members_and_shards_that_leave(folder: Path, name: str) -> None:
    put(folder, "x.zip", hostile.zipped({name: b"fine"}))
    put(folder, "model.safetensors.index.json", json.dumps({"weight_map": {"a": name}}))
    findings, _ = scan(folder)
    assert {finding.where.file for finding in findings if finding.rule == "PA108"} == {
        "x.zip",
        "model.safetensors.index.json",
    }


class TestArchivesThatReadersDisagreeAbout:
    def test_wrong_checksum(self, folder: Path) -> None:
        put(folder, "m.bin", corrupt_crc(hostile.torch_zip()))
        assert rules(scan(folder)[0], "warning") == {"PA103"}

    def test_names(self, folder: Path) -> None:
        put(folder, "m.bin", rename_local(hostile.zipped({"m/data.pkl": b"N."}), b"data", b"tada"))
        assert rules(scan(folder)[0]) == {"PA103"}

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_one_name_twice(self, folder: Path) -> None:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("m/data.pkl", b"N.")
            archive.writestr("M/DATA.pkl", b"N.")
        put(folder, "m.bin", buffer.getvalue())
        assert rules(scan(folder)[0]) == {"PA103"}

    def test_member_that_no_directory_names(self, folder: Path) -> None:
        hidden = hostile.zipped({"h/data.pkl": EVIL})
        hidden = hidden[: hidden.index(b"PK\x01\x02")]
        put(folder, "m.bin", hidden + hostile.zipped({"m/data.pkl": b"N."}))
        findings, _ = scan(folder)
        assert "PA101" in rules(findings)

    def test_truncated_is_not_a_pass(self, folder: Path) -> None:
        put(folder, "m.bin", hostile.torch_zip()[:-100])
        findings, reason = scan(folder)
        assert rules(findings, "warning") == {"PA104"}
        assert reason is not None


class TestBounds:
    def test_bomb(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from purify_cli.checkpoint import archives

        monkeypatch.setattr(archives, "MAX_UNPACKED_BYTES", 1 << 16)
        put(folder, "bomb.gz", gzip.compress(bytes(1 << 20)))
        put(folder, "bomb.zip", hostile.zipped({"a": bytes(1 << 20)}, zipfile.ZIP_DEFLATED))
        findings, reason = scan(folder)
        assert {finding.where.file for finding in findings if finding.rule == "PA112"} == {"bomb.gz", "bomb.zip"}
        assert reason is not None

    def test_depth(self, folder: Path) -> None:
        data = EVIL
        for _ in range(20):
            data = gzip.compress(data)
        put(folder, "deep.gz", data)
        findings, reason = scan(folder)
        assert rules(findings, "warning") == {"PA112"}
        assert reason is not None

    @pytest.mark.parametrize("magic", [b"7z\xbc\xaf\x27\x1c", b"\x28\xb5\x2f\xfd", b"Rar!\x1a\x07\x00"])
    def test_unknown_compression_is_not_a_pass(self, folder: Path, magic: bytes) -> None:
        put(folder, "x.bin", magic + bytes(100))
        findings, reason = scan(folder)
        assert rules(findings, "warning") == {"PA112"}
        assert reason is not None


class TestRemoteCode:
    def test_plain_code_is_a_warning(self, folder: Path) -> None:
        config = {"auto_map": {"AutoModel": "modeling_x.X"}}
        put(folder, "config.json", json.dumps(config))
        put(folder, "modeling_x.py", "from torch import nn\nfrom .parts import Part\nclass X(nn.Module):\n    pass\n")
        put(folder, "parts.py", "class Part: ...\n")
        put(folder, "notes.py", "x = 1\n")
        findings, reason = scan(folder)
        levels = {(finding.where.file, finding.rule): finding.level for finding in findings}
        assert levels == {
            ("config.json", "PA105"): "warning",
            ("modeling_x.py", "PA106"): "warning",
            ("parts.py", "PA106"): "warning",
            ("notes.py", "PA106"): "note",
        }
        assert reason is None

    @pytest.mark.parametrize("body", ["import os\nos.system('x')", "import socket", "open('/etc/passwd')", "eval('1')"])
    def test_code_that_reaches_out_is_an_error(self, folder: Path, body: str) -> None:
        put(folder, "tokenization_x.py", body)
        put(folder, "tokenizer_config.json", json.dumps({"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}))
        findings, _ = scan(folder)
        assert rules(findings) == {"PA106"}
        assert rules(findings, "warning") == {"PA105"}

    @pytest.mark.parametrize(
        ("name", "config"),
        [
            ("config.json", {"auto_map": {"AutoModel": "org/other--modeling_x.X"}}),
            ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["org/other--tok.X", None]}}),
            ("config.json", {"text_config": {"auto_map": {"AutoModel": "org/other--modeling_x.X"}}}),
            ("config.json", {"attn_implementation": "org/kernel:function"}),
            ("config.json", {"custom_pipelines": {"x": {"impl": "org/other--pipeline.X", "pt": ["AutoModel"]}}}),
            ("modules.json", [{"idx": 0, "type": "org/other--module.X", "path": ""}]),
        ],
    )
    def test_code_of_other_repositories_is_not_a_pass(self, folder: Path, name: str, config: Any) -> None:
        put(folder, name, json.dumps(config))
        findings, reason = scan(folder)
        assert rules(findings, "warning") == {"PA105"}
        assert reason is not None and "another repository" in reason

    def test_key_given_twice(self, folder: Path) -> None:
        put(folder, "config.json", '{"auto_map": {"AutoModel": "a.B"}, "auto_map": {}}')
        assert rules(scan(folder)[0], "warning") == {"PA105"}

    @pytest.mark.parametrize(
        ("name", "config", "level"),
        [
            ("config.json", {"trust_remote_code": True}, "warning"),
            ("sentence_bert_config.json", {"model_args": {"trust_remote_code": True}}, "warning"),
            ("modules.json", [{"type": "subprocess.Popen", "path": ""}], "error"),
            ("modules.json", [{"type": "custom_st.Transformer", "path": ""}], "warning"),
            ("2_Dense/config.json", {"activation_function": "os.system"}, "error"),
            ("adapter_config.json", {"auto_mapping": {"parent_library": "os", "base_model_class": "system"}}, "error"),
            ("adapter_config.json", {"megatron_core": "runpy"}, "error"),
        ],
    )
    def test_switches_and_imports(self, folder: Path, name: str, config: Any, level: str) -> None:
        put(folder, name, json.dumps(config))
        assert rules(scan(folder)[0], level) == {"PA105"}

    @pytest.mark.parametrize(
        ("name", "config"),
        [
            ("config.json", {"trust_remote_code": False, "activation_function": "gelu_new", "auto_map": {}}),
            ("config.json", {"_attn_implementation": "sdpa", "attn_implementation": "flash_attention_2"}),
            ("config.json", {"_name_or_path": "/home/me/model", "architectures": ["BertModel"]}),
            ("2_Dense/config.json", {"activation_function": "torch.nn.modules.activation.Tanh"}),
            ("modules.json", [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]),
            ("adapter_config.json", {"auto_mapping": {"parent_library": "transformers.models.bert.modeling_bert"}}),
        ],
    )
    def test_ordinary_configs_raise_nothing(self, folder: Path, name: str, config: Any) -> None:
        put(folder, name, json.dumps(config))
        assert scan(folder) == ([], None)

    def test_custom_generate(self, folder: Path) -> None:
        put(folder, "custom_generate/generate.py", "def generate(model, **kwargs):\n    return model\n")
        assert rules(scan(folder)[0], "warning") == {"PA106"}

    def test_code_that_cannot_be_parsed_is_not_a_pass(self, folder: Path) -> None:
        put(folder, "modeling_x.py", "def broken(:\n")
        findings, reason = scan(folder)
        assert rules(findings, "warning") == {"PA104"}
        assert reason is not None

    def test_compiled_code(self, folder: Path) -> None:
        put(folder, "kernel", b"\x7fELF\x02\x01\x01" + bytes(64))
        assert rules(scan(folder)[0], "warning") == {"PA106"}


EVIL_TEMPLATE = "{{ ''.__class__.__mro__ }}"


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tokenizer_config.json", json.dumps({"chat_template": EVIL_TEMPLATE}).encode()),
        (
            "tokenizer_config.json",
            json.dumps({"chat_template": [{"name": "default", "template": EVIL_TEMPLATE}]}).encode(),
        ),
        ("chat_template.json", json.dumps({"chat_template": EVIL_TEMPLATE}).encode()),
        ("chat_template.jinja", EVIL_TEMPLATE.encode()),
        ("additional_chat_templates/tool.jinja", EVIL_TEMPLATE.encode()),
        ("model.gguf", hostile.gguf({"general.name": "x", "t": [1, 2], "tokenizer.chat_template": EVIL_TEMPLATE})),
        ("model", hostile.gguf({"tokens": ["a", "b"], "tokenizer.chat_template.tool": EVIL_TEMPLATE})),
        ("big.gguf", hostile.gguf({"n": 3, "tokenizer.chat_template": EVIL_TEMPLATE}, order=">")),
    ],
)
def test_templates_wherever_they_lie(folder: Path, name: str, data: bytes) -> None:
    put(folder, name, data)
    findings, _ = scan(folder)
    assert rules(findings) == {"PA107"}
    assert findings[0].where.file == name


@pytest.mark.parametrize(
    "data", [hostile.gguf({"a": "b"})[:-1], b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), b"GGUF\x07\0\0\0" + bytes(16)]
)
def test_gguf_that_lies(folder: Path, data: bytes) -> None:
    put(folder, "model.gguf", data)
    findings, reason = scan(folder)
    assert rules(findings, "warning") == {"PA104"}
    assert reason is not None


class TestNumbers:
    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
    def test_safetensors(self, tmp_path: Path, bad: float, dtype: torch.dtype) -> None:
        from safetensors.torch import save_file

        values = torch.ones(50, dtype=torch.float32)
        values[17] = bad
        save_file({"fine": torch.ones(3), "odd": values.to(dtype)}, tmp_path / "model.safetensors")
        findings, _ = scan(tmp_path)
        assert [(finding.rule, finding.level, finding.where.tensor) for finding in findings] == [
            ("PA110", "error", "odd")
        ]
        counts = [findings[0].evidence[key] for key in ("nan", "positive_infinity", "negative_infinity")]
        assert counts == [int(bad != bad), int(bad == float("inf")), int(bad == float("-inf"))]

    @pytest.mark.parametrize("legacy", [False, True])
    def test_torch(self, tmp_path: Path, legacy: bool) -> None:
        values = torch.ones(50)
        values[17] = float("nan")
        torch.save({"odd": values}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
        findings, _ = scan(tmp_path)
        assert [(finding.rule, finding.where.tensor) for finding in findings] == [("PA110", "odd")]

    def test_large_finite_values_raise_nothing(self, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        tensors = {
            str(dtype): torch.full((5,), torch.finfo(dtype).max, dtype=dtype)
            for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float8_e4m3fn)
        }
        save_file(tensors, tmp_path / "model.safetensors")
        assert scan(tmp_path) == ([], None)

    def test_saved_mask_is_a_note(self, folder: Path) -> None:
        from safetensors.torch import save_file

        mask = torch.full((4, 4), float("-inf")).triu(1)
        save_file({"attn_mask": mask}, folder / "other.safetensors")
        assert rules(scan(folder)[0], "note") == {"PA110"}


class TestNothingToScan:
    def test_empty_folder(self, tmp_path: Path) -> None:
        findings, reason = scan(tmp_path)
        assert rules(findings, "note") == {"PA111"} and reason is not None

    def test_only_a_config(self, tmp_path: Path) -> None:
        put(tmp_path, "config.json", "{}")
        assert scan(tmp_path)[1] is not None

    def test_lfs_pointer(self, tmp_path: Path) -> None:
        put(tmp_path, "model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n")
        findings, reason = scan(tmp_path)
        assert rules(findings, "note") == {"PA111"} and not rules(findings)
        assert reason is not None and "LFS" in reason

    def test_empty_weights(self, folder: Path) -> None:
        put(folder, "pytorch_model.bin", b"")
        findings, reason = scan(folder)
        assert rules(findings, "note") == {"PA111"} and reason is not None

    def test_missing_shard_of_an_index(self, folder: Path) -> None:
        index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
        put(folder, "model.safetensors.index.json", json.dumps(index))
        findings, reason = scan(folder)
        assert [finding.evidence["shard"] for finding in findings] == ["model-00002-of-00002.safetensors"]
        assert reason is not None

    def test_missing_shard_without_an_index(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00003.safetensors")
        findings, reason = scan(folder)
        assert len(findings) == 2 and reason is not None

    def test_weights_of_no_known_kind(self, folder: Path) -> None:
        put(folder, "pytorch_model.bin", b"\xff" * 100)
        assert scan(folder)[1] is not None


def test_incomplete_never_hides_findings(folder: Path) -> None:
    put(folder, "a.bin", EVIL)
    put(folder, "z.safetensors", b"")
    findings, reason = scan(folder)
    assert "PA101" in rules(findings) and reason is not None


def test_one_file_alone(folder: Path) -> None:
    put(folder, "other.bin", EVIL)
    assert scan(folder, folder / "model.safetensors") == ([], None)
    assert rules(scan(folder, folder / "other.bin")[0]) == {"PA101"}


def test_same_findings_twice(folder: Path) -> None:
    for case, (_, data) in HIDDEN_PICKLES.items():
        put(folder, case.replace(" ", "_"), data)
    assert scan(folder) == scan(folder)


def test_every_rule_has_its_page() -> None:
    pages = Path(__file__).parents[2] / "docs" / "rules"
    for rule in artifact.RULES:
        assert (pages / f"{rule}.md").is_file(), rule


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys, purify_cli.detectors.artifact; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess_run([sys.executable, "-c", program]) == 0


def subprocess_run(command: list[str]) -> int:
    process = os.spawnv(os.P_WAIT, command[0], command)
    return process
