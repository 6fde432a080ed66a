// A new run: what is typed into the form patches the YAML on the server, what is typed into the YAML makes the form anew.
"use strict";

const editor = document.getElementById("editor");
const form = document.getElementById("form");
const yaml = document.getElementById("yaml");
const refused = document.getElementById("refused");
const TYPING = 350;

/** Fields whose text is not in the YAML yet: key of the path -> text. What could not be read stays here until it is mended. */
const typed = new Map();
/** What was asked for beside typing: one thing to add or to take out. */
let action = null;
let busy = false;
let dirty = false;
let timer = 0;
let right = editor.dataset.right === "yes";

const ask = (address, body) => post(address, JSON.stringify({ start: editor.dataset.start, ...body }));
const post = async (address, body) => {
  const answer = await fetch(`${board.root}${address}`, {
    method: "POST",
    headers: { "hx-request": "true" }, // what is refused comes as a part of a page
    body,
  });
  if (!answer.ok) throw new Error(board.html(await answer.text()).textContent.trim());
  return answer;
};

/** Put HTML into an element where it differs from what is there: focus, cursor, open parts and ticks stay. */
const put = async (element, html) => {
  await htmx.swap({ target: element, text: html, swap: "innerMorph" });
  for (const one of element.querySelectorAll("select[data-path]")) {
    const chosen = one.querySelector("option[selected]") ?? one.options[0];
    if (chosen && one !== document.activeElement) one.value = chosen.value;
  }
  for (const one of element.querySelectorAll("input[data-path]")) {
    if (one !== document.activeElement && !typed.has(one.dataset.path)) one.value = one.getAttribute("value");
  }
};

htmx.registerExtension("keep-open", {
  htmx_before_morph_attr: (element, detail) => !(detail.attrName === "open" && element.tagName === "DETAILS"),
});

const later = (wait) => {
  clearTimeout(timer);
  timer = setTimeout(send, wait);
};

/** Ask the server what becomes of the text: one question at a time, and none about a text that has changed meanwhile. */
const send = async () => {
  if (busy) {
    dirty = true;
    return;
  }
  busy = true;
  dirty = false;
  const text = yaml.value;
  const asked = new Map(typed);
  const acted = action;
  action = null;
  try {
    const fields = [...asked].map(([path, value]) => ({ path: JSON.parse(path), value }));
    const answer = await (await ask("new/edit", { text, typed: fields, ...acted })).json();
    board.lost(false);
    if (yaml.value !== text) {
      action ??= acted; // the YAML was typed into: ask again with what stands there now
      dirty = true;
    } else {
      await show(answer, asked, acted);
    }
  } catch (error) {
    if (error instanceof TypeError) board.lost(true);
    action ??= acted;
    tell(error instanceof TypeError ? "" : error.message);
    if (error instanceof TypeError) later(3000);
  }
  busy = false;
  if (dirty) send();
};

const show = async (answer, asked, acted) => {
  const wrong = new Set(answer.bad);
  for (const [path, value] of asked) if (typed.get(path) === value && !wrong.has(path)) typed.delete(path);
  if (yaml.value !== answer.text) replaceText(answer.text);
  const waits = !("form" in answer);
  form.disabled = waits;
  document.getElementById("waiting").hidden = !waits;
  if (!waits) await put(form, answer.form);
  await put(document.getElementById("problems"), answer.problems);
  await put(document.getElementById("changes"), answer.changes);
  note();
  tell(answer.said);
  if (right !== answer.right) {
    board.say(answer.right ? editor.dataset.wordRight : document.querySelector("#problems h3")?.textContent ?? "");
  }
  right = answer.right;
  editor.dataset.right = right ? "yes" : "no";
  if (acted && !answer.said) after(acted);
  plan();
};

/** The new text in place of the old one; the cursor stays in the line it is in, as far as that line is the same. */
const replaceText = (text) => {
  const { selectionStart: start, selectionEnd: end, scrollTop } = yaml;
  const old = yaml.value;
  let same = 0;
  while (same < old.length && old[same] === text[same]) same += 1;
  const moved = (at) => (at <= same ? at : Math.max(same, at + text.length - old.length));
  yaml.value = text;
  yaml.setSelectionRange(moved(start), moved(end));
  yaml.scrollTop = scrollTop;
};

/** Focus an element, wherever it is folded away. */
const reach = (element) => {
  for (let one = element.closest("details"); one; one = one.parentElement.closest("details")) one.open = true;
  element.scrollIntoView({ block: "center" });
  element.focus({ preventScroll: true });
};

