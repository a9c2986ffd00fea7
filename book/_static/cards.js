// A card beside a number or a link, when a pointer rests on it or the keyboard is there.
(() => {
  if (!HTMLElement.prototype.showPopover) return;
  const root = new URL("..", document.currentScript.src);
  const card = document.createElement("div");
  Object.assign(card, { id: "number-card", popover: "auto", lang: "en", role: "note" });
  let asked, owner, timer, data;

  // Only a script can be loaded beside a page that is a file.
  const load = () => data ??= new Promise((done) => {
    const script = document.createElement("script");
    script.src = new URL("_static/cards-data.js", root);
    script.onload = () => done(globalThis.bookCards);
    document.head.append(script);
  });

  const address = (of) => of.matches("a")
    ? `${of.pathname}${of.hash}`.slice(root.pathname.length)
    : `book/audit.html#${of.classList[1]}`;

  const show = async (of) => {
    asked = of;
    const html = (await load())[address(of)];
    if (asked !== of || !html) return;
    owner?.removeAttribute("aria-describedby");
    owner = of;
    owner.setAttribute("aria-describedby", card.id);
    card.innerHTML = html;
    for (const link of card.querySelectorAll("a"))
      link.href = new URL(link.getAttribute("href"), root);
    (of.closest("a") ?? of).after(card);
    card.showPopover();
    const at = of.getBoundingClientRect(), box = card.getBoundingClientRect();
    const right = document.documentElement.clientWidth - box.width - 8;
    const below = at.bottom + box.height < innerHeight || at.top < box.height;
    card.style.left = `${scrollX + Math.max(8, Math.min(at.left, right))}px`;
    card.style.top = `${scrollY + (below ? at.bottom : at.top - box.height)}px`;
  };

  // It stays while the pointer or the keyboard is on its number, or in it.
  const held = () => owner.matches(":hover, :focus-visible")
    || card.matches(":hover, :focus-within");
  const hide = () => {
    asked = null;
    if (card.matches(":popover-open") && !held()) card.hidePopover();
  };

  const under = (event) =>
    event.target.closest("article :is(.claim, a.internal[href*='#'])");

  document.addEventListener("pointerover", (event) => {
    const of = event.pointerType !== "touch" && under(event);
    clearTimeout(timer);
    if (of && !(of === owner && card.matches(":popover-open")))
      timer = setTimeout(show, 200, of);
    else if (!of) timer = setTimeout(hide, 300);
  });
  document.addEventListener("focusin", (event) => {
    const of = under(event);
    if (of?.matches(":focus-visible")) show(of);
  });
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && card.matches(":popover-open")) card.hidePopover();
  });

  // A number shows its card to who taps or clicks it; from the keyboard it is a link.
  document.addEventListener("click", (event) => {
    const of = under(event);
    if (!event.detail || !of?.matches(".claim") || of.parentElement.closest("a")) return;
    event.preventDefault();
    show(of);
  });
})();
