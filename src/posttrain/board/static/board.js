// Shared by all pages: one live stream a page, and what is told to those who can't see a change.
"use strict";

const board = {
  root: document.body.dataset.root,

  /** Say something to a screen reader. */
  say(text) {
    document.getElementById("said").textContent = text;
  },

  /** Parse HTML that the server has escaped. */
  html(text) {
    const template = document.createElement("template");
    template.innerHTML = text;
    return template.content;
  },

  /**
   * Open the page's stream. handlers: event name -> what to do with its data. The browser connects anew by itself and says how far it has
   * read; a hidden page lets go of its connection and takes it up where it was.
   */
  stream(address, handlers) {
    let source = null;
    let at = "";
    const open = () => {
      const joint = address.includes("?") ? "&" : "?";
      source = new EventSource(at ? `${address}${joint}at=${encodeURIComponent(at)}` : address);
      source.onopen = () => board.lost(false);
      source.onerror = () => {
        board.lost(true);
        if (source.readyState === EventSource.CLOSED) setTimeout(open, 3000);
      };
      for (const [name, handle] of Object.entries(handlers)) {
        source.addEventListener(name, (event) => {
          at = event.lastEventId || at;
          handle(JSON.parse(event.data));
        });
      }
    };
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) {
        source.close();
      } else if (source.readyState === EventSource.CLOSED) {
        open();
      }
    });
    addEventListener("pagehide", () => source.close());
    open();
  },

  /** Show, after a moment, that the server does not answer. */
  lost(is) {
    clearTimeout(board.waiting);
    document.querySelector(".lost")?.remove();
    if (!is) return;
    board.waiting = setTimeout(() => {
      const box = document.createElement("div");
      box.className = "lost";
      box.setAttribute("role", "status");
      box.textContent = document.body.dataset.lost;
      document.body.append(box);
    }, 1500);
  },
};
