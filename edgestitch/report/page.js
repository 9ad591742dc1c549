"use strict";
(() => {
const picture = JSON.parse(document.getElementById("picture").textContent);
const element = (id) => document.getElementById(id);
const pointOf = new Map(picture.points.map((point) => [point.topology, point]));
const state = {
  axis: picture.axes[0],
  pool: Object.keys(picture.pools)[0],
  budget_ms: picture.slider.value,
  scale: picture.macs?.scales[picture.macs.scale],
  quantity: picture.composed && Object.keys(picture.composed)[0],
  runScales: picture.runs.map(startScale),
};
const macsAxis = picture.axes.find((axis) => axis.key === "macs");

// --- what the scheduler picks: the last step at or below the budget, as in schedule.py

function pick(steps, budget_ms) {
  let low = 0, high = steps.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle].bound_ms <= budget_ms) low = middle + 1; else high = middle;
  }
  return low ? steps[low - 1] : null;
}

const deadline = () => `${state.budget_ms.toFixed(picture.slider.decimals)} ms`;

/** A difference in ms, one digit finer than the deadline, but never rounded down to nothing. */
function difference(ms) {
  const decimals = picture.slider.decimals + 1;
  return ms === 0 || ms >= 10 ** -decimals ? `${ms.toFixed(decimals)} ms` : `${ms.toPrecision(1)} ms`;
}

function say(id, text, small = "") {
  const value = element(id).querySelector(".value");
  value.textContent = text;
  if (small) value.append(" ", Object.assign(document.createElement("small"), {textContent: small}));
}

function tell(steps, picked) {
  element("deadline").textContent = deadline();
  element("slider").setAttribute("aria-valuetext", deadline());
  element("pick").classList.toggle("misses", !picked);
  element("pick").dataset.topology = picked ? picked.topology : "";
  const what = element("picked").querySelector(".what");
  if (!picked) {
    const fastest = steps[0];
    what.textContent = `Nothing fits within ${deadline()}`;
    say("picked", `The fastest, ${fastest.topology}, takes up to ${fastest.bound} and misses by ` +
      `${difference(fastest.bound_ms - state.budget_ms)}. A runtime runs it all the same, and says so.`);
    return;
  }
  what.textContent = `Picked within ${deadline()}`;
  say("picked", picked.topology);
  say("top1", picked.top1, picked.interval);
  say("median", picked.median);
  say("bound", picked.bound);
  say("left", difference(state.budget_ms - picked.bound_ms));
}

function markRow(picked) {
  for (const row of document.querySelectorAll("#topologies tbody tr")) {
    row.classList.toggle("picked", picked !== null && row.cells[0].textContent === picked.topology);
  }
}

// --- what all pictures share

const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const pixels = (name) => parseFloat(color(name));
const font = () => getComputedStyle(document.body).fontFamily;
const onPaper = () => document.documentElement.classList.contains("paper");

/** A logarithmic axis with its ticks in full; plotly would write 20 as 2. */
function logarithmic(range) {
  const powers = range.map((value) => Math.floor(Math.log10(value)));
  const ticks = [];
  for (let power = powers[0]; power <= powers[1]; power++) {
    for (const digit of [1, 2, 5]) ticks.push(Number(`${digit}e${power}`));
  }
  return {type: "log", range: range.map(Math.log10), tickvals: ticks, ticktext: ticks.map(String)};
}

/** Hover boxes know some HTML; names of others are text. */
const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;");

const scaled = (type, range) => type === "log" ? logarithmic(range) : {type: "linear", range};

const axisStyle = () => ({
  gridcolor: color("--rule"), linecolor: color("--rule"), zeroline: false, showline: true,
  ticks: "outside", tickcolor: color("--rule"), automargin: false,
});
const axisTitle = (text) => ({text, font: {size: 14, color: color("--muted")}, standoff: 10});

