"""Licences: what is named is known by one name, the strictest wins in any order, and nothing is assumed."""

from __future__ import annotations

import os
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankwise.data.licences import LARGEST_FILE, Terms, find_licence, normalised, strictest, terms_of

NAMES = {
    "CC BY-SA 3.0 (databricks-dolly-15k, (c) 2023 Databricks, Inc.)": "CC-BY-SA-3.0",
    "cc-by-sa-3.0": "CC-BY-SA-3.0",
    "CC BY\u2013NC\u2013SA\u00a04.0": "CC-BY-NC-SA-4.0",
    "CC-BY": "CC-BY",
    "CC BY-ND 4.0": "CC-BY-ND-4.0",
    "cc-by-nc-nd-4.0": "CC-BY-NC-ND-4.0",
    "CC BY-NC 4.0 (non-commercial)": "CC-BY-NC-4.0",
    "[a licence](https://creativecommons.org/licenses/by-nc-sa/4.0/)": "CC-BY-NC-SA-4.0",
    "Creative Commons Attribution-NonCommercial 4.0 International": "CC-BY-NC-4.0",
    "Creative Commons Attribution - Share Alike 4.0 International License": "CC-BY-SA-4.0",
    "Attribution-NonCommercial-NoDerivatives 4.0 International": "CC-BY-NC-ND-4.0",
    "CC0 1.0 Universal": "CC0-1.0",
    "cc0-1.0": "CC0-1.0",
    "pddl": "PDDL-1.0",
    "The Unlicense": "Unlicense",
    "apache-2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache 2": "Apache-2.0",
    "mit": "MIT",
    "MIT License": "MIT",
    "BSD 3-Clause License": "BSD-3-Clause",
    "2-clause BSD": "BSD-2-Clause",
    "odc-by": "ODC-By-1.0",
    "odbl": "ODbL-1.0",
    "GPLv3": "GPL-3.0",
    "GNU General Public License v2.0": "GPL-2.0",
    "GNU Affero General Public License v3.0": "AGPL-3.0",
    "GNU Lesser General Public License version 2.1": "LGPL-2.1",
    "mpl-2.0": "MPL-2.0",
    "bigscience-openrail-m": "OpenRAIL",
    "llama3.1": "Llama-3.1",
    "Llama 2 Community License": "Llama-2",
    "gemma": "Gemma",
    "made with LLaMA-Factory, Apache-2.0": "Apache-2.0",
    "MIT, for non-commercial use only": "non-commercial",
    "MIT; for research purposes only": "research only",
    "MIT (code); no licence is stated for the data": "unknown",
    "other": "unknown",
    "": "unknown",
    " \n": "unknown",
}
LOOK_ALIKE = ["aflame", "mit Namensnennung", "Attribution required since 2.0", "permit", "gplayer", "per file", "cc"]
FROM_LAX_TO_STRICT = [
    "CC0-1.0", "MIT", "CC-BY-4.0", "CC-BY-SA-3.0", "Llama-3", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0",
    "CC-BY-NC-ND-4.0", "see the paper",
]  # fmt: skip
SHARED = {
    "alpaca": ("CC-BY-NC-4.0", Terms.NON_COMMERCIAL),
    "cifar10": ("unknown", Terms.UNKNOWN),
    "dart": ("CC-BY-NC-SA-4.0", Terms.NON_COMMERCIAL_SHARE_ALIKE),
    "digits": ("CC-BY-4.0", Terms.ATTRIBUTION),
    "dolly": ("CC-BY-SA-3.0", Terms.SHARE_ALIKE),
    "e2e": ("CC-BY-SA-4.0", Terms.SHARE_ALIKE),
    "glue": ("unknown", Terms.UNKNOWN),
    "gsm8k": ("MIT", Terms.PERMISSIVE),
    "lima": ("CC-BY-NC-SA", Terms.NON_COMMERCIAL_SHARE_ALIKE),
    "oasst": ("Apache-2.0", Terms.PERMISSIVE),
    "retention": ("per file, in the table", Terms.UNKNOWN),
    "self_instruct": ("Apache-2.0", Terms.PERMISSIVE),
    "sharegpt": ("Apache-2.0", Terms.PERMISSIVE),
    "superbowl_facts": ("MIT", Terms.PERMISSIVE),
    "webnlg": ("CC-BY-NC-SA-4.0", Terms.NON_COMMERCIAL_SHARE_ALIKE),
}
ANY_NAME = st.sampled_from([*NAMES, *LOOK_ALIKE, *FROM_LAX_TO_STRICT]) | st.text(max_size=30)


@pytest.mark.parametrize(("text", "name"), NAMES.items())
def test_a_licence_has_one_name(text, name):
    assert normalised(text) == name


@pytest.mark.parametrize("text", LOOK_ALIKE)
def test_words_that_name_no_licence_are_kept_and_are_unknown(text):
    assert normalised(text) == text
    assert terms_of(text) == Terms.UNKNOWN


def test_long_words_are_cut():
    assert normalised(" wordy " * 100) == ("wordy " * 100)[:80].rstrip()


@given(ANY_NAME)
def test_a_name_is_its_own_name_and_keeps_its_terms(text):
    assert normalised(normalised(text)) == normalised(text)
    assert terms_of(normalised(text)) == terms_of(text)


