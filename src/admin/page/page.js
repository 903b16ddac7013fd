// Keeps the status page up to date: what the server renders takes the place of what is there, and numbers become plots.
"use strict";

const bits = (value) => scaled(value, 1000, ["b/s", "kb/s", "Mb/s", "Gb/s", "Tb/s"]);
const percent = (value) => `${value >= 99.95 || value === 0 ? value.toFixed(0) : value.toFixed(1)} %`;
const millis = (value) => (value < 1000 ? `${value < 10 ? value.toFixed(1) : value.toFixed(0)} ms` : `${(value / 1000).toFixed(1)} s`);

function scaled(value, step, units) {
  let at = 0;
  while (value >= step - 0.5 && at + 1 < units.length) { value /= step; at += 1; }
  return `${value.toFixed(value < 99.95 && at > 0 ? 1 : 0)} ${units[at]}`;
}

// A sample: [time, egress, requests, hits, first byte, fill, [disks]]. `least`: the axis goes at least up to there.
const PLOTS = {
  egress: { lines: (sample) => [sample[1]], show: bits, least: 1000, step: 1000 },
  hits: { lines: (sample) => [sample[3]], show: percent, least: 100, most: 100 },
  first_byte: { lines: (sample) => [sample[4]], show: millis, least: 1 },
  fill: { lines: (sample) => [sample[5]], show: bits, least: 1000, step: 1000 },
  disks: { lines: (sample) => sample[6], show: percent, least: 100, most: 100 },
};
const LINES = ["--blue", "--overloaded", "--serving", "--draining", "--degraded", "--down"];

let samples = [];
let kept = 600;
let seconds = 1;
let hovered = null;

// Seconds that a plot shows: the whole past, and at least a minute.
function shownSeconds() {
  const age = samples.length ? samples[samples.length - 1][0] - samples[0][0] : 0;
  return Math.min(kept * seconds, Math.max(60, age));
}

// The end of an axis: 1, 2 or 5 times a power of ten.
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((times) => times * power).find((end) => end >= value * 0.999);
}

function draw(figure) {
  const plot = PLOTS[figure.dataset.plot];
  const canvas = figure.querySelector("canvas");
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const { width, height } = canvas.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  const values = samples.map((sample) => plot.lines(sample));
  const known = values.flat().filter((value) => value !== null);
  const end = plot.most || nice(Math.max(plot.least, ...known));
  const [top, bottom, right] = [8, height - 18, width - 2];
  const last = samples.length ? samples[samples.length - 1][0] : 0;
  const span = shownSeconds();
  const x = (time) => right - ((last - time) / span) * (right - 2);
  const y = (value) => bottom - (Math.min(value, end) / end) * (bottom - top);

  pen.font = "11px system-ui, sans-serif";
  pen.lineWidth = 1;
  for (const part of [0, 0.5, 1]) {
    pen.strokeStyle = colour("--line");
    pen.beginPath();
    pen.moveTo(0, Math.round(y(end * part)) + 0.5);
    pen.lineTo(width, Math.round(y(end * part)) + 0.5);
    pen.stroke();
  }
  const lines = Math.max(1, ...values.map((value) => value.length));
  for (let line = 0; line < lines; line += 1) {
    const ink = colour(LINES[line % LINES.length]);
    for (const run of runs(values, line)) {
      pen.beginPath();
      run.forEach((at, number) => {
        const [across, up] = [x(samples[at][0]), y(values[at][line])];
        if (number === 0) pen.moveTo(across, up); else pen.lineTo(across, up);
      });
      pen.strokeStyle = ink;
      pen.lineWidth = 1.6;
      pen.lineJoin = "round";
      pen.stroke();
      if (run.length === 1) {
        pen.fillStyle = ink;
        pen.fillRect(x(samples[run[0]][0]) - 1, y(values[run[0]][line]) - 1, 2.5, 2.5);
      } else if (lines === 1) {
        pen.lineTo(x(samples[run[run.length - 1]][0]), bottom);
        pen.lineTo(x(samples[run[0]][0]), bottom);
        pen.globalAlpha = 0.12;
        pen.fillStyle = ink;
        pen.fill();
        pen.globalAlpha = 1;
      }
    }
  }
  // Over the lines: what they are measured by has to be readable.
  pen.fillStyle = colour("--quiet");
  pen.textAlign = "left";
  pen.fillText(plot.show(end), 2, y(end) + 12);
  pen.fillText(plot.show(end / 2), 2, y(end / 2) + 12);
  pen.fillText(span < 120 ? `${span} s ago` : `${Math.round(span / 60)} min ago`, 2, height - 4);
  pen.textAlign = "right";
  pen.fillText("now", right, height - 4);

  const shown = hovered !== null && hovered < samples.length ? hovered : samples.length - 1;
  if (hovered !== null && shown >= 0) {
    pen.strokeStyle = colour("--quiet");
    pen.beginPath();
    pen.moveTo(x(samples[shown][0]), top);
    pen.lineTo(x(samples[shown][0]), bottom);
    pen.stroke();
  }
  const now = shown < 0 ? [] : values[shown];
  const words = now.map((value) => (value === null ? "–" : plot.show(value))).join("  ") || "–";
  const when = hovered !== null && shown >= 0 ? `${new Date(samples[shown][0] * 1000).toLocaleTimeString()}  ` : "";
  figure.querySelector("output").textContent = when + words;
  canvas.setAttribute("aria-label", `${figure.dataset.plot}: ${words}`);
}