/** `key`: a change of it shows all of the picture again; without one a zoom is left alone. */
function baseLayout(key, more) {
  return {
    uirevision: key,
    autosize: !onPaper(), width: onPaper() ? 680 : undefined,
    margin: {l: pixels("--left"), r: pixels("--right"), t: 20, b: 56},
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: {family: font(), size: 13, color: color("--muted")},
    hoverlabel: {
      align: "left", bgcolor: color("--card"), bordercolor: color("--muted"),
      font: {family: font(), size: 13, color: color("--ink")},
    },
    showlegend: false,
    hovermode: "closest",
    modebar: {bgcolor: "rgba(0,0,0,0)", color: color("--front"), activecolor: color("--ink")},
    ...more,
  };
}

/** `x`: key, title, type and range of the axis; `more`: what only one of the pictures has. */
function layout(x, top1Range, more = {}) {
  return baseLayout(x.key, {
    xaxis: {...axisStyle(), title: axisTitle(x.title), ...scaled(x.type, x.range)},
    yaxis: {...axisStyle(), title: axisTitle("Top-1 (%)"), range: top1Range},
    ...more,
  });
}

const config = {
  displaylogo: false, responsive: true,
  // Named one by one, so that a later plotly adds none that leaves this page.
  modeBarButtons: [["toImage"], ["zoom2d", "pan2d", "resetScale2d"]],
  toImageButtonOptions: {filename: document.title.replace(/[^A-Za-z0-9.-]+/g, "-"), scale: 2},
};

function show(id, traces, layout) {
  const there = traces.filter((trace) => trace.x.length);
  for (const trace of there) trace.visible = !hidden(id).has(trace.name);
  Plotly.react(id, there, layout, config);
  legend(id, there);
}

// --- legends: buttons, which a keyboard reaches

const hiddenIn = new Map();

function hidden(id) {
  if (!hiddenIn.has(id)) hiddenIn.set(id, new Set());
  return hiddenIn.get(id);
}

function legend(id, traces) {
  const group = element(`${id}-legend`);
  const named = [...new Map(traces.filter(({name}) => name !== "picked").map((t) => [t.name, t])).values()];
  const names = JSON.stringify(named.map(({name}) => name));
  if (group.dataset.names !== names) {  // else the focus would be lost at every step of the slider
    group.dataset.names = names;
    group.hidden = named.length < 2;
    group.replaceChildren(...named.map(({name}) => legendButton(id, name)));
  }
  named.forEach((trace, index) => {
    const button = group.children[index];
    button.setAttribute("aria-pressed", String(!hidden(id).has(trace.name)));
    button.firstChild.replaceWith(swatch(trace));
  });
}

function legendButton(id, name) {
  const button = Object.assign(document.createElement("button"), {type: "button"});
  button.append(document.createElement("i"), name);
  button.addEventListener("click", () => {
    const names = hidden(id);
    if (!names.delete(name)) names.add(name);
    draw();
  });
  return button;
}

const SHAPES = {
  circle: "M11 2a5 5 0 1 0 .01 0Z", square: "M6 2h10v10H6Z", diamond: "M11 0l7 7-7 7-7-7Z",
  "triangle-up": "M11 1l6 11H5Z", cross: "M9 2h4v3h3v4h-3v3H9V9H6V5h3Z", x: "M6 2l10 10M16 2L6 12",
};

function swatch({mode, marker, line}) {
  const svg = element("swatch").content.firstElementChild.cloneNode(true);
  const path = svg.firstElementChild;
  const lines = mode === "lines";
  const [shape, open] = lines ? [] : (marker.symbol ?? "circle").replace("-thin", "").split(/-(?=open$)/);
  const stroked = lines || open || shape === "x";
  const tint = lines ? line.color : marker.color;
  path.setAttribute("d", lines ? "M0 7h22" : SHAPES[shape]);
  path.setAttribute("fill", stroked ? "none" : tint);
  if (stroked) {
    path.setAttribute("stroke", tint);
    path.setAttribute("stroke-width", "2");
    if (line?.dash === "dot") path.setAttribute("stroke-dasharray", "2 3");
  }
  return svg;
}

// --- accuracy against costs

const isLatency = () => ["bound", "median"].includes(state.axis.key);
const xOf = (axis, point) => point.x[axis.key];