/** Where the focus goes after something was added or taken out. */
const after = ({ act, path, name }) => {
  const ident = (parts) => encodeURIComponent(parts.join(".")).replace(/[!'()*]/g, (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`);
  const group = document.getElementById(`row-${ident(name ? [...path, name] : path)}`);
  const inside = act === "add" && !name ? [...(group?.querySelectorAll(":scope > fieldset") ?? [])].at(-1) ?? group : group;
  const target = inside ?? document.getElementById(`row-${ident(path.slice(0, -1))}`);
  if (!target) return;
  target.tabIndex = -1;
  reach(target);
};

/** Bring a line of the YAML into view. */
const scrollTo = (line) => {
  const height = yaml.scrollHeight / (yaml.value.split("\n").length + 1);
  const top = (line - 1) * height;
  if (top < yaml.scrollTop || top > yaml.scrollTop + yaml.clientHeight - 2 * height) yaml.scrollTop = top - 5 * height;
};

const tell = (text) => {
  refused.textContent = text;
  refused.hidden = !text;
};

/** Beside the buttons: what starting means for the folder of the run. */
const note = () => {
  document.getElementById("note").textContent = document.querySelector("#changes p")?.textContent ?? "";
};

let planned = "";
let planning = false;
/** Ask for memory and time, when nothing else is asked. */
const plan = async () => {
  const text = yaml.value;
  if (planning || text === planned) return;
  planning = true;
  planned = text;
  try {
    await put(document.getElementById("plan"), await (await ask("new/plan", { text })).text());
  } catch (error) {
    planned = "";
  }
  planning = false;
  if (yaml.value !== planned && planned && !busy) plan();
};

form.addEventListener("input", (event) => {
  const { path } = event.target.dataset;
  if (!path) return;
  typed.set(path, event.target.value);
  later(event.target.tagName === "SELECT" ? 0 : TYPING);
});
form.addEventListener("change", (event) => {
  if (event.target.dataset.path && typed.has(event.target.dataset.path)) later(0);
});
form.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-act]");
  if (!button) return;
  const adding = button.closest("[data-adding]");
  const kind = adding?.querySelector("[data-kind]")?.value;
  const named = adding?.querySelector("[data-name]");
  action = { act: button.dataset.act, path: JSON.parse(button.dataset.path), kind, name: named?.value.trim() };
  if (named && action.act === "add") named.value = "";
  later(0);
});
form.addEventListener("focusin", (event) => {
  if (event.target.dataset.at) scrollTo(Number(event.target.dataset.at));
});
form.form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.matches("[data-name]")) {
    event.preventDefault();
    event.target.closest("[data-adding]").querySelector("button[data-act=add]").click();
  }
});
yaml.addEventListener("input", () => later(TYPING));

document.getElementById("problems").addEventListener("click", (event) => {
  const line = event.target.closest("[data-line]")?.dataset.line;
  const to = event.target.closest("[data-to]")?.dataset.to;
  if (line) {
    const lines = yaml.value.split("\n");
    const start = lines.slice(0, line - 1).join("\n").length + (line > 1 ? 1 : 0);
    yaml.focus();
    yaml.setSelectionRange(start, start + lines[line - 1].length);
    scrollTo(Number(line));
  } else if (to) {
    let row = document.getElementById(to);
    for (let name = to; !row && name.includes("."); row = document.getElementById(name)) name = name.slice(0, name.lastIndexOf("."));
    if (!row) return;
    event.preventDefault();
    reach(row.matches("fieldset") ? row : row.querySelector("input, select, textarea, button"));
  }
});

/** Once everything that was typed is in the text. */
const settled = async () => {
  clearTimeout(timer);
  await send();
  while (busy || dirty) await new Promise((done) => setTimeout(done, 30));
};

const begin = async (event) => {
  const button = event.currentTarget;
  const label = button.textContent;
  const buttons = document.querySelectorAll(".begin button");
  for (const one of buttons) one.disabled = true;
  button.textContent = editor.dataset.wordStarting;
  try {
    await settled();
    if (right) {
      const asked = new URLSearchParams({ recipe: yaml.value, queue: button.id === "queue" ? "yes" : "" });
      location.assign((await post("start", asked)).headers.get("hx-redirect"));
    } else {
      document.querySelector("#problems [data-to], #problems [data-line]")?.focus();
    }
  } catch (error) {
    tell(error.message);
  } finally {
    button.textContent = label;
    for (const one of buttons) one.disabled = false;
  }
};
document.getElementById("start").addEventListener("click", begin);
document.getElementById("queue").addEventListener("click", begin);

note();
// A browser that comes back to the page may bring what was typed before.
if (yaml.value !== yaml.defaultValue) send();
else plan();
