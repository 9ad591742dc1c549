"""The whole report in a browser: read, by keyboard, in both colour schemes, on paper, without haste."""

from itertools import pairwise
from typing import Any

import pytest
from msgspec.structs import replace

from edgestitch import schedule
from edgestitch.catalog import shipped_accuracy, shipped_complexity
from edgestitch.recipe import load_family
from edgestitch.report import RunRow, write_report
from edgestitch.schedule import Budget
from tests.reports import chromium, composed_profile, make_log, make_switches, make_zoo

FAMILY = load_family("fashion-vit")

# Of each text that is seen: its words, its colour over what is behind it, as WCAG 2.2 counts
# (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio), and whether it is large.
CONTRASTS = """() => {
  const context = Object.assign(document.createElement("canvas"), {width: 1, height: 1})
    .getContext("2d", {willReadFrequently: true});
  const rgba = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));
  const behind = (node) => {
    const layers = [];
    for (let e = node; e; e = e.parentElement) layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const light = (rgb) => rgb.map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const words = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!words || !element.checkVisibility({checkOpacity: true}) || element.closest("script, style, template")) continue;
    const style = getComputedStyle(element), svg = element.closest("svg");
    const back = behind(svg ? svg.parentElement : element);
    const front = over(rgba(svg ? style.fill : style.color), back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    found.push([words.slice(0, 60), (a + 0.05) / (b + 0.05)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A report with every section there is."""
    profile, accuracy = composed_profile(), shipped_accuracy(FAMILY)
    assert accuracy is not None
    assert accuracy.network is not None
    names = [cost.topology for cost in profile.costs[:3]]
    fastest = min(cost.bound_ms for cost in profile.costs)
    budgets = [Budget(latency_ms=factor * fastest) for factor in (1.1, 2.0, 9.0)]
    run = RunRow(
        budget=Budget(latency_ms=2.0),
        topologies={names[0]: 100},
        frames=100,
        median_ms=1.5,
        p99_ms=1.6,
        top1=88.0,
        top1_low=87.0,
        top1_high=89.0,
        hit_rate=0.99,
        switch_us=3.0,
        first_ms=None,
    )
    about = {"family": "fashion-vit", "network": accuracy.network}
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(
        path,
        FAMILY,
        accuracy,
        profile=profile,
        plan=schedule.plan(profile, accuracy, budgets),
        complexity=shipped_complexity(FAMILY),
        zoo=make_zoo(profile, classes=FAMILY.num_classes),
        switches=replace(make_switches(names), **about),
        logs=[replace(make_log(), **about), replace(make_log(5000), **about)],
        runs=[run],
    )
    return path


@pytest.fixture(scope="module")
def opened(browser, path):
    complaints: list[str] = []
    requests: list[str] = []
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("#plot-run-1 .scatterlayer .points path")
    return page, complaints, requests


@pytest.fixture
def page(opened, path):
    """The page; after a test nothing must have gone wrong or been requested."""
    page, complaints, requests = opened
    page.emulate_media(color_scheme="light", media="screen", reduced_motion="no-preference")
    page.set_viewport_size({"width": 1200, "height": 900})
    yield page
    assert complaints == []
    assert requests == [path.as_uri()]


def trace(page: Any, plot: str, name: str) -> Any:
    """What plotly has of one trace."""
    return page.evaluate(
        f"""document.getElementById('{plot}').data.filter((trace) => trace.name === '{name}')
            .map(({{visible, x, y}}) => ({{visible, x: x.length, y: y.length}}))[0]"""
    )


# --- read -------------------------------------------------------------------------------------


def test_headings_are_in_order(page):
    levels = page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map((h) => Number(h.tagName[1]))"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_every_section_is_in_the_contents(page):
    sections = page.evaluate("[...document.querySelectorAll('section')].map(({id}) => id)")
    links = page.evaluate("[...document.querySelectorAll('nav a')].map((a) => a.hash.slice(1))")
    assert links == sections
    assert {"worth", "individuals", "plan", "session", "timeline", "switches", "breakdown"} < set(
        links
    )
    assert {"composed", "macs", "topologies", "zoo", "conditions", "made-from"} < set(links)


def test_every_picture_says_what_it_shows(page):
    labels = page.evaluate(
        "[...document.querySelectorAll('[role=img]')].map((e) => e.getAttribute('aria-label'))"
    )
    assert len(labels) == 5
    assert all(len(label) > 60 and "table" in label for label in labels)


