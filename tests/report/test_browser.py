"""The page in a real browser: hover, click, menus, slider, keys, phones, dark mode."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.program import invoke
from tests.figures.tables import STEPS, save_spectra, table
from tests.report.browser import Page, browser


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of two runs, two tolerances and a slider."""
    folder = tmp_path_factory.mktemp("page")
    frame = table(runs=("decay", "none"), tolerances=("atol=0.01", "rtol=0.1"))
    frame.to_csv(folder / "ranks.csv", index=False)
    spectra = save_spectra(folder / "s.safetensors", ("decay", "none"), layers=3)
    outcome = invoke("report", str(folder / "ranks.csv"), "--spectra", str(spectra))
    assert outcome.code == 0, outcome.stderr
    return folder / "ranks.html"


@pytest.fixture(scope="module")
def one() -> Iterator[Page]:
    """A browser for all tests of this file."""
    with browser() as page:
        yield page


@pytest.fixture
def page(one: Page, file: Path) -> Iterator[Page]:
    """Open the page again, and check after the test that it requested nothing and had no errors."""
    one.requests.clear()
    one.complaints.clear()
    one.open(file, 1280)
    yield one
    assert one.complaints == []
    assert one.requests  # the page itself, and nothing else
    assert one.requests == [file.resolve().as_uri()] * len(one.requests)


def box(page: Page, selector: str) -> dict[str, float]:
    """Return where an element is in the window, scrolled into view."""
    found = page.ask(
        f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block:"
        " 'center'}); const b = e.getBoundingClientRect();"
        " return {x: b.x, y: b.y, width: b.width, height: b.height}; })()"
    )
    assert isinstance(found, dict)
    return found


def choose(page: Page, menu: str, value: str) -> None:
    page.ask(
        f"(() => {{ const m = document.getElementById({menu!r}); m.value = {value!r};"
        " m.dispatchEvent(new Event('change')); })()"
    )


def summary(page: Page) -> list[list[str]]:
    rows: Any = page.ask(
        "[...document.querySelectorAll('#summary tbody tr')]"
        ".map((r) => [...r.children].map((c) => c.textContent))"
    )
    assert isinstance(rows, list)
    return rows


def test_what_is_drawn(page: Page) -> None:
    assert page.ask("document.querySelectorAll('#course svg').length") == 2
    assert page.ask("document.querySelectorAll('#course .line').length") == 6
    assert page.ask("document.querySelectorAll('#course .band').length") == 6
    assert page.ask("document.querySelectorAll('#heat .cell').length") == 2 * 3 * len(STEPS)
    assert summary(page)[0] == ["decay", "layer0", "40 x 50", "10.0", "13.0", "1000", "13.0",
                                "5.0 → 6.5"]  # fmt: skip
    # The line goes through its values: the height of layer1 at step 0 is between its neighbours'.
    heights = page.ask(
        "[...document.querySelectorAll('#course figure:first-child .line')]"
        ".map((l) => l.getPointAtLength(0).y)"
    )
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=0.3)  # 10, 20, 30


def test_hovering_shows_values(page: Page) -> None:
    place = box(page, "#course svg")
    page.pointer("mouseMoved", place["x"] + place["width"] - 14, place["y"] + 100)
    tip = page.ask("document.getElementById('tip').innerText")
    assert tip.startswith("step 1000")
    assert "layer0" in tip
    assert "13 ± 0.5" in tip
    page.pointer("mouseMoved", 2, 2)
    assert page.ask("document.getElementById('tip').hidden")


def test_a_click_singles_a_layer_out_and_another_brings_all_back(page: Page) -> None:
    place = box(page, "#course figure:first-child .line[data-layer=layer1]")
    page.click(place["x"] + place["width"] - 1, place["y"] + 1)
    faded = "document.querySelectorAll('#course .line.faded').length"
    pressed = "document.querySelector('#legend [aria-pressed=true]')?.dataset.layer"
    assert page.ask(faded) == 4
    assert page.ask(pressed) == "layer1"
    button = box(page, "#legend [data-layer=layer1]")
    page.click(button["x"] + 10, button["y"] + 10)
    assert page.ask(faded) == 0
    button = box(page, "#legend [data-layer=layer2]")
    page.click(button["x"] + 10, button["y"] + 10)
    assert page.ask(pressed) == "layer2"
    page.key("Escape")
    assert page.ask(faded) == 0


def test_the_tolerance_changes_all(page: Page) -> None:
    before = page.ask("document.querySelector('#course .line').getAttribute('d')")
    choose(page, "tolerance", "rtol=0.1")
    assert page.ask("document.getElementById('course-title').textContent") == (
        "Local rank (rtol=0.1) over training"
    )
    assert summary(page)[0][3] == "9.0"
    assert page.ask("document.querySelector('#course .line').getAttribute('d')") != before


def test_the_slider_counts_singular_values(page: Page) -> None:
    assert page.ask("document.getElementById('slider-box').hidden")
    choose(page, "tolerance", "slider:atol")
    assert not page.ask("document.getElementById('slider-box').hidden")
    assert page.ask("document.getElementById('slider-value').textContent") == "atol=0.01"
    assert [row[3] for row in summary(page)[:3]] == ["2.0", "2.0", "2.0"]  # 1, .1 / .5, .05 / ...
    page.ask(
        "(() => { const s = document.getElementById('slider'); s.value = s.min;"
        " s.dispatchEvent(new Event('input')); })()"
    )
    assert [row[3] for row in summary(page)[:3]] == ["5.0", "5.0", "5.0"]


