"""What programs, services and cuts leave in the texts of one row, and turns that are not as they should be.

Most texts have no sign of any, so each search begins with signs that it cannot do without. Where a row is about code or
markup, as its words say, neither is a fault. Keys, passwords, card numbers and e-mail addresses are only counted.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from rankwise.rows.text.example import Example, Message
from rankwise.runs.row_facts import Doubt

FEW = 10
"""With fewer rows than this, nothing is reported that depends on a share of all rows."""

_KEY = re.compile(
    r"\b(?:sk-[A-Za-z0-9_-]{16,}|AKIA[0-9A-Z]{16}|gh[opsru]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|hf_[A-Za-z0-9]{30,}|"
    r"glpat-[\w-]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}|AIza[\w-]{35}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_NAMED_KEY = re.compile(r"(?:[Kk]ey|KEY|[Tt]oken|TOKEN)[\"']?\s*[:=]\s*[\"']?(?=[\w-]*\d)(?=[\w-]*[A-Za-z])[\w-]{16,}")
_PASSWORD = re.compile(
    r"\b(?:password|passwd|passwort|pwd)(?:[\"']?\s*[:=]|\s+is\s)\s*[\"']?(?=[^\s\"'<>(){}]*\d)[^\s\"'<>(){}]{6,}",
    re.IGNORECASE,
)
_EMAIL = re.compile(r"[\w.+-]+@(?!(?:[\w-]*(?:example|domain|company)[\w-]*|e?mail|test)\.)(?:[\w-]+\.)+[A-Za-z]{2,}\b")
_CARD = re.compile(r"[3-6]\d{3}([ -]?)(?:\d{4}\1\d{4}\1\d{4}|\d{6}\1\d{5})")
_ISSUERS = re.compile(r"4|5[1-5]|3[47]|6(?:011|5)")


def holds_secret(text: str) -> bool:
    return holds_key(text) or holds_password(text) or holds_email(text) or holds_card(text)


def holds_key(text: str) -> bool:
    begins = (
        ("-" in text and ("sk-" in text or "glpat-" in text or "xox" in text or "PRIVATE KEY" in text))
        or ("_" in text and ("gh" in text or "hf_" in text))
        or "AKIA" in text or "AIza" in text or "eyJ" in text
    )  # fmt: skip
    if begins and _KEY.search(text) is not None:
        return True
    named = "key" in text or "KEY" in text or "Key" in text or "oken" in text or "OKEN" in text
    return named and _NAMED_KEY.search(text) is not None


def holds_password(text: str) -> bool:
    return ("assw" in text or "pwd" in text or "PASSW" in text) and _PASSWORD.search(text) is not None


def holds_email(text: str) -> bool:
    return "@" in text and _EMAIL.search(text) is not None


def holds_card(text: str) -> bool:
    return any(
        _ISSUERS.match(one[0]) is not None and _is_checked(re.sub(r"\D", "", one[0]))
        and not text[max(0, one.start() - 1) : one.start()].isalnum() and not text[one.end() : one.end() + 1].isalnum()
        for one in _CARD.finditer(text)
    )  # fmt: skip


def _is_checked(digits: str) -> bool:
    """Whether the last digit is what Luhn's sum makes of the others."""
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(map(int, digits[::-2]))) % 10 == 0


_CODE = re.compile(r"```|\bdef \w|\bimport \w|\bprint\(|\breturn\b|console\.|#include|\w\(\)|\w = |[;{]\n|=> |"
                   r"[Pp]ython|"
                   r"[Cc]ode\b|[Rr]egex|JavaScript|\b(?:[Tt]uple|[Dd]ict|[Ee]scape)|\b[Ll]iteral|SELECT ")  # fmt: skip