def test_every_table_has_a_caption_and_headed_rows(page):
    assert page.evaluate(
        """[...document.querySelectorAll('table')].every((table) => table.caption.textContent
            && [...table.tBodies].every((body) => [...body.rows].every((row) => row.querySelector('th[scope]'))))"""
    )


def test_every_control_has_a_name(page):
    unnamed = page.evaluate(
        """[...document.querySelectorAll('input, select, button, summary')].filter((e) =>
            !(e.labels?.length || e.textContent.trim() || e.getAttribute('aria-label'))).map((e) => e.outerHTML)"""
    )
    assert unnamed == []


def test_names_of_elements_are_there_once(page):
    ids = page.evaluate(
        "[...document.querySelectorAll('body > :not(script) [id]')].filter((e) => !e.closest('svg')).map((e) => e.id)"
    )
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_is_enough_in_both_colour_schemes(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    page.wait_for_timeout(300)  # the pictures follow the scheme
    found = page.evaluate(CONTRASTS)
    assert len(found) > 500
    assert [text for text in found if text[1] < 4.5] == []
    page.evaluate(
        "for (const details of document.querySelectorAll('details')) details.open = false"
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_in_pictures_can_be_told_from_what_is_behind_them(page, scheme):
    page.emulate_media(color_scheme=scheme)
    colors = page.evaluate(
        """() => {
          const style = getComputedStyle(document.documentElement);
          const light = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255)
            .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const card = light(style.getPropertyValue('--card'));
          return ['front', 'pick', 'miss', 'anchor', 'series-1', 'series-2', 'series-3', 'series-4']
            .map((name) => light(style.getPropertyValue(`--${name}`)))
            .map((mark) => (Math.max(mark, card) + 0.05) / (Math.min(mark, card) + 0.05));
        }"""
    )
    assert min(colors) >= 3


# --- by keyboard ------------------------------------------------------------------------------


def test_all_that_can_be_worked_is_reached_and_shows_that_it_is(page):
    seen: dict[str, bool] = {}
    for _ in range(150):
        page.keyboard.press("Tab")
        kind, shown = page.evaluate(
            """() => {
              const e = document.activeElement;
              const shows = e.type === 'radio' ? e.nextElementSibling : e;
              const style = e.id === 'slider' ? getComputedStyle(e, '::-webkit-slider-thumb') : getComputedStyle(shows);
              const kind = e.type || e.className || e.tagName;
              return [kind, e.id === 'slider' || style.outlineStyle === 'solid'];
            }"""
        )
        seen[kind] = seen.get(kind, True) and shown
    seen.pop("BODY", None)
    assert set(seen) >= {"skip", "A", "radio", "range", "button", "scroll", "SUMMARY", "select-one"}
    assert all(seen.values()), seen


def test_a_legend_is_worked_by_keyboard_and_keeps_the_focus(page):
    button = page.locator("#plot-legend button", has_text="anchors")
    button.focus()
    assert button.get_attribute("aria-pressed") == "true"
    page.keyboard.press("Space")
    assert trace(page, "plot", "anchors")["visible"] is False
    assert button.get_attribute("aria-pressed") == "false"
    assert page.evaluate("document.activeElement.textContent") == "anchors"
    page.keyboard.press("Enter")
    assert trace(page, "plot", "anchors")["visible"] is True


def test_the_slider_leaves_hidden_what_was_hidden(page):
    page.locator("#plot-legend button", has_text="Pareto front").click()
    page.locator("#slider").focus()
    page.keyboard.press("ArrowRight")
    assert trace(page, "plot", "Pareto front")["visible"] is False
    page.locator("#plot-legend button", has_text="Pareto front").click()
    assert trace(page, "plot", "Pareto front")["visible"] is True


def test_the_select_shows_the_parts_of_another_topology(page):
    select = page.locator("#parts-of")
    whole = FAMILY.whole(FAMILY.anchors[0].name).name
    select.focus()
    select.select_option(whole)
    text = page.locator("#parts").inner_text()
    assert f"Blocks of {FAMILY.anchors[0].name}" in text
    assert "Together" in text
    shares = page.evaluate(
        "[...document.querySelectorAll('#parts small')].map((e) => parseFloat(e.textContent))"
    )
    assert sum(shares) == pytest.approx(100, abs=0.2)


# --- pictures ---------------------------------------------------------------------------------


def test_a_timeline_has_a_panel_for_each_quantity_over_one_time(page):
    layout = page.evaluate(
        "(({xaxis, yaxis, yaxis2, yaxis3, yaxis4}) => [xaxis.range, yaxis.domain, yaxis2.domain, yaxis3.domain, yaxis4.domain])(document.getElementById('plot-run-0').layout)"
    )
    (begin, end), *domains = layout
    assert begin == 0
    assert end == pytest.approx(8, abs=0.2)
    for above, below in pairwise(domains):
        assert above[0] > below[1]
    titles = page.locator("#plot-run-0 .annotation-text").all_text_contents()
    assert titles == ["Latency (ms)", "Topology", "Power (W)", "Temperature (°C)"]


def test_every_miss_is_a_mark(page):
    assert trace(page, "plot-run-0", "missed")["x"] == 8
    assert trace(page, "plot-run-1", "missed")["x"] == 100
    drawn = page.evaluate(
        """(() => { const plot = document.getElementById('plot-run-1');
            const [x0, x1] = plot.layout.xaxis.range, [y0, y1] = plot.layout.yaxis.range;
            const missed = plot.data.find(({name}) => name === 'missed');
            return missed.x.every((x, i) => x0 <= x && x <= x1 && y0 <= missed.y[i] && missed.y[i] <= y1); })()"""
    )
    assert drawn


def test_throttling_can_be_hidden(page):
    shapes = "document.getElementById('plot-run-0').layout.shapes.length"
    assert page.evaluate(shapes) == 1
    page.locator("#plot-run-0-legend button", has_text="throttled").click()
    assert page.evaluate(shapes) == 0
    page.locator("#plot-run-0-legend button", has_text="throttled").click()


def test_latencies_of_a_run_can_be_logarithmic(page):
    kind = "document.getElementById('plot-run-0').layout.yaxis.type"
    group = page.locator("#scales-run-0")
    group.get_by_label("Logarithmic").check(force=True)
    assert page.evaluate(kind) == "log"
    assert page.evaluate(kind.replace("run-0", "run-1")) == "linear"
    group.get_by_label("Linear").check(force=True)
    assert page.evaluate(kind) == "linear"


def test_held_out_topologies_are_marked_and_energy_can_be_chosen(page):
    composition = composed_profile().composition
    assert composition is not None
    for label in ("Energy", "p99 bound", "Latency"):
        page.locator("#quantities").get_by_label(label).check(force=True)
        assert trace(page, "plot-composed", "held out")["x"] == len(composition.validated)
        assert trace(page, "plot-composed", "fitted to")["x"] == len(composition.designed)


def test_the_axis_says_how_many_networks_are_out_of_the_picture(page):
    assert "lie beyond the ends of this axis" in page.locator("#outside").inner_text()
    assert trace(page, "plot", "2 networks of timm, measured here")["x"] == 2
    page.locator("#axes").get_by_label("Energy").check(force=True)
    assert trace(page, "plot", "2 networks of timm, measured here")["x"] == 2  # of no energy
    page.locator("#axes").get_by_label("Latency, p99 bound").check(force=True)


# --- otherwise --------------------------------------------------------------------------------


def test_paper_is_light_and_has_no_controls_and_nothing_folded(page):
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(23, 33, 43)"
    for control in ("nav", ".controls", ".cursor", "summary"):
        assert not page.locator(control).first.is_visible()
    assert page.locator("details:not([open])").count() == 0
    assert (
        page.locator(".scroll").first.evaluate("(e) => getComputedStyle(e).overflowX") == "visible"
    )
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0


def test_the_page_can_be_printed(page):
    pdf = page.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    pages = pdf.count(b"/Type /Page\n") or pdf.count(b"/Type/Page/")
    assert pages < 40


def test_who_wants_less_motion_gets_none(page):
    scroll = "getComputedStyle(document.documentElement).scrollBehavior"
    fill = "getComputedStyle(document.querySelector('.bar > span')).transitionDuration"
    assert (page.evaluate(scroll), page.evaluate(fill)) == ("smooth", "0.2s")
    page.emulate_media(reduced_motion="reduce")
    assert (page.evaluate(scroll), page.evaluate(fill)) == ("auto", "0s")


def test_a_narrow_screen_is_wide_enough(page):
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_without_scripts_the_tables_are_there(browser, path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("#individuals table").first.is_visible()
    assert page.locator("#topologies tbody tr").count() == len(FAMILY.topologies)
    for picture in page.locator(".picture").all():
        assert "The picture needs JavaScript" in picture.inner_text()
    assert not page.locator(".plot").first.is_visible()
    assert not page.locator("#budget").is_visible()
    context.close()
