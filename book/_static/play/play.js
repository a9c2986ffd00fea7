// What the interactive parts share: elements, a guess before the truth, and a start.
// Each part registers a function of (element, data); data come from the page.
const Play = { parts: {} };

Play.node = (space) => (name, attributes = {}, ...children) => {
  const made = space ? document.createElementNS(space, name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false && value !== null) made.setAttribute(key, value);
  }
  made.append(...children.flat().filter((child) => child !== null));
  return made;
};
Play.el = Play.node();
Play.svg = Play.node("http://www.w3.org/2000/svg");
Play.number = 0;
Play.id = () => `play-${++Play.number}`;

// Three significant digits; sizes and times in the unit that fits.
Play.shown = (x, roundingMode = "halfExpand") =>
  x.toLocaleString("en-GB", { maximumSignificantDigits: 3, roundingMode });
Play.whole = (n) => n.toLocaleString("en-GB");
Play.bytes = (n, rounding) => n >= 2 ** 30 ? `${Play.shown(n / 2 ** 30, rounding)} GiB`
  : `${Play.shown(n / 2 ** 20, rounding)} MiB`;
Play.enough = (n) => Play.bytes(n, "ceil");
Play.seconds = (s) => s >= 1 ? `${Play.shown(s)} s` : `${Play.shown(1e3 * s)} ms`;

Play.button = (text, onclick, more = {}) =>
  Play.el("button", { type: "button", onclick, ...more }, text);

// A labelled slider over `values`, or over whole numbers from min to max.
Play.slider = ({ label, values, at = 0, format = String, change = () => {} }) => {
  const id = Play.id(), output = Play.el("output", { for: id });
  const input = Play.el("input", {
    type: "range", id, min: 0, max: values.length - 1, step: 1, value: at,
  });
  const control = {
    get value() { return values[Number(input.value)]; },
    get index() { return Number(input.value); },
    set index(i) { input.value = i; control.tell(); },
    tell() {
      output.textContent = format(control.value);
      input.setAttribute("aria-valuetext", output.textContent);
    },
    input,
    node: Play.el("div", { class: "play-input" },
      Play.el("label", { for: id }, label), input, output),
  };
  input.addEventListener("input", () => { control.tell(); change(control.value); });
  control.tell();
  return control;
};

Play.select = (label, options, change) => {
  const id = Play.id();
  const input = Play.el("select", { id, onchange: () => change(input.value) },
    options.map(([value, text]) => Play.el("option", { value }, text)));
  return { input, node: Play.el("div", { class: "play-input" },
    Play.el("label", { for: id }, label), input, Play.el("span")) };
};

// A question whose answer is told only after a guess; `truth` answers with a sentence
// that is told beside it, and `see` is called once it may be seen.
Play.guess = ({ question, label, values, at, format, truth, see, hide }) => {
  const slider = Play.slider({ label, values, at, format });
  const said = Play.el("p", { class: "play-truth", role: "status" });
  const commit = Play.button("Commit the guess", () => {
    if (control.seen) return control.again();
    control.seen = control.fresh = true;
    control.guessed = slider.value;
    slider.input.disabled = true;
    commit.textContent = "Guess again";
    control.tell();
    see();
    control.fresh = false;
  }, { class: "play-main" });
  const asked = Play.el("p", { id: Play.id() }, question());
  const control = {
    seen: false, fresh: false,
    tell() { // what is moved after a guess was not what it was about
      const when = control.fresh ? "" : " at first";
      if (control.seen)
        said.textContent = `You guessed ${format(control.guessed)}${when}. ${truth()}`;
    },
    again() {
      control.seen = false;
      slider.input.disabled = false;
      commit.textContent = "Commit the guess";
      said.textContent = "";
      asked.textContent = question();
      hide();
    },
    node: Play.el("div", { class: "play-guess", role: "group",
      "aria-labelledby": asked.id }, asked, slider.node, commit, said),
  };
  return control;
};

// Draw again when the width of `box` changes; `draw(width)` answers with an element.
Play.drawn = (draw) => {
  const box = Play.el("div", { class: "play-drawn" });
  box.redraw = () => {
    if (box.clientWidth) box.replaceChildren(draw(box.clientWidth));
  };
  let width = 0;
  new ResizeObserver(() => {
    if (box.clientWidth !== width) { width = box.clientWidth; box.redraw(); }
  }).observe(box);
  return box;
};

Play.start = () => document.querySelectorAll(".play[data-play]").forEach((root) => {
  const part = Play.parts[root.dataset.play];
  if (!part || root.known) return;
  root.known = JSON.parse(
    root.querySelector('script[type="application/json"]').textContent);
  const made = part(root, root.known);
  root.querySelector(".play-still").replaceWith(made);
});
document.addEventListener("DOMContentLoaded", Play.start);