function frontTrace(axis, end) {
  const steps = axis.front.map((topology) => pointOf.get(topology));
  if (!steps.length) return {name: "Pareto front", x: []};
  // Beyond the last step nothing better is known: the line goes on to the border.
  return {
    type: "scatter", mode: "lines", name: "Pareto front", hoverinfo: "skip",
    x: [...steps.map((point) => xOf(axis, point)), end],
    y: [...steps.map((point) => point.top1[0]), steps[steps.length - 1].top1[0]],
    line: {shape: "hv", width: 2, color: color("--front")},
  };
}

function pointTrace(axis, name, points, marker, more = {}) {
  return {
    type: "scatter", mode: "markers", name, ids: points.map((point) => point.topology),
    x: points.map((point) => xOf(axis, point)), y: points.map((point) => point.top1[0]),
    hovertext: points.map((point) => point.hover), hoverinfo: "text", marker, ...more,
  };
}

function stitchedTraces(axis, drawn) {
  const front = new Set(axis.front);
  const symbols = ["circle", "square", "triangle-up", "cross"];
  const stitched = (points) => points.filter((point) => !point.is_anchor);
  // All groups, drawn or not: a group keeps its colour on every axis.
  return [...new Set(stitched(picture.points).map((point) => point.group))].map((group, index) => {
    const points = stitched(drawn).filter((point) => point.group === group);
    return pointTrace(axis, group, points, {
      symbol: symbols[index % 4],
      color: color(`--series-${index % 4 + 1}`),
      size: points.map((point) => front.has(point.topology) ? 10 : 8),
      opacity: points.map((point) => front.has(point.topology) ? 1 : 0.6),
      line: {width: 1, color: color("--card")},
    });
  });
}

function anchorTrace(axis, drawn) {
  const anchors = drawn.filter((point) => point.is_anchor);
  return pointTrace(axis, "anchors", anchors, {
    symbol: "diamond", size: 14, color: color("--anchor"), line: {width: 1, color: color("--card")},
  }, {
    mode: "markers+text", textposition: "top left",
    text: anchors.map((point) => `<b>${point.group}</b>`),
    textfont: {color: color("--ink"), size: 14},
  });
}

function pickTrace(picked) {
  const point = picked && pointOf.get(picked.topology);
  const points = point && xOf(state.axis, point) !== null ? [point] : [];
  return pointTrace(state.axis, "picked", points, {
    symbol: "circle-open", size: 24, color: color("--pick"), line: {width: 3},
  }, {
    hoverinfo: "skip",
    // A point that is nowhere keeps the picture as it is where nothing fits.
    ...(points.length ? {} : {x: [null], y: [null]}),
    error_y: {
      type: "data", symmetric: false, color: color("--pick"), thickness: 2, width: 6,
      array: points.map(({top1: [value, , high]}) => high - value),
      arrayminus: points.map(({top1: [value, low]}) => value - low),
    },
  });
}

/** Networks of others, below everything that is the family's. */
function otherTrace({name, x, y, hover}, open) {
  return {
    type: "scatter", mode: "markers", name, x, y, hovertext: hover, hoverinfo: "text",
    marker: {symbol: open ? "circle-open" : "circle", size: 7, color: color("--front"), opacity: open ? 1 : 0.45},
  };
}

function zooTrace() {
  return otherTrace({...picture.zoo, x: picture.zoo.x[state.axis.key]}, true);
}

function budgetLine() {
  const [from, to] = state.axis.range;
  const right = state.budget_ms > from + 0.8 * (to - from);
  return {
    shapes: [{
      type: "line", xref: "x", yref: "paper", x0: state.budget_ms, x1: state.budget_ms, y0: 0, y1: 1,
      layer: "below", line: {color: color("--pick"), width: 2, dash: "dot"},
    }],
    annotations: [{
      text: deadline(), x: state.budget_ms, xref: "x", y: 0, yref: "paper", yanchor: "bottom",
      xanchor: right ? "right" : "left", showarrow: false, font: {color: color("--pick"), size: 13},
    }],
  };
}

