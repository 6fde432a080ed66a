// Filters over the replies, and open details for printing. The page is complete without this.
for (const section of document.querySelectorAll("[data-replies]")) {
  const form = section.querySelector(".filters");
  const output = form.querySelector("output");
  const prompts = [...section.querySelectorAll(".prompt")].map((node) => [
    node,
    node.textContent.toLowerCase(),
    (node.dataset.labels ?? "").split("\n"),
  ]);
  const apply = () => {
    const wanted = Object.fromEntries(new FormData(form));
    const words = wanted.search.toLowerCase().trim();
    let shown = 0;
    for (const [node, text, labels] of prompts) {
      const fits =
        ["benchmark", "class", "language", "outcome"].every(
          (key) => !wanted[key] || node.dataset[key] === wanted[key],
        ) &&
        (!wanted.label || labels.includes(wanted.label)) &&
        text.includes(words);
      node.hidden = !fits;
      shown += fits;
    }
    for (const group of section.querySelectorAll(".prompt-class")) {
      group.hidden = !group.querySelector(".prompt:not([hidden])");
    }
    output.textContent = `${shown} of ${prompts.length} prompts`;
  };
  let waiting = 0;
  form.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(apply, prompts.length > 200 ? 120 : 0); // long pages: not at every key
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  apply();
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((node) => (node.open = true)));
