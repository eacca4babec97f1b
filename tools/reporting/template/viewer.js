"use strict";
// The gallery: two canvases above each other, the upper one clipped where the slider stands.
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent).gallery;
  const $ = (id) => document.getElementById(id);
  const LAYERS = ["prediction", "label", "error"];
  const OUTLINES = { label: "#fff", prediction: "#000" };
  const F_SCORE = DATA.binary ? "F1" : "F_scd";
  // Of change masks both dates show the only one.
  const ofDate = (masks, date) => masks[Math.min(date, masks.length - 1)];
  const isPossible = (_, kind) => kind && !(DATA.binary && kind === 2); // 2: a wrong class
  const labelled = DATA.pairs.some((pair) => pair.labels.length);
  const SORTS = labelled
    ? [["error", "largest error"], ["-f_score", `lowest ${F_SCORE}`], ["changed", "most change"], ["name", "name"]]
    : [["changed", "most predicted change"], ["name", "name"]];
  const state = { order: [], at: 0, palette: "data", show: { prediction: true, label: false, error: false } };
  const decoded = new Map();
  const percent = (value) => `${(100 * value).toFixed(1)} %`;
  const canvasOf = (width, height) => Object.assign(document.createElement("canvas"), { width, height });

  async function load(uri) {
    const image = new Image();
    image.src = uri;
    await image.decode();
    return image;
  }

  async function readMask(uri) {
    const image = await load(uri);
    const canvas = canvasOf(image.width, image.height);
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const grey = context.getImageData(0, 0, image.width, image.height).data;
    const mask = new Uint8Array(grey.length / 4);
    for (let i = 0; i < mask.length; i++) mask[i] = Math.round(grey[4 * i] / DATA.step);
    return mask;
  }

  const compare = (prediction, label) => prediction.map((found, i) => {
    const right = label[i];
    if (found === right) return right ? 1 : 0;
    return right && found ? 2 : found ? 3 : 4; // the order of the error kinds
  });

  function decodePair(pair) {
    if (!decoded.has(pair)) {
      decoded.set(pair, (async () => {
        const images = await Promise.all(pair.images.map(load));
        const prediction = await Promise.all(pair.predictions.map(readMask));
        const label = await Promise.all(pair.labels.map(readMask));
        return { images, prediction, label, error: label.map((mask, i) => compare(prediction[i], mask)) };
      })());
    }
    return decoded.get(pair);
  }

  const colorsOf = (layer) =>
    layer === "error" ? DATA.errors.map((kind) => kind.color) : DATA.palettes[state.palette];

  // Unchanged pixels are clear where a map lies on an image, else they have their colour.
  function paintMask(mask, width, height, layer, clear = true) {
    const canvas = canvasOf(width, height);
    const context = canvas.getContext("2d");
    const image = context.createImageData(width, height);
    const colors = new Uint32Array(256); // index → bytes of red, green, blue, alpha; 0 is clear
    colorsOf(layer).forEach((color, i) => (i || !clear) && new Uint8Array(colors.buffer).set([...color, 255], 4 * i));
    const pixels = new Uint32Array(image.data.buffer);
    for (let i = 0; i < mask.length; i++) pixels[i] = colors[mask[i]];
    context.putImageData(image, 0, 0);
    return canvas;
  }

  function outline(context, mask, width, height, scale, color) {
    context.beginPath();
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        if (x + 1 < width && mask[i] !== mask[i + 1]) {
          context.moveTo((x + 1) * scale, y * scale);
          context.lineTo((x + 1) * scale, (y + 1) * scale);
        }
        if (y + 1 < height && mask[i] !== mask[i + width]) {
          context.moveTo(x * scale, (y + 1) * scale);
          context.lineTo((x + 1) * scale, (y + 1) * scale);
        }
      }
    }
    const size = Math.max(width, height) * scale;
    for (const [style, share] of [[color === "#fff" ? "#000a" : "#fffa", 240], [color, 420]]) {
      context.strokeStyle = style;
      context.lineWidth = Math.max(1, size / share);
      context.stroke();
    }
  }

  async function drawStage() {
    const pair = state.order[state.at];
    const parts = await decodePair(pair);
    if (pair !== state.order[state.at]) return; // another one was chosen meanwhile
    const { width, height } = pair;
    const scale = Math.max(1, Math.floor(1100 / Math.max(width, height)));
    const active = LAYERS.filter((layer) => state.show[layer] && parts[layer].length);
    const filled = ["error", "prediction", "label"].find((layer) => active.includes(layer));
    ["before", "after"].forEach((name, date) => {
      const canvas = Object.assign($(name), { width: width * scale, height: height * scale });
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(parts.images[date], 0, 0, canvas.width, canvas.height);
      if (filled) {
        context.globalAlpha = $("opacity").value / 100;
        context.imageSmoothingEnabled = false;
        context.drawImage(paintMask(ofDate(parts[filled], date), width, height, filled), 0, 0, canvas.width, canvas.height);
        context.globalAlpha = 1;
      }
      for (const layer of active) {
        if (layer !== filled) outline(context, ofDate(parts[layer], date), width, height, scale, OUTLINES[layer]);
      }
    });
    $("stage").dataset.pair = pair.name;
  }

  async function drawGlance() {
    const pair = state.order[state.at];
    const parts = await decodePair(pair);
    if (pair !== state.order[state.at]) return;
    const titles = { label: "Label", prediction: "Prediction", error: "Errors" };
    const layers = ["label", "prediction", "error"].filter((layer) => parts[layer].length);
    const figures = (DATA.binary ? [0] : [0, 1]).flatMap((date) =>
      layers.map((layer) => {
        const figure = document.createElement("figure");
        const caption = document.createElement("figcaption");
        caption.textContent = DATA.binary ? titles[layer] : `${titles[layer]} ${date + 1}`;
        figure.append(paintMask(parts[layer][date], pair.width, pair.height, layer, layer === "error"), caption);
        return figure;
      }));
    $("glance").replaceChildren(...figures);
  }

  function sweep(value) {
    const share = Math.min(100, Math.max(0, value));
    $("sweep").value = share;
    $("sweep").setAttribute("aria-valuetext", `${Math.round(share)} % date 1`);
    $("after").style.clipPath = `inset(0 0 0 ${share}%)`;
    $("stage").style.setProperty("--cut", `${share}%`);
  }

  function show(at) {
    state.at = (at + state.order.length) % state.order.length;
    const pair = state.order[state.at];
    $("pair-name").textContent = pair.name;
    const facts = [`${state.at + 1} of ${state.order.length}`];
    if (pair.error !== null) facts.push(`${percent(pair.error)} wrong`, `${F_SCORE} ${(100 * pair.f_score).toFixed(1)}`);
    facts.push(`${percent(pair.changed)} ${labelled ? "changed" : "predicted to change"}`);
    facts.push(`${pair.fullWidth} × ${pair.fullHeight} pixels`);
    $("pair-scores").textContent = facts.join(" · ");
    $("stage").style.aspectRatio = `${pair.width} / ${pair.height}`;
    $("readout").textContent = "Point at the picture to read its classes.";
    for (const button of $("thumbs").children) {
      const current = button.dataset.name === pair.name;
      button.ariaCurrent = String(current);
      const list = $("thumbs"); // scrolls the list alone, never the page
      if (current && list.scrollHeight > list.clientHeight) {
        list.scrollTop = button.offsetTop - list.offsetTop - list.clientHeight / 2 + button.clientHeight / 2;
      } else if (current) {
        list.scrollLeft = button.offsetLeft - list.offsetLeft - list.clientWidth / 2 + button.clientWidth / 2;
      }
    }
    drawStage();
    drawGlance();
  }

  async function drawThumb(canvas, pair) {
    const { images, error, prediction } = await decodePair(pair);
    const context = canvas.getContext("2d");
    context.drawImage(images[1], 0, 0, canvas.width, canvas.height);
    const [mask, layer] = labelled ? [ofDate(error, 1).map((kind) => (kind === 1 ? 0 : kind)), "error"] : [ofDate(prediction, 1), "prediction"];
    context.globalAlpha = 0.8;
    context.imageSmoothingEnabled = false;
    context.drawImage(paintMask(mask, pair.width, pair.height, layer), 0, 0, canvas.width, canvas.height);
  }

  function fillThumbs() {
    const key = $("sort").value;
    const sign = key.startsWith("-") ? 1 : -1;
    const field = key.replace("-", "");
    const byName = (a, b) => a.name.localeCompare(b.name, "en", { numeric: true });
    state.order = [...DATA.pairs].sort((a, b) =>
      field === "name" ? byName(a, b) : sign * (a[field] - b[field]) || byName(a, b));
    $("thumbs").replaceChildren(...state.order.map((pair, at) => {
      const button = Object.assign(document.createElement("button"), { type: "button" });
      button.dataset.name = pair.name;
      const scale = 160 / Math.max(pair.width, pair.height);
      const canvas = canvasOf(Math.round(pair.width * scale), Math.round(pair.height * scale));
      const text = document.createElement("span");
      const value = { "-f_score": `${F_SCORE} ${(100 * pair.f_score).toFixed(1)}`, changed: percent(pair.changed) }[key]
        ?? (pair.error === null ? "" : percent(pair.error));
      text.append(Object.assign(document.createElement("b"), { textContent: pair.name }), ` ${value}`);
      button.append(canvas, text);
      button.addEventListener("click", () => show(at));
      drawThumb(canvas, pair);
      return button;
    }));
    show(0);
  }

  function fillKeys() {
    const item = ({ name, color }) => {
      const swatch = Object.assign(document.createElement("span"), { className: "swatch" });
      swatch.style.background = `rgb(${color})`;
      const entry = document.createElement("li");
      entry.append(swatch, name);
      return entry;
    };
    const palette = DATA.palettes[state.palette];
    const entries = DATA.classes.map((name, i) => ({ name, color: palette[i] }));
    $("class-key").replaceChildren(...entries.slice(1).map(item));
    $("error-key").replaceChildren(...(labelled ? DATA.errors.filter(isPossible).map(item) : []));
    for (const swatch of document.querySelectorAll(".swatch[data-class]")) {
      swatch.style.background = `rgb(${palette[swatch.dataset.class]})`;
    }
  }

  function toggleLayer(layer) {
    const button = $("layers").querySelector(`[data-layer="${layer}"]`);
    if (!button || button.hidden) return;
    state.show[layer] = !state.show[layer];
    button.ariaPressed = String(state.show[layer]);
    drawStage();
  }

  const place = (event) => {
    const box = $("stage").getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  };

  async function readClasses(event) {
    const pair = state.order[state.at];
    const parts = await decodePair(pair);
    const [x, y] = place(event).map((share, i) => Math.floor(share * (i ? pair.height : pair.width)));
    if (x < 0 || y < 0 || x >= pair.width || y >= pair.height || pair !== state.order[state.at]) return;
    const at = y * pair.width + x;
    const texts = parts.prediction.map((mask, date) => {
      const truth = parts.label.length ? `label ${DATA.classes[parts.label[date][at]]}, ` : "";
      return `${DATA.binary ? "" : `date ${date + 1}: `}${truth}predicted ${DATA.classes[mask[at]]}`;
    });
    $("readout").textContent = `x ${x}, y ${y} · ${texts.join(" · ")}`;
  }

  const stage = $("stage");
  stage.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    stage.setPointerCapture(event.pointerId);
    sweep(100 * place(event)[0]);
    $("sweep").focus({ preventScroll: true });
    event.preventDefault();
  });
  stage.addEventListener("pointermove", (event) => {
    if (stage.hasPointerCapture(event.pointerId)) sweep(100 * place(event)[0]);
    readClasses(event);
  });
  $("sweep").addEventListener("input", () => sweep(+$("sweep").value));
  $("opacity").addEventListener("input", () => {
    $("opacity-value").textContent = `${$("opacity").value} %`;
    drawStage();
  });
  $("layers").addEventListener("click", (event) => {
    const layer = event.target.closest("button")?.dataset.layer;
    if (layer) toggleLayer(layer);
  });
  $("palettes").addEventListener("click", (event) => {
    const chosen = event.target.closest("button")?.dataset.palette;
    if (!chosen) return;
    state.palette = chosen;
    for (const button of $("palettes").children) button.ariaPressed = String(button.dataset.palette === chosen);
    fillKeys();
    drawStage();
    drawGlance();
  });
  $("previous").addEventListener("click", () => show(state.at - 1));
  $("next").addEventListener("click", () => show(state.at + 1));
  $("sort").addEventListener("change", fillThumbs);
  document.querySelector(".viewer").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = { n: 1, p: -1 }[event.key.toLowerCase()];
    if (step) show(state.at + step);
    else if (LAYERS["123".indexOf(event.key)]) toggleLayer(LAYERS["123".indexOf(event.key)]);
  });

  const transitions = document.getElementById("transitions");
  transitions?.addEventListener("click", (event) => {
    const chosen = event.target.closest("button")?.dataset.show;
    if (!chosen) return;
    for (const button of transitions.querySelectorAll("button")) {
      button.ariaPressed = String(button.dataset.show === chosen);
    }
    for (const map of transitions.querySelectorAll("[data-map]")) map.hidden = map.dataset.map !== chosen;
  });
  for (const map of transitions?.querySelectorAll("[data-map]") ?? []) map.hidden = map !== transitions.querySelector("[data-map]");

  if (!DATA.pairs.length) {
    $("pairs").hidden = true;
    fillKeys();
    return;
  }
  for (const button of $("layers").children) button.hidden = !labelled && button.dataset.layer !== "prediction";
  $("sort").replaceChildren(...SORTS.map(([value, textContent]) => Object.assign(document.createElement("option"), { value, textContent })));
  const all = DATA.pairs.length === DATA.total;
  $("shown").textContent = all ? `All ${DATA.total} pairs.`
    : `${DATA.pairs.length} of ${DATA.total} pairs: those with the ${labelled ? "largest error" : "most predicted change"}.`;
  sweep(50);
  fillKeys();
  fillThumbs();
})();
