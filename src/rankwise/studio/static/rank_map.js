// A map of ranks: a line for each kind of layer, a column for each block, darker where more rank remains.
import { element } from "./chart.js";

const LEFT = 96, TOP = 22, CELL = 24;

export function drawRanks(place, about, ranks) {
  const { blocks, kinds, cells } = ranks, largest = Math.max(1, ...cells.flat().map((one) => one ?? 0));
  const svg = element("svg", { width: LEFT + CELL * blocks.length + 2, height: TOP + CELL * kinds.length + 2, role: "img" });
  const sums = kinds.map((kind, row) => `${kind} ${cells.reduce((sum, block) => sum + (block[row] ?? 0), 0)}`);
  svg.setAttribute("aria-label", `Ranks by kind of layer: ${sums.join(", ")}`);
  const apart = blocks.length <= 40 ? 1 : 5;
  blocks.forEach((block, column) => {
    if (column % apart === 0) svg.append(element("text", { x: LEFT + CELL * (column + 0.5), y: TOP - 8, "text-anchor": "middle" }, block || "other"));
  });
  kinds.forEach((kind, row) => {
    svg.append(element("text", { x: LEFT - 8, y: TOP + CELL * row + 16, "text-anchor": "end" }, kind.slice(-13)));
    blocks.forEach((_, column) => {
      const rank = cells[column][row];
      if (rank === null || rank === undefined) return;
      const share = rank / largest, x = LEFT + CELL * column, y = TOP + CELL * row;
      svg.append(element("rect", { x: x + 1, y: y + 1, width: CELL - 2, height: CELL - 2, rx: 3, class: rank ? "rank" : "rank none", "fill-opacity": rank ? 0.06 + 0.42 * share : 1 }));
      svg.append(element("text", { x: x + CELL / 2, y: y + 16, "text-anchor": "middle", class: rank ? "in" : "" }, String(rank)));
    });
  });
  place.replaceChildren(svg);
  const now = `after step ${ranks.step}: ${ranks.budget?.toLocaleString("en")} of ${ranks.of?.toLocaleString("en")} ${ranks.unit}`;
  about.textContent = `Where rank remains ${now}${ranks.final ? ", which is final" : ""}.`;
}