_PRINTED = re.compile(
    r"\Ab?(['\"])\s*[\[{].*[\]}]\s*\1\Z|\Ab(['\"]).*\2\Z|\A[\[({]+b?'.*[\])}]\Z|\A[\[{(].*[\[{(,:] ?(?:None|True|"
    r"False) ?[,\]})].*\Z|\{'[^'{}\n]{1,40}': |(?<![\w'\"])b(['\"])[^'\"\n]+\3(?![\w'])|"
    r"(?<![\w=] )(?<!\w)\['[^'\n]*'(?:, '[^'\n]*')*\]|"
    r"<[\w.]+ object at 0x|\b(?:Decimal|OrderedDict|datetime\.\w+|Timestamp)\([\['\d]|"
    r"(?<!arguments\"): ?\"\s*[{\[]+\s*\\\"",
    re.DOTALL,
)
_ESCAPE = re.compile(r"\A(?![{\[](?!\\)).*?\\(?:r\\n|u[0-9a-f]{4}|x[0-9a-f]{2}|[\"']|t(?!(?:an|au|ext\w*|heta|ilde|"
                     r"imes|op?|frac)\b)|n(?!(?:abla|eq?|e?g|u|ot|otin|mid|ewline|ewcommand|oindent|i|parallel|"
                     r"[gl]eq)\b))", re.DOTALL | re.ASCII)  # fmt: skip
_HAS_ESCAPES = re.compile(_CODE.pattern + r"|\b[A-Za-z]:\\|\$|\\[\[(]|\\(?:frac|begin|text|sum|sqrt|times|theta)\b")
_TAG = re.compile(r"(?i)</?(?:p|br|div|span|b|i|u|em|strong|[uo]l|li|h[1-6]|a|font|t[rdh]|table|blockquote|img|hr|"
                  r"su[bp]|small|center)(?:\s[^<>]*)?/?>")  # fmt: skip
_MARKUP = re.compile(
    r"(?i)html|css\b|xml|mark(?:up|down)|web|site\b|\btags?\b|<!doc|```|script|<(?:head|body|form|"
    r"nav|section|input|button|svg|style|fig\w+|article|main|footer|label|video|audio)\b|\bpage|"
    r"browser|\bdom\b|react|\bcode\b|e-?mail template"
)
_BASE64 = re.compile(r"(?=\S*[A-Z])(?=\S*[a-z])(?:[A-Za-z0-9+/]{4}\s?)*[A-Za-z0-9+/]{2,4}={0,2}")
_ENDING = re.compile(r"…|\.\.\.|[\[(<][tcm]|ore\b")
_CUT_OFF = re.compile(r"(?<![\d.,…])(?<![\d,] )(?:…|\.\.\.|[\[(<](?:…|\.\.\.|truncated|cut|more|continued)[\])>]|"
                      r"(?:Read|See|Show) more)[\"'”’»)]?\Z")  # fmt: skip
