"use strict";
// Shared by the sections' scripts, which are inlined behind this one.

const readData = (id) => JSON.parse(document.getElementById(id).textContent);

document.documentElement.classList.add("scripted");

// Tables that a click on a head sorts: by numbers in data-sort where there are any, else by words; empty cells last.
const sortable = (table) => {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending";
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        const sign = up ? 1 : -1;
        return sign * (Number.isNaN(Number(x) - Number(y)) ? x.localeCompare(y) : Number(x) - Number(y));
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    });
  });
};

document.querySelectorAll("table.sortable").forEach(sortable);
