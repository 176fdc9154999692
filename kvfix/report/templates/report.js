"use strict";
// Everything on the page is there without this script; it only makes it quicker to look at.

// Curves: point at a stage, or focus a panel and walk with the arrow keys.
for (const svg of document.querySelectorAll("svg.curve")) {
  const stages = [...svg.querySelectorAll(".stage")];
  const said = svg.closest("figure").querySelector("output");
  const rest = said.textContent;
  let at = -1;
  const show = (i) => {
    at = i;
    stages.forEach((stage, k) => stage.classList.toggle("on", k === i));
    said.textContent = i < 0 ? rest : stages[i].dataset.text;
  };
  svg.addEventListener("pointermove", (e) => {
    const stage = e.target.closest(".stage");
    if (stage) show(stages.indexOf(stage));
  });
  svg.addEventListener("pointerleave", () => show(-1));
  svg.addEventListener("focus", () => show(Math.max(at, 0)));
  svg.addEventListener("blur", () => show(-1));
  svg.addEventListener("keydown", (e) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
    if (step === undefined) return;
    e.preventDefault();
    show(Math.min(Math.max(at + step, 0), stages.length - 1));
  });
}

// Pictures of one unit at several stages: one at a time, flipped by a slider.
for (const flip of document.querySelectorAll(".flip")) {
  const shots = [...flip.querySelectorAll("figure")];
  if (shots.length < 2) continue;
  const label = document.createElement("label");
  const name = document.createElement("span");
  const slider = document.createElement("input");
  Object.assign(slider, { type: "range", min: 0, max: shots.length - 1, step: 1 });
  slider.setAttribute("aria-label", "Stage that the prediction is read from");
  const show = () => {
    shots.forEach((shot, i) => (shot.hidden = i !== Number(slider.value)));
    name.textContent = shots[slider.value].dataset.stage;
    slider.setAttribute("aria-valuetext", name.textContent);
  };
  slider.value = Math.max(0, shots.findIndex((shot) => "best" in shot.dataset));
  slider.addEventListener("input", show);
  label.append(slider, name);
  label.className = "slider";
  flip.prepend(label);
  flip.classList.add("flipping");
  show();
}

// Tables: a click on a heading sorts by it, a second one turns the order around.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, k) => {
    const cell = row.cells[k];
    const text = "sort" in cell.dataset ? cell.dataset.sort : cell.textContent.trim();
    const number = Number.parseFloat(text);
    return Number.isNaN(number) ? text.toLowerCase() : number;
  };
  heads.forEach((head, k) => {
    if (!head.textContent.trim()) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up > 0 ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows].filter((row) => !row.classList.contains("total"));
      const order = (a, b) => {
        const [x, y] = [value(a, k), value(b, k)];
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
        return x < y ? -up : x > y ? up : 0;
      };
      table.tBodies[0].prepend(...rows.sort(order));
    });
  });
}

// Questions: by task and by outcome.
for (const list of document.querySelectorAll(".asked")) {
  const questions = [...list.querySelectorAll("details")];
  const bar = document.createElement("div");
  const count = document.createElement("span");
  bar.className = "filters";
  const choose = (key, title) => {
    const select = document.createElement("select");
    select.setAttribute("aria-label", title);
    select.add(new Option(title, ""));
    for (const name of [...new Set(questions.map((q) => q.dataset[key]))].sort()) {
      select.add(new Option(name, name));
    }
    select.addEventListener("change", filter);
    bar.append(select);
    return [key, select];
  };
  const filters = [choose("task", "every task"), choose("outcome", "every outcome")];
  function filter() {
    for (const q of questions) {
      q.hidden = filters.some(([key, select]) => select.value && q.dataset[key] !== select.value);
    }
    const shown = questions.filter((q) => !q.hidden).length;
    count.textContent = `${shown} of ${questions.length} questions`;
  }
  count.setAttribute("role", "status");
  bar.append(count);
  list.prepend(bar);
  filter();
}

// Commands: copy, or select where the browser forbids it (a page opened from disk).
for (const box of document.querySelectorAll(".command")) {
  const code = box.querySelector("code");
  const button = document.createElement("button");
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
  });
  box.append(button);
}
