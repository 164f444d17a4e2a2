from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexinfer.errors import FlexInferError, InvalidInput, ProcessFailed
from flexinfer.formats import render_child, template

HELLO = [{"role": "user", "content": "Hello"}]

# Written here in the ways that published templates are written.
CHATML = (
    "{%- for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n'"
    " + message['content'] | trim + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{%- endif %}"
)
CONSTRUCTS = {
    "chatml": CHATML,
    "alternation with raise_exception": (
        "{{ bos_token }}{% for m in messages %}"
        "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "[{{ m.role|upper }}]{{ m.content }}{{ eos_token if loop.last else '' }}{% endfor %}"
    ),
    "no system message": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    ),
    "parts only": (
        "{% for m in messages %}{% if m.content is string %}{{ raise_exception('parts') }}"
        "{% endif %}{% for p in m.content if p.type == 'text' %}{{ p['text'] }}{% endfor %}"
        "{% endfor %}"
    ),
    "date": "{{ strftime_now('%d %b %Y') }}{{ messages[0].content }}",
    "namespace": (
        "{% set ns = namespace(found=false, n=0) %}{% for m in messages %}"
        "{% set ns.n = ns.n + 1 %}{% if m.role == 'user' %}{% set ns.found = true %}{% endif %}"
        "{% endfor %}{{ ns.n ~ ns.found }}"
    ),
    "macro": (
        "{% macro part(text, deep=false) %}{{ text }}{% if not deep %}{{ part(text, deep=true) }}"
        "{% endif %}{% endmacro %}{% macro box() %}[{{ caller() }}]{% endmacro %}"
        "{{ part('x') }}{% call box() %}z{% endcall %}"
    ),
    "tools": (
        "{% if tools %}{% for tool in tools %}{{ tool | tojson(indent=4) }}{% endfor %}{% endif %}"
        "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content')"
        " | join(', ') }}{% for k, v in messages[0].items() %}{{ k }}{% endfor %}"
    ),
    "generation": (
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    ),
    "loop control": (
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% break %}{% endfor %}"
        "{{ messages[-1]['content'].split('</think>')[-1].lstrip('\\n') }}"
    ),
    "set block and filter block": (
        "{% set x %}abc{% endset %}{% filter upper %}{{ x }}{% endfilter %}"
        "{% with y = 1 %}{{ y }}{% endwith %}{{ messages[1:] | length }}"
    ),
    "format of a literal": "{{ '<think{}>'.format(bos_token) }}",
    "range and slices": (
        "{% for i in range(messages|length - 1, -1, -1) %}{{ messages[i].role[:1] }}{% endfor %}"
    ),
    "dictsort and reject": (
        "{% for k, v in messages[0] | dictsort %}{{ k }}{% endfor %}"
        "{{ ['a', 'b'] | reject('equalto', 'a') | list }}{{ ['a'] | map('upper') | list }}"
    ),
    "a long chain": "{{ " + " + ".join(["'a'"] * 200) + " }}",
    "an underscore in a name": "{% set _args = {'_a': 1} %}{{ _args.get('_a') }}",
}

