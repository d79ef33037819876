"""A page stands alone, holds what there is, and cannot be broken out of; in a browser it draws and steps."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from agents.analysis.evaluation import Evaluation
from agents.analysis.inside import Attention, Components, Gates, GraphWeights
from agents.analysis.recording import Recording
from agents.analysis.report import acting, data
from agents.analysis.report.comparison import comparison_page
from agents.analysis.report.groups import grouped
from agents.analysis.report.page import Acting, run_page
from agents.runs.directory import RunDirectory
from tests.agents.analysis.report.browser import PROGRAM, Browser, wait_until
from tests.agents.analysis.report.runs import PNG, record, recording, scored, settings
from tests.tolerance import near

STEPS = 30
LARGEST = 5_000_000  # bytes of a page
HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>{{ data }}"


def played() -> Recording:
    """Step t is seen as t and t + 0.5, expected as 10 t, rewarded with 100 t, and acted on with t % 3."""
    t = np.arange(STEPS)
    return recording(
        STEPS,
        np.stack([t, t + 0.5], axis=1),
        actions=t % 3,
        probabilities=np.eye(3)[t % 3],
        values=10.0 * t,
        rewards=100.0 * t,
    )


def recorded() -> Acting:
    rng = np.random.default_rng(0)
    gates = Gates({"update": rng.random((STEPS, 2, 4), dtype=np.float32)})
    memory = acting.remembered(
        Components(rng.normal(size=(STEPS, 2)), np.array([0.74, 0.21])),
        gates,
        {"memory": Attention(np.eye(STEPS), True)},
    )
    charts = acting.actions([played()], spaces.Discrete(3))
    if values := acting.value_against_return([played()], 0.9):
        charts.append(values)
    return Acting(charts, memory, "best.zip, 1 episode.")


def episode() -> dict[str, Any]:
    t = np.arange(STEPS)
    memory = {"hidden state": np.sin(np.arange(8) + t[:, None])}
    graphs = [{"nodes": [[0.25, 0.75]] * STEPS, "links": [[[0, 1, 0.5]]] * STEPS}]
    return {
        **data.episode(played(), memory, spaces.Box(-99, 99, (2,)), spaces.Discrete(3)),
        "graphs": graphs,
        "note": "best.zip.",
    }


def report(root: Path, name: str = "run", **changes: Any) -> str:
    made = record(root, name, settings(**changes), [1.0, 4.0, 2.0], findings=True)
    for picture in ("best-inside-components", "mine"):
        (made.path / "insight" / f"{picture}.png").write_bytes(PNG)
    (made.path / "insight" / "of-my-own.json").write_text(json.dumps({"verdict": "it counts", "count": [{"to": 7}]}))
    result = Evaluation((1.0, 2.0), (3, 4)).to_json()
    RunDirectory(made.path).write_result("evaluations", "best-2-deterministic", {"checkpoint": "best.zip", **result})
    return run_page(made, state="finished", episode=episode(), acting=recorded())


def comparison(root: Path, place: Path | None = None) -> str:
    runs = []
    for memory, best in (("lstm", 8.0), ("none", 1.0)):
        for seed in range(3):
            periodic = [best / 2, best + seed]
            chosen = settings(memory, seed)
            runs.append(scored(root, f"{memory}{seed}", chosen, best, best + 1.0, returns=periodic, step=10 + seed))
    return comparison_page(grouped(runs), "a note", place)


class Reader(HTMLParser):
    """Tags, what their attributes load, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.charts: list[Any] = []
        self.heats: list[Any] = []
        self.links: list[str] = []
        self.data = self.text = ""
        self.title = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        loading = ("src", "srcset", "data", "action", "poster", "background", "ping", "style")
        self.loaded += [value or "" for name, value in attrs if name in (*loading, *(() if tag == "a" else ("href",)))]
        self.links += [value or "" for name, value in attrs if tag == "a" and name == "href"]
        self.heats += [json.loads(value or "") for name, value in attrs if name == "data-heat"]
        self.charts += [json.loads(value or "") for name, value in attrs if name == "data-chart"]
        assert not any(name.startswith("on") for name, _ in attrs)

    def handle_data(self, text: str) -> None:
        inside = self.tags[-1] if self.tags else ""
        if inside == "script" and not self.data:
            self.data = text
        elif inside == "title" and not self.title:
            self.title = text
        elif inside not in ("script", "style"):
            self.text += text


