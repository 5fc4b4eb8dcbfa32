"""Everything on the page can be reached, seen and changed with the keyboard alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qsim.explore.page import write_page

from .keyboard import Keyboard

MOST = 300
"""Presses of Tab after which the page is taken for endless."""
NAMES = """
window.nameOf = (e) => [e.id, e.tagName, e.getAttribute("aria-label") ?? e.textContent].join(" ").trim();
window.shown = () => {
  const e = document.activeElement;
  return e === document.body ? null : [nameOf(e), getComputedStyle(e).outlineStyle !== "none"];
};
window.all = () => [...document.querySelectorAll("button, input, select, summary, a[href]")]
  .filter((e) => e.checkVisibility() && !e.disabled && e.tabIndex >= 0).map(nameOf);
"""


@pytest.fixture(scope="module")
def keyboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyboard]:
    folder = tmp_path_factory.mktemp("keys")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qsim.explore.page.losses_of", lambda *_: {})  # seconds that are not about keys
        write_page(folder / "page.html")
    with Keyboard((folder / "page.html").as_uri(), folder) as one:
        one.value(f"(() => {{ {NAMES} }})()")
        yield one


def go(keyboard: Keyboard, words: str) -> None:
    """Press Tab until the focus is on what has such a name."""
    keyboard.value("document.activeElement.blur(), document.querySelector('h1').setAttribute('tabindex', '-1'), "
                   "document.querySelector('h1').focus()")  # fmt: skip
    for _ in range(MOST):
        keyboard.press("Tab")
        if words in (keyboard.value("nameOf(document.activeElement)") or ""):
            return
    raise AssertionError(f"Tab never comes to {words}")


def fragment(keyboard: Keyboard) -> str:
    keyboard.rest(0.3)  # the address follows a moment later
    return str(keyboard.value("location.hash"))


def test_tab_comes_to_every_control_and_shows_where_it_is(keyboard: Keyboard) -> None:
    go(keyboard, "tab-speed")
    wanted, seen, unseen = set(keyboard.value("all()")), set(), []
    for _ in range(MOST):
        at = keyboard.value("shown()")
        if at is None or (at[0] in seen and "tab-speed" in at[0]):
            break
        seen.add(at[0])
        if not at[1]:
            unseen.append(at[0])
        keyboard.press("Tab")
    assert len(wanted) > 30
    assert wanted - seen == set()
    assert unseen == []


def test_keys_move_sliders_choose_and_press_and_the_link_says_so(keyboard: Keyboard) -> None:
    go(keyboard, "INPUT batch")
    keyboard.press("End")
    assert "batch=512&" in fragment(keyboard)
    keyboard.press("Home")
    assert "batch=1&" in fragment(keyboard)
    go(keyboard, "BUTTON prefill")
    keyboard.press(" ")
    assert "phase=prefill&" in fragment(keyboard)
    assert keyboard.value("nameOf(document.activeElement)") == "BUTTON prefill"
    go(keyboard, "SELECT device")
    before = keyboard.value("document.activeElement.value")
    keyboard.press("ArrowDown")
    after = keyboard.value("document.activeElement.value")
    assert before != after
    assert f"a={after}," in fragment(keyboard)
    go(keyboard, "add BUTTON")
    keyboard.press("Enter")
    assert "&c=" in fragment(keyboard)


def test_arrows_change_between_the_two_pages(keyboard: Keyboard) -> None:
    go(keyboard, "tab-speed")
    keyboard.press("ArrowRight")
    assert "tab=numbers" in fragment(keyboard)
    assert "tab-numbers" in keyboard.value("nameOf(document.activeElement)")
    keyboard.press("ArrowLeft")
    assert "tab=numbers" not in fragment(keyboard)
