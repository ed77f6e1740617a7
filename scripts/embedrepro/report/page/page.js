"use strict";
// Everything from outside is put in as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const make = (tag, text, className) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  return node;
};

function theme() {
  const button = byId("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const show = (isDark) => {
    button.setAttribute("aria-pressed", String(isDark));
  };
  button.hidden = false;
  show(dark);
  button.addEventListener("click", () => {
    const isDark = button.getAttribute("aria-pressed") !== "true";
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    show(isDark);
  });
}

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector(".sort");
    if (!button) return;
    button.addEventListener("click", () => {
      const numeric = head.classList.contains("n");
      const now = head.getAttribute("aria-sort");
      const down = now === "none" ? numeric : now === "ascending";
      heads.forEach((h) => h.hasAttribute("aria-sort") && h.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sortRows(table.tBodies[0], column, numeric, down ? -1 : 1);
    });
  });
}

function sortRows(body, column, numeric, sign) {
  const value = (row) => {
    const cell = row.cells[column];
    return numeric ? (cell.dataset.v === "" ? NaN : Number(cell.dataset.v)) : cell.textContent;
  };
  const compare = (a, b) => {
    if (!numeric) return sign * a.value.localeCompare(b.value);
    if (isNaN(a.value) || isNaN(b.value)) return isNaN(a.value) - isNaN(b.value); // last
    return sign * (a.value - b.value);
  };
  const rows = [...body.rows].map((row) => ({ row, value: value(row) }));
  body.append(...rows.sort(compare).map((entry) => entry.row));
}

function tabs(list) {
  const all = [...list.querySelectorAll("[role=tab]")];
  const select = (tab, focus) => {
    for (const one of all) {
      const on = one === tab;
      one.setAttribute("aria-selected", String(on));
      one.tabIndex = on ? 0 : -1;
      byId(one.getAttribute("aria-controls")).hidden = !on;
    }
    if (focus) tab.focus();
  };
  const steps = { ArrowRight: 1, ArrowLeft: -1 };
  all.forEach((tab, index) => {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", (event) => {
      const step = steps[event.key];
      const next = step ? all.at((index + step) % all.length)
        : event.key === "Home" ? all[0] : event.key === "End" ? all.at(-1) : null;
      if (next) { event.preventDefault(); select(next, true); }
    });
  });
  if (all.length) select(all[0]);
}

// A board is one stop of the Tab key; arrows move between its numbers.
function grid(table) {
  const first = table.querySelector("tbody .cell");
  if (first) first.tabIndex = 0;
  table.addEventListener("keydown", (event) => {
    const cell = event.target.closest(".cell");
    const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!cell || !move) return;
    event.preventDefault();
    const next = neighbour(cell.closest("td"), move);
    if (next) { cell.tabIndex = -1; next.tabIndex = 0; next.focus(); }
  });
  table.addEventListener("click", (event) => {
    const cell = event.target.closest(".cell");
    if (cell) openCell(...cell.dataset.c.split(",").map(Number));
  });
}

function neighbour(from, [down, right]) {
  let row = from.parentElement, column = from.cellIndex;
  for (;;) {
    if (down) row = down > 0 ? row.nextElementSibling : row.previousElementSibling;
    column += right;
    const there = row && row.cells[column];
    if (!there) return null;
    const cell = there.querySelector(".cell");
    if (cell) return cell;
  }
}

