"use strict";
(() => {
  const { tickets, version } = JSON.parse(document.getElementById("data").textContent);
  const $ = (selector, within = document) => within.querySelector(selector);
  let current = tickets[0];

  // Words from outside are only ever put into text nodes and attributes, never read as HTML.
  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  };
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const percent = (value, digits = 2) => `${(100 * value).toFixed(digits)} %`;
  const count = (value) => value.toLocaleString("en");
  const bytes = (value) => {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let place = 0;
    while (value >= 1024 && place < units.length - 1) { value /= 1024; place += 1; }
    return `${place ? value.toFixed(1) : value} ${units[place]}`;
  };
  const short = (text, most) => text.length <= most ? text
    : `${text.slice(0, Math.floor((most - 1) / 2))}…${text.slice(text.length - Math.ceil((most - 1) / 2))}`;

  const table = (target, heads, rows) => {
    target.replaceChildren(
      element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
      element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell, index) =>
        element(index ? "td" : "th", index ? {} : { scope: "row" }, cell ?? ""))))));
  };
  const width = (target) => Math.max(280, Math.min(1100, target.clientWidth || 900));
  // A plot in its place, with a title that screen readers say.
  const draw = (target, label, options) => {
    const plot = Plot.plot({
      width: width(target), style: { background: "none", fontSize: "12px" }, ariaLabel: label, ...options,
    });
    plot.setAttribute("role", "img");
    target.replaceChildren(plot);
  };
  const shown = (verdict, value) => verdict.is_share ? percent(value) : Number(value.toPrecision(4)).toString();

  // A little more than the range of the values, so that one point alone has a range too.
  const around = (values) => {
    const low = Math.min(...values), high = Math.max(...values), pad = Math.max(1, (high - low) * 0.08);
    return [Math.max(0, low - pad), Math.min(100, high + pad)];
  };

  function comparison() {
    const section = $("#comparison");
    if (tickets.length < 2) return;
    section.hidden = false;
    const measured = tickets.filter((one) => one.verdict);
    const metrics = [...new Set(measured.map((one) => one.verdict.metric))];
    const metric = metrics[0];
    const points = measured.filter((one) => one.verdict.metric === metric);
    const scale = points.length && points[0].verdict.is_share ? 100 : 1;
    const rows = points.map((one) => ({
      ticket: one.name, method: one.method, sparsity: 100 * one.sparsity, value: scale * one.verdict.hard,
      low: one.verdict.low == null ? null : scale * one.verdict.low,
      high: one.verdict.high == null ? null : scale * one.verdict.high, dense: one.verdict.dense,
    }));
    if (rows.length) draw($(".chart", section), `${metric} against sparsity`, {
      height: 320, marginLeft: 55, grid: true,
      x: { label: "sparsity of the gated weights (%)", domain: around(rows.map((row) => row.sparsity)) },
      y: { label: metric + (scale === 100 ? " (%)" : "") + (points[0].verdict.less_is_better ? ", less is better" : ""), nice: true },
      symbol: { legend: true },
      marks: [
        Plot.ruleY(rows.filter((row) => row.dense != null).slice(0, 1), { y: (row) => scale * row.dense, stroke: color("quiet"), strokeDasharray: "4 3" }),
        Plot.ruleX(rows.filter((row) => row.low != null), { x: "sparsity", y1: "low", y2: "high", stroke: color("quiet") }),
        Plot.line(rows, { x: "sparsity", y: "value", z: "method", sort: "sparsity", stroke: "method", strokeOpacity: 0.5 }),
        Plot.dot(rows, { x: "sparsity", y: "value", fill: "method", symbol: "method", r: 5, channels: { ticket: "ticket", method: "method" }, tip: true }),
      ],
    });
    table($("table", section), ["ticket", "method", "sparsity", "metric", "dense", "masked", "95 % interval"], tickets.map((one) => {
      const verdict = one.verdict;
      if (!verdict) return [one.name, one.method, percent(one.sparsity), "", "", "", ""];
      return [one.name, one.method, percent(one.sparsity), verdict.metric,
        verdict.dense == null ? "" : shown(verdict, verdict.dense), shown(verdict, verdict.hard),
        verdict.low == null ? "" : `${percent(verdict.low, 1)} to ${percent(verdict.high, 1)}`];
    }));
  }

  function verdict() {
    const [first, ...rest] = current.lines;
    $("#verdict .large").textContent = `${first[0]} ${first[1]}`;
    const facts = [...rest, ["search", current.search], ["weights", current.source]];
    $("#verdict dl").replaceChildren(...facts.flatMap(([subject, text]) =>
      [element("dt", {}, subject), element("dd", {}, text)]));
    $("#verdict .notes").replaceChildren(...current.warnings.map((text) => element("p", {}, text)));
  }

  function metrics() {
    const section = $("#metrics"), chart = $(".chart", section);
    const names = [...new Set(current.metrics.flatMap((row) => Object.keys(row.values)))].sort();
    const title = (row) => row.control ? `control: ${row.model}` : row.model;
    table($("table", section), ["masks", ...names], current.metrics.map((row) =>
      [title(row), ...names.map((name) => row.values[name] == null ? "" : row.values[name].toFixed(4))]));
    const metric = current.verdict?.metric, scale = current.verdict?.is_share ? 100 : 1;
    const rows = current.metrics.filter((row) => row.values[metric] != null)
      .map((row) => ({ masks: title(row), value: scale * row.values[metric], kind: row.model === "hard" ? "hard" : "other" }));
    if (!rows.length) { chart.replaceChildren(element("p", { class: "quiet" }, "Nothing was measured.")); return; }
    draw(chart, `${metric} of the models and the controls`, {
      height: 40 + 26 * rows.length, marginLeft: 130,
      x: { label: metric + (scale === 100 ? " (%)" : ""), grid: true, domain: [Math.min(0, ...rows.map((row) => row.value)), scale === 100 ? 100 : Math.max(...rows.map((row) => row.value), 1e-9)], nice: true },
      y: { label: null, domain: rows.map((row) => row.masks) },
      marks: [
        Plot.barX(rows, { x: "value", y: "masks", fill: (row) => row.kind === "hard" ? color("kept") : color("quiet"), tip: true }),
        Plot.text(rows, { x: "value", y: "masks", text: (row) => scale === 100 ? row.value.toFixed(2) : row.value.toPrecision(4), dx: 4, textAnchor: "start", fill: "currentColor" }),
      ],
    });
  }

  function layers() {
    const section = $("#layers"), words = $("#layer-filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    const order = $("#layer-order").value;
    const rows = current.layers.map((layer, index) => ({ ...layer, index, density: 100 * (1 - layer.sparsity) }))
      .filter((layer) => words.every((word) => layer.name.toLowerCase().includes(word)));
    const by = {
      model: (a, b) => a.index - b.index, density: (a, b) => a.density - b.density,
      size: (a, b) => b.total - a.total, name: (a, b) => a.name < b.name ? -1 : 1,
    };
    rows.sort(by[order]);
    $("#layer-count").textContent = `${count(rows.length)} of ${count(current.layers.length)} layers`;
    const chart = $(".chart", section), most = width(chart) < 500 ? 22 : 46;
    const label = (layer) => short(layer.name, most);
    const names = new Map(rows.map((layer) => [String(layer.index), label(layer)]));
    if (rows.length) draw(chart, "density of each layer", {
      height: 50 + 18 * rows.length, marginLeft: 12 + 6.6 * Math.max(...rows.map((layer) => label(layer).length)), marginTop: 30,
      x: { label: "kept (%)", axis: "top", grid: true, domain: [0, Math.max(...rows.map((layer) => layer.density), 1)], nice: true },
      y: { label: null, domain: rows.map((layer) => String(layer.index)), tickFormat: (index) => names.get(index), tickSize: 0 },
      marks: [
        Plot.barX(rows, { x: "density", y: (layer) => String(layer.index), fill: color("kept"), title: describe, tip: true }),
        Plot.ruleX([100 * (1 - current.sparsity)], { stroke: color("removed"), strokeDasharray: "4 3" }),
      ],
    }); else chart.replaceChildren(element("p", { class: "quiet" }, "No layer has such a name."));
    table($("table", section), ["layer", "shape", "gated", "kept", "sparsity"], rows.map((layer) =>
      [layer.name, layer.shape.join("×"), count(layer.total), count(layer.kept), percent(layer.sparsity)]));
  }
  const describe = (layer) =>
    `${layer.name}\n${layer.shape.join("×")}\nkept ${count(layer.kept)} of ${count(layer.total)}\nsparsity ${percent(layer.sparsity)}`;

  function masks() {
    const gallery = $("#masks .gallery");
    if (!current.images.length) { gallery.replaceChildren(element("p", { class: "quiet" }, current.image_note)); return; }
    gallery.replaceChildren(...current.images.map((image) => {
      const cell = image.cell[0] * image.cell[1] > 1 ? `, a pixel is ${image.cell[0]}×${image.cell[1]}` : "";
      return element("figure", {},
        element("img", { src: `data:image/png;base64,${image.png}`, alt: `The mask of ${image.name}` }),
        element("figcaption", {}, image.name, element("span", { class: "quiet" }, `${count(image.rows)}×${count(image.columns)}${cell}`)));
    }));
  }

  function weights() {
    const section = $("#weights"), chart = $(".chart", section), note = $(".note", section);
    const entries = current.histograms;
    $(".tools", section).hidden = !entries.length;
    if (!entries.length) { chart.replaceChildren(); note.textContent = `No histograms: ${current.histogram_note}.`; return; }
    const select = $("#weight-layer");
    const names = entries.map((entry) => entry.name);
    if ([...select.options].map((option) => option.value).join("\n") !== names.join("\n"))
      select.replaceChildren(...names.map((name) => element("option", { value: name }, name)));
    const entry = entries.find((one) => one.name === select.value) ?? entries[0];
    const rows = ["removed", "kept"].flatMap((kind) => entry[kind].map((value, index) =>
      ({ weights: kind, low: entry.edges[index], high: entry.edges[index + 1], count: value * entry.counted })));
    draw(chart, `histogram of the kept and removed weights of ${entry.name}`, {
      height: 280, marginLeft: 65,
      x: { label: "weight" }, y: { label: "number of weights", grid: true, tickFormat: "~s" },
      color: { domain: ["kept", "removed"], range: [color("kept"), color("removed")], legend: false },
      marks: [
        Plot.rectY(rows, Plot.stackY({ x1: "low", x2: "high", y: "count", fill: "weights", order: ["kept", "removed"], tip: true })),
        Plot.ruleY([0]),
      ],
    });
    const kept = entry.kept.reduce((a, b) => a + b, 0) * entry.counted;
    note.textContent = `Blue is kept (${count(kept)}), orange removed`
      + (entry.counted > 1 ? `; one weight in ${entry.counted} is counted` : "") + "; the outer bars hold all that lies beyond them.";
  }

  function curves() {
    const grid = $("#curves .grid"), entries = Object.entries(current.curves);
    $("#curves .note").textContent = entries.length ? "" : "There are no curves: this mask was not trained in steps, or this is an exported folder.";
    grid.replaceChildren(...entries.map(([title, series]) => {
      const box = element("div", { class: "chart" });
      return element("div", {}, element("h3", {}, title), box);
    }));
    entries.forEach(([title, series], index) => {
      const rows = series.map(([step, value]) => ({ step: step + 1, value }));
      draw(grid.children[index].lastChild, `${title} by step`, {
        height: 180, marginLeft: 48, x: { label: "step" }, y: { label: null, grid: true, nice: true },
        marks: [
          Plot.line(rows, { x: "step", y: "value", stroke: color("kept"), tip: true }),
          ...(rows.length < 40 ? [Plot.dot(rows, { x: "step", y: "value", fill: color("kept"), r: 3 })] : []),
        ],
      });
    });
  }

  function sizes() {
    const section = $("#sizes"), rows = current.sizes, dense = rows.find((row) => row.format === "dense")?.bytes ?? 1;
    draw($(".chart", section), "bytes of each format", {
      height: 40 + 26 * rows.length, marginLeft: 90,
      x: { label: "share of the dense bytes (%)", grid: true, domain: [0, Math.max(100, ...rows.map((row) => 100 * row.bytes / dense))] },
      y: { label: null, domain: rows.map((row) => row.format) },
      marks: [Plot.barX(rows, { x: (row) => 100 * row.bytes / dense, y: "format", fill: color("kept"), title: (row) => `${row.format}: ${bytes(row.bytes)}`, tip: true })],
    });
    table($("table", section), ["format", "bytes", "", "of dense"], rows.map((row) =>
      [row.format, count(row.bytes), bytes(row.bytes), percent(row.bytes / dense, 1)]));
    $("ul", section).replaceChildren(...current.expectations.map((text) => element("li", {}, text)));
  }

  function words() {
    $("#title").textContent = current.name;
    $("#subtitle").textContent = current.source;
    document.title = `${current.name}: slt-compress report`;
    $("#recipe pre").textContent = current.recipe;
    $("#loading pre").textContent = current.loading;
    const skipped = $("#skipped table");
    skipped.className = "words";
    table(skipped, ["parameter", "why"], current.skipped.map((row) => [row.name, row.reason]));
    $("#made").textContent = `Made by slt-compress ${version}. This file asks for nothing from the network.`;
  }

  function drawAll() { comparison(); verdict(); metrics(); layers(); masks(); weights(); curves(); sizes(); words(); }

  const which = $("#which");
  which.append(...tickets.map((one, index) => element("option", { value: String(index) }, one.name)));
  $("#switch").hidden = tickets.length < 2;
  which.addEventListener("change", () => { current = tickets[Number(which.value)]; drawAll(); });
  $("#layer-filter").addEventListener("input", layers);
  $("#layer-order").addEventListener("change", layers);
  $("#weight-layer").addEventListener("change", weights);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  let last = window.innerWidth, waiting;
  window.addEventListener("resize", () => {
    if (window.innerWidth === last) return;
    last = window.innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 150);
  });
  drawAll();
  document.documentElement.dataset.drawn = "true";
})();