_PLACEHOLDER = re.compile(
    r"\A[\[<({*#/\s]*(?:T\.?B\.?[DAC]\.?|TODO|FIXME|XXX+|PLACEHOLDER)(?:\b|_)(?! list)(?=.{0,60}\Z)|\b(?:TODO|TBD|"
    r"FIXME)[\])>.]*\Z|(?i:\A[\[<({]*(?:to-?do|tb[da]|"
    r"(?:\w+ )*placeholder(?: \w+)?|(?:dummy|sample)(?: (?:text|answer))?|asdf\w*|coming soon|(?:to be|"
    r"not yet) \w+(?: in)?(?: later)?|"
    r"fill (?:\w+ )?in|change ?me|(?:insert|add|enter|write|put|your) (?:an? |the |your )?(?:\w+ )?(?:answer|text|"
    r"response|reply|"
    r"content|completion)(?: goes)?(?: here| later)?)[\])>}.!]*\Z|lorem ipsum|dolor sit amet|placeholder (?:text|"
    r"answer)|\A\{\{.*\}\}\Z|\[(?:insert|your|add|placeholder)\b[^\]]*\])"
)
_FAILURE = re.compile(
    r"(?is)\A\W*Traceback \(most recent|\A(?=.{0,400}\Z)\W*(?:(?:\w+ )?(?:error|exception)(?: code)?(?::|"
    r"\s*\d{3}\s*(?:[-:.]|\Z))|[\w.]+(?:error|"
    r"exception)\b ?(?:[:(\]]|\Z)|error\]|(?:http\S* )?[45]\d\d[ :-]+(?:internal|bad|service|gateway|too|forbid|"
    r"unauthor|not found|client|server|error)|"
    r"internal server error|bad gateway|service (?:is )?(?:temporarily )?unavailable|gateway time|too many requests|"
    r"(?:the )?(?:request|connection|read|operation) (?:was |has )?(?:timed? ?out|aborted|refused|reset|failed|error)|"
    r"rate limit|(?:you )?(?:have )?"
    r"exceeded (?:your|the)|(?:an? |unknown |unexpected |internal )*error (?:has )?(?:occurred|while|generating)\b|"
    r"(?:\w+\W+)?something went wrong|unable to (?:generate|fetch)|<html>.{0,40}[45]\d\d|"
    r"(?:the |that )?(?:server|model|engine|service|system)\b.{0,40}(?:overloaded|unavailable|error)|"
    r"failed to (?:fetch|generate|connect|"
    r"load|get|parse)|(?:incorrect|invalid) api key|(?:insufficient.)?quota|(?:this model.s )?maximum context|"
    r"\{+\s*[\"']+(?:error|exception|detail|status_code|errors|status[\"'] ?: ?[\"']error)[\"'] ?[:,}])")  # fmt: skip
_TROUBLE = re.compile(r"(?is)\b(?:error|exception|traceback|fail\w*)\b.{0,300}\?")
_HELP = r"(?:assist|help|answer|provide|fulfil|comply|generate|create|produce|write|discuss|engage|do th|respond)"
_REFUSAL = re.compile(
    r"(?i)\bas an? (?:\w+ )?(?:ai|artificial intelligence|(?:large )?language model)\b(?! engineer| research)|"
    r"\bi(?:['’]m| am) (?:just |only )?"
    r"an? (?:ai\b|(?:large )?language model)|\bi(?:['’]m| am) (?:sorry|afraid|unable|not (?:able|"
    r"comfortable))\b.{0,60}?\b(?:can(?:no|['’])t|unable|"
    rf"not able|won['’]t|to) (?:to )?(?:\w+ )?{_HELP}|\A(?:(?:sorry|unfortunately|"
    rf"i apologi[sz]e),? (?:but )?)?i (?:can(?:no|['’])t|can not|won['’]t|must decline|am "
    rf"unable) (?:to )?(?:\w+ )?{_HELP}|\bals (?:ein )?(?:ki\b|künstliche|(?:\w+ )?sprachmodell)|"
    rf"leid,? (?:aber )?(?:das )?(?:kann|darf)? ?ich\b|"
    r"\ben tant qu['’e].{0,12}(?:ia\b|modèle|intelligence)|désolée?,? .{0,9}je ne|\bcomo (?:una? )?(?:ia\b|modelo de|"
    r"inteligencia)|lo siento,? .{0,9}no puedo")  # fmt: skip
_USER = r"\W{0,2}(?i:user|human|customer|client|benutzer)\W{0,2}"
_MODEL = r"\W{0,2}(?:(?i:assist[ae]nt)|AI|Bot|ChatGPT)\W{0,2}"
_RENDERED = re.compile(
    r"### ?(?:Instruction|Response|Human|Assistant|User|Input|Question)\b|<\|(?:im_start|user|assistant|prompter|"
    r"start_header_id)\|>|\[INST\]|<start_of_turn>|\bASSISTANT: ?$")  # fmt: skip