function openCell(model, column) {
  const cell = data.cells[model][column];
  const [name, revision] = data.models[model];
  byId("cell-title").textContent = `${name} on ${data.columns[column]}`;
  const body = byId("cell-body");
  body.replaceChildren(make("p", `Means over ${cell.queries} judged queries, as each protocol scores the same run.`, "note"));
  body.append(protocolTable(cell));
  const rows = document.querySelectorAll(`#verdict-table tr[data-cell="${model},${column}"]`);
  if (rows.length) {
    body.append(make("h3", "Published"), verdictTable(rows));
  }
  if (cell.target) body.append(make("h3", "How to reproduce"), commandLine(`${data.command} ${cell.target}`));
  if (revision) body.append(make("p", `Model revision ${revision}`, "muted"));
  if (cell.cost) {
    const [docs, tokens, seconds, peak, device] = cell.cost;
    body.append(make("h3", "Cost of encoding"), make("p",
      `${docs.toLocaleString("en")} texts, ${tokens.toLocaleString("en")} tokens in ${seconds.toLocaleString("en")} s on ${device}: `
      + `${Math.round(docs / seconds).toLocaleString("en")} texts/s` + (peak === null ? "." : `, at most ${Math.round(peak).toLocaleString("en")} MB.`)));
  }
  byId("cell").showModal();
}

function verdictTable(rows) {
  const whole = byId("verdict-table"), box = make("div", undefined, "scroll"), table = make("table");
  const head = whole.tHead.cloneNode(true), body = make("tbody");
  for (const th of head.rows[0].cells) { th.textContent = th.textContent; th.removeAttribute("aria-sort"); }
  body.append(...[...rows].map((row) => row.cloneNode(true)));
  for (const row of [head.rows[0], ...body.rows]) {
    row.hidden = false;
    row.cells[2].remove(); // dataset and model stand in the title
    row.cells[1].remove();
  }
  table.append(head, body);
  box.append(table);
  return box;
}

function commandLine(text) {
  const box = make("div", undefined, "command"), code = make("code", text);
  code.tabIndex = 0;
  box.append(code);
  if (navigator.clipboard) {
    const button = make("button", "Copy");
    button.type = "button";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    });
    box.append(button);
  }
  return box;
}

// A row for each protocol, a column for each measure that any of them names.
function protocolTable(cell) {
  const box = make("div", undefined, "scroll"), table = make("table"), head = make("tr");
  const measures = [...new Set(Object.values(cell.protocols).flatMap((rows) => rows.map(([name]) => name)))];
  for (const name of ["Protocol", ...measures]) {
    const th = make("th", name);
    th.scope = "col";
    head.append(th);
  }
  table.createTHead().append(head);
  const body = table.createTBody();
  for (const [protocol, rows] of Object.entries(cell.protocols)) {
    const row = body.insertRow(), title = make("th", protocol), found = new Map(rows.map(([name, ...rest]) => [name, rest]));
    title.scope = "row";
    if (protocol === cell.default) title.append(" ", make("span", "default", "muted"));
    row.append(title, ...measures.map((name) => meanCell(found.get(name))));
  }
  box.append(table);
  return box;
}

function meanCell([value, low, high] = [null, null, null]) {
  const cell = make("td", value === null ? "–" : value.toFixed(5), "mean");
  if (low !== null) cell.append(make("small", `${low.toFixed(4)}–${high.toFixed(4)}`));
  return cell;
}

function explorer() {
  const columns = data.explorer.map((entry, index) => [entry, index]).filter(([entry]) => entry);
  if (!columns.length) {
    byId("explorer").replaceChildren(make("p", "Two models on one dataset are needed to compare queries."));
    return;
  }
  let entry;
  const [column, a, b] = ["x-column", "x-a", "x-b"].map(byId);
  column.append(...columns.map(([, index]) => new Option(data.columns[index], index)));
  const fill = () => {
    const { models } = entry;
    const keep = [a.value, b.value];
    const ranked = data.ranked.filter((m) => models.includes(m));
    const kept = keep.every((m) => m !== "" && models.includes(Number(m)));
    [a, b].forEach((select, i) => {
      select.replaceChildren(...ranked.map((m) => new Option(data.models[m][0], m)));
      select.value = kept ? keep[i] : ranked[i]; // at first the two best
    });
  };
  const show = () => compare(entry, Number(a.value), Number(b.value));
  const open = async () => {
    const wanted = column.value, unpacked = await unpack(Number(wanted));
    if (column.value !== wanted) return; // another dataset was chosen meanwhile
    entry = unpacked;
    fill();
    show();
  };
  column.addEventListener("change", open);
  [a, b].forEach((select) => select.addEventListener("change", show));
  byId("x-swap").addEventListener("click", () => { [a.value, b.value] = [b.value, a.value]; show(); });
  open();
}

