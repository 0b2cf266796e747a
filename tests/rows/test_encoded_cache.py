"""The cache saves time and changes nothing: what it gives is what would be made anew, or it gives nothing.

Whatever decides how rows are encoded is in the key; what was damaged, cut short or killed is never taken for whole.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.counted_tokenizer import Counted
from kit.sampling import draws
from rankwise.commands.data import check
from rankwise.config.data import DataConfig, Reading
from rankwise.config.models import ModelConfig
from rankwise.rows.preparing import forget, key_of, prepare, recall
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.rows.writing import TextWriting
from rankwise.runs.records import StatusMessage, silent

ENTRY = ("ids.bin", "loss_mask.bin", "starts.bin", "trained.bin", "measured.bin", "facts.json")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A working folder with rows, and a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"{n} what is it {n * 7}?", "completion": f"fox {n}" * (n + 1)} for n in range(9)]
    for name, part in (("rows", rows[:6]), ("more", rows[6:]), ("folder/train", rows[:4]), ("folder/valid", rows[4:])):
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"const": name}))
        (tmp_path / f"{name}.lark").write_text(f'start: "{name}"')
    return tmp_path


def writing_with(hub_tokenizer, template=None, **special):
    hub = copy.deepcopy(hub_tokenizer)
    hub.chat_template = template or hub.chat_template
    for name, token in special.items():
        setattr(hub, name, token)
    tokenizer = Counted(hub, [hub.eos_token_id])
    return TextWriting(tokenizer, ChatTemplate.of_model(tokenizer), "tiny", None)


@pytest.fixture
def writing(hub_tokenizer):
    return writing_with(hub_tokenizer)


def key(spec, writing):
    writing = writing.by(spec)
    identity = writing.tokenizer.identity + writing.template.identity
    return key_of(spec, writing.encoder(spec), identity, writing.name)


def entries():
    folder = Path(os.environ["RANKWISE_CACHE"]) / "encoded"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def entry():
    """The only one."""
    [name] = entries()
    return Path(os.environ["RANKWISE_CACHE"]) / "encoded" / name


def same(one, other):
    arrays = [
        (one.sequences.ids, other.sequences.ids), (one.sequences.loss_mask, other.sequences.loss_mask),
        (one.sequences.starts, other.sequences.starts), (one.trained, other.trained),
        (one.validation, other.validation),
    ]  # fmt: skip
    return one.data_report == other.data_report and all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in arrays)


def made_anew(spec, writing, monkeypatch):
    """Without any cache to read from."""
    with monkeypatch.context() as patch:
        patch.setenv("RANKWISE_CACHE", os.environ["RANKWISE_CACHE"] + "-empty")
        shutil.rmtree(os.environ["RANKWISE_CACHE"], ignore_errors=True)
        return prepare(spec, writing, silent)


SPEC = DataConfig(path="rows.jsonl", held_out=2)


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        DataConfig(sources=[{"path": "rows.jsonl", "weight": 2.5}, "more.jsonl"], validation="folder/valid.jsonl"),
        DataConfig(path="rows.jsonl", max_length=30, too_long="truncate"),
        DataConfig(path="rows.jsonl", max_length=3),
        DataConfig(path="rows.jsonl", recipe="dolly"),
    ],
    ids=["one", "several", "cut", "none kept", "recipe"],
)
def test_rows_are_encoded_once_and_read_from_the_cache_as_they_were(writing, monkeypatch, spec):
    first = prepare(spec, writing, silent)
    made = entry()
    assert sorted(path.name for path in made.iterdir()) == sorted(ENTRY)
    writing = TextWriting(writing.tokenizer, writing.template, writing.name, writing.context)
    before = {path: path.stat().st_mtime_ns for path in entry().iterdir()}
    encoded = writing.tokenizer.texts
    second = prepare(spec, writing, silent)
    assert writing.tokenizer.texts - encoded <= 2 * (spec.recipe is not None), "a recipe's template looks for its ends"
    assert {path: path.stat().st_mtime_ns for path in entry().iterdir()} == before
    assert same(second, first) and same(made_anew(spec, writing, monkeypatch), first)
    assert entry() == made


# The key

FOLDER, TEXTS = {"path": "folder"}, {"prompt": "{prompt}", "completion": "{completion}"}
CHANGES = {
    "path": [{"path": "rows.jsonl"}, {"path": "more.jsonl"}],
    "sources": [{"sources": ["rows.jsonl", "more.jsonl"]}, {"sources": ["more.jsonl", "rows.jsonl"]},
                {"sources": ["rows.jsonl", {"path": "more.jsonl", "weight": 2}]}],
    "validation": [{}, {"validation": "more.jsonl"}, {"validation": {"path": "more.jsonl", "rows": 2}}],
    "format": [{}, {"format": "alpaca"}],
    "columns": [{}, {"columns": {"prompt": "completion", "completion": "prompt"}}],
    "prompt": [TEXTS, TEXTS | {"prompt": "Q {prompt}"}],
    "completion": [TEXTS, TEXTS | {"completion": "{prompt}"}],
    "accept": [{}, {"accept": ["one-answer"]}],
    "alternatives": [{}, {"alternatives": "each"}],
    "ignore_columns": [{}, {"ignore_columns": ["id"]}],
    "delimiter": [{}, {"delimiter": ";"}, {"delimiter": "|"}],
    "encoding": [{}, {"encoding": "utf-8"}, {"encoding": "cp1252"}],
    "sheet": [{}, {"sheet": "rows"}],
    "field": [{}, {"field": "rows"}],
    "reasoning": [{}, {"reasoning": "learn"}, {"reasoning": "mask"}],
    "labels": [{}, {"labels": ["a"]}],
    "split": [FOLDER, FOLDER | {"split": "valid"}],
    "rows": [{}, {"rows": 2}, {"rows": 3}],
    "licence": [{}, {"licence": "MIT"}],
    "held_out": [{}, {"held_out": 1}, {"held_out": 2}],
    "held_out_order": [{"held_out": 1}, {"held_out": 1, "held_out_order": "last"}],
    "group": [{"held_out": 1}, {"held_out": 1, "group": "prompt"}, {"held_out": 1, "group": "completion"}],
    "recipe": [{}, {"recipe": "alpaca"}, {"recipe": "dolly"}],
    "system": [{}, {"system": ""}, {"system": "Be kind."}],
    "max_length": [{}, {"max_length": 30}, {"max_length": 31}],
    "too_long": [{}, {"too_long": "truncate"}, {"too_long": "split"}, {"too_long": "cut-prompt"}],
    "learned": [{}, {"learned": "everything"}],
    "answers": [{}, {"answers": "apart"}],
    "on_bad_row": [{}, {"on_bad_row": "skip"}],
    "answer_schema": [{}, {"answer_schema": "infer"}, {"answer_schema": "a.json"}, {"answer_schema": "b.json"}],
    "answer_choices": [{}, {"answer_choices": ["a"]}],
    "answer_regex": [{}, {"answer_regex": "a"}],
    "answer_grammar": [{}, {"answer_grammar": "a.lark"}, {"answer_grammar": "b.lark"}],
    "seed": [{}, {"seed": 1}],
}  # fmt: skip
OF_THE_HUB = {"subset", "revision"}
"""Settings that no file has. What the hub gives has a fingerprint of its content."""


@pytest.mark.parametrize("name", CHANGES)
def test_each_setting_that_may_change_documents_changes_the_key(writing, name):
    specs = [DataConfig(**({} if "sources" in change else {"path": "rows.jsonl"}) | change) for change in CHANGES[name]]
    assert len({key(spec, writing) for spec in specs}) == len(specs)
    assert len({key(copy.deepcopy(spec), writing) for spec in specs}) == len(specs)


def test_every_setting_of_rows_is_in_the_key_but_packing():
    assert set(DataConfig.model_fields) - set(CHANGES) - OF_THE_HUB == {"packing"}
    assert set(Reading.model_fields) >= OF_THE_HUB


@settings(max_examples=draws(60), deadline=None)
@given(
    name=st.sampled_from(["rows", "more", "folder/train", "other"]), place=st.integers(0, 10**6), bit=st.integers(0, 7)
)
def test_one_bit_of_any_file_that_is_read_changes_the_key(hub_tokenizer, tmp_path_factory, name, place, bit):
    writing = writing_with(hub_tokenizer)
    folder = tmp_path_factory.mktemp("bits")
    files = {one: folder / f"{one}.jsonl" for one in ("rows", "more", "folder/train", "other")}
    (folder / "folder").mkdir()
    for one, file in files.items():
        file.write_bytes(f'{{"prompt": "{one}", "completion": "fox"}}\n'.encode())
    spec = DataConfig(sources=[files["rows"], files["more"], folder / "folder"], validation=files["other"])
    before = key(spec, writing)
    content = bytearray(files[name].read_bytes())
    content[place % len(content)] ^= 1 << bit
    files[name].write_bytes(content)
    assert key(spec, writing) != before
    content[place % len(content)] ^= 1 << bit
    files[name].write_bytes(content)
    assert key(spec, writing) == before


def test_a_licence_that_is_said_later_is_no_longer_unknown(writing, home):
    assert prepare(SPEC, writing, silent).data_report.licence == "unknown"
    (home / "README.md").write_text("---\nlicense: mit\n---\n")
    assert prepare(SPEC, writing, silent).data_report.licence == "MIT"


def test_tokenizer_template_and_limit_are_in_the_key(hub_tokenizer, writing):
    longer = copy.deepcopy(hub_tokenizer)
    longer.add_tokens(["what is"])
    others = [
        writing,
        writing_with(longer),
        writing_with(hub_tokenizer, hub_tokenizer.chat_template.replace("'\n'", "'\n\n'")),
        writing_with(hub_tokenizer, eos_token="<|endoftext|>"),
        TextWriting(writing.tokenizer, writing.template, writing.name, 40),
        TextWriting(writing.tokenizer, writing.template, writing.name, 41),
        TextWriting(writing.tokenizer, writing.template, "another", None),
    ]
    assert len({key(SPEC, one) for one in others}) == len(others)
    for one in others:  # and so one does not get what another made
        assert prepare(SPEC, one, silent).data_report.model == one.name
    assert len(entries()) == len(others)


@pytest.mark.parametrize("special", ["bos_token", "unk_token", "pad_token"])
def test_a_special_token_that_the_template_writes_is_a_part_of_what_is_encoded(hub_tokenizer, monkeypatch, special):
    # tokenizer_config.json names it, tokenizer.json does not: both models have the same tokenizer and the same template
    template = f"{{{{ {special} }}}}" + hub_tokenizer.chat_template
    before, after = (
        writing_with(hub_tokenizer, template, **{special: token}) for token in ("<|im_start|>", "<|endoftext|>")
    )
    fresh = made_anew(SPEC, after, monkeypatch)
    assert not same(prepare(SPEC, before, silent), fresh)
    assert same(prepare(SPEC, after, silent), fresh)


def test_a_folder_that_was_edited_gives_what_it_would_give_anew(tiny_folder, home, monkeypatch):
    """As above, by way of the files that a user would edit."""
    model = home / "model"
    shutil.copytree(tiny_folder, model)
    (model / "chat_template.jinja").write_text("{{ bos_token }}" + (model / "chat_template.jinja").read_text())
    before = check(SPEC, ModelConfig(name=str(model)))
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": "<|endoftext|>"}))
    after = check(SPEC, ModelConfig(name=str(model)))
    monkeypatch.setenv("RANKWISE_CACHE", str(home / "empty"))
    assert after == check(SPEC, ModelConfig(name=str(model)))
    assert before.double_start == before.sequences and after.double_start == 0


def test_files_of_other_splits_that_come_and_go_are_told(writing, home):
    spec = DataConfig(path="folder")
    assert prepare(spec, writing, silent).data_report.left_aside == ("valid.jsonl",)
    shutil.copy(home / "rows.jsonl", home / "folder" / "test.jsonl")
    assert prepare(spec, writing, silent).data_report.left_aside == ("test.jsonl", "valid.jsonl")


# Damage


def missing(file):
    file.unlink()


def emptied(file):
    file.write_bytes(b"")


def cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def longer(file):
    file.write_bytes(file.read_bytes() + b"\0")


def flipped(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def a_folder(file):
    file.unlink()
    file.mkdir()


def nonsense(text):
    def write(file):
        file.write_text(text)

    return write


BROKEN = {
    f"{name} {change.__name__}": (name, change)
    for name in ENTRY
    for change in (missing, emptied, cut, longer, flipped, a_folder)
    if (name, change) != ("facts.json", longer)
} | {
    f"facts.json is {text[:12]}": ("facts.json", nonsense(text))
    for text in ("{", "[]", "null", "3", "{}", '{"sha256": {}}', '{"sha256": null, "data report": null}', "[" * 100_000,
                 '"\\ud800"', "\ufeff{}", '{"sha256": "abc", "data report": {}}')
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_entry_is_made_anew(writing, name):
    file, change = BROKEN[name]
    first = prepare(SPEC, writing, silent)
    first = copy.deepcopy(first)  # nothing of it on the disk
    assert len(first.validation) == 2, "no array is empty"
    made = entry()
    change(made / file)
    heard = []
    assert same(prepare(SPEC, writing, heard.append), first)
    assert heard == []
    assert same(recall(made.name), first), "the entry is whole again"
    assert entry() == made


def test_no_flipped_bit_of_the_facts_ever_passes_for_a_fact(writing):
    # 6 rows and 7 rows differ by one bit; one hash is over all of it, so every fifth byte stands for the others
    first = prepare(SPEC, writing, silent)
    file = entry() / "facts.json"
    whole = file.read_bytes()
    wrong = []
    for place in range(0, len(whole), 5):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = recall(file.parent.name)
        if found is not None and not same(found, first):
            wrong.append(whole[max(0, place - 20) : place + 1])
    assert wrong == []


def test_rows_of_a_file_that_changes_while_it_is_read_are_not_kept_for_what_it_was(writing, home):
    old = (home / "rows.jsonl").read_text()

    class Meanwhile(Counted):
        def encode_all(self, texts):
            (home / "rows.jsonl").write_text(old + '{"prompt": "new", "completion": "rows"}\n')
            return super().encode_all(texts)

    hub = writing.tokenizer.hub
    tokenizer = Meanwhile(hub, [hub.eos_token_id])
    template = ChatTemplate.of_model(HubTokenizer(hub, [hub.eos_token_id]))
    prepare(SPEC, TextWriting(tokenizer, template, "tiny", None), silent)
    assert entries() == []


# Several processes

PROGRAM = """
import json, os, sys, time
from pathlib import Path
from transformers import AutoTokenizer
from rankwise.rows.text.chat_template import ChatTemplate
from rankwise.rows.text.tokenizer import HubTokenizer
from rankwise.runs.records import silent
from rankwise.config.data import DataConfig
from rankwise.rows.preparing import prepare
from rankwise.rows.writing import TextWriting
hub = AutoTokenizer.from_pretrained(sys.argv[1])
tokenizer = HubTokenizer(hub, [hub.eos_token_id])
writing = TextWriting(tokenizer, ChatTemplate.of_model(tokenizer), "tiny", None)
spec = DataConfig(path="many.jsonl", held_out=2)
{before}
heard = []
found = prepare(spec, writing, heard.append)
parts = (found.sequences.ids, found.sequences.loss_mask, found.sequences.starts, found.trained, found.validation)
print(json.dumps([found.data_report.model_dump(mode="json"), [part.tolist() for part in parts], list(map(str, heard))]))
"""
WAIT = """
Path(f"ready-{os.getpid()}").touch()
while not Path("go").exists():
    time.sleep(0.001)
