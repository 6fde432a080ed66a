// Rows: what is chosen is shown at once; the arrow keys turn the pages of single rows.
"use strict";

for (const button of document.querySelectorAll("[data-fallback]")) button.hidden = true;

document.addEventListener("change", ({ target }) => {
  if (!target.matches("select[data-choose]")) return;
  if (target.name === "run") target.form.elements.file?.remove(); // of another run
  target.form.requestSubmit();
});

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, pre, [role=region]")) return;
  const way = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  const link = way && document.querySelector(`.pager a[rel=${way}]`);
  if (link) link.click();
});
