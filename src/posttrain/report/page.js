// Filters over the replies, and open details for printing. The page is complete without this.
for (const section of document.querySelectorAll("[data-replies]")) {
  const form = section.querySelector(".filters");
  const output = form.querySelector("output");
  const prompts = [...section.querySelectorAll(".prompt")].map((node) => [node, node.textContent.toLowerCase()]);
  const apply = () => {
    const wanted = Object.fromEntries(new FormData(form));
    const words = wanted.search.toLowerCase().trim();
    let shown = 0;
    for (const [node, text] of prompts) {
      const fits =
        ["class", "language", "outcome"].every((key) => !wanted[key] || node.dataset[key] === wanted[key]) &&
        text.includes(words);
      node.hidden = !fits;
      shown += fits;
    }
    for (const group of section.querySelectorAll(".prompt-class")) {
      group.hidden = !group.querySelector(".prompt:not([hidden])");
    }
    output.textContent = `${shown} of ${prompts.length} prompts`;
  };
  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((node) => (node.open = true)));