function drawWorth() {
  const steps = state.pool ? picture.pools[state.pool] : null;
  const picked = steps && pick(steps, state.budget_ms);
  if (steps) tell(steps, picked);
  markRow(picked);
  const {axis} = state;
  const drawn = picture.points.filter((point) => xOf(axis, point) !== null);
  const traces = [
    ...(picture.zoo ? [zooTrace()] : []),
    frontTrace(axis, axis.range[1]), ...stitchedTraces(axis, drawn), anchorTrace(axis, drawn),
  ];
  if (steps) traces.push(pickTrace(picked));
  const line = steps && isLatency() ? budgetLine() : {shapes: [], annotations: []};
  show("plot", traces, layout({...axis, type: "linear"}, axis.top1_range, line));
  const beyond = element("outside");
  beyond.hidden = !axis.outside;
  beyond.textContent = `${axis.outside} of the ${picture.zoo?.name} lie beyond the ends of this axis; zoom out, or read the table.`;
}

function drawMacs() {
  const drawn = picture.points.filter((point) => xOf(macsAxis, point) !== null);
  const {label, type, range} = state.scale;
  const traces = [
    ...picture.macs.others.map(otherTrace), frontTrace(macsAxis, range[1]), ...stitchedTraces(macsAxis, drawn),
    anchorTrace(macsAxis, drawn),
  ];
  show("plot-macs", traces, layout({key: label, title: macsAxis.title, type, range}, picture.macs.top1_range));
}

// --- composed against measured

function drawComposed() {
  const {unit, spread, groups} = picture.composed[state.quantity];
  const looks = [["circle-open", "--front"], ["circle", "--series-1"]];
  const traces = groups.map(({name, ids, x, y, low, high}, index) => ({
    type: "scatter", mode: "markers", name, ids, x, y,
    hovertext: ids.map((id, i) => `<b>${escaped(id)}</b><br>measured ${x[i].toPrecision(4)} ${unit}<br>the sum is off by ${y[i].toFixed(2)} %`),
    hoverinfo: "text",
    marker: {symbol: looks[index][0], size: 10, color: color(looks[index][1])},
    error_y: {type: "data", symmetric: false, array: high, arrayminus: low, color: color(looks[index][1]), thickness: 1.2, width: 4},
  }));
  const errors = groups.flatMap(({y, low, high}) => y.flatMap((value, i) => [value - low[i], value + high[i]]));
  const most = 1.15 * Math.max(spread, ...errors.map(Math.abs), 1e-3);
  const band = {
    type: "rect", xref: "paper", x0: 0, x1: 1, y0: -spread, y1: spread, layer: "below",
    fillcolor: color("--series-1"), opacity: 0.1, line: {width: 0},
  };
  show("plot-composed", traces, baseLayout(state.quantity, {
    xaxis: {...axisStyle(), title: axisTitle(`Measured ${state.quantity.replace(/^[EL]/, (first) => first.toLowerCase())} (${unit})`)},
    yaxis: {...axisStyle(), title: axisTitle("Error of the sum (%)"), range: [-most, most], zeroline: true, zerolinecolor: color("--front")},
    shapes: [band],
  }));
}

// --- timelines

const SCALES = ["linear", "log"];

function startScale({latency: {y}}) {
  const ordered = [...y].sort((a, b) => a - b);
  return Number(ordered[ordered.length - 1] > 8 * ordered[ordered.length >> 1]);  // else most lie at the bottom
}

function timeUnit(end) {
  return end > 7200 ? [3600, "h"] : end > 600 ? [60, "min"] : [1, "s"];
}

/** Panels from top to bottom that there is something to draw in, with their share of the height. */
function panels(run) {
  return [
    {name: "latency", title: "Latency (ms)", share: 3.2},
    {name: "lanes", title: "Topology", share: 0.5 + 0.34 * run.lanes.length},
    {name: "power", title: "Power (W)", share: run.power.x.length || run.budget_w.x.length ? 1.6 : 0},
    {name: "temperature", title: "Temperature (\u00b0C)", share: run.temperatures.length ? 1.6 : 0},
  ].filter(({share}) => share);
}

/** The same panels with where each begins and ends, of a height of 1, from the bottom. */
function stacked(parts) {
  const gap = 0.55, all = parts.reduce((sum, {share}) => sum + share + gap, 0);
  let top = 1;
  return {
    height: 62 * all,
    panels: parts.map((panel, index) => {
      const begin = top - gap / all, end = begin - panel.share / all;
      top = end;
      return {...panel, axis: `y${index ? index + 1 : ""}`, domain: [Math.max(0, end), begin]};
    }),
  };
}

