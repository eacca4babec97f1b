"use strict";
// Curves of all runs as SVG, drawn at the width they have; one epoch is read in all of them at once.
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const RUNS = DATA.runs.map((run, i) => ({
    ...run,
    color: `var(--run-${i % 8})`,
    dash: ["", "7 4", "2 3", "10 3 2 3"][Math.floor(i / 8) % 4],
    shown: true,
  }));
  const HEIGHT = 210, LEFT = 46, RIGHT = 12, TOP = 10, BOTTOM = 28;
  let epochRead = null;
  const drawn = new Map(); // chart element → redraw and read functions

  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };

  const ticks = (low, high, wanted) => {
    const rough = (high - low) / wanted || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
    const first = Math.ceil(low / step - 1e-9);
    const last = Math.floor(high / step + 1e-9);
    return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => (first + i) * step);
  };

  const format = (value, chart) => {
    if (value === null || value === undefined) return "–";
    if (chart.percent) return (100 * value).toFixed(2);
    return Math.abs(value) >= 1e-3 || value === 0 ? String(+value.toPrecision(4)) : value.toExponential(2);
  };
  const tickText = (value) =>
    Math.abs(value) < 1e-3 && value !== 0 ? value.toExponential(0) : String(+value.toPrecision(6));

  const shorten = (name) => (name.length > 26 ? `${name.slice(0, 12)}…${name.slice(-11)}` : name);

  const runsOf = (chart) => RUNS.filter((run) => run.shown && run.values[chart.column]);

  function draw(holder, chart) {
    const plot = holder.querySelector(".plot");
    const width = Math.max(240, plot.clientWidth);
    const runs = runsOf(chart);
    const factor = chart.percent ? 100 : 1;
    const values = runs.flatMap((run) => run.values[chart.column]).filter((v) => v !== null).map((v) => v * factor);
    const epochs = runs.flatMap((run) => run.epochs);
    let low = Math.min(...values), high = Math.max(...values);
    if (!values.length) [low, high] = [0, 1];
    if (low === high) [low, high] = [low - Math.abs(low || 1) / 10, high + Math.abs(high || 1) / 10];
    const pad = (high - low) * 0.06;
    const floor = low >= 0 && low - pad < (high - low) / 3 ? 0 : low - pad;
    [low, high] = [floor, high + pad];
    const first = Math.min(...epochs, Infinity), last = Math.max(...epochs, -Infinity);
    const x = (epoch) => LEFT + (last > first ? (epoch - first) / (last - first) : 0.5) * (width - LEFT - RIGHT);
    const y = (value) => TOP + (1 - (value * factor - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    const lines = ticks(low, high, 5).map((tick) => {
      const place = y(tick / factor);
      return `<line class="grid" x1="${LEFT}" x2="${width - RIGHT}" y1="${place}" y2="${place}"/>` +
        `<text x="${LEFT - 8}" y="${place + 4}" text-anchor="end">${tickText(tick)}</text>`;
    });
    const marks = epochs.length
      ? ticks(first, last, Math.min(8, width / 60)).filter(Number.isInteger)
        .map((epoch) => `<text x="${x(epoch)}" y="${HEIGHT - 9}" text-anchor="middle">${epoch}</text>`)
      : [];
    marks.push(`<text x="${LEFT - 8}" y="${HEIGHT - 9}" text-anchor="end">epoch</text>`);
    const curves = runs.map((run) => {
      let path = "", open = false;
      run.values[chart.column].forEach((value, i) => {
        if (value === null) { open = false; return; }
        path += `${open ? "L" : "M"}${x(run.epochs[i]).toFixed(1)},${y(value).toFixed(1)}`;
        open = true;
      });
      const best = run.values[chart.column][run.epochs.indexOf(run.best)];
      const ring = best === null || best === undefined ? ""
        : `<circle class="best" cx="${x(run.best)}" cy="${y(best)}" r="4" style="stroke:${run.color}"/>`;
      const alone = run.epochs.length === 1 ? ' stroke-linecap="round"' : "";
      return `<path class="curve" d="${path}${alone ? "h0.01" : ""}" style="stroke:${run.color}" stroke-dasharray="${run.dash}"${alone}/>${ring}`;
    });
    plot.innerHTML = `<svg width="${width}" height="${HEIGHT}" viewBox="0 0 ${width} ${HEIGHT}" tabindex="0" role="img" ` +
      `aria-label="${holder.dataset.title} over epochs">${lines.join("")}${marks.join("")}` +
      `<line class="axis" x1="${LEFT}" x2="${width - RIGHT}" y1="${HEIGHT - BOTTOM}" y2="${HEIGHT - BOTTOM}"/>` +
      `${curves.join("")}<g class="cursor"></g></svg>`;
    const svg = plot.firstChild;
    const all = [...new Set(epochs)].sort((a, b) => a - b);
    const nearest = (event) => {
      const place = event.clientX - svg.getBoundingClientRect().left;
      return all.reduce((a, b) => (Math.abs(x(b) - place) < Math.abs(x(a) - place) ? b : a), all[0]);
    };
    svg.addEventListener("pointermove", (event) => all.length && read(nearest(event), holder));
    svg.addEventListener("pointerdown", (event) => all.length && read(nearest(event), holder));
    svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && read(null));
    svg.addEventListener("blur", () => read(null));
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step || !all.length) return;
      event.preventDefault();
      const place = epochRead === null ? (step > 0 ? -1 : all.length) : all.indexOf(epochRead);
      read(all[Math.min(all.length - 1, Math.max(0, place + step))], holder);
    });
    drawn.set(holder, {
      redraw: () => draw(holder, chart),
      read: (epoch, asked) => showCursor(holder, chart, epoch, asked, x, y, width),
    });
  }

  function showCursor(holder, chart, epoch, asked, x, y, width) {
    const cursor = holder.querySelector(".cursor");
    const tip = holder.querySelector(".tip");
    tip.hidden = epoch === null || !asked;
    if (epoch === null) { cursor.innerHTML = ""; return; }
    const rows = runsOf(chart)
      .map((run) => [run, run.values[chart.column][run.epochs.indexOf(epoch)]])
      .filter(([, value]) => value !== undefined);
    const dots = rows.filter(([, value]) => value !== null)
      .map(([run, value]) => `<circle cx="${x(epoch)}" cy="${y(value)}" r="4" style="fill:${run.color}"/>`);
    cursor.innerHTML = `<line x1="${x(epoch)}" x2="${x(epoch)}" y1="${TOP}" y2="${HEIGHT - BOTTOM}"/>${dots.join("")}`;
    if (!asked) return;
    tip.replaceChildren(element("strong", { textContent: `Epoch ${epoch}` }),
      ...rows.map(([run, value]) => {
        const key = element("span", { className: "key" });
        key.style.background = run.color;
        return element("div", {}, key, element("b", { textContent: format(value, chart) }), ` ${shorten(run.name)}`);
      }));
    const right = x(epoch) > width / 2;
    tip.style.left = right ? "" : `${x(epoch) + 12}px`;
    tip.style.right = right ? `${width - x(epoch) + 12}px` : "";
  }

  function read(epoch, holder = null) {
    epochRead = epoch;
    for (const [each, chart] of drawn) if (each.isConnected) chart.read(epoch, each === holder);
  }

  const redrawAll = () => { for (const chart of drawn.values()) chart.redraw(); };

  function addCharts(parent, charts) {
    for (const chart of charts) {
      const title = chart.percent ? `${chart.title}, %` : chart.title;
      const holder = element("figure", { className: "card chart" },
        element("figcaption", { textContent: title }),
        element("div", { className: "plot" }), element("div", { className: "tip", hidden: true }));
      holder.dataset.title = title.replace(/["<>&]/g, "");
      holder.dataset.column = chart.column;
      parent.append(holder);
      draw(holder, chart);
    }
  }

  const legend = document.getElementById("legend");
  for (const run of RUNS) {
    const key = element("span", { className: "line-key" });
    key.style.borderTopColor = run.color;
    key.style.borderTopStyle = run.dash ? "dashed" : "solid";
    const button = element("button", { type: "button", ariaPressed: "true" }, key,
      `${run.group ? `${run.group} · ` : ""}${run.name}`);
    button.addEventListener("click", () => {
      run.shown = !run.shown;
      button.ariaPressed = String(run.shown);
      redrawAll();
    });
    legend.append(button);
  }
  document.querySelectorAll(".stages .key").forEach((key, i) => { // the tables list runs in order
    key.style.background = RUNS[i].color;
  });

  addCharts(document.getElementById("main-charts"), DATA.charts.filter((chart) => chart.main));
  const more = document.getElementById("more");
  const others = DATA.charts.filter((chart) => !chart.main);
  more.hidden = !others.length;
  more.addEventListener("toggle", () => {
    const parent = document.getElementById("other-charts");
    if (more.open && !parent.firstChild) addCharts(parent, others);
  });
  let waiting = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(redrawAll);
  });
})();
