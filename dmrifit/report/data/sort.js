// Tables of cases: a click on a heading sorts the rows by its column, first from the largest down, then the other way.
"use strict";

function sortKey(row, column) {
  const text = row.cells[column].textContent.trim(), number = parseFloat(text.replaceAll("\u2212", "-"));
  return [Number.isNaN(number) ? -Infinity : number, text];
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const heading of table.querySelectorAll("th:not(:empty)")) {
    const button = Object.assign(document.createElement("button"), { type: "button" });
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const sign = heading.ariaSort === "descending" ? 1 : -1, body = table.tBodies[0];
      for (const other of table.querySelectorAll("th")) other.ariaSort = "none";
      heading.ariaSort = sign < 0 ? "descending" : "ascending";
      const keys = [...body.rows].map((row) => [row, ...sortKey(row, heading.cellIndex)]);
      keys.sort(([, a, s], [, b, t]) => sign * (a === b ? s.localeCompare(t, undefined, { numeric: true }) : a < b ? -1 : 1));
      body.append(...keys.map(([row]) => row));
    });
  }
}
