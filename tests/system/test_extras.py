"""A library that is not installed is named in one sentence, with the command that installs it."""

import pytest

from rankwise.errors import ConfigError, DataError, RankwiseError
from rankwise.system.extras import need_extra


@pytest.mark.parametrize("error", [ConfigError, DataError])
def test_a_missing_library_is_one_sentence_of_any_kind_of_error(error: type[RankwiseError]) -> None:
    with pytest.raises(error, match=r"^drawing needs nowhere, which is not installed: pip install .rankwise\[vision\]"):
        need_extra("nowhere", "drawing", "vision", error)
