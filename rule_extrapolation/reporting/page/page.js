"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const form = document.getElementById("browse").elements;
// As grammars/titles.py has it.
const title = (name) => name.replace(/^rule_(?=\d)/, "R").replaceAll("_", " ");

// Tables. Missing values come last in either order.
function sortBy(table, column, ascending) {
  const body = table.tBodies[0];
  const keyed = [...body.rows].map((row, place) => {
    const cell = row.cells[column];
    const text = "value" in cell.dataset ? cell.dataset.value : cell.textContent;
    return { row, place, text, number: text === "" ? NaN : Number(text) };
  });
  const numeric = keyed.every(({ text, number }) => text === "" || !Number.isNaN(number));
  keyed.sort((a, b) => {
    if (a.text === "" || b.text === "") return (a.text === "") - (b.text === "") || a.place - b.place;
    const order = numeric ? a.number - b.number : a.text.localeCompare(b.text);
    return (ascending ? order : -order) || a.place - b.place;
  });
  body.append(...keyed.map(({ row }) => row));
  for (const [i, head] of [...table.tHead.rows[0].cells].entries()) {
    if (i === column) head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    else head.removeAttribute("aria-sort");
  }
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
    head.querySelector("button")?.addEventListener("click", () =>
      sortBy(table, column, head.getAttribute("aria-sort") !== "ascending"));
  }
}

// Completions
async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

function fill(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}

let opened = null; // {verdicts, sets} of the selected run
let requests = 0;

async function open() {
  const request = ++requests;
  const run = data.runs[Number(form.run.value)];
  const unpacked = await unpack(run.completions);
  if (request !== requests) return; // another run has been selected in the meantime
  opened = unpacked;
  const sets = Object.keys(opened.sets);
  fill(form.set, sets.map((name) => [name, name]), form.set.value || (sets.includes("OOD") ? "OOD" : sets[0]));
  const rules = data.rules[run.grammar] ?? {};
  const named = (verdict) => title(verdict) + (rules[verdict] ? `: ${rules[verdict]}` : "");
  fill(form.verdict, [["", "nothing"], ...opened.verdicts.map((name) => [name, named(name)])], form.verdict.value);
  show();
}

function show() {
  const { rows, of, different } = opened.sets[form.set.value];
  const column = opened.verdicts.indexOf(form.verdict.value);
  const text = form.text.value;
  const wanted = rows.filter(([prompt, completion, verdicts]) =>
    (column < 0 || form.kept.value === "" || verdicts[column] === form.kept.value) && (prompt + completion).includes(text));
  const sample = rows.length < different ? ` This page holds ${rows.length} of their ${different} distinct completions.` : "";
  document.getElementById("shown").textContent =
    `${wanted.length} of ${rows.length} distinct completions shown. The run has ${of} ${form.set.value} prompts.${sample}`;
  const head = element("tr", "", "");
  for (const name of ["prompt|completion", "times", ...opened.verdicts.map(title)]) {
    const cell = element("th", "", name);
    cell.scope = "col";
    head.append(cell);
  }
  const body = document.createElement("tbody");
  for (const [prompt, completion, verdicts, times] of wanted) {
    const row = document.createElement("tr");
    const string = element("td", "string", "");
    string.append(element("span", "prompt", prompt + "|"), completion);
    row.append(string, element("td", "number", times));
    for (const verdict of verdicts) row.append(element("td", verdict === "1" ? "yes" : "no", verdict === "1" ? "✓ yes" : "✗ no"));
    body.append(row);
  }
  const top = document.createElement("thead");
  top.append(head);
  document.getElementById("rows").replaceChildren(top, body);
}

// #run=3 selects that run, so that a view can be linked to.
function followLink() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (!wanted.has("run")) return;
  for (const key of ["run", "set", "verdict", "kept", "text"]) {
    if (!wanted.has(key)) continue;
    const value = wanted.get(key);
    if (["set", "verdict"].includes(key)) fill(form[key], [[value, value]], value); // open() adds the other options
    else form[key].value = value;
  }
  open();
  document.getElementById("completions").scrollIntoView();
}

const groups = {};
for (const [i, run] of data.runs.entries()) {
  if (run.completions === null) continue;
  const name = `${run.language}, ${run.model}`;
  groups[name] ??= Object.assign(document.createElement("optgroup"), { label: name });
  groups[name].append(new Option(`${run.model} on ${run.language}, seed ${run.seed} (${run.source})`, i));
}
form.run.append(...Object.values(groups));
if (form.run.options.length === 0) {
  document.getElementById("shown").textContent = "There are no completions.";
} else if (typeof DecompressionStream === "undefined") {
  document.getElementById("shown").textContent = "Browsing completions requires a browser of 2023 or later.";
} else {
  form.run.addEventListener("change", open);
  for (const name of ["set", "verdict", "kept"]) form[name].addEventListener("change", show);
  form.text.addEventListener("input", show);
  document.getElementById("browse").addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", followLink);
  open();
  followLink();
}