REFUSED = {
    "class walk": ("{{ ''.__class__.__mro__ }}", '"__mro__"'),
    "class by item": ("{{ ''['__class__'] }}", "__class__"),
    "one underscore": ("{{ messages._x }}", '"_x"'),
    "one underscore by item": ("{{ messages['_x'] }}", '"_x"'),
    "attr filter": ("{{ ''|attr('__class__') }}", "filter 'attr'"),
    "attr filter with a name made up": ("{{ ''|attr('__cla' ~ 'ss__') }}", "filter 'attr'"),
    "attr filter with a plain name": ("{{ ''|attr('upper') }}", "filter 'attr'"),
    "cycler": ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "calls the method"),
    "cycler without a call": ("{{ cycler.__init__ }}", '"__init__"'),
    "lipsum": ("{{ lipsum.__globals__ }}", '"__globals__"'),
    "namespace class": ("{{ namespace.__init__ }}", '"__init__"'),
    "self": ("{{ self }}", "'self'"),
    "import": ("{% import 'os' as os %}", "import"),
    "from import": ("{% from 'a' import b %}", "fromimport"),
    "include": ("{% include '/etc/passwd' %}", "include"),
    "extends": ("{% extends 'x' %}", "extends"),
    "block": ("{% block x %}{% endblock %}", "block"),
    "do": ("{% do messages.append(1) %}", "unknown tag"),
    "autoescape": ("{% autoescape true %}x{% endautoescape %}", "evalcontext"),
    "power": ("{{ 2 ** 2 ** 40 }}", "pow"),
    "unknown function": ("{{ open('/etc/passwd') }}", "calls 'open'"),
    "lipsum call": ("{{ lipsum(n=1000) }}", "calls 'lipsum'"),
    "unknown method": ("{{ messages.__reduce__() }}", "__reduce__"),
    "method outside the list": ("{{ 'a'.encode('utf-16') }}", "'encode'"),
    "format_map": ("{{ '{0.__class__}'.format_map(messages) }}", "'format_map'"),
    "format of an attribute": ("{{ '{0.real}'.format(1) }}", "'0.real'"),
    "format of an item": ("{{ '{0[a]}'.format(messages) }}", "'0[a]'"),
    "format of a variable": ("{{ messages[0].content.format(1) }}", "not a literal"),
    "format with a width": ("{{ '{:>99999999999}'.format(1) }}", "layout"),
    "format filter": ("{{ '%s'|format(1) }}", "filter 'format'"),
    "map to attr": ("{{ [1]|map('attr', 'x')|list }}", "filter 'attr'"),
    "map to a made-up filter": ("{{ [1]|map('at' ~ 'tr', 'x')|list }}", "filter"),
    "map of a private attribute": ("{{ [1]|map(attribute='_x')|list }}", '"_x"'),
    "map of a private path": ("{{ [1]|map(attribute='a._x')|list }}", '"_x"'),
    "map of a made-up attribute": ("{{ [1]|map(attribute=bos_token)|list }}", "not a literal"),
    "sort by a private attribute": ("{{ [1]|sort(false, false, '_x') }}", '"_x"'),
    "groupby of a private attribute": ("{{ [1]|groupby('_x') }}", '"_x"'),
    "selectattr with an unknown test": ("{{ [1]|selectattr('a', 'callable')|list }}", "callable"),
    "select with an unknown test": ("{{ [1]|select('filter')|list }}", "'filter'"),
    "unknown test": ("{{ 1 is callable }}", "'callable'"),
    "star arguments": ("{{ range(*[1]) }}", "* or **"),
    "double star arguments": ("{{ namespace(**messages[0]) }}", "* or **"),
    "call of a call": ("{{ namespace()() }}", "result of a call"),
    "dunder text": ("{{ '__globals__' }}", "'__globals__'"),
    "dunder text in a list": ("{% set x = ['a', '__builtins__'] %}", "__builtins__"),
    "dunder name": ("{% set __x = 1 %}", "'__x'"),
    "syntax": ("{% for %}", "line 1 is not valid Jinja"),
    "unclosed": ("{{ 'a", "not valid Jinja"),
    "a number of 5000 digits": ("{{ " + "9" * 5000 + " }}", "literal"),
    "257 KiB": ("x" * (257 << 10), "at most 262144"),
    "parentheses 70 deep": ("{{ " + "[" * 70 + "]" * 70 + " }}", "deeper than 64"),
    "parentheses 5000 deep": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "too deeply"),
    "unary 5000 deep": ("{{ " + "not " * 5000 + "1 }}", "too deeply"),
    "a chain of 20000": ("{{ " + "a+" * 20_000 + "a }}", "elements"),
    "a chain of 130000": ("{{ " + "a+" * 130_000 + "a }}", "tokens"),
    "a path of 2000": ("{{ a" + ".a" * 2000 + " }}", "deeper than 64"),
    "seven loops": ("{% for a in b %}" * 7 + "{% endfor %}" * 7, "loops deeper than 6"),
    "25000 outputs": ("{{ a }}" * 25_000, "tokens"),
}


@pytest.mark.parametrize("name", CONSTRUCTS, ids=str)
def test_what_published_templates_use_is_allowed(name: str) -> None:
    template.check(CONSTRUCTS[name])


@pytest.mark.parametrize("name", REFUSED, ids=str)
def test_what_a_chat_template_has_no_use_for_is_refused(name: str) -> None:
    source, reason = REFUSED[name]
    with pytest.raises(InvalidInput) as refused:
        template.check(source, name="tokenizer_config.json chat_template")
    assert refused.value.code == "template"
    assert refused.value.message.startswith("tokenizer_config.json chat_template ")
    assert reason in refused.value.message


def test_the_message_names_the_line() -> None:
    with pytest.raises(InvalidInput, match=r'chat_template line 14 accesses "__init__"'):
        template.check("\n" * 13 + "{{ x.__init__ }}")


def test_a_render_gives_the_prompt() -> None:
    # ChatML as the OpenAI cookbook and the model's card show it.
    assert template.render(CHATML, [*HELLO, {"role": "assistant", "content": " Hi <b>. "}]) == (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi <b>.<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_render_sees_the_given_variables_and_moment() -> None:
    source = "{{ strftime_now('%Y-%m-%d') }} {{ tools | tojson }} {{ add_generation_prompt }}"
    variables = {"tools": [{"a": "é<"}], "add_generation_prompt": False}
    text = template.render(source, HELLO, variables=variables, moment=86_400.0)
    assert text == '1970-01-02 [{"a": "é<"}] False'


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no system message", "Hello."),
        ("parts only", "Hello."),
        ("generation", "Hello."),
        ("macro", "xx[z]"),
        ("a long chain", "a" * 200),
    ],
)
def test_a_template_passes_when_one_plain_conversation_renders(name: str, expected: str) -> None:
    assert expected in template.check_rendered(CONSTRUCTS[name])