function runTraces(run, axisOf, time) {
  const at = ({x}) => x.map((second) => second / time);
  const line = (name, points, tint, axis, more = {}) => ({
    type: "scatter", mode: "lines", name, x: at(points), y: points.y, yaxis: axis,
    line: {color: color(tint), width: 2, ...more}, connectgaps: false, hovertext: points.y.map((value) => `${escaped(name)} ${value}`), hoverinfo: "text",
  });
  const {latency, missed} = run;
  const traces = [{
    type: "scatter", mode: "markers", name: "frames", x: at(latency), y: latency.y,
    hovertext: latency.topology.map((name, i) => `${escaped(name)}<br>${latency.y[i]} ms`), hoverinfo: "text",
    marker: {symbol: "circle", size: 4, color: color("--series-1"), opacity: 0.65},
  }, line("deadline", run.budget_ms, "--pick", "y", {shape: "hv", dash: "dot"}), {
    type: "scatter", mode: "markers", name: "missed", x: at(missed), y: missed.y,
    hovertext: missed.topology.map((name, i) => `${escaped(name)}<br>${missed.y[i]} ms, missed` +
      (missed.number[i] > 1 ? `; ${missed.number[i]} misses here, this is the worst` : "")),
    hoverinfo: "text", marker: {symbol: "x-thin-open", size: 8, color: color("--miss"), line: {width: 2}},
  }];
  for (const {name, spans} of run.lanes) traces.push({
    type: "scatter", mode: "lines", name: "topology", yaxis: axisOf.lanes,
    x: spans.flatMap(([start, stop]) => [start / time, stop / time, null]),
    y: spans.flatMap(() => [name, name, null]),
    line: {color: color("--series-2"), width: 9}, hovertext: escaped(name), hoverinfo: "text",
  });
  if (axisOf.power) traces.push(
    line("power", run.power, "--series-4", axisOf.power),
    line("power budget", run.budget_w, "--pick", axisOf.power, {shape: "hv", dash: "dot"}));
  const tints = ["--series-3", "--series-1", "--series-2", "--series-4"];
  run.temperatures.forEach((sensor, index) => {
    traces.push(line(`${sensor.name} temperature`, sensor, tints[index % 4], axisOf.temperature));
  });
  if (run.throttle.length) traces.push({
    type: "scatter", mode: "markers", name: "throttled", x: [null], y: [null],
    marker: {symbol: "square", color: color("--throttle")},
  });
  return traces;
}

function drawRun(run, index) {
  const id = `plot-run-${index}`;
  const [time, unit] = timeUnit(run.end);
  const {height, panels: placed} = stacked(panels(run));
  element(id).style.height = `${Math.round(height + 70)}px`;
  const axisOf = Object.fromEntries(placed.map(({name, axis}) => [name, axis]));
  const last = placed[placed.length - 1];
  const values = run.latency.y, scale = SCALES[state.runScales[index]];
  const asked = run.budget_ms.y.filter((value) => value !== null);
  const most = Math.max(...values, ...run.missed.y), least = Math.min(...values, ...asked);
  const top = Math.max(most, ...asked.filter((value) => value < 3 * most));
  const range = scale === "log" ? [0.85 * least, 1.2 * top] : [0, 1.08 * top];
  const axes = Object.fromEntries(placed.map(({axis, name, domain}) => [axis.replace("y", "yaxis"), {
    ...axisStyle(), domain, automargin: true,
    ...(name === "latency" ? scaled(scale, range) : {}),
    ...(name === "power" ? {rangemode: "tozero"} : {}),
    ...(name === "lanes" ? {
      type: "category", showgrid: false, categoryorder: "array", categoryarray: run.lanes.map((lane) => lane.name),
      range: [-0.7, run.lanes.length - 0.3],
    } : {}),
  }]));
  const shown = (name) => !hidden(id).has(name);
  show(id, runTraces(run, axisOf, time), baseLayout(scale, {
    ...axes,
    xaxis: {
      ...axisStyle(), title: axisTitle(`Time (${unit})`), range: [0, run.end / time],
      anchor: last.axis, domain: [0, 1],
    },
    shapes: shown("throttled") ? run.throttle.map(([start, stop]) => ({
      type: "rect", xref: "x", yref: "paper", x0: start / time, x1: stop / time, y0: 0, y1: 1,
      layer: "below", fillcolor: color("--throttle"), line: {width: 0},
    })) : [],
    annotations: placed.map(({title, domain}) => ({
      text: `<b>${title}</b>`, x: 0, xref: "paper", y: domain[1], yref: "paper", xanchor: "left", yanchor: "bottom",
      yshift: 4, showarrow: false, font: {size: 13, color: color("--ink")},
    })),
  }));
}

