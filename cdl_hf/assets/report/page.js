"use strict";

// A number starts the cell (the mean, before ± or an interval); empty cells stay last.
function valueOf(row, column, isNumber) {
  const text = row.cells[column].innerText.trim();
  if (!isNumber || text === "") return text;
  return parseFloat(text.replace(/,/g, ""));
}

function sortBy(table, column) {
  const header = table.tHead.rows[0].cells[column];
  const isNumber = header.style.textAlign === "right";
  const first = isNumber ? "descending" : "ascending"; // the best on top
  const other = isNumber ? "ascending" : "descending";
  const order = header.getAttribute("aria-sort") === first ? other : first;
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, column, isNumber), row]);
  rows.sort(([a], [b]) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return sign * (isNumber ? a - b : a.localeCompare(b, "en", { numeric: true }));
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

function filterRows(table, text, count) {
  const words = text.toLowerCase().split(/\s+/);
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const content = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => content.includes(word));
    shown += !row.hidden;
  }
  count.textContent = `${shown} of ${table.tBodies[0].rows.length} rows`;
}

function addFilter(box, table) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("span");
  const line = document.createElement("div");
  input.type = "search";
  input.setAttribute("aria-label", `Filter rows: ${box.getAttribute("aria-label")}`);
  label.append("Filter rows ", input);
  count.setAttribute("role", "status");
  line.className = "filter";
  line.append(label, count);
  input.addEventListener("input", () => filterRows(table, input.value, count));
  box.before(line);
}

for (const box of document.querySelectorAll(".table")) {
  const table = box.querySelector("table");
  const numRows = table.tBodies.length ? table.tBodies[0].rows.length : 0;
  if (numRows < 2) continue;
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = document.createElement("button");
    button.setAttribute("aria-label", `Sort by ${cell.textContent}`);
    cell.className = "sorts";
    cell.addEventListener("click", () => sortBy(table, column)); // a click on the button gets here too
    cell.append(button);
  });
  if (numRows >= 8) addFilter(box, table);
}

const contents = document.querySelector("nav details");
contents.open = matchMedia("(min-width: 84rem)").matches;

// What is folded is printed too, and a link into it opens it.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("main details:not([open])")];
  for (const details of folded) details.open = true;
});
addEventListener("afterprint", () => {
  for (const details of folded) details.open = false;
});