// A dataset's part of the explorer: base64 of gzip of JSON.
async function unpack(column) {
  const bytes = Uint8Array.from(atob(data.explorer[column]), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function compare(entry, modelA, modelB) {
  const [a, b] = [modelA, modelB].map((model) => entry.models.indexOf(model));
  const [nameA, nameB] = [modelA, modelB].map((model) => data.models[model][0]);
  const wins = [entry.wins[a][b], entry.wins[b][a]];
  const equal = entry.total - wins[0] - wins[1];
  byId("x-summary").textContent = a === b ? "Choose two different models."
    : `${data.metric}: A is better on ${wins[0]} of ${entry.total} queries, B on ${wins[1]}, equal on ${equal}. `
      + significance(entry.holm[a][b])
      + `Shown: the largest differences, at most ${entry.rounds} each way.`;
  [["a", a, b, nameA], ["b", b, a, nameB]].forEach(([side, better, worse, name]) => {
    byId(`x-title-${side}`).textContent = `${side.toUpperCase()} better: ${name}`;
    byId(`x-list-${side}`).replaceChildren(...largest(entry, better, worse).map((query) => item(entry, query, [a, b], [nameA, nameB])));
  });
}

function significance(p) {
  if (p === null) return "";
  const shown = p < 0.001 ? "p < 0.001" : `p = ${p.toFixed(3)}`;
  return `The means ${p < 0.05 ? "differ significantly" : "don't differ significantly"} (${shown}, Holm-corrected). `;
}

function largest(entry, better, worse) {
  const difference = (query) => entry.values[better][query] - entry.values[worse][query];
  return entry.queries.map((_, query) => query).filter((query) => difference(query) > 0)
    .sort((p, q) => difference(q) - difference(p)).slice(0, entry.rounds);
}

function item(entry, query, models, names) {
  const [id, text] = entry.queries[query];
  const box = make("details"), summary = make("summary"), asked = make("span", text || id);
  const score = (model) => (entry.values[model][query] / 10000).toFixed(3);
  asked.dir = "auto";
  summary.append(asked, " ", make("span", `A ${score(models[0])}  B ${score(models[1])}`, "score"));
  box.append(summary);
  box.addEventListener("toggle", () => {
    if (box.childElementCount > 1) return;
    box.append(...models.map((model, i) => found(entry, query, model, `${"AB"[i]}: ${names[i]}`)));
  });
  return box;
}

function found(entry, query, model, title) {
  const box = make("div", undefined, "found"), list = make("ol");
  box.append(make("h4", title), list);
  for (const place of entry.hits[model][query]) {
    const [id, text] = entry.documents[place], grade = entry.grades[query][place];
    const line = make("li");
    line.dir = "auto";
    if (grade !== undefined) line.append(make("span", grade > 0 ? `relevant ${grade}` : "judged 0", grade > 0 ? "grade" : "grade muted"), " ");
    line.append(make("code", id), " ", make("bdi", text));
    list.append(line);
  }
  if (!list.childElementCount) box.append(make("p", "Nothing was retrieved.", "muted"));
  return box;
}

function verdictFilter() {
  const filter = byId("verdict-filter");
  if (!filter) return;
  filter.addEventListener("change", () => {
    for (const row of byId("verdict-table").tBodies[0].rows) {
      row.hidden = filter.value !== "" && row.dataset.verdict !== filter.value;
    }
  });
}

theme();
document.querySelectorAll("table.sortable").forEach(sortable);
document.querySelectorAll("table.board").forEach(grid);
document.querySelectorAll("[role=tablist]").forEach(tabs);
verdictFilter();
explorer();
