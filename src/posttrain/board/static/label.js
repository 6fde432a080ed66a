// One decision a screen. An answer is sent once, and the next decision is there when it was kept.
"use strict";

for (const button of document.querySelectorAll("[data-fallback]")) button.hidden = true;

document.addEventListener("change", ({ target }) => {
  if (!target.matches("select[data-choose]")) return;
  if (target.name === "run") target.form.elements.file?.remove(); // of another run
  target.form.requestSubmit();
});

const card = document.getElementById("card");
if (card) {
  const keys = { 1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", t: "tie", s: "skip", u: "undo" };
  let shown = performance.now();
  let busy = false;

  const choose = async (choice) => {
    const button = card.querySelector(`[data-choice="${choice}"]`);
    if (busy || !button || button.disabled) return;
    busy = true;
    card.setAttribute("aria-busy", "true");
    const item = card.querySelector("[data-item]")?.dataset.item ?? "";
    const seconds = ((performance.now() - shown) / 1000).toFixed(2);
    const said = button.textContent.trim().split(/\s+/).slice(button.querySelectorAll("kbd").length).join(" ");
    try {
      const body = new URLSearchParams({ by: card.dataset.by, item, answer: choice, seconds });
      const answer = await fetch(choice === "undo" ? card.dataset.undo : card.dataset.answer, { method: "POST", body });
      if (!answer.ok) throw new Error(await answer.text());
      const focused = document.activeElement?.dataset.choice;
      card.replaceChildren(board.html(await answer.text()));
      if (focused) card.querySelector(`[data-choice="${focused}"]`)?.focus();
      board.lost(false);
      scrollTo({ top: 0 });
      board.say(card.dataset.kept.replace("{answer}", said));
      shown = performance.now();
    } catch {
      board.say(card.dataset.lost);
      board.lost(true);
    } finally {
      busy = false;
      card.removeAttribute("aria-busy");
    }
  };

  card.addEventListener("click", ({ target }) => {
    const button = target.closest("[data-choice]");
    if (button) choose(button.dataset.choice);
  });

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.closest("input, select, textarea")) return;
    const choice = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!choice) return;
    event.preventDefault();
    choose(choice);
  });
}