// What follows without a gap: nothing is drawn where nothing is known.
function runs(values, line) {
  const all = [];
  let run = [];
  for (let at = 0; at <= values.length; at += 1) {
    const here = at < values.length && values[at][line] !== null && values[at][line] !== undefined;
    const gap = run.length && at < values.length && samples[at][0] - samples[at - 1][0] > 3 * seconds;
    if ((!here || gap) && run.length) { all.push(run); run = []; }
    if (here) run.push(at);
  }
  return all;
}

function drawAll() {
  document.querySelectorAll("figure[data-plot]").forEach(draw);
}

// Only what differs is replaced, so that a text that somebody selects stays.
function show(html) {
  const fresh = document.createElement("template");
  fresh.innerHTML = html;
  for (const part of fresh.content.children) {
    const present = document.getElementById(part.id);
    if (present && present.outerHTML !== part.outerHTML) present.replaceWith(part.cloneNode(true));
  }
  const state = document.querySelector("#head h1");
  const name = document.querySelector("#head strong");
  if (state && name) document.title = `${name.textContent} · ${state.textContent}`;
}

function tell(words, lost) {
  const link = document.getElementById("link");
  link.textContent = words;
  link.className = lost ? "lost" : "";
}

let trouble = null;

function listen() {
  const events = new EventSource("events");
  events.addEventListener("past", (event) => {
    const past = JSON.parse(event.data);
    samples = past.samples;
    seconds = past.seconds;
    kept = past.kept;
    document.getElementById("plots").hidden = false;
    drawAll();
  });
  events.addEventListener("now", (event) => {
    const now = JSON.parse(event.data);
    if (now.sample) {
      samples.push(now.sample);
      while (samples.length > kept) samples.shift();
      if (hovered !== null) hovered = Math.max(0, Math.min(hovered, samples.length - 1));
    }
    show(now.html);
    drawAll();
    clearTimeout(trouble);
    trouble = null;
    tell("live", false);
  });
  events.onerror = () => {
    // It comes back by itself each minute; only what lasts is told.
    trouble = trouble || setTimeout(() => tell("no answer: what is shown is old", true), 4000);
    if (events.readyState === EventSource.CLOSED) {
      events.close();
      setTimeout(listen, 5000);
    }
  };
}

document.addEventListener("pointermove", (event) => {
  const canvas = event.target.closest && event.target.closest("canvas");
  if (!canvas || samples.length === 0) {
    if (hovered !== null) { hovered = null; drawAll(); }
    return;
  }
  const { left, width } = canvas.getBoundingClientRect();
  const last = samples[samples.length - 1][0];
  const time = last - ((width - 2 - (event.clientX - left)) / (width - 4)) * shownSeconds();
  let nearest = 0;
  samples.forEach((sample, at) => {
    if (Math.abs(sample[0] - time) < Math.abs(samples[nearest][0] - time)) nearest = at;
  });
  hovered = nearest;
  drawAll();
});
window.addEventListener("resize", drawAll);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
listen();
