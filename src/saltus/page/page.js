"use strict";
// Values under the pointer.
const written = (v) => {
  const a = Math.abs(v);
  if (v === 0) return "0";
  if (a >= 1e-4 && a < 1e6) return v.toLocaleString("en", { maximumSignificantDigits: a >= 1000 ? 6 : 4 });
  return v.toExponential(2);
};
const part = (axis, v) => axis[2] ? Math.log(v / axis[0]) / Math.log(axis[1] / axis[0]) : (v - axis[0]) / (axis[1] - axis[0]);
const nearest = (xs, x) => {
  let a = 0, b = xs.length - 1;
  while (b - a > 1) { const m = (a + b) >> 1; if (xs[m] < x) a = m; else b = m; }
  return Math.abs(xs[a] - x) <= Math.abs(xs[b] - x) ? a : b;
};
for (const chart of document.querySelectorAll(".chart")) {
  const plot = chart.querySelector(".plot");
  const numbers = JSON.parse(chart.querySelector("script").textContent);
  let hair, tip;
  const leave = () => { hair?.remove(); tip?.remove(); hair = tip = undefined; };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const [low, high, log] = numbers.x;
    const f = Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
    const x = log ? low * (high / low) ** f : low + f * (high - low);
    const found = numbers.lines.map((l) => [l, nearest(l.x, x)]);
    const at = found.map(([l, k]) => l.x[k]).reduce((p, q) => Math.abs(q - x) < Math.abs(p - x) ? q : p);
    if (!hair) {
      plot.append(hair = document.createElement("i"), tip = document.createElement("div"));
      hair.className = "hair"; tip.className = "tip";
    }
    const place = part(numbers.x, at);
    hair.style.left = 100 * place + "%";
    tip.replaceChildren(...[["", written(at) + " " + numbers.below, ""], ...found.map(([l, k]) => [l.name, written(l.y[k]), "c" + l.colour])].map(([name, value, kind]) => {
      const line = document.createElement("div");
      line.textContent = name ? name + "  " + value : value;
      line.className = kind;
      return line;
    }));
    tip.style.left = place < .5 ? `calc(${100 * place}% + 8px)` : "auto";
    tip.style.right = place < .5 ? "auto" : `calc(${100 - 100 * place}% + 8px)`;
  });
  plot.addEventListener("pointerleave", leave);
}
// One picture of several.
for (const grids of document.querySelectorAll(".grids")) {
  const slide = grids.querySelector("input"), frames = [...grids.querySelectorAll(".frame")];
  slide?.addEventListener("input", () => {
    frames.forEach((frame, k) => { frame.hidden = k !== +slide.value; });
    grids.querySelector("output").textContent = frames[+slide.value].dataset.said;
  });
}
// How old the page is; a training run whose page has not been written for long has perhaps ended.
const stamp = document.querySelector("time[data-at]"), state = document.querySelector(".status.training");
if (stamp && state) {
  const tell = () => {
    const s = Math.max(0, Date.now() / 1000 - +stamp.dataset.at);
    const ago = s < 90 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : s < 129600 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86400)} days`;
    stamp.textContent = ago + " ago";
    if (s > 600) {
      state.className = "status stopped";
      state.textContent = `no news for ${ago}`;
    }
  };
  tell();
  setInterval(tell, 5000);
}
