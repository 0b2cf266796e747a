"""Texts that would do something where they are taken for markup, a formula, a path or a part of a script."""

from __future__ import annotations

import base64

RUNS = "console.log('ran');alert(1)"
PAYLOADS = [
    f"<script>{RUNS}</script>",
    f"</title><script>{RUNS}</script>",
    f"</style><script>{RUNS}</script>",
    f'</code></pre><img src=x onerror="{RUNS}">',
    f'"><svg onload="{RUNS}">',
    f"' onmouseover='{RUNS}' autofocus onfocus='{RUNS}' x='",
    f"<svg><script>{RUNS}</script></svg>",
    f'<svg><animate onbegin="{RUNS}" attributeName=x dur=1s>',
    f"]]><script>{RUNS}</script><![CDATA[",
    f"--><script>{RUNS}</script><!--",
    f'<iframe srcdoc="<script>{RUNS}</script>"></iframe>',
    f'<a href="javascript:{RUNS}">x</a>',
    f"<form action=javascript:{RUNS}><button autofocus>x</button></form>",
    f'<object data="data:text/html,<script>{RUNS}</script>"></object>',
    f"<embed src=data:text/html;base64,{base64.b64encode(f'<script>{RUNS}</script>'.encode()).decode()}>",
    f'<meta http-equiv="refresh" content="0;url=javascript:{RUNS}">',
    '<link rel="stylesheet" href="http://example.com/x.css"><base href="http://example.com/">',
    "<style>*{background:url(http://example.com/x)}</style>",
    "x;} body{display:none} .verdict{background:url('http://example.com/x')",
    "{{constructor.constructor('alert(1)')()}} ${alert(1)} <%= alert(1) %> #{alert(1)}",
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;script&#62;alert(1) &quot;&#x27;",
    "+ADw-script+AD4-alert(1)+ADw-/script+AD4-",
    f'<math><mtext><table><mglyph><style><img src=x onerror="{RUNS}">',
    f"\u202e<\x00scr\x00ipt>\x1b[31m{RUNS}\u2066\ufeff\u2028\x7f</scr\x00ipt>",
    f"`<img src=x onerror={RUNS.replace(' ', '')}>` \U000e0041 \ufffe",
    r"$\frac{1}{0}$ $\input{/etc/passwd}$ \href{http://example.com}{x} _^{}%&",
]


def folder_name(payload):
    """As much of it as a file system takes."""
    name = payload.replace("/", "\u2215").replace("\x00", "").encode("utf-8", "ignore").decode()
    return name[:60] or "r"