@pytest.mark.parametrize(("lax", "strict"), pairwise(FROM_LAX_TO_STRICT))
def test_terms_have_an_order(lax, strict):
    assert terms_of(lax) < terms_of(strict)
    assert strictest([lax, strict]) == strictest([strict, lax]) == strict
    assert normalised(f"{lax} and {strict}") == normalised(f"{strict} and {lax}") == strict or strict == "see the paper"


@given(st.lists(ANY_NAME, min_size=1, max_size=5), st.randoms())
def test_the_strictest_is_one_of_them_whatever_their_order(names, random):
    shuffled = random.sample(names, len(names))
    found = strictest(names)
    assert found == strictest(iter(shuffled)) == strictest([strictest(names[:2]), *names[2:]])
    assert found in [normalised(name) for name in names]
    assert all(terms_of(name) <= terms_of(found) for name in names)


def test_what_is_unknown_is_stricter_than_all_that_is_known():
    assert strictest(["CC-BY-NC-ND-4.0", "unknown", "MIT"]) == "unknown"
    assert strictest(["our own terms", "unknown"]) == "unknown"
    assert strictest([]) == "unknown"


@pytest.mark.parametrize("folder", SHARED)
def test_the_readmes_of_real_data_sets(shared_data, folder):
    name, terms = SHARED[folder]
    licence = find_licence(shared_data / folder)
    assert licence is not None
    assert (licence.name, terms_of(licence.name)) == (name, terms)
    assert licence.where == "README.md beside the file"


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
        ("Licenses: MIT (code), CC BY 4.0 (texts)\n", "CC-BY-4.0"),
        ("Licence: MIT\n\nLicence: as the authors say\n", "as the authors say"),
        ("The licence: MIT\nMIT is a university.\n", None),
        ("---\nlicense:\n---\n# Data\n", None),
        ("---\nlicense: mit\nwith no end", "MIT"),
        ("", None),
    ],
)
def test_front_matter_and_lines_of_a_readme(tmp_path, readme, name):
    (tmp_path / "README.md").write_bytes(readme.encode())
    licence = find_licence(tmp_path)
    assert (licence and licence.name) == name


@pytest.mark.parametrize(
    ("file", "text", "name"),
    [
        ("LICENSE", "MIT License\n\nCopyright (c) 2024\n\nPermission is hereby granted, free of charge", "MIT"),
        ("LICENSE", "\n    Apache License\n    Version 2.0, January 2004\n" + "words " * 50 + "GPL", "Apache-2.0"),
        ("LICENSE.txt", "GNU GENERAL PUBLIC LICENSE\n Version 3, 29 June 2007\n", "GPL-3.0"),
        ("LICENCE", "Copyright (c) 2020\n\nRedistribution and use in source and binary forms", "BSD"),
        (
            "DATA_LICENSE",
            "Attribution-NonCommercial 4.0 International\n\n====\n\nCreative Commons Corp",
            "CC-BY-NC-4.0",
        ),
        ("LICENSE.md", "Our own terms", "Our own terms"),
        ("LICENSE", "(c) X\n\nPermission is hereby granted, free of charge, to any person obtaining a copy", "MIT"),
        ("README", "Licence: MIT", "MIT"),
        ("README.txt", "License: MIT", "MIT"),
    ],
)
def test_the_first_file_that_says_anything_counts(tmp_path, file, text, name):
    (tmp_path / "README.md").write_text("# Data\n\nNothing about its terms.\n")
    (tmp_path / file).write_text(text)
    licence = find_licence(tmp_path)
    assert licence is not None
    assert (licence.name, licence.where) == (name, f"{file} beside the file")
    (tmp_path / "README.md").write_text("Licence: CC BY 4.0\n")
    again = find_licence(tmp_path)
    assert again is not None
    assert (again.name, again.where) == ("CC-BY-4.0", "README.md beside the file")


def test_strange_files_say_nothing(tmp_path):
    assert find_licence(tmp_path / "nowhere") is None
    assert find_licence(tmp_path / ("long" * 100)) is None
    (tmp_path / "README.md").mkdir()
    os.mkfifo(tmp_path / "README")
    (tmp_path / "LICENSE").write_bytes(b" \n")
    assert find_licence(tmp_path) is None
    (tmp_path / "README.txt").write_bytes(b"\xff\xfe\x00\n" * 9 + b"Licence: MIT \xff\n")
    licence = find_licence(tmp_path)
    assert licence is not None and licence.name == "MIT"


def test_only_the_beginning_of_a_long_readme_is_read(tmp_path):
    (tmp_path / "README.md").write_text("x\n" * (LARGEST_FILE // 2) + "Licence: MIT\n")
    assert find_licence(tmp_path) is None
    (tmp_path / "README.md").write_text("x\n" * (LARGEST_FILE // 2 - 20) + "Licence: MIT\n")
    assert find_licence(tmp_path) is not None


@given(st.text(st.sampled_from("license:LICENCE-\n\r# []'\"by0123456789 ccncsa") | st.characters(), max_size=200))
def test_no_readme_is_too_strange(tmp_path_factory, text):
    folder = tmp_path_factory.getbasetemp() / "strange"
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_bytes(("---\nlicense:" + text).encode("utf-8", "surrogatepass"))
    licence = find_licence(folder)
    assert licence is None or 0 < len(licence.name) <= 80
