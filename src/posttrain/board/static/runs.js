// The list of runs, kept up to date.
"use strict";

const again = () => document.querySelector(".tools").requestSubmit();

board.stream(`${board.root}live?seen=${document.getElementById("runs").dataset.version}`, {
  stale: again,
  run({ name, html }) {
    const row = document.getElementById(`run-${name}`);
    const next = board.html(`<table><tbody>${html}</tbody></table>`).querySelector("tr");
    if (row) {
      next.querySelector("input").checked = row.querySelector("input").checked;
      if (row.dataset.state !== next.dataset.state) board.say(`${name}: ${next.querySelector(".pill").textContent}`);
      const focused = row.contains(document.activeElement) ? document.activeElement.tagName : null;
      row.replaceWith(next);
      if (focused) next.querySelector(focused.toLowerCase())?.focus();
    } else {
      again();
    }
  },
  queue() {
    htmx.trigger("#queue", "refresh");
  },
  gone(name) {
    document.getElementById(`run-${name}`)?.remove();
  },
});
