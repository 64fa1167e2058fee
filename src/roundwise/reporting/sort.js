// A click on a column's head sorts the table by it, a second one the other way. Without scripts the page lacks only this.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("span"); // browsers do not repeat a real button on the pages of a print
    button.setAttribute("role", "button");
    button.tabIndex = 0;
    button.append(...head.childNodes);
    head.append(button);
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const compare = (first, second) => {
        const [a, b] = [first, second].map((row) => row.cells[column]);
        if (!("value" in a.dataset)) return a.textContent.localeCompare(b.textContent) * (down ? -1 : 1);
        const [x, y] = [a, b].map((cell) => Number(cell.dataset.value));
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // at the end either way
        return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1);
      };
      body.append(...[...body.rows].sort(compare));
    };
    button.addEventListener("click", sort);
    button.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault(); // the space bar would scroll
      sort();
    });
  });
}
