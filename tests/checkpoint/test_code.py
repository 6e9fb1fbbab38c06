from __future__ import annotations

import pytest

from purify_cli.checkpoint.code import read_source
from purify_cli.errors import CheckpointError

REACHING = {
    "import os\nos.system('x')": "process",
    "import os as o\no.popen('x')": "process",
    "from os import system as s\ns('x')": "process",
    "import os\ngetattr(os, 'sys' + 'tem')('x')": "process",
    "import os\no = os\no.system('x')": "process",
    "import os.path as p\np.os.system('x')": "process",
    "import torch\ntorch.os.system('x')": "process",
    "from torch import os as o\no.system('x')": "process",
    "import subprocess": "process",
    "from subprocess import run": "process",
    "import multiprocessing\nmultiprocessing.Process()": "process",
    "import socket": "network",
    "import requests\nrequests.get('x')": "network",
    "import urllib.request": "network",
    "from http.client import HTTPConnection": "network",
    "from huggingface_hub import hf_hub_download": "network",
    "open('/etc/passwd')": "file",
    "def __init__(self):\n    open('/etc/passwd')": "file",
    "def __init__(self, f):\n    open(f, 'w')": "file",
    "def forward(self, f):\n    open(f)": "file",
    "import os\ndef load(d):\n    open(os.path.join(d, '../../x'))": "file",
    "import os\ndef load(d):\n    open(os.path.expanduser('~/.ssh/id_rsa'))": "file",
    "f = open\nf('x')": "file",
    "import os\nos.remove('x')": "file",
    "import shutil\nshutil.rmtree('x')": "file",
    "from pathlib import Path\nPath('x').write_text('y')": "file",
    "eval('1')": "eval",
    "e = exec\ne('1')": "eval",
    "__import__('os')": "eval",
    "import importlib\nimportlib.import_module('o' + 's')": "eval",
    "import builtins\nbuiltins.eval('1')": "eval",
    "__builtins__['eval']('1')": "eval",
    "globals()['__buil' + 'tins__']": "eval",
    "().__class__.__base__.__subclasses__()": "eval",
    "getattr((), '__subclasses__')": "eval",
    "getattr(x, chr(101) + chr(118))": "eval",
    "import sys\nsys.modules['os'].system('x')": "eval",
    "import pickle\npickle.loads(b'')": "eval",
    "import marshal": "eval",
    "import ctypes": "eval",
    "import torch\ntorch.load('x')": "eval",
    "import torch\ntorch.load('x', weights_only=False)": "eval",
    "import torch\ntorch.hub.load('a', 'b')": "eval",
    "from torch.utils.cpp_extension import load": "eval",
    "import numpy as np\nnp.load('x', allow_pickle=True)": "eval",
    "import yaml\nyaml.load(x, Loader=yaml.Loader)": "eval",
    "class A:\n    @eval\n    def f(self): ...": "eval",
    "f'{eval(1)}'": "eval",
    "lambda: eval('1')": "eval",
}


@pytest.mark.parametrize("source", REACHING)
def test_reaching_out_is_seen(source: str) -> None:
    assert REACHING[source] in {reach.purpose for reach in read_source(source.encode(), "x.py").reaches}


PLAIN = [
    "import math\nimport torch\nfrom torch import nn\nfrom transformers import PreTrainedModel\n"
    "class X(PreTrainedModel):\n    def forward(self, x):\n        self.eval()\n        "
    "return torch.compile(self.layer)(x)",
    "import os\nif os.path.isfile('x') and os.environ.get('A'):\n    os.makedirs('x', exist_ok=True)",
    "import os\nfrom shutil import copyfile\nclass T:\n"
    "    def __init__(self, vocab_file):\n        with open(vocab_file, encoding='utf-8') as f:\n            pass\n"
    "    def save_vocabulary(self, d, prefix=None):\n"
    "        path = os.path.join(d, (prefix + '-' if prefix else '') + 'vocab.txt')\n"
    "        copyfile(self.vocab_file, path)\n"
    "        with open(path, 'w') as f:\n            pass",
    "import re\nre.compile('x')\nimport sys\nsys.version_info",
    "from urllib.parse import urlparse\nurlparse('x')",
    "import importlib.util\nimportlib.util.find_spec('flash_attn')",
    "import torch\ntorch.load('x', weights_only=True)",
    "import numpy as np\nnp.load('x')",
    "def f(self, name):\n    return getattr(self, f'layer_{name}')",
    "def f(self):\n    return getattr(self, 'layer' + str(self.number))",
    "x = self.__class__.__name__\n__all__ = ['x']",
    "input = 3\nfile = 4\nprint(input, file)",
]


@pytest.mark.parametrize("source", PLAIN)
def test_plain_code_raises_nothing(source: str) -> None:
    assert read_source(source.encode(), "x.py").reaches == ()


def test_own_modelling_code_of_transformers_is_plain() -> None:
    import inspect

    from transformers.models.bert import modeling_bert, tokenization_bert
    from transformers.models.llama import configuration_llama, modeling_llama

    for module in (modeling_bert, tokenization_bert, configuration_llama, modeling_llama):
        source = inspect.getsource(module).encode()
        assert read_source(source, module.__name__).reaches == (), module.__name__


def test_siblings() -> None:
    source = b"from .parts import A\nfrom . import other\nfrom .deep.er import B\n"
    assert set(read_source(source, "x").siblings) == {"parts", "other", "deep.er"}


@pytest.mark.parametrize("source", [b"def (", b"\0", b"x = 1\n\xff", b"# coding: nothing-known\n", b"(" * 100_000])
def test_what_cannot_be_parsed_is_refused(source: bytes) -> None:
    with pytest.raises(CheckpointError):
        read_source(source, "x.py")


def test_code_behind_a_coding_cookie_is_read_as_python_reads_it() -> None:
    # In UTF-7 this is `eval("1")`.
    source = b"# coding: utf-7\n+AGUAdgBhAGw-('1')\n"
    assert read_source(source, "x.py").reaches