def test_a_page_loads_nothing_and_holds_everything(tmp_path: Path) -> None:
    for page in (report(tmp_path / "one"), comparison(tmp_path / "two")):
        read = Reader(page)
        assert all(address.startswith(("data:image/png;base64,", "left:")) for address in read.loaded)
        assert not re.search(r"url\(|@import|\bimport\(|fetch\(|XMLHttpRequest|WebSocket", page)
        assert "default-src 'none'" in page
        assert "Permission is hereby granted" in page  # the license of what draws the charts goes with it
        assert len(page.encode()) < LARGEST
        assert not {"link", "iframe", "object", "form"} & set(read.tags)
        assert read.charts


def test_a_runs_page_tells_settings_results_findings_and_curves(tmp_path: Path) -> None:
    read = Reader(report(tmp_path))
    facts = ("CartPoleNoVel-v1", "4.000 at step 20", "1.500", "policy.memory", "finished", "best policy")
    findings = ("the return falls from 1.0 to 0.5", "0.250 to 0.750", "wiped every step", "It counts.", "Of my own")
    words = (
        "memory hurts here: return rises",
        "return falls",
        "Explained variance: 74 %, 21 %.",
        "Memory horizon: 2 steps.",
    )
    assert [text for text in (*facts, *findings, *words) if text not in read.text] == []
    pictures = [address for address in read.loaded if address.startswith("data:")]
    assert len(pictures) == 1  # what the page draws itself is no picture
    assert [chart["series"][0]["y"] for chart in read.charts][:2] == [[1, 4, 2], [1, 4, 2]]
    assert read.charts[0]["series"][0]["t"] == [60, 120, 180]
    (around,) = (chart["series"][0] for chart in read.charts if "low" in chart["series"][0])
    assert around["low"][0] == pytest.approx(-0.96)
    (horizon,) = (chart for chart in read.charts if "mark" in chart)
    assert (horizon["mark"], horizon["series"][0]["y"]) == (2, [1, 0.25, 0.125])
    assert [heat["caption"] for heat in read.heats] == ["Update gate of every unit", "Attention of the memory"]


def test_findings_that_are_not_what_an_analysis_writes_are_shown_as_they_are(tmp_path: Path) -> None:
    made = record(tmp_path, "run", settings(), findings=True)
    odd = [{"conditions": []}, {"conditions": [{"name": 3}], "verdict": None}, {"verdict": 7}, {}, {"gates": []}]
    for i, content in enumerate(odd):
        for name in (f"best-{i}-horizon", f"best-{i}-inside"):
            (made.path / "insight" / f"{name}.json").write_text(json.dumps(content))
        (made.path / "evaluations" / f"best-{i}-ablation.json").write_text(json.dumps(content))
    assert "Best 2 horizon" in Reader(run_page(made, state="finished")).text


def test_values_are_set_against_what_came_after_as_far_as_that_is_known() -> None:
    chart = acting.value_against_return([recording(3, rewards=np.array([1.0, 2.0, 4.0]), values=np.arange(3.0))], 0.5)
    assert chart is not None
    assert chart["series"][0]["x"] == [1 + 0.5 * (2 + 0.5 * 4), 4, 4]
    assert chart["series"][0]["y"] == [0, 1, 2]
    # 0.5 ** 5 < 0.05: of ten steps up to a time limit the last four know too little of what would have come.
    limited = acting.value_against_return([recording(10, rewards=np.ones(10), truncated=True)], 0.5)
    assert limited is not None
    assert len(limited["series"][0]["x"]) == 6
    assert acting.value_against_return([recording(10, rewards=np.ones(10), ended=False)], 1.0) is None


