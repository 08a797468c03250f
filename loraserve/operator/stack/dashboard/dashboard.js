// The server draws, plotly.js paints. A page is asked for anew every quarter of a minute.
const REFRESH_MS = 15000;
const $ = (selector, within = document) => within.querySelector(selector);
const nav = $("nav"), main = $("main"), problem = $("#problem"), alerts = $("#alerts"), seconds = $("#seconds");

let shown, asked = 0, timer;

async function json(url) {
  const answer = await fetch(url);
  return answer.json();
}

function uid() {
  return location.hash.slice(1) || nav.firstElementChild.hash.slice(1);
}

async function show() {
  clearTimeout(timer);
  const mine = ++asked, board = uid();
  let told;
  try {
    told = await json(`boards/${board}?seconds=${seconds.value}`);
  } catch {
    told = { problem: "`loraserve dashboard` has ended: start it again." };
  }
  if (mine !== asked) return;
  for (const link of nav.children) link.toggleAttribute("aria-current", link.hash === `#${board}`);
  problem.hidden = !told.problem;
  problem.textContent = told.problem ?? "";
  if (told.panels) draw(board, told);
  timer = setTimeout(show, REFRESH_MS);
}

function draw(board, { panels, alerts: firing }) {
  alerts.replaceChildren(...firing.map(alert));
  if (shown !== board) {
    main.replaceChildren(...panels.map(() => $("#panel").content.firstElementChild.cloneNode(true)));
    shown = board;
  }
  panels.forEach((panel, number) => {
    const section = main.children[number];
    $("h2", section).textContent = panel.title;
    $(".when-bad", section).textContent = panel.whenBad;
    paint($(".drawing", section), panel);
  });
}

function paint(place, { figure, numbers }) {
  const empty = figure ? !figure.data.length : !numbers.length;
  if (empty || numbers) {
    Plotly.purge(place);
    place.replaceChildren(empty ? element("p", "nothing", "no data") : tiles(numbers));
    return;
  }
  if (!place.classList.contains("js-plotly-plot")) place.replaceChildren();
  Plotly.react(place, figure.data, figure.layout, { responsive: true, displayModeBar: false });
}

function tiles(numbers) {
  const list = document.createElement("dl");
  for (const { name, text, bad } of numbers) {
    const tile = document.createElement("div");
    tile.append(element("dd", bad ? "bad" : "", text), element("dt", "", name));
    list.append(tile);
  }
  return list;
}

function alert({ name, severity, summary, since }) {
  const line = element("li", severity, `${name}: ${summary} `);
  line.append(element("small", "", `since ${new Date(since).toLocaleTimeString()}`));
  return line;
}

function element(kind, className, text) {
  const made = document.createElement(kind);
  made.className = className;
  made.textContent = text;
  return made;
}

for (const { uid, title } of await json("boards")) {
  const link = element("a", "", title);
  link.href = `#${uid}`;
  nav.append(link);
}
addEventListener("hashchange", show);
seconds.addEventListener("change", show);
show();
