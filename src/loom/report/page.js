// Reads a chart's values under the pointer. The page is complete without it.
for (const plot of document.querySelectorAll(".plot[data-series]")) {
  const series = JSON.parse(plot.dataset.series);
  const low = Number(plot.dataset.low), high = Number(plot.dataset.high);
  const cursor = plot.querySelector(".cursor");
  const readout = plot.querySelector(".readout");
  const nearest = (points, step) => {
    let a = 0, b = points.length - 1;
    while (b - a > 1) { const m = (a + b) >> 1; points[m][0] < step ? (a = m) : (b = m); }
    return step - points[a][0] < points[b][0] - step ? points[a] : points[b];
  };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const at = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const step = low + at * (high - low);
    cursor.style.left = 100 * at + "%";
    cursor.style.opacity = 0.35;
    readout.textContent = "step " + Math.round(step).toLocaleString("en") + series
      .map((line) => "  ·  " + line.name + " " + nearest(line.points, step)[1]).join("");
  });
  plot.addEventListener("pointerleave", () => { cursor.style.opacity = 0; readout.textContent = ""; });
}