@pytest.mark.parametrize(
    ("space", "taken", "shares"),
    [
        (spaces.Discrete(3, start=5), [5, 5, 7, 5], [[0.75, 0, 0.25]]),
        (spaces.MultiDiscrete([2, 3]), [[0, 2], [1, 2], [0, 0], [0, 2]], [[0.75, 0.25], [0.25, 0, 0.75]]),
        (spaces.MultiBinary(2), [[0, 1], [1, 1], [0, 1], [0, 1]], [[0.75, 0.25], [0, 1]]),
        (spaces.Box(-1, 1, (1,)), [[0.0], [0.0], [np.nan], [1.0]], [[0.5, *[0] * 28, 0.25]]),
    ],
)
def test_actions_are_counted_in_every_space(space: spaces.Space[Any], taken: Any, shares: list[list[float]]) -> None:
    charts = acting.actions([recording(4, actions=np.array(taken))], space)
    assert [chart["series"][0]["y"] for chart in charts] == shares


def test_numbers_that_are_none_and_runs_of_any_length_make_a_page(tmp_path: Path) -> None:
    made = record(tmp_path, "run", settings(), [1.0])
    assert Reader(run_page(made, state="finished")).charts[0]["series"][0]["y"] == [1]
    rows = [f"{i},{'nan' if i % 7 else 'inf'},{i}\n" for i in range(1, 100_001)]
    (made.path / "metrics.csv").write_text("step,train/value_loss,rollout/ep_rew_mean\n" + "".join(rows))
    page = run_page(made, state="finished", episode=episode(), acting=recorded())
    (curve,) = Reader(page).charts[0]["series"]
    assert (len(curve["x"]), curve["x"][0], curve["x"][-1]) == (data.MOST_POINTS, 1, 100_000)
    assert len(page) < LARGEST


def test_what_is_put_in_cannot_break_out(tmp_path: Path) -> None:
    chosen = settings(group=HOSTILE, env=replace(settings().env, id=HOSTILE))
    made = record(tmp_path, "<b>run", chosen, [1.0, 2.0])
    page = run_page(made, state=HOSTILE, episode={**episode(), "note": HOSTILE}, note=HOSTILE)
    read = Reader(page)
    assert read.tags.count("script") == 2
    assert not {"img", "b"} & set(read.tags)
    assert (read.title, HOSTILE in read.text) == ("<b>run: report", True)
    assert json.loads(read.data)["note"] == HOSTILE


def test_a_run_without_anything_still_has_a_page(tmp_path: Path) -> None:
    read = Reader(run_page(record(tmp_path, "young", settings()), state="training", note="No agent yet."))
    texts = ("No agent yet.", "Nothing has been measured yet", "There is no episode", "No evaluation has been made")
    assert [text for text in texts if text not in read.text] == []
    assert (read.charts, json.loads(read.data)) == ([], None)


def test_a_comparison_tells_groups_intervals_and_probabilities(tmp_path: Path) -> None:
    read = Reader(comparison(tmp_path))
    for text in ("memory lstm", "memory none", "3 seeds", "8.500", "1.00 to 1.00", "policy.memory", "a note"):
        assert text in read.text
    lstm = read.charts[1]["series"][0]
    # Seeds 0, 1, 2 evaluate every 10, 11, 12 steps: all have reached 12 to 20.
    assert lstm["x"] == [12, 20]
    assert lstm["y"][0] == near((4.8 + 4 + 5 / 11 + 4) / 3)


def test_a_comparison_has_every_seed_and_leads_to_the_runs_reports(tmp_path: Path) -> None:
    place = tmp_path / "pages" / "all.html"
    assert Reader(comparison(tmp_path / "runs #1", place)).links == []
    for name in ("lstm1", "none0"):
        (tmp_path / "runs #1" / name / "report.html").touch()
    runs = [scored(tmp_path, f"r{i}", settings(seed=i), 1.0, returns=[1.0, 2.0]) for i in range(2)]
    (tmp_path / "r1" / "report-2.html").touch()
    read = Reader(comparison_page(grouped(runs), place=tmp_path / "pages #2" / "all.html"))
    assert read.links == ["../r1/report-2.html"]
    names = [(each["name"], each.get("of")) for each in read.charts[1]["series"]]
    mean = "memory lstm (2 seeds)"
    assert names == [(mean, None), ("seed 0", mean), ("seed 1", mean)]
    assert read.charts[1]["series"][0]["t"] == [60, 120]


