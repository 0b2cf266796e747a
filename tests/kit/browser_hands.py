"""How a person uses a page: by mouse, or by keyboard alone, where the focus must be seen wherever it goes."""

from __future__ import annotations

ANSWERED = """() => [...document.querySelectorAll(".side")].every((side) => side.querySelector(".talk > .hint"))"""
"""True once each model has answered."""


class Mouse:
    def __init__(self, page):
        self.page = page

    def press(self, target):
        target.click()

    def write(self, target, text):
        target.fill(text)

    def choose(self, target, label):
        target.select_option(label=label)

    def rows(self, file, field="#f-data-path"):
        self.page.get_by_label("Upload a file").set_input_files(str(file))
        self.page.get_by_text("is uploaded").wait_for()


class Keyboard:
    """Tab, arrows, Space, Enter and letters."""

    def __init__(self, page):
        self.page = page

    def reach(self, target):
        """Tab until the element has the focus, from wherever it is."""
        handle = target.element_handle()
        for _ in range(250):
            if self.page.evaluate("one => document.activeElement === one", handle):
                assert self.page.evaluate(VISIBLE), "the focus can be seen"
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"{target} cannot be reached by Tab")

    def press(self, target):
        if target.get_attribute("type") == "radio":
            self._radio(target)
            return
        self.reach(target)
        self.page.keyboard.press("Enter")

    def _radio(self, target):
        group = self.page.locator(f"[name={target.get_attribute('name')}]:checked")
        self.reach(group)
        for _ in range(12):
            if target.is_checked():
                return
            self.page.keyboard.press("ArrowDown")
        raise AssertionError(f"{target} cannot be chosen by arrows")

    def write(self, target, text):
        self.reach(target)
        self.page.keyboard.press("Control+A")
        self.page.keyboard.press("Delete")
        self.page.keyboard.type(text)

    def choose(self, target, label):
        self.reach(target)
        self.page.keyboard.type(label)

    def rows(self, file, field="#f-data-path"):
        self.write(self.page.locator(field), str(file))
        self.page.keyboard.press("Tab")


VISIBLE = """() => {
  const one = document.activeElement, look = getComputedStyle(one), near = one.closest("label, .card");
  const outlined = (style) => style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
  return outlined(look) || (near && outlined(getComputedStyle(near)));
}"""
