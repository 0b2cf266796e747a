"""A compiled region computes what the same function does operation by operation."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rankwise.kernels import loss, norm, regions
from rankwise.kernels.quantized import gguf
from rankwise.kernels.regions import REGIONS, CompiledRegion, compiled_code_in, compiled_library, compiled_regions

pytestmark = pytest.mark.skipif(
    all(shutil.which(name) is None for name in ("g++", "clang++", "cl")), reason="no C++ compiler here"
)


@pytest.fixture(scope="module")
def compiled(rows_encoded_here):
    """The folder of the session, so that what a run compiles as well is made once."""
    folder = rows_encoded_here / "compiled"
    try:
        with compiled_regions(folder):
            torch.compile(lambda x: x.sin() + 1, dynamic=True)(torch.ones(40))
    except Exception as error:
        pytest.skip(f"torch's compiler does not work here: {error}")
    return folder


def given_to(region, dtype, tokens: int) -> tuple:
    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)

    x, weight, scale = drawn(tokens, 24), drawn(24), drawn(tokens, 1).abs() + 0.5
    return {
        norm._rms_forward: (x, weight, 1e-5),
        norm._rms_recompute: (x, weight, scale),
        norm._rms_backward: (x, weight, scale, drawn(tokens, 24) + 1),
        norm._gated: (x, drawn(tokens, 24) + 1, "silu"),
        norm._gated_back: (drawn(tokens, 24), x, drawn(tokens, 24) + 1, "gelu-tanh"),
        loss._loss_and_excess: (3 * drawn(tokens, 24), torch.arange(tokens)[:, None] % 24),
    }[region]


ELSEWHERE = {one for one in vars(gguf).values() if isinstance(one, CompiledRegion)}  # tested below
WITHIN = {norm._rms_recompute, norm._gated}
"""Of these, each operation is in another region too."""


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("dtype", "left_out"), [(torch.float32, set()), (torch.bfloat16, WITHIN)])
def test_a_compiled_region_is_the_plain_one(dtype, left_out, compiled):
    regions = [region for region in REGIONS if region not in ELSEWHERE | left_out]
    assert len(regions) == 6 - len(left_out)
    with compiled_regions(compiled):
        for region in regions:
            for tokens in (40, 7):
                found, wanted = (each(*given_to(region, dtype, tokens)) for each in (region, region.plain))
                tolerance = 4 * torch.finfo(dtype).eps
                torch.testing.assert_close(found, wanted, rtol=tolerance, atol=4 * tolerance)
            assert region.compiled is not None
    assert all(region.compiled is None for region in REGIONS)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [name for name, form in gguf.FORMATS.items() if isinstance(form, gguf.GgufBlocks)])
def test_compiled_numbers_of_gguf_are_the_plain_ones_to_the_bit(name, compiled):
    """Of random bytes, so scales may be infinite or no numbers."""
    form = gguf.FORMATS[name]
    shape = (24, 512)
    generator = torch.Generator().manual_seed(0)
    size = shape[1] // form.numbers * form.bytes
    part = torch.randint(0, 256, (shape[0], size), dtype=torch.uint8, generator=generator)
    wanted = form.unpack([part], shape, torch.bfloat16)[0]
    with compiled_regions(compiled):
        found = form.unpack([part], shape, torch.bfloat16)[0]
    same = (found.view(torch.int16) == wanted.view(torch.int16)) | (found.isnan() & wanted.isnan())
    assert same.all() and not wanted.isnan().all()


def test_setuptools_says_nothing_to_the_user(tmp_path):
    """It warns of a setting that we make, wherever it is imported first."""
    program = f"""
from pathlib import Path
from rankwise.kernels.regions import compiled_regions
with compiled_regions(Path({str(tmp_path)!r})):
    import setuptools
"""
    done = subprocess.run(
        [sys.executable, "-W", "always::UserWarning", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "distutils" not in done.stderr, done.stderr


def test_instructions_are_not_tested_before_something_is_compiled(tmp_path: Path) -> None:
    from torch._inductor.cpu_vec_isa import VecAVX2

    class Asked(VecAVX2):
        """torch keeps what it has found out of its own ones."""

        def __str__(self) -> str:
            return "asked"

        def check_build(self, code: str) -> bool:
            raise AssertionError("compiles a small library")

    with compiled_code_in(tmp_path):
        assert Asked()


def in_its_place(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "x").touch()


def cut(to: int):
    return lambda file: os.truncate(file, to)


def changed(at: int):
    return lambda file: file.write_bytes(file.read_bytes()[:at] + b"?" + file.read_bytes()[at + 1 :])


DAMAGE = {
    **{f"cut to {size}": cut(size) for size in (0, 1, 100, 999)}, **{f"byte {at}": changed(at) for at in (0, 500, 999)},
    "a folder": in_its_place, "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "a link to nothing": lambda file: (file.unlink(), file.symlink_to("nowhere")),
    "another's content": lambda file: file.write_bytes(bytes(1000)),
    "no hash": lambda file: file.rename(file.with_name(f"-{file.name.partition('-')[2]}")),
}  # fmt: skip


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pipes with names")
@pytest.mark.parametrize("damage", DAMAGE)
def test_compiled_code_that_is_not_as_it_was_stored_is_removed_with_a_line(damage, tmp_path, caplog):
    content = bytes(i % 251 for i in range(1000))
    file = tmp_path / f"{hashlib.sha256(content).hexdigest()}-name"
    file.write_bytes(content)
    other = shutil.copy(file, tmp_path / f"{file.name}s")
    assert regions._undamaged(tmp_path, "name") == file and not caplog.messages
    DAMAGE[damage](file)
    assert regions._undamaged(tmp_path, "name") is None
    assert list(tmp_path.iterdir()) == [other] and len(caplog.messages) == 1


def test_an_archive_that_another_process_replaces_meanwhile_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(regions, "_undamaged", lambda folder, name: folder / "replaced.zip")
    with compiled_regions(tmp_path):
        pass
    assert [one.suffix for one in tmp_path.iterdir()] == [".zip"]


def test_a_new_library_that_ends_its_process_is_not_loaded(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path))
    assert compiled_library('extern "C" double error() { __builtin_trap(); }', ()) is None
    assert len(caplog.messages) == 1 and "(-" in caplog.text
    assert not [*tmp_path.rglob("*")]


def test_another_machine_has_compiled_code_of_its_own(tmp_path, monkeypatch):
    def named() -> str | None:
        regions.machine.cache_clear()
        return regions.machine()

    monkeypatch.setattr(regions, "CPUINFO", tmp_path / "cpuinfo")
    names = [named()]
    for flags in ("sse4_2 avx2", "sse4_2 avx2 avx512f"):
        (tmp_path / "cpuinfo").write_text(f"processor : 0\ncpu MHz : {len(names)}\nflags : {flags}\n")
        names.append(named())
    assert len(set(names)) == 3 and named() == names[-1]
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert named() is None
    monkeypatch.undo()
    named()