def test_the_slider_shows_what_the_table_holds(one: Page, tmp_path: Path) -> None:
    sample = Path(__file__).parents[2] / "sample_checkpoints/gaussian_teacher"
    words = ("--output-slice", "0:4", "--sigma-1", "full", "--rtol", "0.1", "--rtol", "0.1000001")
    command = ("-o", str(tmp_path / "a.csv"), "--spectra", str(tmp_path / "sigma"), "--last", "2")
    assert invoke("analyze", str(sample), *words, *command).code == 0
    made = invoke("report", str(tmp_path / "a.csv"), "--spectra", str(tmp_path / "sigma"))
    assert made.code == 0
    one.open(tmp_path / "a.html", 1280)
    for label in ("rtol=0.1", "rtol=0.1000001"):
        choose(one, "tolerance", label)
        expected = summary(one)
        choose(one, "tolerance", "slider:rtol")
        one.ask(
            "(() => { const s = document.getElementById('slider');"
            " const d = document.getElementById('data');"
            f" s.value = JSON.parse(d.textContent).spectra.rtol.grid.indexOf({label[5:]});"
            " s.dispatchEvent(new Event('input')); })()"
        )
        assert one.ask("document.getElementById('slider-value').textContent") == label
        assert summary(one) == expected


def test_measures_and_runs(page: Page) -> None:
    choose(page, "measure", "jacobian_norm")
    assert page.ask("document.getElementById('heat-section').hidden")
    assert page.ask("document.getElementById('tolerance').disabled")
    assert "root of the sum" in page.ask("document.getElementById('sentence').textContent")
    choose(page, "measure", "effective_rank")
    choose(page, "run", "none")
    assert page.ask("document.querySelectorAll('#course svg').length") == 1
    assert {row[0] for row in summary(page)} == {"none"}


def test_the_keyboard_reaches_everything(page: Page) -> None:
    page.ask("document.querySelector('#course svg').focus()")
    page.key("Home")
    assert page.ask("document.getElementById('tip').innerText").startswith("step 0\n")
    page.key("ArrowRight")
    assert page.ask("document.getElementById('tip').innerText").startswith("step 10\n")
    page.key("End")
    assert page.ask("document.getElementById('tip').innerText").startswith("step 1000\n")
    page.ask("document.querySelector('#legend [data-layer=layer1]').focus()")
    page.ask("document.activeElement.click()")
    assert page.ask("document.activeElement.dataset.layer") == "layer1"  # focus is not lost


@pytest.mark.parametrize("width", [1280, 390, 320])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_and_can_be_read(page: Page, file: Path, width: int, dark: bool) -> None:
    page.open(file, width, dark=dark)
    assert page.ask("document.documentElement.scrollWidth") <= width
    paper, ink = page.ask(
        "(() => { const s = getComputedStyle(document.body);"
        " return [s.backgroundColor, s.color]; })()"
    )
    assert (light(paper) < 0.1) is dark
    assert abs(light(paper) - light(ink)) > 0.7
    colours = page.ask(
        "[...document.querySelectorAll('#course .line')].map((l) => l.getAttribute('stroke'))"
    )
    assert all(abs(light(paper) - light(colour)) > 0.25 for colour in colours)
    texts = page.ask(
        "[...document.querySelectorAll('svg text')].filter((t) => t.textContent).map((t) => {"
        " const b = t.getBoundingClientRect(), s = t.ownerSVGElement.getBoundingClientRect();"
        " return [b.left - s.left, s.right - b.right]; })"
    )
    assert all(left >= -1 and right >= -1 for left, right in texts)


@pytest.mark.parametrize("dark", [False, True])
def test_a_table_that_is_too_wide_shows_where_it_goes_on(
    page: Page, file: Path, tmp_path: Path, dark: bool
) -> None:
    image = pytest.importorskip("PIL.Image")
    page.open(file, 390, dark=dark)
    place = box(page, ".scroll")
    paper = light(page.ask("getComputedStyle(document.body).backgroundColor"))

    def shades() -> list[bool]:
        """Whether the left and right edges, away from the text, have another colour than paper."""
        page.picture(tmp_path / "shot.png", whole=False)
        with image.open(tmp_path / "shot.png") as shot:
            y = int(place["y"]) + 2
            ends = (int(place["x"]) + 1, int(place["x"] + place["width"]) - 2)
            seen = [shot.convert("RGB").getpixel((x, y)) for x in ends]
        return [abs(light(str(one)) - paper) > 0.05 for one in seen]

    assert not page.ask("document.getElementById('scroll-hint').hidden")
    assert shades() == [False, True]
    page.ask("document.querySelector('.scroll').focus()")
    assert page.ask("document.activeElement.className") == "scroll"
    page.ask("document.activeElement.scrollLeft = 40")
    assert shades() == [True, True]
    page.ask("document.activeElement.scrollLeft = 9999")
    assert shades() == [True, False]
    page.open(file, 1280, dark=dark)
    assert page.ask("document.getElementById('scroll-hint').hidden")
    place = box(page, ".scroll")
    assert shades() == [False, False]


def test_lines_can_be_told_apart_without_colour(page: Page) -> None:
    marks = page.ask(
        "[...document.querySelectorAll('#course figure:first-child .dots')]"
        ".map((d) => d.getAttribute('d').split('z')[0].replace(/^M[^a-z]*/, ''))"
    )
    assert len(set(marks)) == 3
    legend = page.ask(
        "[...document.querySelectorAll('#legend button path:last-child')]"
        ".map((d) => d.getAttribute('d').replace(/^M[^a-z]*/, '').replace(/z$/, ''))"
    )
    assert legend == marks


def light(colour: str) -> float:
    parts = [float(part) / 255 for part in colour.strip("rgba()").split(",")[:3]]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
