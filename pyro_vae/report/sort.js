// A click on a column's name sorts by it, another click the other way round; what is no number comes last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const isNumber = text => text !== "" && !isNaN(text);
    const rows = [...table.tBodies[0].rows].sort((one, other) => {
      const [a, b] = [key(one), key(other)];
      if (isNumber(a) && isNumber(b)) return (a - b) * sign;
      if (isNumber(a) !== isNumber(b)) return isNumber(a) ? -1 : 1;
      return a.localeCompare(b) * sign;
    });
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    table.tBodies[0].append(...rows);
  }));
}
