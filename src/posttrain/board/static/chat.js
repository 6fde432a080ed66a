// Talk to models. What they say is put on the page as text, never as HTML.
"use strict";

(() => {
  const chat = document.getElementById("chat");
  const find = (id) => document.getElementById(id);
  const words = (name, values = {}) => {
    const text = chat.dataset[`word${name[0].toUpperCase()}${name.slice(1)}`];
    return text.replace(/\{(\w+)\}/g, (whole, key) => values[key] ?? whole);
  };
  const SIDES = ["left", "right"];
  const KEPT = "posttrain-chat";

  /** turns: what was said, and the reply of each side; a duel is a blind comparison. All of it is kept for a reload of this tab. */
  let state = { how: "one", turns: [], duel: null, votes: null, endpoints: [], left: "", right: "", pool: [] };
  let editing = null;
  let speaking = null;

  // ---- what is kept --------------------------------------------------------------------------------------------------

  const keep = () => sessionStorage.setItem(KEPT, JSON.stringify(state));
  try {
    state = { ...state, ...JSON.parse(sessionStorage.getItem(KEPT) ?? "{}") };
  } catch {
    sessionStorage.removeItem(KEPT);
  }

  const sides = () => (state.how === "one" ? ["left"] : SIDES);
  const named = (side) => {
    if (state.votes) return state.votes[side];
    if (state.how === "blind") return words(side);
    return find(side).selectedOptions[0]?.textContent ?? "";
  };
  const asked = (id) => (id.startsWith("endpoint:") ? state.endpoints[Number(id.slice(9))] : id);

  // ---- what is shown -------------------------------------------------------------------------------------------------

  const element = (kind, name, text = "") => {
    const made = document.createElement(kind);
    made.className = name;
    made.textContent = text;
    return made;
  };

  const button = (text, act) => {
    const made = element("button", "quiet", text);
    made.type = "button";
    made.addEventListener("click", act);
    return made;
  };

  /** Fill the box of a reply; what is there already is only gone on with. */
  const fill = (box, reply) => {
    let thought = box.querySelector("details");
    if (reply.reasoning && !thought) {
      thought = document.createElement("details");
      thought.append(element("summary", "", words("thinking")), element("p", "words"));
      box.querySelector(".words").before(thought);
    }
    if (thought) thought.querySelector(".words").textContent = reply.reasoning;
    box.querySelector(":scope > .words").textContent = reply.text;
    box.querySelector(".about").textContent = reply.about;
  };

  const draw = () => {
    chat.dataset.how = state.how;
    for (const side of SIDES) {
      find(`name-${side}`).textContent = named(side);
      const turns = document.querySelector(`#talk-${side} .turns`);
      turns.replaceChildren();
      state.turns.forEach((turn, place) => {
        const said = element("div", "uttered user");
        said.append(element("p", "who", words("you")), element("p", "words", turn.said));
        if (!speaking && !state.votes) said.append(button(words("edit"), () => edit(place)));
        turns.append(said);
        const reply = turn.replies[side];
        if (!reply) return;
        const box = element("div", "uttered reply");
        box.append(element("p", "who", named(side)), element("p", "words"), element("p", "about"));
        fill(box, reply);
        if (!speaking && !state.votes && place === state.turns.length - 1) box.append(button(words("again"), () => again(place)));
        turns.append(box);
      });
      turns.scrollTop = turns.scrollHeight;
    }
    const complete = state.turns.length > 0 && SIDES.every((side) => state.turns.at(-1).replies[side]?.text);
    find("vote").hidden = !(state.how === "blind" && complete && !speaking);
    document.querySelectorAll("[data-vote]").forEach((one) => {
      one.disabled = Boolean(state.votes);
      one.setAttribute("aria-pressed", String(state.votes?.vote === one.dataset.vote));
    });
    find("next").hidden = !state.votes;
    const told = state.votes ? words("voted", state.votes) + (state.votes.void ? ` ${words("void", { why: state.votes.void })}` : "") : "";
    if (find("told").textContent !== told) find("told").textContent = told;
    find("send").disabled = Boolean(speaking) || Boolean(state.votes);
    find("stop").disabled = !speaking;
  };

  const problem = (text) => {
    find("problem").hidden = !text;
    find("problem").querySelector("p").textContent = text;
  };

  const choose = () => {
    for (const side of SIDES) {
      const select = find(side);
      select.querySelector("[data-endpoints]")?.remove();
      if (state.endpoints.length) {
        const group = document.createElement("optgroup");
        group.label = words("endpoints");
        group.dataset.endpoints = "";
        state.endpoints.forEach((one, place) => group.append(new Option(one.name, `endpoint:${place}`)));
        select.append(group);
      }
      if ([...select.options].some((one) => one.value === state[side])) select.value = state[side];
      else if (side === "right" && select.options.length > 1) select.selectedIndex = 1;
      state[side] = select.value;
    }
    const pool = find("pool");
    pool.querySelectorAll(".endpoint").forEach((one) => one.remove());
    state.endpoints.forEach((one, place) => {
      const label = element("label", "choice endpoint");
      const box = document.createElement("input");
      Object.assign(box, { type: "checkbox", name: "pool", value: `endpoint:${place}` });
      label.append(box, ` ${one.name}`);
      pool.append(label);
    });
    pool.querySelectorAll("input").forEach((one) => {
      one.checked = state.pool.includes(one.value);
    });
    document.querySelector(`[name=how][value=${state.how}]`).checked = true;
  };

  // ---- asking --------------------------------------------------------------------------------------------------------

  /** Ask the board; a refusal is thrown in its words. */
  const post = async (address, body, signal) => {
    const answer = await fetch(`${board.root}chat/${address}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "HX-Request": "true" },
      body: JSON.stringify(body),
      signal,
    });
    if (!answer.ok) throw new Error(board.html(await answer.text()).textContent.trim());
    return answer;
  };

  const sampling = () => {
    const form = new FormData(find("settings"));
    const values = { temperature: Number(form.get("temperature")), top_p: Number(form.get("top_p")), max_tokens: Number(form.get("max_tokens")) };
    if (form.get("seed") !== "") values.seed = Number(form.get("seed"));
    return [values, form.get("system").trim()];
  };

  const history = (side, upto, system) => {
    const messages = system ? [{ role: "system", content: system }] : [];
    state.turns.slice(0, upto + 1).forEach((turn, place) => {
      messages.push({ role: "user", content: turn.said });
      if (place < upto) messages.push({ role: "assistant", content: turn.replies[side]?.text ?? "" });
    });
    return messages;
  };

  /** Read one reply to its end into its turn. */
  const listen = async (side, body, signal) => {
    const reply = { text: "", reasoning: "", about: words("loading") };
    state.turns.at(-1).replies[side] = reply;
    draw();
    const box = document.querySelector(`#talk-${side} .turns`).lastElementChild;
    const turns = box.parentElement;
    turns.setAttribute("aria-busy", "true");
    let begun = 0;
    let usage = null;
    const take = (line) => {
      const found = JSON.parse(line);
      if (found.ready) reply.about = "";
      if (found.text || found.reasoning) begun ||= performance.now();
      reply.text += found.text ?? "";
      reply.reasoning += found.reasoning ?? "";
      if (found.usage) usage = found.usage;
      if (found.finish === "length") reply.about = words("cut");
      if (found.error) reply.about = `${words("failed")}: ${found.error}`;
    };
    try {
      const answer = await post("replies", body, signal);
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const lines = (rest + value).split("\n");
        rest = lines.pop();
        lines.filter(Boolean).forEach(take);
        const below = turns.scrollHeight - turns.scrollTop - turns.clientHeight < 60;
        fill(box, reply);
        if (below) turns.scrollTop = turns.scrollHeight;
      }
      if (usage && state.how !== "blind") { // how fast a model speaks may tell which it is
        const seconds = (performance.now() - begun) / 1000;
        const told = words("tokens", { n: usage[1], speed: (usage[1] / Math.max(seconds, 0.001)).toFixed(1) });
        reply.about = [reply.about, told].filter(Boolean).join(" · ");
      }
    } catch (error) {
      reply.about = error.name === "AbortError" ? words("stopped") : `${words("failed")}: ${error.message}`;
    }
    turns.removeAttribute("aria-busy");
    fill(box, reply);
  };

  const send = async (text) => {
    if (speaking || state.votes || !text.trim() || !find("settings").reportValidity()) return;
    problem("");
    speaking = new AbortController();
    try {
      if (state.how === "blind" && !state.duel) {
        const answer = await post("duels", { models: state.pool.map(asked) }, speaking.signal);
        state.duel = (await answer.json()).duel;
      }
    } catch (error) {
      speaking = null;
      if (error.name !== "AbortError") problem(error.message);
      draw();
      return;
    }
    if (editing !== null) state.turns.length = editing;
    editing = null;
    find("text").value = "";
    find("hint").textContent = find("hint").dataset.text;
    state.turns.push({ said: text, replies: {} });
    const [values, system] = sampling();
    if (state.how !== "one" && values.seed === undefined) values.seed = Math.floor(Math.random() * 2 ** 31);
    const last = state.turns.length - 1;
    await Promise.all(
      sides().map((side) => {
        const who = state.how === "blind" ? { duel: state.duel, side } : { model: asked(state[side]) };
        return listen(side, { ...who, messages: history(side, last, system), ...values }, speaking.signal);
      }),
    );
    speaking = null;
    keep();
    draw();
    if (!find("vote").hidden) find("vote").focus();
    else find("text").focus();
  };

  const edit = (place) => {
    editing = place;
    find("text").value = state.turns[place].said;
    find("hint").textContent = words("editing");
    find("text").focus();
  };

  const again = (place) => {
    editing = place;
    send(state.turns[place].said);
  };

  const clear = () => {
    speaking?.abort();
    Object.assign(state, { turns: [], duel: null, votes: null });
    editing = null;
    problem("");
    keep();
    draw();
  };

  const vote = async (which) => {
    if (state.votes || find("vote").hidden) return;
    document.querySelectorAll("[data-vote]").forEach((one) => (one.disabled = true));
    try {
      state.votes = { ...(await (await post("votes", { duel: state.duel, vote: which })).json()), vote: which };
      keep();
      draw();
      find("next").focus();
      const answer = await fetch(`${board.root}chat/ranking`);
      find("ranking").replaceChildren(board.html(await answer.text()));
    } catch (error) {
      problem(error.message);
      draw();
    }
  };

  // ---- hands ---------------------------------------------------------------------------------------------------------

  find("hint").dataset.text = find("hint").textContent;
  find("say").addEventListener("submit", (event) => {
    event.preventDefault();
    send(find("text").value);
  });
  find("text").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send(find("text").value);
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && speaking) speaking.abort();
    const typing = event.target.matches("input, select") || (event.target.matches("textarea") && event.target.value);
    const place = "1234".indexOf(event.key);
    if (place < 0 || typing || event.ctrlKey || event.metaKey || event.altKey || find("vote").hidden) return;
    event.preventDefault();
    vote(["left", "right", "tie", "both_bad"][place]);
  });
  find("stop").addEventListener("click", () => speaking?.abort());
  find("clear").addEventListener("click", clear);
  find("next").addEventListener("click", () => {
    clear();
    find("text").focus();
  });
  document.querySelectorAll("[data-vote]").forEach((one) => one.addEventListener("click", () => vote(one.dataset.vote)));
  document.querySelectorAll("[name=how]").forEach((one) =>
    one.addEventListener("change", () => {
      state.how = one.value;
      clear();
    }),
  );
  SIDES.forEach((side) =>
    find(side).addEventListener("change", () => {
      state[side] = find(side).value;
      keep();
      draw();
    }),
  );
  find("pool").addEventListener("change", () => {
    state.pool = [...find("pool").querySelectorAll("input:checked")].map((one) => one.value);
    clear();
  });
  find("endpoint").addEventListener("submit", (event) => {
    event.preventDefault();
    const { url, model, key_env } = Object.fromEntries(new FormData(event.target));
    state.endpoints.push({ url, model, key_env, name: `${model} at ${new URL(url).host}` });
    state.left = `endpoint:${state.endpoints.length - 1}`;
    event.target.reset();
    event.target.closest("details").open = false;
    choose();
    keep();
    draw();
  });
  addEventListener("pagehide", keep);
  choose();
  draw();
})();
