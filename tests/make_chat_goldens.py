#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Golden renderings from jinja2, set up as transformers sets it up, to judge model/chat_template.h.

Development only: pip install jinja2. Renders every tests/golden/chat_templates/*.jinja over every
conversation below, and a table of small templates, and writes renderings.json and expressions.json
beside them. With templates as arguments (and --out FILE) it renders those instead: nothing is committed.
"""

import argparse
import datetime
import json
import pathlib

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

OUT = pathlib.Path(__file__).parent / "golden" / "chat_templates"
NOW = 1795312800  # 2026-11-22 02:00:00 UTC


class Generation(jinja2.ext.Extension):
    """transformers' {% generation %}: its body, in a scope of its own."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def environment(with_time=True):
    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    if with_time:
        now = datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc)
        env.globals["strftime_now"] = lambda fmt: now.strftime(fmt)
    for name in ("lipsum", "cycler", "joiner"):
        del env.globals[name]
    return env


def render(source, variables):
    """{"text"} or {"error": what raise_exception said, else ""}."""
    variables = json.loads(json.dumps(variables))
    try:
        return {"text": environment("now_unix_seconds" in variables).from_string(source).render(**variables)}
    except jinja2.exceptions.UndefinedError:
        return {"error": ""}
    except jinja2.exceptions.TemplateError as e:
        raised = type(e) is jinja2.exceptions.TemplateError
        return {"error": str(e) if raised else ""}
    except Exception:
        return {"error": ""}


TOOLS = [
    {"type": "function", "function": {
        "name": "get_weather", "description": "The weather of a city \"now\".",
        "parameters": {"type": "object", "properties": {
            "city": {"type": "string", "description": "Größe <b> & 'x'"},
            "days": {"type": "integer", "enum": [1, 2, 3], "default": None}}, "required": ["city"]}}},
    {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {
        "type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "number"}}}, "return": {"type": "number"}}},
]
SYSTEM = {"role": "system", "content": "  You are terse.\n"}
USER = {"role": "user", "content": "Hi, who are you? <|im_end|>"}
ANSWER = {"role": "assistant", "content": "  I'm a model.\n"}
AGAIN = {"role": "user", "content": "\tAnd now?  你好 👋\n\n"}
THOUGHT = {"role": "assistant", "content": "<think>\nhmm, 1+1\n</think>\n\nTwo."}
REASON = {"role": "assistant", "reasoning_content": "\nthinking\n", "content": "Done."}
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln", "days": 2}}}]}
CALLS = {"role": "assistant", "content": "Let me see.", "tool_calls": CALL["tool_calls"] + [
    {"id": "123456789", "type": "function", "function": {"name": "add", "arguments": {"a": 1.5, "b": -2e-7}}}]}
RESULT = {"role": "tool", "name": "get_weather", "content": "{\"t\": 21.5, \"sky\": \"clear\"}", "tool_call_id": "abcdefghi"}
RESULT2 = {"role": "tool", "name": "add", "content": "1.4999998", "tool_call_id": "123456789"}
PARTS = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is this? "}]}


def conversations():
    lists = {
        "user": [USER], "system user": [SYSTEM, USER], "three": [USER, ANSWER, AGAIN],
        "system four": [SYSTEM, USER, ANSWER, AGAIN], "answered": [USER, ANSWER], "two users": [USER, AGAIN],
        "assistant first": [ANSWER, USER], "thought": [USER, THOUGHT, AGAIN], "thought last": [USER, THOUGHT],
        "reason": [USER, REASON, AGAIN], "reason last": [SYSTEM, USER, REASON], "parts": [PARTS],
        "call": [USER, CALL], "call result": [USER, CALL, RESULT], "calls results": [SYSTEM, USER, CALLS, RESULT, RESULT2],
        "call answered": [USER, CALL, RESULT, ANSWER, AGAIN], "no content": [{"role": "user"}], "empty": [],
        "empty content": [{"role": "user", "content": ""}], "odd role": [{"role": "narrator", "content": "x"}],
    }
    common = {"bos_token": "<s>", "eos_token": "</s>"}
    made = {}
    for name, messages in lists.items():
        for generate in (True, False):
            if not generate and name not in ("three", "answered", "call", "thought last"):
                continue
            made[f"{name}{'' if generate else ', no prompt'}"] = common | {
                "messages": messages, "add_generation_prompt": generate}
        if name in ("user", "system user", "call result", "calls results"):
            made[f"{name}, tools"] = common | {"messages": messages, "add_generation_prompt": True, "tools": TOOLS}
    made["no thinking"] = common | {"messages": [USER], "add_generation_prompt": True, "enable_thinking": False}
    made["date"] = common | {"messages": [USER], "add_generation_prompt": True, "date_string": "1 Jan 2025"}
    made["clock"] = common | {"messages": [SYSTEM, USER], "add_generation_prompt": True, "now_unix_seconds": NOW}
    made["tools in system"] = common | {"messages": [SYSTEM, USER], "add_generation_prompt": True, "tools": TOOLS,
                                        "tools_in_user_message": False}
    made["builtin"] = common | {"messages": [USER, CALL, RESULT], "add_generation_prompt": True, "tools": TOOLS,
                                "builtin_tools": ["get_weather", "code_interpreter"]}
    return made


VARIABLES = {
    "s": "Hello, World", "u": "Größe ß ÀÉ 你好👋", "empty": "", "n": 42, "neg": -7, "f": 2.5, "t": True, "no": False,
    "nothing": None, "l": [3, 1, 2], "words": ["banana", "Apple", "cherry", "apple"], "d": {"b": 1, "a": [1, 2], "C": None},
    "items": [{"name": "x", "n": 1, "on": True}, {"name": "y", "n": 2, "on": False}, {"name": "z", "n": 1}],
    "nested": {"a": {"b": [10, {"c": "deep"}]}, "items": 5}, "ws": " \t\n pad\u3000\n", "lines": "one\ntwo\r\nthree\n\nfive\n",
    "html": "<a href=\"x\">&'</a>",
}

EXPRESSIONS = r"""
1 + 2 * 3 - 4 / 2
(1 + 2) * 3
7 // 2, -7 // 2, 7 % 3, -7 % 3, 7.5 // 2, -7.5 % 2
2 ** 10, 2 ** -1, 2 ** 0.5, -2 ** 2, 2 ** 3 ** 2
1 / 3, 2 / 1, 1e3, 1.5e-7, 1e16, 123456789012345678, 0.1 + 0.2, 1e15, 100.0, 1e22
0x1F, 0b101, 0o17, 1_000_000, 1_0.5
10 / 0
5 % 0
-5|abs, -neg, +n, - - 3
n + 1.5, t + 1, no + no
'a' + 'b', 'ab' * 3, 3 * 'ab', [1] + [2, 3], [0] * 3, (1,) + (2,)
'a' + 1
'a' ~ 1 ~ none ~ true ~ 1.0 ~ [1, 'x'] ~ {'k': (1, 2)}
[1, 2.0, 'x', "it's", none, true, (1,), (), {}, {'a': 'b"c'}]
{'a': 1, 2: 'b', none: 3, 1.5: [], true: 0}
{1: 'a', 1.0: 'b', true: 'c'}
1 < 2 < 3, 1 < 3 < 2, 1 == 1.0, '1' == 1, [1, 2] == [1, 2], (1, 2) == [1, 2], {'a': 1} == {'a': 1.0}
'a' < 'b', [1, 2] < [1, 3], (1,) < (1, 0), 2 >= 2, 2 > 2, 'Z' < 'a', 1 != 2
1 < 'a'
'ell' in s, 'x' in s, 2 in l, 9 not in l, 'a' in d, 'z' not in d, 1 in (1, 2), none in [none]
1 in 'abc'
true and 0, '' or 'x', not '', not 0, none or none, 1 and 'y', not t and no, not (t and no)
'yes' if t else 'no', 'yes' if no, ('a' if no) is defined, 1 if t else 2 if t else 3
n is defined, missing is defined, missing is not defined, missing is undefined, d.zz is defined, nested.a.b is defined
n is number, f is number, t is number, s is number, n is integer, t is integer, f is float, n is float
s is string, n is string, d is mapping, l is mapping, l is sequence, s is sequence, d is sequence, n is sequence
l is iterable, n is iterable, s is iterable, d is iterable, missing is iterable, range is callable, s is callable
nothing is none, none is none, n is none, nothing is not none, t is true, no is false, 1 is true, t is boolean, 1 is boolean
4 is even, 3 is odd, 9 is divisibleby 3, 10 is divisibleby(3), -3 is odd
n is eq 42, n is equalto(42), n is ne 1, 1 is lt 2, 2 is ge 2, 3 is gt 4, 2 is le(1), 1 is in [1, 2], 'a' is not in 'bcd'
'abc' is lower, 'ABC' is upper, 'aB' is lower, '' is lower, none is sameas none, 1 is sameas 1, 1 is eq true
s[0], s[-1], s[99], s[1:4], s[:5], s[7:], s[::-1], s[::2], s[-5:-2], s[100:], s[4:1], u[0:6], u[-1], u[2:4]
l[0], l[-1], l[7] is defined, l[1:], l[:-1], l[::-1], l[::2], l[5:], l[-2:], (1, 2, 3)[1:], [1,2,3][-1:-3:-1]
s[::0]
d.b, d['b'], d.a[1], d['zz'] is defined, nested.a.b[1].c, nested['a']['b'][0], nested.items is callable, nested['items']
d.C is none, d.missing, missing
missing.x
d.missing.x
missing + 1
missing ~ 'x', missing == missing, missing == none, missing|length, missing|default('d'), missing|list, missing|string
missing()
n()
n.foo is defined, none.x is defined, n['x'] is defined, nothing[0] is defined
d.items()|list, d.keys()|list, d.values()|list, d.get('b'), d.get('q'), d.get('q', 7), d|length, d|list, d.copy() == d
d|items|list, d|dictsort, d|dictsort(true), d|dictsort(by='value') if false, {'x': 2, 'y': 1}|dictsort(by='value'), d|dictsort(reverse=true)
s.upper(), s.lower(), s.title(), u.upper(), u.lower(), 'hello wORLD'.capitalize(), "they're bill's".title()
s|upper, u|lower, 'hello wORLD foo-bar (baz'|title, 'hELLO'|capitalize, 12|upper, none|upper, true|lower
ws.strip() ~ '|', ws.lstrip() ~ '|', ws.rstrip() ~ '|', 'xxaxx'.strip('x'), 'abcba'.lstrip('ab'), 'abc'.rstrip('bc'), ws|trim ~ '|', 'xxaxx'|trim('x'), 12|trim
'a,b,,c'.split(','), 'a b  c'.split(), ' a  b '.split(' '), 'a,b,c'.split(',', 1), 'a,b,c'.rsplit(',', 1), ''.split(), ''.split(','), ' a b c '.split(none, 1)
'a'.split('')
lines.splitlines(), lines.splitlines(true), 'a.b.c'.partition('.'), 'a.b.c'.rpartition('.'), 'abc'.partition('x'), 'abc'.rpartition('x')
s.startswith('Hell'), s.endswith('ld'), s.startswith(('x', 'H')), s.startswith(''), ''.endswith('x')
s.find('o'), s.rfind('o'), s.find('zz'), u.find('你'), s.count('l'), 'aaa'.count('aa'), 'abc'.count('')
s.replace('l', 'L'), s.replace('l', 'L', 2), 'abc'.replace('', '-'), s|replace('o', '0'), s|replace('o', '0', 1), 121|replace(1, 'x')
'-'.join(['a', 'b']), words|join(', '), l|join, l|join('+'), items|join('/', attribute='name'), 'abc'|join('.'), []|join('x')
'-'.join([1])
'abc'.isdigit(), '123'.isdigit(), ''.isdigit(), 'abc'.isalpha(), 'a1'.isalnum(), ' \t'.isspace(), 'ab'.islower(), 'AB'.isupper(), 'A1'.isupper()
'prefix-x'.removeprefix('prefix-'), 'x.txt'.removesuffix('.txt'), '42'.zfill(5), '-42'.zfill(5), 'abc'.zfill(2)
'{} and {}'.format('a', 1), '{0}{1}{0}'.format('x', 'y'), '{a}-{b}'.format(a=1, b=none), '{{}}'.format(), '{:.2f}'.format(3.14159)
'{} {}'.format(1)
'%s is %d, %r, %%, %.2f' % ('x', 3, 'y', 2.345), '%s' % 'z', '%05d|%-5s|%5s' % (42, 'ab', 'cd'), '%s %s'|format('a', 'b')
'%s %s' % ('a',)
'%d' % 'x'
l.count(1), l.index(2), (1, 1, 2).count(1), words.index('cherry')
l.append(4)
d.update({'x': 1})
d.pop('a')
l|first, l|last, []|first is defined, s|first, s|last, d|first, l|sort, l|sort(reverse=true), words|sort, words|sort(case_sensitive=true), items|sort(attribute='n')|map(attribute='name')|list
l|length, s|length, u|length, 'x'|count, (1,2)|length
n|length
l|sum, items|sum(attribute='n'), l|max, l|min, words|max, words|min, []|max is defined, [1.5, 2]|sum
words|unique|list, words|unique(case_sensitive=true)|list, items|unique(attribute='n')|map(attribute='name')|list, l|reverse|list, s|reverse
items|map(attribute='name')|list, items|map(attribute='on', default='?')|list, words|map('upper')|list, l|map('string')|join(','), words|map('replace', 'a', '*')|list
items|selectattr('on')|map(attribute='name')|list, items|rejectattr('on')|map(attribute='name')|list, items|selectattr('n', 'equalto', 1)|list|length, items|selectattr('on', 'defined')|list|length, items|rejectattr('name', 'in', ['x', 'z'])|map(attribute='name')|list
l|select('odd')|list, l|reject('odd')|list, [0, 1, '', 'a', none]|select|list, [0, 1, '']|reject|list, l|select('gt', 1)|list, range(10)|select('divisibleby', 3)|list
[nested]|map(attribute='a.b.1.c')|list, [[1, 2], [3, 4]]|map(attribute=1)|list, [[1, 2], [3, 4]]|map('first')|list, [[3, 1]]|map('sort')|list
missing|default('x'), empty|default('x'), empty|default('x', true), none|default('x'), nothing|d('x', boolean=true), 0|default(5, true)
'42'|int, '4x'|int, '4x'|int(7), 3.9|int, -3.9|int, '0x1f'|int(base=16), ' 12 '|int, none|int, '1_000'|int, '3.7'|int, true|int
'1.5'|float, 'x'|float, 'x'|float(2.5), 3|float, '1e3'|float, none|float, ' 2 '|float
1|string, none|string, [1, 'a']|string, 1.0|string, true|string, 'x'|string
2.5|round, 3.5|round, 2.675|round(2), 42.55|round(1, 'floor'), 42.51|round(1, 'ceil'), 42|round, -0.4|round, 1234.5678|round(2)
-1.5|abs, 3|abs
html|e
html|escape
'<b>'|safe
5|e
nothing|map('upper')|list, none|selectattr('a')|list, none|select|list, 0|map('upper')|list
lines|indent, lines|indent(2), lines|indent(2, true), lines|indent(2, blank=true), 'x'|indent('>>', true), ''|indent
d|tojson, l|tojson, none|tojson, true|tojson, 1.0|tojson, 'a"b\\c\n\t/<>&é你👋'|tojson, {'a': {'b': []}, 'c': {}}|tojson, (1, 2)|tojson
d|tojson(indent=2), l|tojson(indent=1), {}|tojson(indent=2), [{}]|tojson(indent=4), {'a': {'b': [1, {}]}}|tojson(indent=0)
{'b': 1, 'a': 2}|tojson(sort_keys=true), 'é👋'|tojson(ensure_ascii=true), {'a': [1, 2]}|tojson(separators=(',', ':')), {1: 2, none: 3, true: 4, 1.5: 5}|tojson
1e400|tojson, 1e22|tojson, 0.1|tojson, -0.0|tojson
missing|tojson
range(5)|list, range(2, 8, 3)|list, range(5, 0, -2)|list, range(0)|list, range(3)[1], range(3)|length
range(1, 2, 0)
range('x')
dict(a=1, b='x'), dict([('a', 1)]), dict({'a': 1}, b=2)
namespace(a=1).a, namespace(a=1).b is defined
'it''s' 'x' "y", "a\n\t\\\"\'\x41\u00e9\U0001F44B\101\q"
'\
joined'
l is sequence and d is mapping, not l is mapping, l|length > 2 and true, 'a' in 'abc' and 1
n|string|length, (n|string)[0], s.split(', ')[1].upper()|lower|first, -n|abs, -n.real is defined if false
d.a|length == 2, d.a | first + 1, 'x' ~ n + 1, 1 ~ 2 + 3, 2 * 3 ~ 4
[1, 2, 3,], (1, 2,), {'a': 1,}, (1), ((1)), [[]], ()
items[0].name ~ items[-1]['name'], items.0.name, (items|first).n
true, True, false, False, none, None
n if n > 40 and n < 50 else 0, [x for x in l]
1 if
1 +
(1
1..2
s.nosuch()
'a' is divisibleby 2
nothing.x.y
f ~ '', 1e100 ~ '', 1.0e-5 ~ '', 123456.789e3 ~ '', -0.0 ~ ''
l ~ d ~ (1,) ~ 'x' ~ "it's" ~ ["it's", 'say "x"', 'both \' "']
['tab\t', 'nl\n', 'é', '\x7f', '\x00', '\\']
s|attr('upper') is callable, d|attr('b') is defined
[3, 'a']|sort
9223372036854775807, 9223372036854775806 + 1
"%s" % none, "%s, %s" % (1, [2])
s|length|string|int + 1
words|map('length')|sum, words|map('first')|join|upper
[1, [2, [3, [4]]]], {'a': {'b': {'c': {}}}}
'abc' == "abc", 'a' != 'b', not 'a' == 'b'
(n, s)[0], {'k': 'v'}['k'], {'k': 'v'}.k, [[1, 2], [3]][0][1]
"""

TEMPLATES = [
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n", "a {%- if true -%} b {%- endif -%} c", "  {{ 1 }}  \n  {{- 2 -}}  \n x",
    "{% if true %}\n\nx{% endif %}\n\ny", "  {%+ if true %}x{% endif %}", "{% if true +%}\nx{% endif %}", "a{# c #}\nb\n {# d #}\ne",
    "a {#- c -#} b", "x\n\n", "x\r\ny\r{% if 1 %}\r\nz{% endif %}", "{% raw %}{{ x }}{% if %}{% endraw %}",
    "a {%- raw -%}  {{ x }}  {%- endraw -%} b", "  {% raw %}\n x {% endraw %}\ny", "{{ '{{' }}{{ '}}' }}{{ {'a': {'b': 1}}.a }}",
    "{{ \"%}\" }}{% set x = '}}' %}{{ x }}", "\t{% set x = 1 %}\n{{ x }}", "x {% set y = 1 %}\nz", "{%if 1%}a{%endif%}", "{{1}}{{'a'}}",
    "{% for x in l %}{{ x }}{{ ',' if not loop.last }}{% endfor %}",
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }} {% endfor %}",
    "{% for x in l %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }};{% endfor %}", "{% for x in l %}{{ loop.cycle('a', 'b') }}{% endfor %}",
    "{% for x in [1, 1, 2] %}{{ loop.changed(x) }}{% endfor %}", "{% for x in [] %}x{% else %}none{% endfor %}",
    "{% for x in l if x > 1 %}{{ loop.index }}:{{ x }}/{{ loop.length }} {% else %}none{% endfor %}", "{% for x in l if x > 9 %}{{ x }}{% else %}none{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}", "{% for (a, (b, c)) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for c in u %}[{{ c }}]{% endfor %}", "{% for a, b in [[1, 2], [3]] %}{{ a }}{% endfor %}", "{% for x in n %}{% endfor %}", "{% for x in missing %}x{% else %}e{% endfor %}",
    "{% for x in range(10) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% for i in l %}{% for j in l %}{% if j == 1 %}{% break %}{% endif %}{{ loop.depth }}{{ i }}{{ j }} {% endfor %}{% endfor %}",
    "{% set x = 1 %}{% for i in l %}{{ x }}{% set x = i %}{{ x }} {% endfor %}{{ x }}", "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% set ns = namespace(a=0) %}{% for i in l %}{% set ns.a = ns.a + i %}{% set ns.b = i %}{% endfor %}{{ ns.a }}{{ ns.b }}", "{% set d.x = 1 %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set a = 1, 2 %}{{ a }}", "{% set a, b = [1, 2, 3] %}", "{% set x %}a{{ n }}b{% endset %}{{ x }}|{{ x|length }}",
    "{% set x | upper | trim %}  ab {% endset %}{{ x }}", "{% set x = 1 %}{% set y %}{% set x = 2 %}{{ x }}{% endset %}{{ x }}{{ y }}",
    "{% filter upper %}abc {{ s }}{% endfilter %}", "{% filter replace('a', 'b') | upper %}banana{% endfilter %}",
    "{% macro m(a, b=2, c='x') %}{{ a }}-{{ b }}-{{ c }}{% endmacro %}{{ m(1) }} {{ m(1, 3) }} {{ m(1, c=5) }} {{ m(b=1, a=2) }} {{ m() }}",
    "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(z=2) }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, a=2) }}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}", "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}",
    "{% macro m(x) %}<{{ caller() }}{{ x }}>{% endmacro %}{% call m(1) %}body {{ n }}{% endcall %}", "{% macro m() %}{{ caller(1, 2) }}{% endmacro %}{% call(a, b) m() %}{{ a }}{{ b }}{% endcall %}",
    "{% macro m() %}{{ y }}{% endmacro %}{% set y = 3 %}{{ m() }}", "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(7) }}", "{% macro m() %}x{% endmacro %}{{ m()|upper }}{{ m() ~ 'y' }}{{ m()|length }}",
    "{% for i in l %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}", "{% with a = 1, b = 2 %}{{ a }}{{ b }}{% endwith %}{{ a }}", "{% with %}{% set q = 1 %}{{ q }}{% endwith %}{{ q }}",
    "{% generation %}{{ s }}{% set q = 1 %}{% endgeneration %}{{ q }}", "{% if no %}a{% elif n == 42 %}b{% else %}c{% endif %}", "{% if no %}a{% elif no %}b{% else %}c{% endif %}", "{% if missing %}a{% else %}b{% endif %}",
    "{% if not missing is defined %}a{% endif %}{% if missing is not defined %}b{% endif %}", "{{ raise_exception('no ' ~ n) }}", "{{ strftime_now is defined }}",
    "{% block b %}x{{ n }}{% endblock %}", "{% block b %}x{% endblock b %}", "{{ l|map('upper')|list }}{{ words|map(attribute='x')|list }}", "{% set g = l|map('string') %}{{ g|list }}{{ g|list }}",
    "{{ s }}\n{{ n }}\n", "{%- for m in items -%}\n  {{ m.name }}\n{%- endfor %}", "{%- for m in items %}\n  {{- m.name }}\n{%- endfor -%}\n end", "{{ x }}{% set x = 5 %}{{ x }}", "{% set l = l[1:] %}{{ l }}",
    "{% for l in l %}{{ l }}{% endfor %}{{ l }}", "{% for x in l %}{{ loop.index }}{% endfor %}{{ loop is defined }}", "{{ items[0].on and items[0].name }}", "{{ 'a' 'b' }}", "{{- '' -}}", "{# {{ x }} #}", "", "{", "{ {", "}}", "%}", "#}", "{%%}", "{{}}",
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("templates", nargs="*", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args()
    made = conversations()
    templates = args.templates or sorted(OUT.glob("*.jinja"))
    renderings = {"conversations": made, "templates": {
        t.stem: {name: render(t.read_text(), variables) for name, variables in made.items()} for t in templates}}
    out = args.out or OUT / "renderings.json"
    out.write_text(json.dumps(renderings, ensure_ascii=False, indent=0, separators=(",", ":")) + "\n")
    if args.templates:
        return
    cases = []
    for line in EXPRESSIONS.strip().replace("\\\njoined", "\\\x00joined").split("\n"):
        source = "{{ " + line.replace("\x00", "\n") + " }}"
        cases.append({"source": source} | render(source, VARIABLES))
        # Every part of a tuple for itself as well, where that is a template.
        parts = line.split(", ")
        if len(parts) > 1 and "{{" not in line:
            for part in parts:
                single = "{{ " + part + " }}"
                try:
                    environment().from_string(single)
                except jinja2.exceptions.TemplateError:
                    continue
                cases.append({"source": single} | render(single, VARIABLES))
    for source in TEMPLATES:
        cases.append({"source": source} | render(source, VARIABLES))
    (OUT / "expressions.json").write_text(
        json.dumps({"variables": VARIABLES, "cases": cases}, ensure_ascii=False, indent=0, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
