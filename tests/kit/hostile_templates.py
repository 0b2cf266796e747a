"""Three dozen chat templates that a model folder could bring: escapes, endless ones, and those that fill the memory.

An escape tries to make a file named `escaped`. None of them writes a conversation, so whatever is left of it after the
sandbox, no row can be trained on.
"""

from __future__ import annotations

SHELL = "'touch escaped'"
ESCAPES = {
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__()[0]('escaped') }}",
    "globals of a function": "{{ cycler.__init__.__globals__.os.popen(" + SHELL + ").read() }}",
    "globals by key": "{{ lipsum.__globals__['os'].system(" + SHELL + ") }}",
    "built-in names": "{{ self.__init__.__globals__.__builtins__.open('escaped', 'w') }}",
    "attribute filter": "{{ (messages|attr('append')|attr('__self__')|attr('__class__')|attr('__base__'))() }}",
    "format string": "{{ '{0.__class__.__init__.__globals__[os]}'.format(raise_exception)['escaped'] }}",
    "namespace": "{% set n = namespace(__class__=1) %}{{ n.__class__ }}",
}
LOOP = "{% for i in range(99999) %}"
ENDLESS = {
    "nested loops": LOOP * 3 + "{% endfor %}" * 3,
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a search that goes back": "{% set x = ('x' * 60000) %}"
    + LOOP
    + "{% set y = x.count('x' * 30000 + 'y') %}{% endfor %}",
}
LARGE = {
    "a text of 1 GB": "{{ 'x' * 10**9 }}",
    "a number in 1 GB": "{{ '%1000000000d' % 1 }}",
    "join": "{{ (['x' * 1000000] * 2000)|join }}",
    "center": "{{ 'x'|center(10**9) }}",
    "a long list": "{% set x = messages * 10**9 %}",
    "100 MB of output": LOOP + "{{ 'x' * 1000 }}{% endfor %}",
    "recursion": "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
    "a long range": "{% for i in range(10**9) %}x{% endfor %}",
    "a reason of 1 MB": "{{ raise_exception('x' * 1000000) }}",
}
TWICE = "{% set n = namespace(x='x') %}{% for i in range(40) %}{% set n.x = "
DOUBLED = TWICE + "[n.x, n.x] %}{% endfor %}"
GROWING = {
    "doubling by a tilde": TWICE + "n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "zfill": "{% set x = 'x'.zfill(10**9) %}",
    "lists twice in each other as JSON": DOUBLED + "{% set x = n.x|tojson %}",
    "lists twice in each other, sorted": DOUBLED + "{% set x = [n.x, n.x]|sort %}",
    "a letter replaced": "{% set x = ('x' * 40000).replace('x', 'x' * 40000) %}",
    "a long separator": "{% set x = ('x' * 40000).join(range(40000)|map('string')|list) %}",
    "a width by a value": "{{ '{:{}}'.format(1, 10**9) }}{{ '%*d' % (10**9, 1) }}",
    "JSON far to the right": "{{ messages|tojson(indent=10**9) }}",
    "a text in a loop": "{% set x %}" + LOOP + "x" * 20_000 + "{% endfor %}{% endset %}",
    "a loop in itself": "{% for m in messages recursive %}{% set x = loop(messages) %}{% endfor %}",
}
"""What an operator of Jinja's sandbox does not see."""
FILES = {"include": "{% include 'chat_template.jinja' %}", "import": "{% import '/etc/passwd' as x %}{{ x }}"}
NO_BUDGET_SEES = {
    "the hash of a deep tuple": "{% set n = namespace(x=()) %}{% for i in range(40000) %}{% set n.x = "
    + "(" * 25
    + "n.x"
    + ",)" * 25
    + " %}{% endfor %}{{ n.x is filter }}",
    "a number in 1 GB by a test": "{{ '%1000000000d' is odd }}",
    "conditions of a loop": "{% for i in range(99999) if [" + "i.a," * 1000 + "] %}{% endfor %}" * 9,
    "thousands of names": "{% set "
    + ", ".join(f"a{n}" for n in range(8000))
    + " = x %}"
    + "{% if a %}{% endif %}" * 2500,
    "a year in 1 GB": "{{ strftime_now('%200000000Y' + ' ' * 1000000) }}",
}
"""What ended a sandbox that paid for each turn, call and text out of a budget (design/0025)."""
HOSTILE = ESCAPES | ENDLESS | LARGE | GROWING | NO_BUDGET_SEES | FILES
