"""Whatever happens to files, names, locks and the process: a run goes on from what is whole, and ends as it would have.

Each cell of the tables (fault_cells.py) is looked at here without training, as far as that can be; a few go on to the
end. `python bench/reliability.py` goes on with all of them.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import zlib
from pathlib import Path

import pytest

import rankwise
from kit.fault_cells import LIES, LOCKS, NEWEST, OLDER, REFUSED, REMOVED, STARVING, Cells, torn_cells
from kit.file_faults import MODES
from kit.small_runs import DAMAGES, EVERY, NAME, OWN, PARTS, RUN, as_first_format, train_words
from rankwise import errors
from rankwise.errors import ConfigError, RunError
from rankwise.runs import resumable as resumable_file
from rankwise.runs.directory import ClaimedRun, RunDirectory
from rankwise.runs.resumable import Resumable

EACH = 20
"""Of the file operations, one in so many fails."""
pytestmark = pytest.mark.slow  # for its fixture


@pytest.fixture(scope="module")
def cells(tmp_path_factory, one_block_folder):
    return Cells(tmp_path_factory.mktemp("faults"), one_block_folder, without_page=True)


def drawn(count: int) -> int:
    """A number below `count` that another state of the source changes."""
    sources = sorted(Path(resumable_file.__file__).parent.glob("*.py"))
    return zlib.crc32(b"".join(path.read_bytes() for path in sources)) % count


def standing(cells):
    """What the run would go on from: the step, and the lines about what is passed over and what is damaged."""
    with contextlib.chdir(cells.shop.folder):
        resumable = Resumable(ClaimedRun.named(NAME))
        return resumable.checkpoint.step, [*resumable.lines, *resumable.restored()[1]]


@pytest.mark.parametrize(("part", "damage", "how"), torn_cells())
def test_whatever_file_is_damaged_the_newest_whole_checkpoint_is_taken_and_one_line_says_why(cells, part, damage, how):
    expected = cells.damage(part, damage, **how)
    step, lines = standing(cells)
    assert step == (NEWEST if how == {"live": True} else OLDER)
    assert len(lines) == len(expected) and all(text in line for text, line in zip(expected, lines, strict=True)), lines


TRAINED = [(PARTS[1], "one bit", {}), (PARTS[0], "half", {}), (OWN[3], "zeros", {"both": True})]


@pytest.mark.parametrize(("part", "damage", "how"), TRAINED, ids=str)
def test_a_run_that_fell_back_ends_with_the_same_bytes(cells, part, damage, how):
    assert cells.torn(part, damage, **how) == []


@pytest.mark.parametrize("name", LIES)
def test_names_and_clocks_may_lie(cells, name):
    run = cells._lay("begun")
    _, step, lines = LIES[name](run / "checkpoints")
    stands = standing(cells)
    assert stands[0] == step and len(stands[1]) == lines, stands


def test_what_has_the_name_of_a_step_and_is_not_ours_stays(cells):
    assert cells.lie("the newest a link") == []


def test_without_a_whole_checkpoint_every_reason_is_said_and_nothing_is_changed(cells):
    run = cells._lay("begun")
    for step, part in ((OLDER, "state.safetensors"), (NEWEST, "metrics.jsonl")):
        DAMAGES["half"](run / "checkpoints" / f"step-{step}" / part)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with contextlib.chdir(cells.shop.folder), pytest.raises(RunError) as caught:
        Resumable(ClaimedRun.named(NAME))
    message = str(caught.value)
    assert "no checkpoint that is whole. Use --restart" in message and message.count("was passed over") == 2
    assert {path: path.read_bytes() for path in before} == before


def test_a_checkpoint_of_another_run_is_passed_over(cells):
    run = cells._lay("begun")
    shutil.rmtree(run / "checkpoints" / f"step-{NEWEST}")
    shutil.copytree(cells.stored / "other" / "checkpoints" / f"step-{NEWEST}", run / "checkpoints" / f"step-{NEWEST}")
    step, lines = standing(cells)
    assert step == OLDER and len(lines) == 1 and "of another run" in lines[0]


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from_with_the_files_of_the_run(cells):
    run = cells._lay("begun")
    as_first_format(run / "checkpoints" / f"step-{NEWEST}")
    assert standing(cells) == (NEWEST, [])
    outcome = cells.shop.command(*train_words("--resume"))
    assert outcome.code == 0 and cells._same() == []


FAULTS = [*(("train", number) for number in (0, 3, 6, 8)), ("resume", 2), ("evaluate", 0)]
"""A stage, and which EACH of its operations."""


@pytest.mark.parametrize(("stage", "number"), FAULTS)
def test_wherever_a_file_operation_fails_the_run_is_never_stuck(cells, stage, number):
    """One in EACH operations fails, in one of three ways that take turns."""
    modes = MODES if hasattr(errors, "typed") else MODES[1:]  # without it, EIO is a traceback
    at = number * EACH + drawn(min(EACH, 16))
    assert cells.fault(stage, at, modes[(number + drawn(3)) % len(modes)]) == []


def test_after_a_power_failure_a_checkpoint_that_was_saved_is_there(cells):
    operations = cells.operations("train")
    for number in range(2):
        assert cells.power_failure(operations, (drawn(len(operations)) + number * 67) % len(operations), number) == []


def test_two_trainings_of_one_run_and_a_lock_that_is_removed(cells):
    assert cells.two_at_once() == []
    assert cells.lock("removed in training, and another begins") == []


@pytest.mark.parametrize("name", [name for name in LOCKS if not name.startswith("removed")])
def test_what_lies_where_the_lock_should_be(tmp_path, name):
    victim, run = tmp_path / "victim", RunDirectory(tmp_path / "r")
    victim.write_text("precious")
    run.folder.mkdir()
    if LOCKS[name](run.folder / ".lock", victim):
        with run.claimed(restart=False):
            pass
    else:
        with pytest.raises(RunError, match=r"\.lock .*Remove it"), run.claimed(restart=False):
            pytest.fail("it was granted")
    assert victim.read_text() == "precious" and not (run.folder / "nowhere").exists()


# How many


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_fewer_than_one_checkpoint_is_refused(count):
    with pytest.raises(ConfigError, match="keep_checkpoints"):
        rankwise.TrainingConfig(keep_checkpoints=count)


def test_as_many_checkpoints_are_stored_as_were_asked_for(cells):
    cells.shop.clear()
    cells.shop.train_until(NEWEST + 1, "--keep-checkpoints", "3")
    assert RunDirectory(cells.shop.run).steps_saved == [OLDER - EVERY, OLDER, NEWEST]
    outcome = cells.shop.command(*train_words("--resume"))  # with another number of them
    assert outcome.code == 0 and cells._same() == []
    config = json.loads((cells.shop.run / "config.json").read_text())
    assert config["training"]["keep_checkpoints"] == 3
    assert not (cells.shop.folder / RUN / "checkpoints").exists()


def test_what_the_system_refuses_is_one_message_and_nothing_is_lost(cells):
    """One of the 12 cells by commit, and one of the 9 in which memory runs out; `bench/reliability.py` has all."""
    refusing = [
        *(lambda one=one: cells.refused(*one) for one in REFUSED),
        *(lambda n=n: cells.removed(n) for n in REMOVED),
    ]
    assert refusing[drawn(len(refusing))]() == []
    assert cells.starved(*STARVING[drawn(len(STARVING))]) == []


def test_a_run_whose_manifest_says_finished_still_has_its_result(cells):
    """The manifest has its name, and then the folder cannot be flushed, since the disk is full: the run is reported as
    failed, but it cannot write so, and must not take away what the manifest names."""
    operations = cells.operations("resume")
    renamed = [at for at, one in enumerate(operations) if one.kind == "rename" and one.other.endswith("/manifest.json")]
    after = renamed[-1] + 1
    assert operations[after].kind == "flush"
    for mode in ("ENOSPC", "EIO"):
        assert cells.fault("resume", operations[after].number, mode) == []
