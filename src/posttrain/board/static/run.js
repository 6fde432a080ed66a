// One run: its head, curves and log as they come.
"use strict";

(async () => {
  const head = document.getElementById("head");
  const here = head.dataset.run;
  const curves = new Curves(document.getElementById("curves"));
  const log = document.getElementById("log");
  const answer = await fetch(`${here}/curves`);
  if (!answer.ok) return location.assign(board.root); // it was removed in this moment
  const found = await answer.json();
  for (const [name, splits] of Object.entries(found.stages)) curves.extend(name, splits, true);
  curves.draw();

  let waiting = 0;
  const later = () => {
    waiting ||= setTimeout(() => {
      waiting = 0;
      curves.draw();
    }, 300);
  };
  const refresh = () => ["#doctor", "#memory-box"].forEach((part) => htmx.trigger(part, "refresh"));
  let told = Date.now();

  const at = [found.at, `run.log:${head.dataset.logAt}`].filter(Boolean).join(",");
  board.stream(`${here}/live?at=${encodeURIComponent(at)}`, {
    records({ stage, fresh, splits }) {
      curves.extend(stage, splits, fresh);
      later();
      if (Date.now() - told > 30000) {
        told = Date.now();
        refresh();
      }
    },
    log(text) {
      const below = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      log.hidden = false;
      document.getElementById("no-log").hidden = true;
      log.append(text);
      if (below) log.scrollTop = log.scrollHeight;
    },
    head({ html, alive }) {
      const before = head.querySelector(".pill").textContent;
      const inside = head.contains(document.activeElement) ? document.activeElement.id : "";
      head.replaceChildren(board.html(html));
      htmx.process(head);
      if (inside) document.getElementById(inside)?.focus();
      const now = head.querySelector(".pill").textContent;
      if (before !== now) board.say(now);
      if (head.dataset.alive === "yes" && !alive) refresh();
      head.dataset.alive = alive ? "yes" : "no";
    },
    gone() {
      location.assign(board.root);
    },
  });
})();
