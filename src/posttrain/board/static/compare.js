// Curves of several runs over one another: of each training that they have in common, by its name.
"use strict";

(async () => {
  const box = document.getElementById("compared");
  if (!box) return;
  const found = await (await fetch(box.dataset.curves)).json();
  const curves = new Curves(box);
  for (const [run, stages] of Object.entries(found)) {
    const several = Object.keys(stages).length > 1;
    for (const [stage, splits] of Object.entries(stages)) curves.extend(several ? `${run} / ${stage}` : run, splits, true);
  }
  curves.draw();
})();
