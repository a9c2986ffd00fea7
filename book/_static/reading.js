// Nothing is drawn before the faces of the text are there, so that no line moves.
for (const style of ["", "italic"]) document.fonts.load(`${style} 1em "Book Sans"`);

// What the theme leaves out for who reads by keys or by ear.
document.addEventListener("DOMContentLoaded", () => {
  const root = document.documentElement;

  // Buttons keep the focus: the theme takes it from them at every click.
  for (const button of document.querySelectorAll("button.btn")) button.blur = () => {};

  // The switch says which mode is on.
  for (const button of document.querySelectorAll(".theme-switch-button")) {
    const label = button.getAttribute("aria-label");
    const name = () => {
      const icon = button.querySelector(`[data-mode="${root.dataset.mode}"]`);
      button.setAttribute("aria-label", `${label}: ${icon.title}`);
    };
    new MutationObserver(name).observe(root, { attributeFilter: ["data-mode"] });
    name();
  }

  // The contents close where they lead to a place of their own page.
  for (const dialog of document.querySelectorAll("dialog"))
    dialog.addEventListener("click", (event) => {
      if (event.target.closest('a[href^="#"]')) dialog.close();
    });

  // A formula is a stop of the tabulator only where it is wider than the screen.
  const resized = new ResizeObserver((boxes) => {
    for (const { target } of boxes)
      target.toggleAttribute("tabindex", false) ||
        (target.scrollWidth > target.clientWidth && (target.tabIndex = 0));
  });
  for (const box of document.querySelectorAll(".formula")) resized.observe(box);
});
