from __future__ import annotations

from pathlib import Path

import pytest

import hostile
from purify_cli.checkpoint.templates import MAX_TEMPLATE_BYTES, gguf_templates, reaches, suspicious_text
from purify_cli.errors import CheckpointError

REACHING = [
    "{{ ''.__class__ }}",
    "{{ messages[0]._private }}",
    "{{ x['__class__'] }}",
    "{{ x['__cla' ~ 'ss__'] }}",
    "{{ x['__cla' + 'ss__'] }}",
    "{{ x['\\x5f\\x5fclass\\x5f\\x5f'] }}",
    "{{ x[['__', 'class', '__']|join] }}",
    "{{ x[''.join(['__', 'class', '__'])] }}",
    "{{ x['__ssalc__'[::-1]] }}",
    "{{ x['__ssalc__'|reverse] }}",
    "{{ x['**class**'|replace('*', '_')] }}",
    "{{ x['**class**'.replace('*', '_')] }}",
    "{{ x['__CLASS__'|lower] }}",
    "{{ x['%s%s' % ('__class', '__')] }}",
    "{{ x['%c%cclass__'|format(95, 95)] }}",
    "{{ x['{}class{}'.format('__', '__')] }}",
    "{{ x['_' * 2 ~ 'class' ~ '_' * 2] }}",
    "{{ x['__' ~ name ~ '__'] }}",
    "{% set a = '__class__' %}{{ x[a] }}",
    "{% set a = '__cla' %}{% set b = 'ss__' %}{{ x[a ~ b] }}",
    "{% set u = '_' * 2 %}{% set c = u ~ 'class' ~ u %}{{ x[c] }}",
    "{{ x|attr('y') }}",
    "{{ [x]|map('attr', 'y')|list }}",
    "{{ [x]|map(attribute='__class__')|list }}",
    "{{ [x]|selectattr('a.__class__')|list }}",
    "{{ [x]|groupby('__class__') }}",
    "{{ '{0.__class__}'.format(x) }}",
    "{{ '{0[__class__]}'.format_map(x) }}",
    "{{ lipsum.__globals__['os'].popen('id') }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ self._TemplateReference__context }}",
    "{{ x.gi_frame.f_back }}",
    "{% include '/etc/passwd' %}",
    "{% import 'x' as y %}",
    "{% from 'x' import y %}",
    "{% extends 'x' %}",
    "{% for m in messages %}{% if m.__class__ %}{% endif %}{% endfor %}",
    "{% macro f(x=''.__class__) %}{% endmacro %}",
    "{% generation %}{{ x.__class__ }}{% endgeneration %}",
]


@pytest.mark.parametrize("source", REACHING)
def test_reaching_out_is_seen(source: str) -> None:
    assert reaches(source)


HONEST = [
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] }}{% endfor %}",
    "{%- if messages[0].role == 'system' %}{%- set rest = messages[1:] %}{%- endif %}{{ raise_exception('no') }}",
    "{%- set ns = namespace(index=0, found=false) %}{%- set ns.index = ns.index + 1 %}{{ messages[ns.index - 1] }}",
    "{{ strftime_now('%d %b %Y') }}{{ tools | tojson(indent=4) }}{{ message.content | trim }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | last }}{{ x | map(attribute='name') | join(', ') }}",
    "{% generation %}{{ message.content.split('</think>')[-1].lstrip('\n') }}{% endgeneration %}",
    "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% break %}{% endfor %}",
    "{%- macro render(item) -%}{{ item.type }}{%- endmacro -%}{{ render(tool.function.parameters) }}",
    "{{ bos_token }}{{ '__image__' }}{{ '%s: %d' % (role, 3) }}{{ '-' * 10 }}",
    "{{ messages[loop.index0 + 1]['content'] }}{{ x['a' ~ loop.index] }}{{ x | items }}{{ dict(a=1) }}",
    "Text that speaks of __init__ and of {0.__class__} outside of any expression.",
    "{# a comment on __class__ #}",
]


@pytest.mark.parametrize("source", HONEST)
def test_honest_templates_raise_nothing(source: str) -> None:
    assert reaches(source) == []


def test_line_is_that_of_the_place() -> None:
    assert [reach.line for reach in reaches("one\n\n{{ x.__class__ }}")] == [3]


@pytest.mark.parametrize(
    "source", ["{{ x", "{% nothing_known %}", "{{ " + "(" * 50_000 + " }}", "x" * (MAX_TEMPLATE_BYTES + 1)]
)
def test_what_cannot_be_read_is_refused(source: str) -> None:
    with pytest.raises(CheckpointError):
        reaches(source)


def test_names_in_what_cannot_be_parsed() -> None:
    assert suspicious_text("{% unknown %}{{ x.__class__ }}") == ["__class__"]


def test_constants_are_bounded() -> None:
    assert reaches("{{ 'a' * 1000000000000 }}{{ ('a' * 4000)|replace('a', 'aaaaaaaaaaaaaaaaaaaaaaaaaa') }}") == []


@pytest.mark.parametrize("order", ["<", ">"])
def test_gguf(tmp_path: Path, order: str) -> None:
    path = tmp_path / "x.gguf"
    pairs = {"a": "text", "n": 7, "tokens": ["a", "b"], "types": [1, 2, 3], "tokenizer.chat_template": "{{ x }}"}
    path.write_bytes(hostile.gguf({**pairs, "tokenizer.chat_template.tool": "{{ y }}"}, order=order))
    assert gguf_templates(path) == {"tokenizer.chat_template": "{{ x }}", "tokenizer.chat_template.tool": "{{ y }}"}