def test_the_starter_models_template_renders(starter_gguf: Path) -> None:
    from flexinfer.formats import gguf

    with starter_gguf.open("rb") as stream:
        header = gguf.read_header(stream, starter_gguf.stat().st_size)
    assert header.chat_template is not None
    text = template.render(header.chat_template, HELLO)
    assert text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('not today') }}", "'not today'"),
        ("{{ messages[99].content.x }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''['__cla' ~ 'ss__'] }}", "accesses|has the string"),
        ("{% for i in range(10**9) %}{% endfor %}", "uses pow"),
        ("{% for i in range(1000000000) %}{% endfor %}", "OverflowError"),
        ("{{ 'a' * 1000000000 }}", "bytes of memory"),
        ("{% set x = range(99999) | list %}" + "{% set x = x + x %}" * 12, "bytes of memory"),
        ("{{ 'a' * 2000000 }}", "more than 1048576 characters"),
        ("{% for i in range(99999) %}{{ 'a' * 99 }}{% endfor %}", "more than 1048576 characters"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "too deeply|RecursionError"),
    ],
)
def test_a_template_that_fails_or_takes_too_much_is_refused(source: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason) as refused:
        template.render(source, HELLO)
    assert refused.value.code == "template"


def test_a_template_that_does_not_end_is_ended() -> None:
    loops = "{% for i in range(99999) %}" * 2 + "{% endfor %}" * 2
    with pytest.raises(InvalidInput, match="renders for more than 2 s") as refused:
        template.render(loops, HELLO)
    assert refused.value.code == "template"


def test_a_renderer_that_cannot_start_is_not_the_templates_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(ProcessFailed) as failed:
        template.render(CHATML, HELLO)
    assert failed.value.code == "template_sandbox_failed"


def test_a_renderer_without_jinja_is_not_the_templates_fault() -> None:
    # The program alone, with no folder to import from.
    command = [sys.executable, "-I", "-S", render_child.__file__]
    ran = subprocess.run(command, input=b"{}", capture_output=True, check=True, timeout=60)
    assert b'"sandbox"' in ran.stdout and b"jinja2" in ran.stdout


def test_the_sandbox_holds_where_the_rules_were_not_asked(tmp_path: Path) -> None:
    """The child alone: no attribute of Python's own, no file, even for a source never checked."""
    for source in (
        "{{ ''.__class__.__mro__ }}",
        "{{ ''|attr('__class__') }}{{ '{0.__class__.__mro__}'.format('') }}",
        "{% include '/etc/passwd' %}",
    ):
        answer = template._ask(source, {"messages": []}, name="t", moment=0.0)
        assert "class" not in str(answer.get("text", "")).lower()
        assert "root:" not in str(answer)


SOUP = st.lists(
    st.sampled_from(
        "{{ }} {% %} {# #} for in if endif endfor set x messages . _ __class__ [ ] ( ) ' | attr map"
        " tojson + * ** , = is not 1 loop macro endmacro raw endraw \n".split(" ")
    ),
    max_size=40,
).map(" ".join)


@settings(max_examples=400, deadline=None)
@given(SOUP | st.text(max_size=80).map(lambda text: "{{" + text + "}}"))
def test_any_source_is_allowed_or_refused_by_the_typed_error(source: str) -> None:
    try:
        template.check(source)
    except FlexInferError as refused:
        assert refused.code == "template"


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["__class__", "_x", "__init__", "__globals__"]),
    st.sampled_from(
        [
            "{{{{ messages.{0} }}}}",
            "{{{{ messages['{0}'] }}}}",
            "{{{{ messages|attr('{0}') }}}}",
            "{{{{ messages|map(attribute='{0}')|list }}}}",
            "{{% set ns = namespace() %}}{{% set ns.{0} = 1 %}}",
            "{{{{ '{{0.{0}}}'.format(messages) }}}}",
        ]
    ),
    st.integers(0, 5),
)
def test_no_nesting_hides_a_private_name(name: str, form: str, depth: int) -> None:
    source = "{% if true %}" * depth + form.format(name) + "{% endif %}" * depth
    with pytest.raises(InvalidInput):
        template.check(source)


def test_checking_leaves_nothing_that_renders_use_changed() -> None:
    value: dict[str, Any] = {"role": "user", "content": "x"}
    template.render(CHATML, [value])
    assert value == {"role": "user", "content": "x"}
