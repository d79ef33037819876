"""A page stands alone, holds what there is, and cannot be broken out of; in a browser it draws and steps."""

import json
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from agents.analysis.evaluation import Evaluation
from agents.analysis.inside import GraphWeights
from agents.analysis.report import data
from agents.analysis.report.groups import grouped
from agents.analysis.report.page import comparison_page, run_page
from agents.runs.directory import RunDirectory
from tests.agents.analysis.report.browser import PROGRAM, Browser
from tests.agents.analysis.report.runs import record, recording, scored, settings
from tests.tolerance import near

STEPS = 30
HOSTILE = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>{{ data }}"


def episode() -> dict[str, Any]:
    """Step t is seen as t and t + 0.5, expected as 10 t, rewarded with 100 t, and acted on with t % 3."""
    t = np.arange(STEPS)
    played = recording(
        STEPS,
        np.stack([t, t + 0.5], axis=1),
        actions=t % 3,
        probabilities=np.eye(3)[t % 3],
        values=10.0 * t,
        rewards=100.0 * t,
    )
    memory = {"hidden state": np.sin(np.arange(8) + t[:, None])}
    return {**data.episode(played, memory, spaces.Box(-99, 99, (2,)), spaces.Discrete(3)), "note": "best.zip."}


def report(root: Path, name: str = "run", **changes: Any) -> str:
    made = record(root, name, settings(**changes), [1.0, 4.0, 2.0], findings=True)
    result = Evaluation((1.0, 2.0), (3, 4)).to_json()
    RunDirectory(made.path).write_result("evaluations", "best-2-deterministic", {"checkpoint": "best.zip", **result})
    return run_page(made, state="finished", episode=episode())


def comparison(root: Path) -> str:
    runs = []
    for memory, best in (("lstm", 8.0), ("none", 1.0)):
        for seed in range(3):
            periodic = [best / 2, best + seed]
            chosen = settings(memory, seed)
            runs.append(scored(root, f"{memory}{seed}", chosen, best, best + 1.0, returns=periodic, step=10 + seed))
    return comparison_page(grouped(runs), "a note")


class Reader(HTMLParser):
    """Tags, what their attributes load, and the text outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.charts: list[Any] = []
        self.data = self.text = ""
        self.title = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
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
        assert all(address.startswith("data:image/png;base64,") for address in read.loaded)
        assert "default-src 'none'" in page
        assert not {"link", "iframe", "object", "form"} & set(read.tags)
        assert read.charts


def test_a_runs_page_tells_settings_results_findings_and_curves(tmp_path: Path) -> None:
    read = Reader(report(tmp_path))
    facts = ("CartPoleNoVel-v1", "4.000 at step 20", "1.500", "policy.memory", "finished", "best 2 ablation")
    findings = ("the return falls from 1.0 to 0.5", "0.250 to 0.750", "wiped every step", "It reaches 7 steps back")
    assert [text for text in (*facts, *findings) if text not in read.text] == []
    assert read.loaded  # the horizon's picture
    assert [chart["series"][0]["y"] for chart in read.charts][:2] == [[1, 4, 2], [1, 4, 2]]
    (around,) = (chart["series"][0] for chart in read.charts if "low" in chart["series"][0])
    assert around["low"][0] == pytest.approx(-0.96)


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
    lstm = read.charts[0]["series"][0]
    # Seeds 0, 1, 2 evaluate every 10, 11, 12 steps: all have reached 12 to 20.
    assert lstm["x"] == [12, 20]
    assert lstm["y"][0] == near((4.8 + 4 + 5 / 11 + 4) / 3)


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
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_a_page_draws_its_plots_without_an_error_a_request_or_a_sideways_scroll(
    browser: Browser, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    browser.open(pages[name], width=width, dark=dark)
    browser.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert browser.errors == []
    assert [url for url in browser.requests if not url.startswith("data:")] == [pages[name].resolve().as_uri()]
    figures, curves = browser.evaluate(
        "[document.querySelectorAll('[data-chart]').length,"
        " [...document.querySelectorAll('[data-chart]')].map((f) => f.querySelector('path.curve').getTotalLength())]"
    )
    assert figures == len(curves) >= 2
    assert all(length > 50 for length in curves)
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    nameless = browser.evaluate(
        "[...document.querySelectorAll('button, input, select, [role=img], img')].filter((e) =>"
        " !(e.getAttribute('aria-label') || e.alt || e.labels?.length || e.textContent.trim())).map((e) => e.outerHTML)"
    )
    assert nameless == []
    assert browser.evaluate("document.title") == {"run": "run: report", "comparison": "Comparison of runs"}[name]
    assert browser.evaluate("document.images.length") == (name == "run")  # the horizon's, and none of the hostile name
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
    for picture in ("canvas.over-time", "#timelines svg"):
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
