// Layers by heads or positions: read with the pointer or the arrow keys, choose with a click or
// Enter. What it shows comes from the kernel as one value, so that no half of it is ever drawn.
const SVG = "http://www.w3.org/2000/svg";
const MOST_PX = 26, LEAST_PX = 12, ALL_PX = 420, NAME_PX = 62, LEFT = 42, TOP = 6, BELOW = 40;
const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
const KEYS = "arrow keys read a cell, Enter chooses it";

function add(parent, name, attributes, text = "") {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  parent.append(element);
  return element;
}

function sizes(map) {
  const rows = map.layers.length, columns = map.columns.length;
  const height = Math.max(LEAST_PX, Math.min(MOST_PX, ALL_PX / Math.max(rows, columns)));
  const width = map.columns.every((name) => name.length < 4) ? height : NAME_PX;
  return { rows, columns, height, width };
}

function words(map, row, column) {
  const [value, low, high] = [map.values, map.low, map.high].map(
    (each) => each[row][column]?.toPrecision(3).replace("-", "−"));
  const interval = low === undefined ? "" : `, 95 % interval ${low} to ${high}`;
  const where = `layer ${map.layers[row]}, ${map.across} ${map.columns[column]}`;
  return `${where}: ${value ?? "not measured"}${interval}`;
}

function draw(svg, map) {
  svg.replaceChildren();
  const { rows, columns, height, width } = sizes(map);
  svg.setAttribute("width", LEFT + columns * width + 4);
  svg.setAttribute("height", TOP + rows * height + BELOW);
  const label = (x, y, anchor, text) => add(svg, "text", { x, y, "text-anchor": anchor }, text);
  const every = (count) => (count <= 16 ? 1 : 4);
  const grid = add(svg, "g", { role: "grid", "aria-label": `${map.label}: ${KEYS}` });
  map.values.forEach((line, row) => {
    const y = TOP + row * height, cells = add(grid, "g", { role: "row" });
    if (row % every(rows) === 0) label(LEFT - 5, y + height / 2 + 4, "end", map.layers[row]);
    line.forEach((value, column) => {
      const x = LEFT + column * width, fill = map.colours[row][column];
      add(cells, "rect", {
        x, y, width, height, fill, "data-cell": `${row},${column}`, role: "gridcell",
        "aria-label": words(map, row, column), tabindex: row || column ? -1 : 0,
      });
    });
  });
  map.columns.forEach((name, column) => {
    if (width === NAME_PX || column % every(columns) === 0)
      label(LEFT + (column + 0.5) * width, TOP + rows * height + 15, "middle", name);
  });
  label(LEFT + (columns * width) / 2, TOP + rows * height + 33, "middle", map.across);
  label(12, TOP + (rows * height) / 2, "middle", "layer").setAttribute(
    "transform", `rotate(-90 12 ${TOP + (rows * height) / 2})`);
  for (const [row, column] of map.framed) frame(svg, map, row, column, "patchlib-found");
}

function frame(svg, map, row, column, name) {
  const { height, width } = sizes(map);
  const place = { x: LEFT + column * width, y: TOP + row * height, width, height };
  return add(svg, "rect", { ...place, class: name, "aria-hidden": true });
}

function render({ model, el }) {
  const box = document.createElement("div");
  box.className = "patchlib-map";
  box.innerHTML = '<div class="patchlib-title"></div><svg></svg>' +
    '<div class="patchlib-bar"><span></span><i></i><span></span></div>' +
    '<div class="patchlib-read" aria-hidden="true"></div>';
  const [title, svg, bar, reading] = box.children;
  el.append(box);
  let at = [0, 0];
  function read({ target }) {
    if (!target.dataset.cell) return;
    const map = model.get("shown"), choosable = map.choosable ? " · click for its attention" : "";
    at = target.dataset.cell.split(",").map(Number);
    svg.querySelector(".patchlib-at")?.remove();
    frame(svg, map, ...at, "patchlib-at");
    reading.textContent = words(map, ...at) + choosable;
  }
  function choose() {
    if (!model.get("shown").choosable) return;
    model.set("chosen", at);
    model.save_changes();
  }
  function mark() {
    svg.querySelector(".patchlib-chosen")?.remove();
    const map = model.get("shown"), [row, column] = model.get("chosen");
    if (map.choosable && row !== undefined) frame(svg, map, row, column, "patchlib-chosen");
  }
  function redraw() {
    const map = model.get("shown"), empty = !map.values;
    box.style.display = empty ? "none" : "";
    svg.replaceChildren();
    if (empty) return;
    title.textContent = map.title;
    draw(svg, map);
    bar.children[0].textContent = `${map.label}  −${map.limit.toPrecision(2)}`;
    bar.children[1].style.background = `linear-gradient(to right, ${map.bar.join()})`;
    bar.children[2].textContent = map.limit.toPrecision(2);
    reading.textContent = `Point at a cell, or Tab to the map: ${KEYS}`;
    mark();
  }

  svg.addEventListener("pointermove", read);
  box.addEventListener("focusin", read);
  svg.addEventListener("click", choose);
  svg.addEventListener("keydown", (event) => {
    const step = STEPS[event.key], { rows, columns } = sizes(model.get("shown"));
    if (step) {
      const row = Math.min(rows - 1, Math.max(0, at[0] + step[0]));
      const column = Math.min(columns - 1, Math.max(0, at[1] + step[1]));
      svg.querySelector(`[data-cell="${row},${column}"]`).focus();
    } else if (event.key === "Enter" || event.key === " ") choose();
    else return;
    // The notebook has its own use for these keys.
    event.preventDefault();
    event.stopPropagation();
  });
  model.on("change:shown", redraw);
  model.on("change:chosen", mark);
  redraw();
  return () => { model.off("change:shown", redraw); model.off("change:chosen", mark); };
}
export default { render };
