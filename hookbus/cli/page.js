"use strict";
// Says below each picture what its curves are where the pointer is; the arrow keys move it, too.
for (const figure of document.querySelectorAll("figure[data-curves]")) {
  const { box: [left, above, right, below], range: [first, last], unit, lines } = JSON.parse(figure.dataset.curves);
  const svg = figure.querySelector("svg");
  const caption = figure.querySelector("figcaption");
  const pointer = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const iterations = [...new Set(lines.flatMap((line) => line.iters))].sort((a, b) => a - b);
  let at = iterations.length - 1;

  const nearest = (sorted, wanted) => {
    let low = 0;
    let high = sorted.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < wanted) low = middle + 1; else high = middle;
    }
    return low > 0 && wanted - sorted[low - 1] < sorted[low] - wanted ? low - 1 : low;
  };

  const worded = (value) => {
    if (value === null) return "none";
    if (unit !== "s") return `${Number(value.toPrecision(4))} ${unit}`.trim();
    return value >= 1 ? `${Number(value.toPrecision(3))} s` : `${Number((value * 1000).toPrecision(3))} ms`;
  };

  const show = () => {
    const iteration = iterations[at];
    const across = left + (right - left) * (iteration - first) / (last - first);
    for (const [name, value] of [["x1", across], ["x2", across], ["y1", above], ["y2", below]]) pointer.setAttribute(name, value);
    pointer.setAttribute("class", "pointer");
    svg.append(pointer);
    caption.replaceChildren(`iteration ${iteration}`);
    for (const line of lines) {
      const name = document.createElement("b");
      name.className = line.role;
      name.textContent = line.label;
      caption.append("  ", name, ` ${worded(line.values[nearest(line.iters, iteration)])}`);
    }
  };

  const hide = () => {
    pointer.remove();
    caption.replaceChildren();
  };

  svg.addEventListener("pointermove", (event) => {
    const place = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    at = nearest(iterations, first + (last - first) * (place.x - left) / (right - left));
    show();
  });
  svg.addEventListener("pointerleave", hide);
  figure.addEventListener("blur", hide);
  figure.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    at = Math.min(iterations.length - 1, Math.max(0, at + step));
    show();
  });
}