_SPOKEN = re.compile(
    rf"(?s)(?:\A|\s){_USER}:.*\s{_MODEL}:|\A\W*(?:User|Human)\W{{0,2}}: |\A\s*(?:Q|Question|"
    rf"Frage)\s*\d?[:.] .*\s(?:A|Answer|Antwort)\s*\d?[:.](?:\s|\Z)"
)
_TALK = re.compile(r"(?i)summar|zusammenf|classif|dialog|transcript|screenplay|script|\bFAQ|role-?play")
_NEXT_TURN = re.compile(
    rf"(?s)\S\s*\n\s*(?:{_USER}|{_MODEL}):|\S\s*### ?(?:Instruction|Human|User|Input|Question|"
    rf"Response)\b|[.!?] (?:User|"
    r"Human): |\S\s*<\|(?:user|im_start|prompter)\|>|\S\s*\[INST\]|<start_of_turn>|"
    r"\A(?!Q).*\n\s*(?:Q|Question|Frage): "
)
_TO_ASK = re.compile(
    r"(?i)question|frage|\bask|quiz|riddle|re(?:write|phras)|paraphras|transl|headline|title|"
    r"interview|survey|poll"
)
_ASKS = re.compile(
    r"(?:Who|What|When|Where|Why|How|Which|Whose|Is|Are|Was|Were|Do|Does|Did|Can|Could|Should|Would|"
    r"Will|Has|Have|Wer|Wann|"
    r"Wo|Warum|Wie|Welche\w?|Ist|Sind|Kann\w*|Qui|Que|Quand|Où|Pourquoi|Comment|Quel\w*|"
    r"¿\w+)\b[^.!\n]*\?\Z"
)
_OTHER_SCRIPT = re.compile("[\u0370-\u1fff\u3040-\ud7af]")
_LANGUAGE = re.compile(
    r"(?i)transl|übersetz|tradu|german|deutsch|french|français|spanish|español|english|englisch|"
    r"latin|greek|russian|chinese|japanese|korean|arabic|hindi|italian|hebrew|langu|sprache"
)
_COMMON = {word: language for language, words in enumerate((
    "the of and to is it you that for are with was this be can from by its which has their your",
    "der und ist nicht ein eine einen mit den von das sich auf für auch dem des wird sind im zu am oder aus bei "
          "nach wie es sie ich",
    "le les et est une dans pour qui du vous nous au aux avec sont il elle cette ce ne pas sur leur des votre",
    "el los las una por con para del como se su pero más muy esta este lo al son está puede",
)) for word in words.split()}  # fmt: skip
_FOREIGN = frozenset(word for word, language in _COMMON.items() if language)


def _in_another_language(row: CheckedRow) -> bool:
    """By another script, or by the most common words of four languages at the beginning of the question and the "
    "answer."""
    asked, told = row.question[:200].split(), row.bare[:200].split()
    other = not row.answer.isascii() and 3 * len(_OTHER_SCRIPT.findall(row.bare)) > len(row.bare)
    if not other and _FOREIGN.isdisjoint(asked) and _FOREIGN.isdisjoint(told):
        return False
    by, of = (
        [_COMMON[word] for word in {*words, *map(str.lower, words[:1])} if word in _COMMON] for words in (asked, told)
    )
    language = max(of, key=of.count, default=0)
    differs = of.count(language) >= 2 and 2 * of.count(language) > len(of) and 4 * by.count(language) < len(by)
    return (differs or (other and not _OTHER_SCRIPT.search(row.question))) and not _LANGUAGE.search(row.text)


@dataclass(slots=True)
class CheckedRow:
    """A row while it is looked at. All but the first two are empty where it has not one question and one answer."""

    text: str
    example: Example
    question: str = ""
    """Without white space around it, as `bare` is the answer."""
    answer: str = ""
    bare: str = ""
    reply: str = ""
    """The text from the first answer on."""
    other: str | None = None
    """The answer of an earlier row that has another."""

    def has(
        self, pattern: re.Pattern[str], unless: re.Pattern[str] | None = None, *, in_question: bool = False
    ) -> bool:
        """Whether the pattern is in an answer or a plain text, or if `in_question` in a question; never in a row about
        what `unless` finds."""
        turns = self.example.messages or (Message("assistant", self.example.text or ""),)
        side = "user" if in_question else "assistant"
        found = any(turn.role == side and pattern.search(turn.text.strip()) for turn in turns)
        return found and (unless is None or unless.search(self.text) is None)


