"""Charts: well-formed, points where their values say, text escaped, the same bytes each time."""

import math
import xml.etree.ElementTree as ET

import pytest

from transforms.charts.draw import IN_PAGE, Axis, Marks, Panel, draw, draw_panel

SVG = "{http://www.w3.org/2000/svg}"


def circles(document: str) -> list[tuple[float, float]]:
    return [(float(each.attrib["cx"]), float(each.attrib["cy"])) for each in ET.fromstring(document).iter(f"{SVG}circle")]


def texts(document: str) -> list[str]:
    return [each.text or "" for each in ET.fromstring(document).iter(f"{SVG}text")]


def test_points_stand_where_their_values_say() -> None:
    ((x1, y1), (x2, y2), (x3, y3)) = circles(draw("t", [Panel("p", [Marks([0, 5, 10], [1, 2, 3])])]))
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert x1 < x3
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert y1 > y3, "larger values are higher up"


def test_on_a_logarithmic_axis_equal_ratios_are_equal_steps() -> None:
    ((x1, _), (x2, _), (x3, _)) = circles(draw("t", [Panel("p", [Marks([0.01, 0.1, 1], [1, 1, 1])], x=Axis(is_log=True))]))
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)


def test_what_has_no_place_is_left_out() -> None:
    marks = Marks([1, math.nan, math.inf, 0, -1, 2], [1] * 6)
    assert len(circles(draw("t", [Panel("p", [marks], x=Axis(is_log=True))]))) == 2
    assert len(circles(draw("t", [Panel("p", [marks])]))) == 4
    ET.fromstring(draw("t", []))
    ET.fromstring(draw("t", [Panel("p", [])]))


def test_error_bars_reach_as_far_as_they_say_and_fit_inside() -> None:
    document = draw("t", [Panel("p", [Marks([1.0, 2.0], [0, 1], x_errors=[0.5, 0.25])])])
    bars = [each.attrib["d"] for each in ET.fromstring(document).iter(f"{SVG}path") if "v8" in each.attrib["d"]]
    ends = [tuple(float(value) for value in (bar[1:].split()[0], bar.split("H")[1].split("M")[0])) for bar in bars]
    (low1, high1), (low2, high2) = ends
    assert high1 - low1 == pytest.approx(2 * (high2 - low2), abs=0.3)
    (x1, _), _ = circles(document)
    assert (low1 + high1) / 2 == pytest.approx(x1, abs=0.2)
    assert 0 <= low1 < high2 <= 360


def test_names_are_written_in_their_order_and_text_is_escaped() -> None:
    names = ["<script>alert(1)</script>", 'a & "b"']
    panel = Panel("p<q", [Marks([1, 2], [0, 1], label="l<m", tips=["<tip>", "&"])], y=Axis(names=names))
    document = draw("<title>", [panel], note="n & m")
    assert "<script>" not in document
    assert [text for text in texts(document) if text in names] == names
    assert {"<title>", "p<q", "l<m", "n & m"} <= set(texts(document))
    ((_, y1), (_, y2)) = circles(document)[1:]
    assert y1 < y2, "names run from the top"


def boxes(document: str) -> list[tuple[float, ...]]:
    """Returns (x, y, width, height) of every bar."""
    found = [each for each in ET.fromstring(document).iter(f"{SVG}rect") if "x" in each.attrib]
    return [tuple(float(each.attrib[name]) for name in ("x", "y", "width", "height")) for each in found]


def test_bars_begin_at_zero_and_are_as_long_as_their_values() -> None:
    upright = Panel(
        "p", [Marks([0, 1, 2], [10, 5, 0], is_bars=True, names=["ten", "five", "none"])], Axis(names=["a", "b", "c"])
    )
    (x1, y1, w1, h1), (x2, y2, w2, h2), (*_, h3) = boxes(draw_panel(upright))
    assert (h1, h3) == (pytest.approx(2 * h2, abs=0.2), 0)
    assert (y1 + h1, w1) == (pytest.approx(y2 + h2, abs=0.1), pytest.approx(w2, abs=0.1))
    assert x1 + w1 < x2
    lying = Panel("p", [Marks([10, 5], [0, 1], is_bars=True)], y=Axis(names=["a", "b"]))
    (x1, y1, w1, h1), (x2, y2, w2, _) = boxes(draw_panel(lying))
    assert (x1, w1) == (x2, pytest.approx(2 * w2, abs=0.2))
    assert y1 + h1 < y2
    assert {"ten", "five", "none"} <= set(texts(draw_panel(upright)))


def test_an_axis_ends_where_it_is_told() -> None:
    (low, _), (high, _) = circles(draw_panel(Panel("p", [Marks([0, 100], [1, 1])], Axis(ends=(0, 100))), width=300))
    assert high - low == pytest.approx(300, abs=0.2)


def test_a_chart_in_a_page_has_no_colours_of_its_own_and_a_legend_that_fits() -> None:
    marks = [Marks([number], [1], f"a long label {number}", number, is_hollow=number == 1) for number in range(4)]
    document = draw_panel(Panel("<p>", marks, Axis("x"), Axis("y")), width=240)
    root = ET.fromstring(document)
    assert root.attrib["aria-label"] == "<p>"
    assert all(
        each.attrib.get(name, "none") in ("none", *IN_PAGE.marks) or each.attrib[name].startswith("var(--")
        for each in root.iter()
        for name in ("fill", "stroke")
    )
    legend = [each for each in root.iter(f"{SVG}text") if (each.text or "").startswith("a long label")]
    assert len({each.attrib["y"] for each in legend}) == 4, "one below the other, where two are too wide"
    assert max(float(each.attrib["x"]) for each in legend) < 240


def test_ticks_are_round_numbers() -> None:
    written = texts(draw("t", [Panel("p", [Marks([0.7, 0.74], [3, 1_000_000])])]))
    assert {"0.70", "0.72"} <= set(written)
    assert "500,000" in written or "400,000" in written
    assert {"1", "10", "100"} <= set(texts(draw("t", [Panel("p", [Marks([0.5, 2000], [1, 1])], x=Axis(is_log=True))])))


def test_the_same_values_give_the_same_bytes_and_a_legend_names_a_label_once() -> None:
    panels = [Panel("p", [Marks([1, 2], [1, 2], label="ours", is_line=True)])] * 2
    assert draw("t", panels) == draw("t", panels)
    assert texts(draw("t", panels)).count("ours") == 1
