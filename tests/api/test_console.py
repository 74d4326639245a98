"""The console in a real browser: what an operator sees, and that anybody can use it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import (
    Browser,
    Page,
    Request,
    Route,
    ViewportSize,
    expect,
    sync_playwright,
)

from bus import topics
from bus.states import QuorumMember, SeatCounters, VipHolder
from bus.topics import Topic
from bus.words import NodeState
from tests.api.conftest import TIMEOUT_S, Gale, wait_for
from tests.api.samples import (
    counters,
    dataplane,
    down,
    node,
    node_id,
    quorum,
    seat,
    table,
    view,
)

CHROMIUM = "/usr/bin/chromium"
NAMES = ("node-0", "node-1", "node-2")
PHONE, DESK = ViewportSize(width=390, height=844), ViewportSize(width=1280, height=900)
SOON_S = 1.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


def cluster(gale: Gale) -> None:
    """Three LBs and three nodes, and some traffic."""
    members = tuple(
        QuorumMember(f"lb-{i}", f"10.81.0.{10 + i}:8081", i != 2, 3, 1, 0 if i == 0 else 20)
        for i in range(3)
    )
    vips = (VipHolder("10.80.0.100", "lb-0"),)
    gale.fakes[topics.QUORUM].publish(
        Topic.STATE_QUORUM, quorum(version=2, members=members, vips=vips)
    )
    gale.fakes[topics.QUORUM].publish(Topic.STATE_TABLE, table(*NAMES, epoch=2))
    gale.fakes[topics.HEALTH].publish(
        Topic.STATE_VIEW, view(*(node(name) for name in NAMES), version=2)
    )
    seats = [seat(name, 21_845, 65_537) for name in NAMES]
    gale.fakes[topics.DATAPLANE].publish(Topic.STATE_DATAPLANE, dataplane(*seats, version=2))
    count(gale, 1_000)


def count(gale: Gale, packets: int) -> None:
    counted = [
        SeatCounters("default", node_id(name), packets, packets * 60, packets * 2, 0, packets // 10)
        for name in NAMES
    ]
    verdicts = {"xdp_public.redirect_l4": packets * 3, "xdp_public.drop_no_node": 7}
    said = replace(counters(*counted, **verdicts), version=packets)
    gale.fakes[topics.DATAPLANE].publish(Topic.STATE_COUNTERS, said)


def node_0_dies(gale: Gale) -> None:
    gale.fakes[topics.HEALTH].publish(Topic.NODE_DOWN, down("node-0"))
    dead = node("node-0", NodeState.DOWN, reason="connection refused")
    rest = [node(name) for name in NAMES[1:]]
    gale.fakes[topics.HEALTH].publish(Topic.STATE_VIEW, view(dead, *rest, version=3))
    seats = [seat("node-0", 0, 65_537), *(seat(name, 32_768, 65_537) for name in NAMES[1:])]
    gale.fakes[topics.DATAPLANE].publish(Topic.STATE_DATAPLANE, dataplane(*seats, version=3))


@pytest.fixture
def page(gale: Gale, browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """Of a phone or a desk, light or dark, as the test's parameter says; complains of any fault."""
    size: ViewportSize
    scheme: Literal["light", "dark"]
    size, scheme = getattr(request, "param", (DESK, "light"))
    gale.start_fakes()
    gale.start_api()
    wait_for(lambda: gale.get("/readyz").status_code == 200, "the LB to be ready")
    cluster(gale)
    context = browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce")
    context.set_default_timeout(TIMEOUT_S * 1000)
    expect.set_options(timeout=TIMEOUT_S * 1000)
    made = context.new_page()
    faults: list[str] = []
    made.on("pageerror", lambda error: faults.append(str(error)))
    made.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    made.on("response", lambda answer: faults.append(answer.url) if answer.status >= 400 else None)
    made.goto(gale.url)
    expect(made.locator(".node")).to_have_count(3)
    yield made
    context.close()
    # That the API is not there for a while, or refuses, the browser says by itself.
    said_by_itself = ("net::ERR_", "status of 4", "/v1/trace", "/drain")
    assert [each for each in faults if not any(word in each for word in said_by_itself)] == []


