"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function player(sound, name) {
  return make("audio", { controls: "", preload: "metadata", src: sound.audio, "aria-label": name });
}

function figure(sound, name) {
  const image = make("img", { src: sound.image, alt: `Spectrogram of ${name}` });
  return make("figure", {}, make("figcaption", {}, name), image, player(sound, name));
}

function fill(id, items, card) {
  if (!items.length) return;
  const section = document.getElementById(id);
  section.hidden = false;
  section.querySelector(".cards").append(...items.map(card));
}

// One sound at a time.
document.addEventListener("play", (event) => {
  for (const audio of document.querySelectorAll("audio")) if (audio !== event.target) audio.pause();
}, true);

// --- map

const single = make("audio", { id: "single", preload: "none" });
document.body.append(single);

function playAlone(sound) {
  single.src = sound.audio;
  single.play();
}

function drawMap() {
  if (!data.points.length) return;
  document.getElementById("map-section").hidden = false;
  const svg = document.querySelector("#map svg");
  svg.setAttribute("role", "application");
  svg.setAttribute("aria-label", "Map of the latent space: arrows move, Enter plays");
  const now = document.getElementById("now");
  const points = data.points.map((point, index) => {
    const element = document.getElementById(`point-${index}`);
    const name = point.label ? `${point.title} (${point.label})` : point.title;
    element.classList.add("point");
    element.setAttribute("role", "button");
    element.setAttribute("tabindex", index ? "-1" : "0");
    element.setAttribute("aria-label", name);
    const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
    title.textContent = name;
    element.prepend(title);
    return { ...point, element, name };
  });
  function play(point) {
    for (const each of points) each.element.classList.toggle("playing", each === point);
    now.textContent = `Playing: ${point.name}`;
    playAlone(point);
  }
  function focus(point) {
    for (const each of points) each.element.setAttribute("tabindex", each === point ? "0" : "-1");
    point.element.focus();
    now.textContent = point.name;
  }
  // The nearest point in the direction of an arrow, distance across counting double.
  function next(from, [dx, dy]) {
    let best = null, least = Infinity;
    for (const each of points) {
      const along = (each.x - from.x) * dx + (each.y - from.y) * dy;
      const across = Math.abs((each.x - from.x) * dy) + Math.abs((each.y - from.y) * dx);
      const cost = along + 2 * across;
      if (along > 0 && cost < least) [best, least] = [each, cost];
    }
    return best;
  }
  const directions = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  for (const point of points) {
    point.element.addEventListener("click", () => play(point));
    point.element.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") play(point);
      else if (!(event.key in directions)) return;
      else {
        const found = next(point, directions[event.key]);
        if (found) focus(found);
      }
      event.preventDefault();
    });
  }
  const legend = document.getElementById("legend");
  let chosen = null;
  for (const [label, colour] of data.labels) {
    const dot = make("span", { style: `background: ${colour}` });
    const button = make("button", { type: "button", "aria-pressed": "false" }, dot, label || "no label");
    button.addEventListener("click", () => {
      chosen = chosen === label ? null : label;
      for (const other of legend.children) other.setAttribute("aria-pressed", "false");
      button.setAttribute("aria-pressed", String(chosen === label));
      for (const each of points) each.element.classList.toggle("dim", chosen !== null && each.label !== chosen);
    });
    legend.append(button);
  }
}

// --- cards

function pairCard(item) {
  const pair = make("div", { class: "pair" }, figure(item.first, item.first.title), figure(item.second, item.second.title));
  return make("article", { class: "card" }, make("h3", {}, item.title), pair);
}

function sampleCard(item) {
  const near = make("button", { type: "button", class: "near" }, `\u25b6 nearest: ${item.nearest.title}`);
  near.addEventListener("click", () => playAlone(item.nearest));
  return make("article", { class: "card" }, figure(item.sound, item.title), near);
}

function interpolationCard(item) {
  const middle = Math.floor((item.steps.length - 1) / 2);
  const shown = figure(item.steps[middle], `${item.source} to ${item.target}`);
  const [caption, image, audio] = shown.children;
  const slider = make("input", { type: "range", min: 0, max: item.steps.length - 1, step: 1, value: middle });
  slider.setAttribute("aria-label", `Interpolation from ${item.source} to ${item.target}`);
  function show(index) {
    const step = item.steps[index];
    const text = `${Math.round(100 * step.share)} % of the way`;
    caption.textContent = text;
    slider.setAttribute("aria-valuetext", text);
    if (audio.getAttribute("src") !== step.audio) {
      image.src = step.image;
      audio.src = step.audio;
    }
  }
  slider.addEventListener("input", () => { show(Number(slider.value)); audio.play(); });
  show(middle);
  const ends = make("div", { class: "ends" }, make("span", {}, item.source), make("span", {}, item.target));
  return make("article", { class: "card" }, shown, slider, ends);
}

function drawFigures() {
  if (!data.figures.length) return;
  document.getElementById("figures").hidden = false;
  const titles = ["model", "PCA", "model less PCA"].map((title) => make("th", { scope: "col" }, title));
  const head = make("tr", {}, make("th"), ...titles);
  const lines = data.figures.map(([name, ...cells]) =>
    make("tr", {}, make("th", { scope: "row" }, name), ...cells.map((cell) => make("td", {}, cell))));
  document.querySelector("#figures table").append(make("thead", {}, head), make("tbody", {}, ...lines));
}

document.getElementById("about").textContent = data.about;
document.getElementById("extent").textContent = data.extent;
drawMap();
fill("reconstructions", data.pairs, pairCard);
fill("samples", data.samples, sampleCard);
fill("interpolations", data.interpolations, interpolationCard);
fill("arithmetic", data.moves, pairCard);
drawFigures();
const nav = document.querySelector("nav");
for (const section of document.querySelectorAll("main section:not([hidden])")) {
  nav.append(make("a", { href: `#${section.id}` }, section.querySelector("h2").textContent));
}