"""
KILL = """
import signal
def killed(event, arguments):
    if {when}:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(killed)
"""
OPENED = 'event == "open" and "w" in str(arguments[1]) and str(arguments[0]).endswith("{name}")'
MOMENTS = {
    "before anything": OPENED.replace("{name}", "ids.bin"),
    "between the arrays": OPENED.replace("{name}", "loss_mask.bin"),
    "before the facts": OPENED.replace("{name}", ".tmp"),
    "before the facts have their name": 'event == "os.rename"',
    "before the entry has its name": 'event == "os.rename" and "facts" not in str(arguments[1])',
}


def started(home, folder, before):
    """A fork of this process that runs the program, and writes what it prints into the file `printed-PID`."""

    def run():
        (home / f"printed-{os.getpid()}").write_text(json.dumps(printed_here(home, folder, before)))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def printed_here(home, folder, before=""):
    """What the program prints in this process, which has everything loaded already."""
    with contextlib.chdir(home), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["-c", str(folder)])
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(PROGRAM.replace("{before}", before), {})  # noqa: S102
    return json.loads(out.getvalue())


def many(home, count):
    rows = [{"prompt": f"{n} what {n * 7} is it?", "completion": f"the quick {n} fox " * 3} for n in range(count)]
    (home / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_two_processes_at_once_both_succeed_and_leave_one_whole_entry(home, tiny_folder):
    many(home, 400)
    processes = [started(home, tiny_folder, WAIT) for _ in range(2)]
    while len(list(home.glob("ready-*"))) < 2:
        assert all(process.is_alive() for process in processes)
    (home / "go").touch()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    first, second = (json.loads((home / f"printed-{process.pid}").read_text()) for process in processes)
    assert first == second and "cannot be cached" not in str(first[2])
    [name] = entries()
    assert sorted(path.name for path in (home / "cache" / "encoded" / name).iterdir()) == sorted(ENTRY)
    found = recall(name)
    assert found.data_report.model_dump(mode="json") == first[0]
    assert found.sequences.ids.tolist() == first[1][0]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny_folder):
    """What a process says that nobody kills."""
    folder = tmp_path_factory.mktemp("undisturbed")
    many(folder, 50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANKWISE_CACHE", str(folder / "cache"))
        return printed_here(folder, tiny_folder)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_process_killed_while_it_writes_leaves_nothing_that_is_taken_for_whole(
    home, tiny_folder, undisturbed, moment
):
    many(home, 50)
    killed = started(home, tiny_folder, KILL.replace("{when}", MOMENTS[moment]))
    killed.join()
    assert killed.exitcode == -signal.SIGKILL and not list(home.glob("printed-*"))
    assert len(entries()) == 1 and entries()[0].startswith("."), "begun, and not whole"
    assert printed_here(home, tiny_folder) == undisturbed
    [whole] = [one for one in entries() if not one.startswith(".")]
    assert recall(whole).data_report.model_dump(mode="json") == undisturbed[0]


# A cache that cannot be written


def instead_of_the_cache(home, writing):
    (home / "cache").write_text("a file")


def instead_of_its_folder(home, writing):
    (home / "cache").mkdir()
    (home / "cache" / "encoded").write_text("a file")


def instead_of_the_entry(home, writing):
    prepare(SPEC, writing, silent)
    there = entry()
    shutil.rmtree(there)
    there.write_text("a file")


def a_link_to_nowhere(home, writing):
    (home / "cache").symlink_to(home / "nowhere" / "at all")


def a_name_too_long(home, writing):
    os.environ["RANKWISE_CACHE"] = str(home / ("x" * 300))


def not_ours(home, writing):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (home / "cache").mkdir(mode=0o500)


@pytest.mark.parametrize(
    "prevent",
    [instead_of_the_cache, instead_of_its_folder, instead_of_the_entry, a_link_to_nowhere, a_name_too_long, not_ours],
)
def test_a_cache_that_cannot_be_written_is_told_and_costs_nothing_else(home, writing, monkeypatch, prevent):
    fresh = copy.deepcopy(made_anew(SPEC, writing, monkeypatch))
    prevent(home, writing)
    for _ in range(2):
        heard = []
        assert same(prepare(SPEC, writing, heard.append), fresh)
        [said] = heard
        assert isinstance(said, StatusMessage) and "cannot be cached" in said.text
    assert list(home.rglob("*.tmp")) == []


def test_an_entry_is_its_users_alone_and_goes_with_any_of_its_files(home, writing):
    """Its tokens can be read as the text of the rows."""
    prepare(DataConfig(path="rows.jsonl", validation="more.jsonl"), writing, silent)
    made = entry()
    assert [path.stat().st_mode & 0o777 for path in [made, *made.iterdir()]] == [0o700] + [0o600] * len(ENTRY)
    prepare(DataConfig(path="rows.jsonl"), writing, silent)
    forget("nothing.jsonl")
    assert len(entries()) == 2
    forget("more.jsonl")
    assert len(entries()) == 1 and made.name not in entries()
    forget("rows.jsonl")
    assert entries() == []


def test_the_oldest_entries_go_where_all_of_them_are_too_large(home, writing, monkeypatch):
    """The newest stays, however large it is, and so does what another process is writing."""
    names, unfinished = [], home / "cache" / "encoded" / f".{'ab' * 32}.1.tmp"
    for number in range(4):
        before = set(entries())
        prepare(DataConfig(path="rows.jsonl", seed=number), writing, silent)
        names += set(entries()) - before
        os.utime(home / "cache" / "encoded" / names[-1], (number + time.time() - 90,) * 2)
    size = sum(file.stat().st_size for file in (home / "cache" / "encoded" / names[0]).iterdir())
    unfinished.mkdir()
    (unfinished / "x.part").write_bytes(b"x" * 100_000)
    for room, kept in ((2.5, names[3:]), (0.5, [])):
        monkeypatch.setattr("rankwise.system.cache.MOST_BYTES", int(room * size))
        prepare(DataConfig(path="more.jsonl", seed=int(room)), writing, silent)
        newest = max(
            set(entries()) - {unfinished.name}, key=lambda name: (home / "cache/encoded" / name).stat().st_mtime
        )
        assert set(entries()) == {unfinished.name, newest, *kept}