def node_card(page: Page, name: str) -> Any:
    return page.locator(".node", has=page.get_by_text(name, exact=True))


def test_the_cluster_is_there(page: Page) -> None:
    expect(page.locator("#readiness")).to_have_text("ready")
    expect(page.locator("#summary")).to_contain_text("3 of 3 nodes up.")
    expect(page.locator("#summary")).to_contain_text("10.80.0.100 is at lb-0")
    expect(page.locator(".lb")).to_have_count(3)
    expect(page.locator(".lb.self")).to_contain_text("lb-0 (this one)")
    expect(page.locator(".lb.self")).to_contain_text("term 3 · epoch 1 · eligible")
    expect(page.locator(".lb.self")).to_contain_text("holds 10.80.0.100")
    expect(page.locator(".lb.gone")).to_contain_text("not heard")
    expect(node_card(page, "node-1")).to_contain_text("33 % of the rings")
    expect(page.locator("#rings")).to_contain_text("node-2 33 %")
    expect(page.locator("#flow-words")).to_contain_text("7 of 262,144")
    expect(page.locator("#port-words")).to_contain_text("4 of 1,000")
    expect(page.locator("#processes")).to_contain_text("quorum")
    expect(page.locator("#log-lines")).to_contain_text("process.started")


def test_a_node_dies_and_the_page_says_so_within_a_second(gale: Gale, page: Page) -> None:
    page.evaluate(
        """() => {
            window.told = new Promise((tell) => new MutationObserver(() => {
                const state = document.querySelector('.node .state.is-bad');
                if (state) tell(Date.now());
            }).observe(document.body, { subtree: true, childList: true, attributes: true }));
        }"""
    )
    died_ms = time.time() * 1000
    node_0_dies(gale)
    shown_ms = page.evaluate("() => window.told")
    assert shown_ms - died_ms < SOON_S * 1000
    card = node_card(page, "node-0")
    expect(card.locator(".state")).to_have_text("down")
    expect(card.locator(".why")).to_have_text("connection refused")
    expect(card).to_contain_text("0 % of the rings")
    expect(page.locator("#summary")).to_contain_text("2 of 3 nodes up.")
    line = page.locator("#log-lines li.bad")
    expect(line).to_contain_text("node.down")
    expect(line).to_contain_text("node-0: up → down. connection refused")


def test_packets_move(gale: Gale, page: Page) -> None:
    for turn in range(2, 60):
        count(gale, 1_000 * turn)
        time.sleep(0.2)
        if re.search(r"[1-9]", page.locator("#in-rate").inner_text()):
            break
    expect(page.locator("#in-rate")).to_have_text(re.compile(r"[1-9]"))
    expect(page.locator("#out-rate")).to_have_text(re.compile(r"[1-9]"))
    expect(page.locator("#verdicts tbody tr").first).to_contain_text("redirect_l4")
    expect(page.locator("#packets-chart canvas")).to_be_visible()


def test_it_asks_nobody_else(gale: Gale, page: Page) -> None:
    asked: list[Request] = []
    page.on("request", lambda request: asked.append(request))
    page.reload()
    expect(page.locator(".node")).to_have_count(3)
    assert len(asked) > 5
    assert {each.url.startswith(gale.url + "/") for each in asked} == {True}


def test_an_api_that_restarts_is_waited_for(gale: Gale, page: Page) -> None:
    gale.kill_api()
    expect(page.locator("#freshness")).to_contain_text("what you see is old")
    expect(page.locator("#readiness")).to_have_text("not heard")
    gale.fakes[topics.HEALTH].publish(Topic.NODE_DOWN, down("node-1", "while nobody looked"))
    gale.start_api()
    expect(page.locator("#readiness")).to_have_text("ready")
    expect(page.locator("#log-lines")).to_contain_text("while nobody looked")


