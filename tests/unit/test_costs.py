"""What a run ends with, for people: wide, narrow, in several currencies."""

from __future__ import annotations

from datetime import date

from engine.costs import BY, Cost, Costs, Total, as_json, lines

DAY = date(2025, 10, 1)
UNIT = 10**12
ANTS, BEES, NOBODY = ("ants", "ants", "insects"), ("sa-2", "bees", "insects"), ("UNALLOCATED",) * 3
FOUND = Costs(
    "acme",
    DAY,
    DAY,
    {
        "identity": (
            Cost("EUR", ANTS, {"direct": 2 * UNIT}),
            Cost("USD", ANTS, {"direct": 1000 * UNIT, "shared": 1}),
            Cost("USD", BEES, {"direct": -UNIT // 2, "shared": 2}),
            Cost("USD", NOBODY, {"unallocated": UNIT}),
        ),
        "team": (
            Cost("EUR", ("insects",), {"direct": 2 * UNIT}),
            Cost("USD", ("insects",), {"direct": 1000 * UNIT - UNIT // 2, "shared": 3}),
            Cost("USD", ("UNALLOCATED",), {"unallocated": UNIT}),
        ),
    },
    (
        Total("EUR", 2 * UNIT, 2 * UNIT, {}),
        Total("USD", 1000 * UNIT + UNIT // 2 + 3, 1000 * UNIT + UNIT // 2 + 3, {"untagged": UNIT}),
    ),
)


def test_currencies_are_never_added_and_empty_classes_left_out() -> None:
    assert list(lines(FOUND))[:9] == [
        "",
        "EUR    direct  total",
        "ants        2      2",
        "total       2      2",
        "",
        "billed       2  EUR",
        "allocated    2  EUR",
        "difference   0  EUR",
        "unallocated  0  EUR (0.00 % of billed)",
    ]


def test_a_difference_is_shown_and_the_share_of_what_nobody_bears() -> None:
    wrong = FOUND._replace(totals=(Total("USD", 3 * UNIT, 2 * UNIT, {"untagged": UNIT, "zero_key_total": 1}),))
    said = [" ".join(text.split()) for text in lines(wrong)]
    assert "difference 1 USD" in said
    assert "unallocated 1.000000000001 USD (33.33 % of billed): untagged 1, zero_key_total 0.000000000001" in said
    assert as_json(wrong)["totals"][0]["difference"] == "1"


def test_a_share_that_says_nothing_is_left_out() -> None:
    for billed, unallocated in ((0, 1), (-1, 1), (1, -1)):
        found = FOUND._replace(totals=(Total("USD", billed, billed, {"untagged": unallocated}),))
        assert not any("%" in text for text in lines(found))
    tiny = FOUND._replace(totals=(Total("USD", 10**9 * UNIT, 10**9 * UNIT, {"untagged": 1}),))
    assert any("(under 0.01 % of billed)" in text for text in lines(tiny))


def test_a_terminal_that_is_too_narrow_gets_one_line_per_class() -> None:
    usd = FOUND._replace(totals=FOUND.totals[1:])
    said = list(lines(usd, columns=60))
    assert all(len(text) <= 60 for text in said[:12])
    assert [text.split() for text in said[1:6]] == [
        ["USD", "amount"],
        ["ants", "direct", "1,000"],
        ["shared", "0.000000000001"],
        ["total", "1,000.000000000001"],
        ["sa-2", "(bees)", "direct", "-0.5"],
    ]
    assert list(lines(usd, columns=200)) == list(lines(usd))


def test_a_name_from_outside_is_made_harmless() -> None:
    hostile = FOUND._replace(
        costs={
            "identity": (Cost("USD", ("\x1b[2J", "na\nme\u202e", "\x1b[31m"), {"direct": 1}),),
            "team": (Cost("USD", ("\x1b[31m\r",), {"direct": 1}),),
        },
        totals=FOUND.totals[1:],
    )
    for by in BY:
        assert not {"\x1b", "\n", "\r", "\u202e"} & set("".join(lines(hostile, by=by)))


def test_an_identity_whose_name_is_not_its_id_is_told_by_both() -> None:
    assert any(text.startswith("sa-2 (bees)  ") for text in lines(FOUND))


def test_by_team_the_rows_are_teams_and_all_sums_are_the_same() -> None:
    usd = FOUND._replace(totals=FOUND.totals[1:])
    identities, teams = list(lines(usd)), list(lines(usd, by="team"))
    assert [text.split()[0] for text in teams[1:5]] == ["USD", "insects", "UNALLOCATED", "total"]
    start = [text.split()[:1] for text in identities].index(["total"])
    assert [text.split() for text in identities[start:]] == [text.split() for text in teams[4:]]


def test_json_has_what_was_asked_for() -> None:
    found = as_json(FOUND)
    assert found["cost_by_identity"][2]["identity_name"] == "bees"
    assert found["cost_by_team"][0] == {
        "currency": "EUR",
        "team": "insects",
        "direct": "2",
        **dict.fromkeys(("usage", "shared", "operator", "unallocated"), "0"),
        "total": "2",
    }
