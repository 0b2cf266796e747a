"""Licences: what is named is known by one name, the strictest wins in any order, and nothing is assumed."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.rows.files.licences import FROM_LAX_TO_STRICT as TABLE
from rankwise.rows.files.licences import LARGEST_FILE, find_licence, named_in, normalised, recognised, strictest

NAMES = {
    "cc-by-sa-3.0": "CC-BY-SA-3.0",
    "CC BY\u2013NC\u2013SA\u00a04.0": "CC-BY-NC-SA-4.0",
    "CC BY-ND 4.0": "CC-BY-ND-4.0",
    "[CC BY-NC-SA 4.0](https://creativecommons.org/licenses/by-nc-sa/4.0/)": "CC-BY-NC-SA-4.0",
    "Creative Commons Attribution-NonCommercial 4.0 International": "CC-BY-NC-4.0",
    "Creative Commons Attribution - Share Alike 4.0 International License": "CC-BY-SA-4.0",
    "Attribution-NonCommercial-NoDerivatives 4.0 International": "CC-BY-NC-ND-4.0",
    "CC0 1.0 Universal": "CC0-1.0",
    "pddl": "PDDL-1.0",
    "The Unlicense": "Unlicense",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache 2": "Apache-2.0",
    "mit": "MIT",
    "MIT License": "MIT",
    "BSD 3-Clause License": "BSD-3-Clause",
    "2-clause BSD": "BSD-2-Clause",
    "odc-by": "ODC-By-1.0",
    "odbl": "ODbL-1.0",
    "GPLv3": "GPL-3.0",
    "GPL-2.0-or-later": "GPL-2.0",
    "GNU Affero General Public License v3.0": "AGPL-3.0",
    "GNU Lesser General Public License version 2.1": "LGPL-2.1",
    "mpl-2.0": "MPL-2.0",
    "bigscience-openrail-m": "bigscience-openrail-m",
    "llama3.1": "llama3.1",
}
NAME_NONE = [
    "", " \n", "other", "cc", "CC BY-SA", "aflame", "permit", "per file, in the table", "MIT (code)",
    "MIT, for non-commercial use only", "MIT (DART; built in part on WebNLG, CC BY-NC-SA 4.0)", "MIT or CC-BY-4.0",
    "BSD-3-Clause (package); UCI data CC BY 4.0", "no licence is stated", "made with LLaMA-Factory, Apache-2.0",
    "CC BY-NC-SA, or the stricter licence of the source text where there is one (Stack Exchange CC BY-SA, wikiHow CC",
    "| MIT | train.jsonl |", "0 1.0", "MIT 2.0", "MIT\uff08\u4ec5\u4f9b\u7814\u7a76\uff09",
]  # fmt: skip
FROM_LAX_TO_STRICT = [
    "CC0-1.0", "MIT", "CC-BY-4.0", "CC-BY-SA-3.0", "llama3", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0",
    "CC-BY-NC-ND-4.0", "see the paper", "unknown",
]  # fmt: skip
SHARED = {
    "gsm8k": "MIT", "oasst": "Apache-2.0", "self_instruct": "Apache-2.0", "webnlg": "CC-BY-NC-SA-4.0",
    "dolly": "CC-BY-SA-3.0", "alpaca": "CC-BY-NC-4.0", "sharegpt": "Apache-2.0", "superbowl_facts": "MIT",
    "e2e": "CC-BY-SA-4.0", "dart": "CC-BY-NC-SA-4.0", "digits": "CC-BY-4.0",
    **dict.fromkeys(("cifar10", "glue", "glue/STS-B", "lima", "retention"), "unknown"),
}  # fmt: skip
"""The unknown ones name no version, no licence, or one for each file."""
REMARKS = {
    "MIT (code)": None, "MIT, for non-commercial use only": None, "MIT 2.0": None,
    "MIT\uff08\u4ec5\u4f9b\u7814\u7a76\uff09": None,
    "made with LLaMA-Factory, Apache-2.0": None, "MIT, see LICENSE": None, "CC BY 4.0 but not for sale": None,
    "permit Apache": None, "MIT for the texts": None, "no licence is stated; MIT?": None, "MIT | data": None,
    "MIT (all three sets)": "MIT", "MIT or CC-BY-4.0": "CC-BY-4.0", "CC BY-NC 4.0 (non-commercial)": "CC-BY-NC-4.0",
    "Apache-2.0, commercial use": None, "rows MIT; texts CC BY-SA 3.0": "CC-BY-SA-3.0",
}  # fmt: skip
ANY_NAME = st.sampled_from([*NAMES, *NAME_NONE, *FROM_LAX_TO_STRICT]) | st.text(max_size=30)


@pytest.mark.parametrize(("text", "name"), NAMES.items())
def test_a_licence_has_one_name(text, name):
    assert recognised(text) == name


@pytest.mark.parametrize("text", NAME_NONE)
def test_words_that_do_more_than_name_a_licence_are_none(text):
    """A licence was read from the cut cell of a table, and another from words that said what it is not for."""
    assert recognised(text) is None


@pytest.mark.parametrize(("text", "name"), REMARKS.items())
def test_a_remark_may_stand_beside_a_name_unless_it_may_restrict_it(text, name):
    assert named_in(text) == name


def test_every_known_name_is_its_own_and_no_two_are_one():
    names = [name for line in TABLE for name in line.split()]
    assert [recognised(name) for name in names] == names
    assert [recognised(name.lower().replace("-", " ")) for name in names] == names


def test_what_the_user_says_is_kept_in_the_users_words():
    assert normalised("cc by 4.0") == "CC-BY-4.0"
    assert normalised("  our own\nterms ") == "our own terms"
    assert normalised(" wordy " * 100) == ("wordy " * 100)[:80].rstrip()
    assert normalised(" ") == "unknown"


@given(ANY_NAME)
def test_a_name_is_its_own_name(text):
    assert normalised(normalised(text)) == normalised(text)


@pytest.mark.parametrize(("lax", "strict"), pairwise(FROM_LAX_TO_STRICT))
def test_terms_have_an_order(lax, strict):
    assert strictest([lax, strict]) == strictest([strict, lax]) == strict


@given(st.lists(ANY_NAME.map(normalised), min_size=1, max_size=5), st.randoms())
def test_the_strictest_is_one_of_them_whatever_their_order(names, random):
    found = strictest(names)
    assert found == strictest(random.sample(names, len(names))) == strictest([strictest(names[:2]), *names[2:]])
    assert found in names
    assert strictest([]) == "unknown"


@pytest.mark.parametrize("folder", SHARED)
def test_the_readmes_of_real_data_sets(shared_data, folder):
    assert find_licence(shared_data / folder) == SHARED[folder]


@pytest.mark.parametrize(
    ("readme", "name"),
    [
        ("---\nlicense: cc-by-4.0\n---\n# Data\n", "CC-BY-4.0"),
        ("\ufeff---\r\nlanguage: en\r\nlicense: 'mit'  # as on the hub\r\n---\r\n", "MIT"),
        ("---\nlicense: [mit, cc-by-nc-4.0]\n---\n", "CC-BY-NC-4.0"),
        ("---\nlicense:\n- cc-by-sa-4.0\n- mit\ntags:\n- cc-by-nc-4.0\n---\n", "CC-BY-SA-4.0"),
        ("---\nlicence:\n  - mit\n  - odbl\n---\n", "ODbL-1.0"),
        ("---\nlicense: mit\n---\nLicense: CC BY-NC 4.0\n", "CC-BY-NC-4.0"),
        ("---\ntags: [a]\n---\nlicense: gpl-3.0\n", "GPL-3.0"),
        ("---\nlicense: other\n---\n", "unknown"),
        ("# Data\n\n- **License:** MIT\n", "MIT"),
        ("# Data\n\n**Licence**: MIT\n", "MIT"),
        ("Licenses: MIT (code), CC BY 4.0 (texts)\n", "unknown"),
        ("---\nlicense: mit\n---\nLicence: see the paper\n", "MIT"),
        ("---\nlicense: [mit, other]\n---\nLicence: MIT\n", "unknown"),
        ("| data | licence |\n|---|---|\n| a | MIT |\n", "unknown"),
        ("| Licence: CC BY 4.0 | where | the data say CC BY-NC |\n", "unknown"),
        ("Licence: CC BY-SA 3.0 (parts from Wikipedia)\n", "CC-BY-SA-3.0"),
        ("Licence: MIT\n\nLicence: as the authors say\n", "unknown"),
        ("The licence: MIT\nMIT is a university.\n", "unknown"),
        ("---\nlicense:\n---\n# Data\n", "unknown"),
        ("---\nlicense: mit\nwith no end", "MIT"),
        ("", "unknown"),
    ],
)
def test_front_matter_and_lines_of_a_readme(tmp_path, readme, name):
    (tmp_path / "README.md").write_bytes(readme.encode())
    assert find_licence(tmp_path) == name


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("LICENSE", "MIT License\n\nCopyright (c) 2024\n\nPermission is hereby granted, free of charge", "MIT"),
        ("LICENSE", "\n    Apache License\n    Version 2.0, January 2004\n" + "words " * 50 + "GPL", "Apache-2.0"),
        ("LICENSE.txt", "GNU GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007\n", "GPL-3.0"),
        ("LICENCE", "Copyright (c) 2020\n\nRedistribution and use in source and binary forms", "unknown"),
        (
            "DATA_LICENSE",
            "Attribution-NonCommercial 4.0 International\n\n====\n\nCreative Commons Corp",
            "CC-BY-NC-4.0",
        ),
        ("LICENSE.md", "Our own terms", "unknown"),
        ("LICENSE", "Creative Commons Legal Code\n\nCC0 1.0 Universal\n\n  CREATIVE COMMONS", "CC0-1.0"),
        ("README", "Licence: MIT", "MIT"),
        ("README.txt", "License: MIT", "MIT"),
    ],
)
def test_the_first_file_that_says_anything_counts(tmp_path, file, text, name):
    (tmp_path / "README.md").write_text("# Data\n\nNothing about its terms.\n")
    (tmp_path / file).write_text(text)
    assert find_licence(tmp_path) == name
    (tmp_path / "README.md").write_text("Licence: CC BY 4.0\n")
    assert find_licence(tmp_path) == "CC-BY-4.0"


def test_strange_files_say_nothing(tmp_path):
    assert find_licence(tmp_path / "nowhere") == "unknown"
    assert find_licence(tmp_path / ("long" * 100)) == "unknown"
    (tmp_path / "README.md").mkdir()
    os.mkfifo(tmp_path / "README")
    (tmp_path / "LICENSE").write_bytes(b" \n")
    assert find_licence(tmp_path) == "unknown"
    (tmp_path / "README.txt").write_bytes(b"\xff\xfe\x00\n" * 9 + b"Licence: MIT \xff\n")
    assert find_licence(tmp_path) == "MIT"


def test_only_the_beginning_of_a_long_readme_is_read(tmp_path):
    (tmp_path / "README.md").write_text("x\n" * (LARGEST_FILE // 2) + "Licence: MIT\n")
    assert find_licence(tmp_path) == "unknown"
    (tmp_path / "README.md").write_text("x\n" * (LARGEST_FILE // 2 - 20) + "Licence: MIT\n")
    assert find_licence(tmp_path) == "MIT"
    (tmp_path / "README.md").write_text("x\n" * (LARGEST_FILE // 2 - 9) + "Licence: CC BY 4.0 but not for sale\n")
    assert find_licence(tmp_path) == "unknown", "a line that is cut is no line"


@given(st.text(st.sampled_from("license:LICENCE-\n\r# []'\"by0123456789 ccncsa") | st.characters(), max_size=200))
def test_no_readme_is_too_strange(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp() / "strange"
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_bytes(("---\nlicense:" + text).encode("utf-8", "surrogatepass"))
    known = [name for line in TABLE for name in line.split()]
    assert find_licence(folder) in [*known, "unknown"]