def test_a_name_is_never_more_than_text(gale: Gale, page: Page) -> None:
    evil = "<img src=x onerror=alert(1)>"
    strange = node("node-1", reason=evil)
    gale.fakes[topics.HEALTH].publish(Topic.STATE_VIEW, view(strange, version=9))
    expect(node_card(page, "node-1").locator(".why")).to_have_text(evil)
    assert page.locator("main img").count() == 0


def test_by_keyboard_alone(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#cluster")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.locator(".node summary").first).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    drain = node_card(page, "node-0").get_by_role("button", name="drain node-0")
    expect(drain).to_be_focused()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="Drain node-0")
    expect(dialog).to_be_visible()
    expect(dialog.get_by_label("Within")).to_be_visible()
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    expect(drain).to_be_focused()


@pytest.mark.parametrize(
    "page",
    [(DESK, "light"), (DESK, "dark"), (PHONE, "light"), (PHONE, "dark")],
    ids=["desk-light", "desk-dark", "phone-light", "phone-dark"],
    indirect=True,
)
def test_anybody_can_use_it(gale: Gale, page: Page) -> None:
    node_0_dies(gale)
    expect(page.locator(".node .state.is-bad")).to_have_count(1)
    page.locator(".node summary").first.click()
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= page.evaluate("window.innerWidth"), "nothing runs off the side"
    page.get_by_role("button", name="ban node-1").or_(
        page.get_by_role("button", name="ban node-0")
    ).first.click()
    found = Axe().run(page, options={"runOnly": ["wcag2a", "wcag2aa"]})
    assert found.violations_count == 0, found.generate_report()


def test_light_and_dark_by_a_button_that_is_remembered(page: Page) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.get_by_role("button", name="Switch between light and dark").click()
    dark = page.evaluate(paper)
    assert dark != light
    page.reload()
    assert page.evaluate(paper) == dark


def test_plan_and_trace_are_asked_and_answered(page: Page) -> None:
    page.get_by_label("From").fill("10.80.0.2:40000")
    page.get_by_label("To", exact=True).fill("10.80.0.10:8080")
    page.get_by_role("button", name="Trace").click()
    expect(page.locator("#trace-answer")).to_contain_text("reason: l4_new_flow")
    page.get_by_label("From").fill("nonsense")
    page.get_by_role("button", name="Trace").click()
    expect(page.locator("#trace-answer.refused")).to_contain_text("source")
    page.locator("#plan-node").select_option(label="node-0")
    page.get_by_role("button", name="Plan").click()
    expect(page.locator("#plan-answer")).to_contain_text("flows hit: 4")


def test_an_order_carries_the_token_and_what_was_seen(gale: Gale, page: Page) -> None:
    given: list[Request] = []
    answers = iter([(412, {"detail": "look again"}), (200, {})])

    def answered(route: Route) -> None:
        given.append(route.request)
        status, body = next(answers)
        route.fulfill(status=status, json=body)

    page.route("**/v1/nodes/*/drain", answered)
    page.get_by_label("Token", exact=True).fill("s3cret")
    card = node_card(page, "node-0")
    card.locator("summary").click()
    with page.expect_response("**/v1/nodes/*") as seen:
        card.get_by_role("button", name="drain node-0").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Within").fill("5m")
    dialog.get_by_label("Why").fill("a new disk")
    dialog.get_by_role("button", name="Give the order").click()
    expect(dialog).to_contain_text("look again")
    dialog.get_by_role("button", name="Give the order").click()
    expect(dialog).to_be_hidden()
    order = given[0]
    assert order.post_data_json == {"why": "a new disk", "within": "5m"}
    assert order.headers["authorization"] == "Bearer s3cret"
    assert order.headers["if-match"] == seen.value.headers["etag"]
