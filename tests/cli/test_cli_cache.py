"""`rankwise cache`: all that lies in the folder is told with its size, and cleaning removes what is ours, unused and
inside the folder, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kit.command import printed, rankwise
from rankwise.base.starters import STARTERS, _folder
from rankwise.commands.cache import seconds_of
from rankwise.errors import ConfigError
from rankwise.system.cache import SOURCE, source_of

MODEL, OTHER_MODEL = "gguf-0123456789abcdef", "gguf-fedcba9876543210"
MODELS = [*(_folder(one).name for one in STARTERS.values()), f"quantized-nf4-{'ab' * 8}-{'cd' * 4}"]
ROWS, SCORES = "ab" * 32, f"{'cd' * 32}.json"
OURS = {
    "models": [f"models/{MODEL}/m.safetensors", f"models/{MODEL}/{SOURCE}", f"models/{OTHER_MODEL}/m.safetensors",
               *(f"models/{name}/m.safetensors" for name in MODELS)],
    "rows": [f"encoded/{ROWS}/ids.bin", f"encoded/.{'ef' * 32}.999999999.tmp/ids.bin"],
    "scores": [f"scores/{SCORES}"],
    "compiled": ["compiled/ab/cd.so", "compiled/locks/x.lock"],
    "downloads": ["downloads/tmpab12cd/wheel/x.whl"],
}  # fmt: skip
NOT_OURS = ["models/my-own/model.safetensors", "models/notes.txt", "encoded/thesis/a.txt", "letters/a.txt", "photo.png"]
LONG_AGO = time.time() - 40 * 86_400


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """One that has each kind of thing, and other things beside; last used forty days ago."""
    root = tmp_path / "cache"
    monkeypatch.setenv("RANKWISE_CACHE", str(root))
    for number, name in enumerate([*(name for names in OURS.values() for name in names), *NOT_OURS]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * (1000 + number))
    (root / "models" / MODEL / SOURCE).write_text(json.dumps({"file": "my.Q4_K_M.gguf"}))
    (root / "models" / "starter-0123456789abcdef.folder").write_text(OTHER_MODEL)
    grown_old(root)
    return root


def grown_old(root):
    for path in [*root.rglob("*"), root]:
        os.utime(path, (LONG_AGO, LONG_AGO))


def files(root):
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.suffix != ".folder"}


def kept(root):
    return sorted(files(root) - {name for names in OURS.values() for name in names})


def test_an_empty_cache_is_nothing_and_is_not_made(tmp_path, monkeypatch):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "none"))
    assert printed("cache") == {"folder": str(tmp_path / "none"), "bytes": 0, "entries": []}
    assert printed("cache", "clean") == {"bytes": 0, "removed": [], "in_use": []}
    assert not (tmp_path / "none").exists()


def test_every_byte_is_told_by_kind_and_models_by_the_file_they_came_from(cache):
    found = printed("cache")
    assert found["bytes"] == sum((cache / name).stat().st_size for name in files(cache))
    entries = {kind: [one for one in found["entries"] if one["kind"] == kind] for kind in [*OURS, "other"]}
    assert {kind: len(each) for kind, each in entries.items()} == {
        "models": 2 + len(MODELS), "rows": 2, "scores": 1, "compiled": 1, "downloads": 1, "other": 5,
    }  # fmt: skip
    assert {Path(one["path"]).name: one["source"] for one in entries["models"]} == {
        MODEL: "my.Q4_K_M.gguf", OTHER_MODEL: "starter", **dict.fromkeys(MODELS),
    }  # fmt: skip
    assert all(
        one["last_used"].startswith(time.strftime("%Y-%m-%d", time.gmtime(LONG_AGO))) for one in found["entries"]
    )
    table = rankwise("cache").stdout
    assert "my.Q4_K_M.gguf" in table and str(cache) in table and "encoded rows" in table


def test_cleaning_frees_what_it_says_and_leaves_what_is_not_ours(cache):
    size = sum(one["bytes"] for one in printed("cache")["entries"] if one["kind"] != "other")
    cleaned = printed("cache", "clean", "--yes")
    assert cleaned["bytes"] == size and len(cleaned["removed"]) == 7 + len(MODELS) and cleaned["in_use"] == []
    assert kept(cache) == sorted(files(cache)) == sorted(NOT_OURS)
    assert not list(cache.rglob("*.folder")), "the name of a model that is gone"


@pytest.mark.parametrize("kind", OURS)
def test_one_kind_alone_can_be_cleaned(cache, kind):
    before = files(cache)
    printed("cache", "clean", "--kind", kind, "--yes")
    assert before - files(cache) == set(OURS[kind])


def test_only_what_is_older_than_asked_goes(cache):
    os.utime(cache / "encoded" / ROWS)
    assert printed("cache", "clean", "--older-than", "41d", "--yes")["removed"] == []
    printed("cache", "clean", "--kind", "rows", "--kind", "scores", "--older-than", "30d", "--yes")
    assert (cache / "encoded" / ROWS).is_dir() and not (cache / "scores" / SCORES).exists()
    assert (cache / "models" / MODEL).is_dir()


@pytest.mark.parametrize(("age", "seconds"), [("36h", 129_600), ("30d", 2_592_000), ("2w", 1_209_600), ("0d", 0)])
def test_ages_are_read(age, seconds):
    assert seconds_of(age) == seconds


@pytest.mark.parametrize("age", ["30", "d", "-1d", "1.5d", "a month", "", "9999999d"])
def test_other_ages_are_refused(age):
    with pytest.raises(ConfigError, match="30d"):
        seconds_of(age)


def test_mistakes_remove_nothing(cache):
    before = files(cache)
    unknown = rankwise("cache", "clean", "--kind", "model", "--yes")
    assert unknown.exit_code == 2 and 'Did you mean "models"?' in unknown.stderr
    assert rankwise("cache", "clean", "--older-than", "soon", "--yes").exit_code == 2
    unasked = rankwise("cache", "clean")
    assert unasked.exit_code == 2 and "--yes" in unasked.stderr and "kB" in unasked.stderr
    assert files(cache) == before


HOLD = "import mmap, sys\nf = open(sys.argv[1], 'rb')\nm = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)\n"


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_what_a_living_process_has_open_or_mapped_stays(cache, how):
    file = cache / "models" / MODEL / "m.safetensors"
    program = HOLD + ("f.close()\n" if how == "mapped" else "m.close()\n") + "print('ready', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as it:
        assert it.stdout is not None and it.stdout.readline() == b"ready\n"
        cleaned = printed("cache", "clean", "--yes")
        [stays] = cleaned["in_use"]
        assert stays["path"] == str(cache / "models" / MODEL) and str(it.pid) in stays["why"]
        assert file.is_file() and not (cache / "models" / OTHER_MODEL).exists()
        it.communicate(b"\n")
    assert printed("cache", "clean", "--yes")["removed"] == [str(cache / "models" / MODEL)]


def test_what_a_living_process_is_writing_stays(cache):
    unfinished = cache / "encoded" / f".{ROWS}.{os.getppid()}.tmp"
    unfinished.mkdir()
    fresh = cache / "compiled" / "ab" / "new.so"
    fresh.write_bytes(b"x")
    stays = {one["path"]: one["why"] for one in printed("cache", "clean", "--yes")["in_use"]}
    assert set(stays) == {str(unfinished), str(cache / "compiled")}
    assert unfinished.is_dir() and fresh.is_file()


def test_nothing_outside_the_folder_is_touched(cache, tmp_path):
    outside = tmp_path / "outside"
    (cache / "models").rename(outside)
    (cache / "models").symlink_to(outside)
    (cache / "encoded" / ("12" * 32)).symlink_to(outside / MODEL)
    (cache / "scores" / f"{'34' * 32}.json").symlink_to(outside / MODEL / SOURCE)
    before = files(outside)
    assert not any(one["path"].startswith(str(outside)) for one in printed("cache")["entries"])
    cleaned = printed("cache", "clean", "--yes")
    assert files(outside) == before and (cache / "models").is_symlink()
    assert not any("models" in path for path in cleaned["removed"])


def test_the_folder_itself_may_be_a_link(cache, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(cache)
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / "link"))
    assert len(printed("cache", "clean", "--yes")["removed"]) == 7 + len(MODELS)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"file": 3}', "\\xff"])
def test_a_source_that_cannot_be_read_is_unknown(cache, content):
    (cache / "models" / MODEL / SOURCE).write_text(content)
    assert source_of(cache / "models" / MODEL) is None


def test_a_converted_model_says_what_it_was_made_of_in_the_list_of_models_too(cache):
    listed = printed("models")["models"]
    [model] = [one for one in listed if one["name"].endswith(MODEL)]
    assert model["about"] == "my.Q4_K_M.gguf"