@dataclass(frozen=True)
class Check:
    """`what` is said of some rows, and `advice` behind it."""

    name: str
    what: str
    advice: str
    rows: int = 1
    """The fewest rows of which it is said, the smallest share of all, and the share from which it is not."""
    least: float = 0.0
    most: float = 2.0
    stops: float | None = None
    """The share of all rows from which training on them is refused, where the check is among those that may."""
    finds: Callable[..., Any] = field(kw_only=True)
    """Whether a row is such a one; or of all rows together, how many are, of how many it looks at, and an example."""
    among: Literal["all", "answers", "labels", "texts", "pairs"] = field(default="answers", kw_only=True)
    """The rows that are looked at. Whether answers are labels or texts is known at the end."""

    def doubt(self, of: int, count: int, among: int, example: str, taken: str = "") -> Doubt | None:
        """`count` rows among those that it looks at, `of` all."""
        if count < self.rows or not self.least <= count / max(1, among) < self.most:
            return None
        return Doubt(
            check=self.name, rows=count, of=of, example=example,
            stops=self.stops is not None and count >= self.stops * of and of >= FEW,
            text=f"rows that {self.what}: {count:,} of {of:,}, such as {example}. {self.advice.format(taken=taken)}",
        )  # fmt: skip


def listed(places: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(places[:-1]), *places[-1:])))


