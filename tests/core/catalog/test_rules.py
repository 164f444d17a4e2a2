"""Rules beyond the schema: licences, schedules, reserved names, installed plug-ins."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.catalog import cron, rules, spdx
from flexinfer.resources.document import Document, parse_located
from flexinfer.resources.entry import CatalogEntry

TEXT = """\
apiVersion: ai.flexinfer/v1alpha2
kind: CatalogEntry
metadata: {name: m}
spec:
  source: {uri: "hf://Org/repo/m.gguf", revision: 9217f5db79a29953eb74d5343926648285ec7e67}
  license: {expression: MIT}
  publish: {repository: m}
  variants:
    - {name: q8-0, quantize: {format: gguf, type: Q8_0}}
  refresh: {schedule: "0 3 * * *"}
"""


def _document(old: str = "", new: str = "") -> Document[CatalogEntry]:
    assert old in TEXT
    return parse_located(CatalogEntry, TEXT.replace(old, new, 1), "e.yaml")


def _names(group: str) -> tuple[str, ...]:
    return {"flexinfer.sources": ("file", "hf"), "flexinfer.quantizers": ("awq", "gguf")}[group]


def test_a_good_entry_breaks_no_rule() -> None:
    document = _document()
    assert not list(rules.problems(document))
    assert not list(rules.advice(document))
    assert not list(rules.unknown_plugins(document, _names))


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "repository: m",
            "repository: sources/m",
            "7:25: repository 'sources/m': sources/ is reserved",
        ),
        (
            "q8-0",
            "build-0123",
            "9:14: variant 'build-0123': names in build-… and src-… are reserved",
        ),
        ("q8-0", "src-0123", "9:14: variant 'src-0123': names in build-… and src-… are reserved"),
        ("gguf, type", "none, type", "9:51: format none takes no type: the bytes stay as they are"),
        (
            "0 3 * * *",
            "0 3 * *",
            "10:23: schedule '0 3 * *': expected five fields "
            "(minute, hour, day of month, month, day of week), found 4",
        ),
        (
            "expression: MIT",
            "expression: Apache 2.0",
            "6:25: licence 'Apache 2.0': expected an SPDX expression, such as Apache-2.0: "
            "expected AND, OR, WITH or the end, found '2.0'; did you mean 'Apache-2.0'?",
        ),
    ],
)
def test_what_breaks_a_rule_is_named_with_its_place(old: str, new: str, line: str) -> None:
    (problem,) = rules.problems(_document(old, new))
    assert problem.at("e.yaml") == f"e.yaml:{line}"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("format: gguf", "format: gugf", "9:39: no quantizer named 'gugf' "
         "(known: none, awq, gguf); did you mean 'gguf'?"),
        ('hf://Org/repo/m.gguf", revision: 9217f5db79a29953eb74d5343926648285ec7e67', 'pvc://a/b"',
         "5:17: no source plug-in for pvc:// (known: file, hf)"),
    ],
)  # fmt: skip
def test_what_no_plug_in_can_do_is_named(old: str, new: str, said: str) -> None:
    (problem,) = rules.unknown_plugins(_document(old, new), _names)
    assert problem.at("e.yaml") == f"e.yaml:{said}"


@pytest.mark.parametrize("revision", ["", "revision: main", "revision: v1.0"])
def test_a_hub_source_that_can_move_is_advised_to_be_pinned(revision: str) -> None:
    document = _document("revision: 9217f5db79a29953eb74d5343926648285ec7e67", revision)
    (problem,) = rules.advice(document)
    assert "40 hex digits" in problem.message


# From annex D of SPDX 2.3.
@pytest.mark.parametrize(
    "expression",
    [
        "MIT", "Apache-2.0", "GPL-2.0+", "LicenseRef-llama3", "NONE", "NOASSERTION",
        "DocumentRef-spdx-tool-1.2:LicenseRef-MIT-Style-2", "LGPL-2.1-only OR MIT",
        "(MIT)", "LGPL-2.1-only OR MIT OR BSD-3-Clause", "GPL-2.0-or-later WITH Bison-exception-2.2",
        "(LGPL-2.1-only OR BSD-3-Clause AND MIT)", "MIT AND (LGPL-2.1-or-later OR (BSD-3-Clause))",
    ],
)  # fmt: skip
def test_a_licence_expression_is_accepted(expression: str) -> None:
    assert spdx.problem(expression) is None


@pytest.mark.parametrize(
    "expression",
    [
        "", " ", "Apache 2.0", "MIT or Apache-2.0", "MIT AND", "AND MIT", "(MIT", "MIT)", "()",
        "MIT WITH", "MIT WITH (X)", "(MIT) WITH X", "MIT MIT", "MIT/Apache-2.0", "NONE OR MIT",
        "MIT AND NOASSERTION", "other license!", "MIT WITH X+", "é", "(" * 200 + "MIT", "M" * 501,
    ],
)  # fmt: skip
def test_what_is_no_licence_expression_is_refused(expression: str) -> None:
    assert spdx.problem(expression)


licences = st.recursive(
    st.sampled_from(
        ["MIT", "Apache-2.0", "GPL-2.0+", "LicenseRef-x", "GPL-3.0-only WITH Bison-exception-2.2"]
    ),
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from(["AND", "OR"]), inner)
        | st.builds("({})".format, inner)
    ),
    max_leaves=8,
)


@given(licences)
def test_expressions_built_by_the_grammar_are_accepted_and_their_halves_refused(text: str) -> None:
    assert spdx.problem(text) is None
    assert spdx.problem(text + " AND")
    assert spdx.problem("(" + text)
    assert spdx.problem(text + " MIT")


@pytest.mark.parametrize(
    "schedule",
    [
        "0 3 * * *",
        "*/5 * * * *",
        "0,30 8-18 1-15 JAN-MAR mon-fri",
        "59 23 31 12 7",
        "0-30/5 * * * 0",
    ],
)
def test_a_schedule_of_five_fields_is_accepted(schedule: str) -> None:
    assert cron.problem(schedule) is None


@pytest.mark.parametrize(
    "schedule",
    ["", "* * * *", "* * * * * *", "@daily", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *",
     "* * * * 8", "5-1 * * * *", "*/0 * * * *", "a * * * *", "* * * FOO *", "1, * * * *", "-1 * * * *",
     "* " * 200],
)  # fmt: skip
def test_what_is_no_schedule_is_refused(schedule: str) -> None:
    assert cron.problem(schedule)


@given(st.text(max_size=60))
def test_any_text_is_judged(text: str) -> None:
    for said in (cron.problem(text), spdx.problem(text)):
        assert said is None or "expected" in said or "cannot be" in said


@pytest.mark.parametrize(
    ("quantize", "found"),
    [
        ("format: gguf, type: Q8_0", []),
        (
            "format: gguf, type: Q8_1",
            ["9:51: no type 'Q8_1': gguf makes Q8_0, Q4_0; did you mean 'Q8_0'?"],
        ),
        ("format: gguf", ["9:30: a type is missing: gguf makes Q8_0, Q4_0"]),
        ("format: awq, type: any", []),
        ("format: none", []),
    ],
)
def test_a_type_that_the_quantizer_does_not_make_is_named(quantize: str, found: list[str]) -> None:
    document = _document("format: gguf, type: Q8_0", quantize)
    makes = {"gguf": ("Q8_0", "Q4_0")}
    problems = rules.unknown_types(document, lambda name: makes.get(name, ()))
    assert [problem.at("e.yaml") for problem in problems] == [f"e.yaml:{one}" for one in found]


def test_a_licence_that_spdx_does_not_list_is_named_and_noassertion_is_not() -> None:
    def listed(expression: str) -> bool:
        return expression == "MIT"

    assert list(rules.unknown_licences(_document(), listed)) == []
    assert list(rules.unknown_licences(_document("MIT", "NOASSERTION"), listed)) == []
    (problem,) = rules.unknown_licences(_document("MIT", "Apache-2"), listed)
    assert "'Apache-2': SPDX lists no such identifier" in problem.message
    assert problem.message.endswith("did you mean 'Apache-2.0'?")