def test_a_comparison_over_tasks_has_curves_of_each_and_aggregates_of_all(tmp_path: Path) -> None:
    runs = []
    for task in ("A-v0", HOSTILE):
        for memory in ("lstm", "none"):
            chosen = settings(memory, env=replace(settings().env, id=task))
            name = f"{task[:1]}{memory}".replace("<", "b")
            made = [replace(chosen, seed=seed) for seed in range(2)]
            runs += [scored(tmp_path, f"{name}{s.seed}", s, s.seed, 2.0, returns=[1.0, 2.0]) for s in made]
    read = Reader(comparison_page(grouped(runs)))
    assert [
        text for text in ("Aggregates over 2 tasks", "optimality gap", "A-v0, memory lstm") if text not in read.text
    ] == []
    captions = [chart["caption"] for chart in read.charts]
    assert captions[:2] == ["Performance profile", "Periodic evaluation: A-v0"]
    profile = read.charts[0]["series"][0]
    assert (profile["y"][0], profile["y"][-1], profile["x"][-1]) == (0.5, 0, 1)
    assert read.tags.count("script") == 2


def test_groups_that_share_no_step_or_measured_nothing_still_have_a_page(tmp_path: Path) -> None:
    early = scored(tmp_path, "early", settings(seed=0), 1.0, returns=[1.0, 2.0], step=1)
    late = scored(tmp_path, "late", settings(seed=1), 2.0, returns=[1.0, 2.0], step=100)
    assert "None of the runs has measured" in comparison_page(grouped([early, late]))


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("there is no Chromium on this machine (Debian's package is called chromium)")
    started = Browser(tmp_path_factory.mktemp("profile"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    made = {"run": report(root / "a", group=HOSTILE), "comparison": comparison(root / "b")}
    for name, page in made.items():
        (root / f"{name}.html").write_text(page)
    return {name: root / f"{name}.html" for name in made}


# How many pixels of every chart are not bare.
DRAWN = (
    "[...document.querySelectorAll('[data-chart] canvas')].map((c) =>"
    " c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 === 3 && v).length)"
)
FIRST = "document.querySelector('[data-chart]').chart"


def shown(browser: Browser) -> tuple[str, str, str, str]:
    """The step's number, what is seen first, the action, the reward."""
    found: list[str] = browser.evaluate(
        "[document.getElementById('place').textContent,"
        " document.querySelector('#seen .bars span:nth-child(3)').textContent,"
        " document.querySelector('#done .big').textContent, document.querySelectorAll('#got .big')[1].textContent]"
    )
    return found[0], found[1], found[2], found[3]


def at(step: int) -> tuple[str, str, str, str]:
    return f"step {step + 1} of {STEPS}", str(step), str(step % 3), str(100 * step)


@pytest.mark.parametrize("name", ["run", "comparison"])
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_page_draws_its_plots_without_an_error_a_request_or_a_sideways_scroll(
    browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.open(pages[name], width=width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [pages[name].resolve().as_uri()]
    browser.wait_for(f"{DRAWN}.every((painted) => painted > 100)")
    assert browser.evaluate(f"{DRAWN}.length") >= 2
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    graph = "[...document.querySelectorAll('#seen svg circle')].map((e) => e.getBoundingClientRect().width > 5)"
    assert browser.evaluate(graph) == [True, True] * (name == "run")
    beyond = "[...document.querySelectorAll('body *')].map((e) => [e, e.getBoundingClientRect()])"
    beyond += ".filter(([e, r]) => r.width && (r.right > innerWidth + 1 || r.left < 0)).map(([e]) => e.outerHTML)"
    assert browser.evaluate(beyond) == []
    nameless = browser.evaluate(
        "[...document.querySelectorAll('button, input, select, [role=img], img')].filter((e) =>"
        " !(e.getAttribute('aria-label') || e.alt || e.labels?.length || e.textContent.trim())).map((e) => e.outerHTML)"
    )
    assert nameless == []
    assert browser.evaluate("document.title") == {"run": "run: report", "comparison": "Comparison of runs"}[name]
    assert (
        browser.evaluate("document.images.length") == (name == "run") * 1
    )  # what the page does not draw, and none of the hostile name
    ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(20, 23, 26)") == dark


def test_an_episode_is_stepped_through_by_buttons_keys_slider_and_plots(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["run"])
    assert shown(browser) == at(0)
    browser.click("#next")
    browser.click("#next")
    assert shown(browser) == at(2)
    browser.press("ArrowRight")
    assert shown(browser) == at(3)
    browser.press("ArrowLeft")
    browser.click("#previous")
    assert shown(browser) == at(1)
    browser.evaluate("document.getElementById('step').focus()")
    browser.press("End")
    assert shown(browser) == at(STEPS - 1)
    browser.press("ArrowRight")  # there is no more
    browser.press("ArrowLeft")
    assert shown(browser) == at(STEPS - 2)
    for picture in ("#memories canvas.over-time", "#timelines .u-over"):
        browser.press("ArrowLeft")
        browser.click(picture)  # in its middle; a curve's axis takes some room at the left
        step = int(shown(browser)[1])
        assert shown(browser) == at(step)
        assert abs(step - STEPS // 2) <= 3
    assert browser.errors == []
    pixels = "[...document.querySelector('canvas.strip').getContext('2d').getImageData(0, 0, 5, 2).data].join()"
    memory = [browser.evaluate(pixels)]
    for _ in range(2):
        browser.press("ArrowLeft")
        memory.append(browser.evaluate(pixels))
    assert len(set(memory)) == 3


def test_playing_goes_to_the_end_and_a_link_to_its_step(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["run"], step=f"#step={STEPS - 4}")
    assert shown(browser) == at(STEPS - 4)
    browser.click("#play")
    assert browser.evaluate("document.getElementById('play').textContent") == "Pause"
    browser.wait_for("document.getElementById('play').textContent === 'Play'")
    assert shown(browser) == at(STEPS - 1)


def test_an_encoded_graph_is_drawn_with_its_weights_at_every_step(browser: Browser, tmp_path: Path) -> None:
    index = np.tile([[0, 1], [2, 0]], (STEPS, 1, 1))
    nodes, edges = np.tile([0.5, 0.2, 0.3, 0.0], (STEPS, 1)), np.tile([0.4, 0.6], (STEPS, 1))
    edges[1] = 0.0
    played = recording(STEPS, np.zeros((STEPS, 1)))
    spaces_of = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)
    drawn = {**data.episode(played, {}, *spaces_of, [GraphWeights(index, nodes, edges)]), "note": ""}
    page = tmp_path / "graph.html"
    page.write_text(run_page(record(tmp_path, "run", settings(), [1.0]), state="finished", episode=drawn))
    count = "['circle', 'line'].map((name) => document.querySelectorAll(`#seen ${name}`).length)"
    browser.open(page)
    assert browser.evaluate(count) == [3, 2]
    said = browser.evaluate("document.getElementById('seen').textContent")
    assert "heaviest nodes 0: 0.5, 2: 0.3, 1: 0.2; links 2 → 0: 0.6, 0 → 1: 0.4" in said
    browser.press("ArrowRight")
    assert browser.evaluate(count) == [3, 0]
    assert browser.errors == []


def test_a_chart_is_zoomed_smoothed_and_drawn_over_time_and_logarithms(
    browser: Browser, pages: dict[str, Path]
) -> None:
    browser.open(pages["run"])
    browser.wait_for(f"Boolean({FIRST}.u)")

    def range_of(axis: str) -> list[float]:
        found: list[float] = browser.evaluate(f"(({{min, max}}) => [min, max])({FIRST}.u.scales.{axis})")
        return found

    def control(selector: str, change: str) -> None:
        box = f"document.querySelector('.chart-controls {selector}')"
        browser.evaluate(
            f"{box}.{change}, {box}.dispatchEvent(new Event('input')), {box}.dispatchEvent(new Event('change'))"
        )

    assert range_of("x") == [10, 30]
    browser.click("[data-chart] .tools button:nth-child(1)")
    browser.wait_for(f"{FIRST}.u.scales.x.max === 25")
    browser.click("[data-chart] .tools button:nth-child(2)")
    browser.wait_for(f"{FIRST}.u.scales.x.max === 30")
    browser.drag("[data-chart] .u-over", 0.5, 0.9)
    browser.wait_for(f"{FIRST}.u.scales.x.min > 19 && {FIRST}.u.scales.x.max < 29")
    control("select", "value = 'time'")
    browser.wait_for(f"{FIRST}.u.scales.x.min === 1")
    assert range_of("x") == [1, 3]
    assert "minutes" in browser.evaluate(f"{FIRST}.over")
    control("input[type=range]", "value = 0.5")
    browser.wait_for(f"{FIRST}.u.data.length === 3")
    assert browser.evaluate(f"{FIRST}.u.data[2]") == near([1, 3, 17 / 7])  # (1, 4, 2) and half of what came before
    control("label:nth-of-type(3) input", "checked = true")
    browser.wait_for(f"{FIRST}.u.scales.y.distr === 3")
    assert browser.errors == []


def test_a_chart_is_downloaded_as_a_picture_and_as_a_table(
    browser: Browser, pages: dict[str, Path], tmp_path: Path
) -> None:
    browser.open(pages["run"])
    browser.download_to(tmp_path)
    browser.wait_for(f"Boolean({FIRST}.u)")
    for label in ("PNG", "CSV"):
        browser.evaluate(f"document.querySelector('[data-chart] [aria-label$=\"as {label}\"]').click()")
    name = tmp_path / "return-in-training-mean-of-the-last-episodes"
    for suffix in (".png", ".csv"):
        wait_until(name.with_suffix(suffix).is_file)
    assert name.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    lines = name.with_suffix(".csv").read_text().splitlines()
    assert lines[:2] == ["series,environment steps,seconds,mean return,low,high", "training return,10,60,1,,"]
    heat = browser.evaluate("document.querySelector('[data-heat]').chart.csv()")
    assert len(heat.splitlines()) == 1 + STEPS
    assert browser.errors == []


def test_charts_follow_the_colors_of_the_system(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["comparison"])
    browser.wait_for(f"Boolean({FIRST}.u)")
    picture = f"{FIRST}.canvas().toDataURL()"
    light = browser.evaluate(picture)
    browser.prefer(dark=True)
    browser.wait_for(f"{picture} !== {json.dumps(light)}")
    curves = "document.querySelectorAll('[data-chart]')[1].chart"
    browser.click("figure:nth-child(1) .legend button[aria-label^='memory lstm (']")
    browser.wait_for(f"!{curves}.is_shown(0) && !{curves}.is_shown(1) && {curves}.u.data.length === 7")
    assert browser.errors == []


def test_equal_returns_of_both_ways_to_act_are_two_rows_and_an_evaluation_repeated_is_one(tmp_path: Path) -> None:
    made = record(tmp_path, "run", settings(), [1.0], findings=False)
    for name, deterministic in (("sampled", False), ("deterministic", True), ("deterministic-2", True)):
        result = {"checkpoint": "best.zip", **Evaluation((2.0, 2.0), (3, 4), deterministic=deterministic).to_json()}
        RunDirectory(made.path).write_result("evaluations", f"best-2-{name}", result)
    page = run_page(made, state="finished")
    assert (page.count(">sampled<"), page.count(">deterministic<")) == (1, 1)