_WITHOUT = "Leave such rows out, or write their answers anew"
TEXT_CHECKS = (
    Check("printed-values", "have what a program printed in place of a text, such as {'a': None}, ['x'], b'…' or "
          "JSON inside "
          "quotes", "The model learns to write it. Write the text itself, or plain JSON", rows=2, least=0.02,
          among="all",
          finds=lambda row: ("{'" in row.text or "['" in row.text or "('" in row.text or " b'" in row.text
          or ' b"' in row.text
          or ": None" in row.text or ", None" in row.text or '"{' in row.text or "'{" in row.text
          or '"[' in row.text or ": True" in row.text or "object at" in row.text)
          and (row.has(_PRINTED, _CODE) or row.has(_PRINTED, _CODE, in_question=True))),
    Check("escapes", "have escapes as text, such as a backslash and n for a line end", "They were encoded twice. "
          "Replace "
          "them with the signs that they stand for", rows=2, least=0.02, among="all", finds=lambda row: "\\" in row.text
          and (row.has(_ESCAPE, _HAS_ESCAPES) or row.has(_ESCAPE, _HAS_ESCAPES, in_question=True))),
    Check("html-tags", "have HTML tags in their text, and are not about markup", "The model learns to write them. "
          "Remove "
          "them", rows=3, least=0.02, among="all", finds=lambda row: ("</" in row.text or "<br" in row.text
          or "<p" in row.text)
          and (row.has(_TAG, _MARKUP) or row.has(_TAG, _MARKUP, in_question=True))),
    Check("base64", "have their prompt or answer in base64", "Nothing can be learned of it. Decode it", rows=2,
          least=0.02,
          finds=lambda row: any(len(text) >= 12 and " " not in text[:40] and _BASE64.fullmatch(text) is not None and (
              len(text) > 60 or b64decode(text + "==").decode(errors="replace").replace("\ufffd", "\0").isprintable())
              for text in (row.bare, row.question))),
    Check("cut-off", "have an answer that breaks off with … or ...", "The model learns to stop there. Take the "
          "whole answers",
          rows=3, least=0.05, among="all", finds=lambda row: _ENDING.search(row.reply[-16:]) is not None
          and row.has(_CUT_OFF)),
    Check("placeholders", "have a placeholder as their answer or in it, such as TODO, TBD or lorem ipsum", _WITHOUT,
          rows=2,
          least=0.02, among="all", finds=lambda row: (len(row.reply) < 80 or "TODO" in row.reply or "TBD" in row.reply
          or "orem ipsum" in row.reply or "laceholder" in row.reply)
          and row.has(_PLACEHOLDER, _CODE)),
    Check("failures", "have a failure of a program or service as their answer, such as Error: rate limit exceeded",
          _WITHOUT,
          rows=2, least=0.01, among="all", finds=lambda row: (len(row.reply) < 300 or "Traceback" in row.reply)
          and row.has(_FAILURE, _TROUBLE)),
    Check("refusals", "have an answer that refuses, such as: As an AI language model I cannot", "The model learns "
          "to refuse. "
          "Leave such rows out, unless it should", rows=3, least=0.02, among="all",
          finds=lambda row: not row.example.tools and (" AI" in row.reply or "orry" in row.reply
          or "language model" in row.reply or "nable" in row.reply or "I can" in row.reply[:90] or "able to" in
          row.reply[:90] or "I am" in row.reply[:90] or "I must" in row.reply[:90] or "KI" in row.reply
          or "IA" in row.reply or "odelo" in row.reply or "odèle" in row.reply
          or "leid" in row.reply[:90] or "ésol" in row.reply[:90] or "siento" in row.reply[:90]) and row.has(_REFUSAL)),
    Check("rendered-prompts", "look as if a chat template had already been applied", "rankwise applies the model's "
          "template. Give the text alone, without User: or ### Instruction:, or the turns as messages",
          among="all", finds=lambda row: (("###" in (asked := row.example.prompt_text) or "<" in asked
          or "[INST]" in asked or "ASSISTANT" in asked)
          and _RENDERED.search(asked) is not None) or ((asked[:8].lstrip("*[ ")[:1] in "UHQF"
          or "ssistant" in asked or "ASSIST" in asked or "AI:" in asked or "Bot" in asked)
              and row.has(_SPOKEN, _TALK, in_question=True))),
    Check("next-turn", "have an answer that goes on with the next turn, such as User:", "The model learns to speak "
          "for its "
          "user. Cut the answers before it, or give the turns as messages", rows=2, least=0.01, among="all",
          finds=lambda row: ("User" in row.reply or "user:" in row.reply or "USER" in row.reply
          or "Human" in row.reply or "###" in row.reply or "<|" in row.reply
          or "Q:" in row.reply or "uestion:" in row.reply or "ustomer:" in row.reply or "ssistant:" in row.reply
          or "[INST]" in row.reply) and row.has(_NEXT_TURN, _TALK)),
    Check("turns-of-one-role", "have two turns of one role in a row", "Chat templates expect turns to alternate. "
          "Join them, or "
          "see whether a turn is missing", rows=2, among="all",
          finds=lambda row: len(row.example.messages) > 2 and any(
              one.role == other.role != "tool" and not one.tool_calls for one,
          other in pairwise(row.example.messages))),
    Check("empty-system", "have an empty system message", "It takes the place of the template's own. Remove it, or "
          "write one",
          among="all", finds=lambda row: row.example.system is not None and not row.example.system.strip()),
    Check("answer-in-system", "have their answer word for word in the system message", "The model learns to copy "
          "it. Leave it "
          "out of the system message", rows=3, least=0.1, finds=lambda row: row.example.system is not None
          and row.bare != ""
          and row.bare in row.example.system and (row.other is None or row.other not in row.example.system)),
    Check("exchanged-roles", "have a statement as their prompt and a question as their answer", "The roles may be "
          "exchanged. "
          "Exchange them, unless the model should ask", rows=3, least=0.05, finds=lambda row: row.bare.endswith("?")
          and "?" not in row.question and row.question.endswith((".", "!")) and _ASKS.match(row.bare) is not None
          and re.match("I |We |My |Please", row.question) is None and _TO_ASK.search(row.text) is None),
    Check("another-language", "have an answer in another language than their prompt, unlike the others", "See "
          "whether they "
          "belong together", rows=3, least=0.02, most=0.6, among="texts", finds=_in_another_language),
)  # fmt: skip