// --- where the time goes

function drawParts(topology) {
  const {bars, total, note} = picture.parts[topology];
  const list = Object.assign(document.createElement("ul"), {className: "bars"});
  for (const [label, ms, share] of bars) {
    const item = document.createElement("li");
    const name = Object.assign(document.createElement("span"), {textContent: label});
    const bar = Object.assign(document.createElement("span"), {className: "bar"});
    const fill = document.createElement("span");
    fill.style.width = `${100 * Math.max(0, share)}%`;
    bar.append(fill);
    const value = Object.assign(document.createElement("span"), {textContent: `${ms} `});
    value.append(Object.assign(document.createElement("small"), {textContent: `${(100 * share).toFixed(1)} %`}));
    item.append(name, bar, value);
    list.append(item);
  }
  const said = Object.assign(document.createElement("p"), {textContent: `Together ${total}. ${note}`});
  element("parts").replaceChildren(list, said);
}

function startParts() {
  const names = Object.keys(picture.parts);
  const select = element("parts-of");
  select.hidden = false;
  select.append(...names.map((name) => new Option(name, name)));
  const picked = state.pool && pick(picture.pools[state.pool], state.budget_ms);
  select.value = picked && names.includes(picked.topology) ? picked.topology : names[names.length - 1];
  select.addEventListener("change", () => drawParts(select.value));
  drawParts(select.value);
}

// --- the controls

function draw() {
  if (element("plot")) drawWorth();
  if (element("plot-macs")) drawMacs();
  if (element("plot-composed")) drawComposed();
  picture.runs.forEach(drawRun);
}

function choices(id, options, chosen, change) {
  const group = element(id);
  if (!group) return;
  group.hidden = options.length < 2;
  for (const [index, label] of options.entries()) {
    const input = Object.assign(document.createElement("input"),
      {type: "radio", name: id, value: String(index), checked: index === chosen});
    input.addEventListener("change", () => { change(index); draw(); });
    const text = Object.assign(document.createElement("span"), {textContent: label});
    const item = document.createElement("label");
    item.append(input, text);
    group.append(item);
  }
}

function startSlider() {
  const slider = element("slider");
  for (const name of ["min", "max", "step", "value"]) slider[name] = picture.slider[name];
  slider.addEventListener("input", () => { state.budget_ms = slider.valueAsNumber; drawWorth(); });
  element("budget").hidden = false;
  const pools = Object.keys(picture.pools);
  choices("pools", pools, 0, (index) => { state.pool = pools[index]; });
}

function startPaper() {
  const opened = [];
  // Paper is light, has its own width, and nothing to unfold.
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("paper");
    for (const details of document.querySelectorAll("details:not([open])")) {
      details.open = true;
      opened.push(details);
    }
    draw();
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("paper");
    for (const details of opened.splice(0)) details.open = false;
    draw();
  });
}

function start() {
  if (state.pool) startSlider();
  choices("axes", picture.axes.map((axis) => axis.label), 0, (index) => { state.axis = picture.axes[index]; });
  if (picture.macs) {
    const {scales, scale} = picture.macs;
    choices("scales", scales.map(({label}) => label), scale, (index) => { state.scale = scales[index]; });
  }
  if (picture.composed) {
    const quantities = Object.keys(picture.composed);
    choices("quantities", quantities, 0, (index) => { state.quantity = quantities[index]; });
  }
  picture.runs.forEach((run, index) => {
    choices(`scales-run-${index}`, ["Linear", "Logarithmic"], state.runScales[index], (chosen) => {
      state.runScales[index] = chosen;
    });
  });
  if (picture.parts) startParts();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  startPaper();
  draw();
}

start();
})();
