"use strict";
// The page is readable without this script, which adds sorting, filtering and hover texts.
for (const element of document.querySelectorAll(".needs-script")) element.hidden = false;

// sorting: a header is a button; unknown values come last in either direction
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") !== "ascending";
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", up ? "ascending" : "descending");
      const numeric = header.classList.contains("number");
      const key = (row) => {
        const cell = row.cells[column];
        if (!numeric) return cell.textContent;
        return "value" in cell.dataset ? Number(cell.dataset.value) : null;
      };
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === null || y === null) return (x === null) - (y === null);
        const difference = numeric ? x - y : x.localeCompare(y, undefined, { numeric: true });
        return up ? difference : -difference;
      };
      body.append(...[...body.rows].sort(order));
    });
  });
}

// filtering the ranking
const filter = document.getElementById("filter");
if (filter) {
  const rows = [...document.getElementById("ranks").tBodies[0].rows];
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    const shown = rows.filter((row) => !row.hidden).length;
    document.getElementById("matches").textContent =
      words.length ? `${shown} of ${rows.length} variants` : "";
  });
}

// show all variants, or none
for (const button of document.querySelectorAll("[data-show]")) {
  button.addEventListener("click", () => {
    for (const box of document.querySelectorAll(".variants input"))
      box.checked = button.dataset.show === "all";
  });
}

// an SVG's titles as hover texts; the title of a whole chart becomes its label
const tip = document.createElement("div");
tip.id = "tip";
tip.hidden = true;
tip.setAttribute("aria-hidden", "true");
document.body.append(tip);
for (const chart of document.querySelectorAll("svg.chart")) {
  const title = chart.querySelector(":scope > title");
  if (title) {
    chart.removeAttribute("aria-labelledby");
    chart.setAttribute("aria-label", title.textContent);
    const text = chart.querySelector(":scope > desc");
    if (text) chart.setAttribute("aria-describedby", text.id);
    title.remove();
  }
  for (const said of chart.querySelectorAll("title")) {
    said.parentNode.dataset.tip = said.textContent;
    said.remove();
  }
}
const point = (event) => {
  const target = event.target.closest && event.target.closest("[data-tip]");
  tip.hidden = !target;
  if (!target) return;
  tip.textContent = target.dataset.tip;
  const box = tip.getBoundingClientRect();
  const left = Math.min(event.clientX + 12, innerWidth - box.width - 8);
  const above = event.clientY - box.height - 12;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${above < 4 ? event.clientY + 16 : above}px`;
};
document.addEventListener("pointermove", point);
document.addEventListener("pointerdown", point);
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
