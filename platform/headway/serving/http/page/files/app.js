// The page at `/`: asks the server what its models can do, and shows the answers.

const $ = (id) => document.getElementById(id);
const state = { models: [], tokens: [], weights: [], layer: 0, head: 0 };
const ROW = 22, LEFT = 170, RIGHT = 430, FAINTEST = 0.02;

async function call(path, body) {
  const headers = { "content-type": "application/json" };
  if ($("key").value) headers.authorization = `Bearer ${$("key").value}`;
  const options = body ? { method: "POST", headers, body: JSON.stringify({ model: current().id, ...body }) } : { headers };
  const response = await fetch(`/v1/${path}`, options);
  const answer = await response.json();
  if (response.status === 401) $("key-field").hidden = false;
  if (!response.ok) throw new Error(answer.error.message);
  return answer;
}

// Each operation the page can show, in its section of the same name. They are in the order of the sections.
const VIEWS = {
  classify: showClasses,
  "fill-mask": showMaskedWords,
  tokens: showEntities,
  answer: showAnswer,
  attention: drawAttention,
  rerank: showNeighbours,
};

const current = () => state.models[$("model").selectedIndex];
const can = (ability) => current().abilities.includes(ability);

async function loadModels() {
  state.models = (await call("models")).data;
  $("model").replaceChildren(...state.models.map((model) => new Option(model.id, model.id)));
  showFacts();
}

function showFacts() {
  const { version, layers, heads, max_length, mask } = current();
  const shape = layers ? `${layers} layers of ${heads} heads` : "a table of token vectors";
  $("facts").textContent = `version ${version} · ${shape} · up to ${max_length} tokens`;
  document.querySelector("#fill-mask .hint").textContent = `Write ${mask} for each word to guess.`;
  for (const section of document.querySelectorAll("main > section")) {
    section.hidden = !can(section.id);
  }
}

async function ask() {
  const started = performance.now();
  const text = $("text").value;
  await Promise.all(Object.keys(VIEWS).filter(can).map((operation) => VIEWS[operation](text)));
  return performance.now() - started;
}

function bars(list, rows) {
  list.replaceChildren(...rows.map(([name, fraction]) => {
    const item = document.createElement("li");
    item.style.setProperty("--fraction", Math.max(0, fraction));
    for (const content of [name, fraction.toFixed(3)]) {
      item.append(Object.assign(document.createElement("span"), { textContent: content }));
    }
    return item;
  }));
}

async function showClasses(text) {
  const [{ scores }] = (await call("classify", { input: text })).data;
  bars(document.querySelector("#classify .bars"), Object.entries(scores).sort((a, b) => b[1] - a[1]));
}

async function showMaskedWords(text) {
  const [{ masks }] = (await call("fill-mask", { input: text, candidates: 6 })).data;
  document.querySelector("#fill-mask .answers").replaceChildren(...masks.map((candidates) => {
    const list = Object.assign(document.createElement("ul"), { className: "bars" });
    bars(list, candidates.map(({ token, score }) => [token, score]));
    return list;
  }));
}

function mark(element, text, spans) {
  let at = 0;
  element.replaceChildren();
  for (const { start, end, label, score } of spans) {
    const marked = document.createElement("mark");
    const note = Object.assign(document.createElement("small"), { textContent: ` ${label ?? ""} ${score.toFixed(2)}` });
    marked.append(text.slice(start, end), note);
    element.append(text.slice(at, start), marked);
    at = end;
  }
  element.append(text.slice(at));
}

// The server counts characters; JavaScript counts UTF-16 units, of which some characters have two.
const inUnits = (text, spans) => {
  const starts = [];
  let unit = 0;
  for (const character of text) { starts.push(unit); unit += character.length; }
  starts.push(unit);
  return spans.map((span) => ({ ...span, start: starts[span.start], end: starts[span.end] }));
};

async function showEntities(text) {
  const [{ entities }] = (await call("tokens", { input: text })).data;
  mark(document.querySelector("#tokens .marked"), text, inUnits(text, entities));
}

async function showAnswer(text) {
  const { answers } = await call("answer", { question: $("question").value, context: text });
  mark(document.querySelector("#answer .marked"), text, inUnits(text, answers));
}

async function showNeighbours(text) {
  const documents = $("others").value.split("\n").filter((line) => line.trim());
  if (!documents.length) return;
  const { results } = await call("rerank", { query: text, documents });
  bars(document.querySelector("#rerank .bars"), results.map((row) => [documents[row.index], row.relevance_score]));
}

async function drawAttention(text) {
  const { tokens, weights } = await call("attention", { input: text, tokens: 48 });
  Object.assign(state, { tokens, weights });
  state.layer = Math.min(state.layer, weights.length - 1);
  state.head = Math.min(state.head, weights[0].length - 1);
  drawHeads();
  choose(state.layer, state.head);
}

function drawHeads() {
  const { weights, tokens } = state;
  $("heads").style.gridTemplateColumns = `repeat(${weights[0].length}, 1fr)`;
  const colour = getComputedStyle(document.body).getPropertyValue("--accent").trim();
  $("heads").replaceChildren(...weights.flatMap((heads, layer) => heads.map((rows, head) => {
    const canvas = Object.assign(document.createElement("canvas"), { width: tokens.length, height: tokens.length });
    canvas.setAttribute("role", "option");
    canvas.setAttribute("aria-label", `layer ${layer + 1}, head ${head + 1}`);
    canvas.title = `layer ${layer + 1}, head ${head + 1}`;
    canvas.onclick = () => choose(layer, head);
    const pen = canvas.getContext("2d");
    pen.fillStyle = colour;
    rows.forEach((row, y) => row.forEach((weight, x) => {
      pen.globalAlpha = Math.sqrt(weight);
      pen.fillRect(x, y, 1, 1);
    }));
    return canvas;
  })));
}

function choose(layer, head) {
  Object.assign(state, { layer, head });
  const chosen = layer * state.weights[0].length + head;
  [...$("heads").children].forEach((canvas, i) => canvas.setAttribute("aria-selected", i === chosen));
  $("head-name").textContent = `Layer ${layer + 1}, head ${head + 1}: which token (left) attends to which (right)`;
  drawLines();
}

function drawLines() {
  const { tokens } = state;
  const rows = state.weights[state.layer][state.head];
  const shapes = [];
  rows.forEach((row, from) => row.forEach((weight, to) => {
    if (weight < FAINTEST) return;
    const ends = { x1: LEFT + 6, y1: (from + 0.5) * ROW, x2: RIGHT - 6, y2: (to + 0.5) * ROW };
    shapes.push(shape("line", { ...ends, "stroke-opacity": weight, "stroke-width": 1 + 2 * weight, "data-from": from, "data-to": to }));
  }));
  tokens.forEach((token, i) => {
    for (const [x, anchor, side] of [[LEFT, "end", "from"], [RIGHT, "start", "to"]]) {
      const word = shape("text", { x, y: (i + 0.5) * ROW + 5, "text-anchor": anchor, [`data-${side}`]: i, tabindex: 0 });
      word.textContent = token;
      word.onmouseenter = word.onfocus = () => follow(side, i);
      word.onmouseleave = word.onblur = () => follow(null);
      shapes.push(word);
    }
  });
  $("lines").setAttribute("viewBox", `0 0 600 ${tokens.length * ROW}`);
  $("lines").replaceChildren(...shapes);
}

function shape(name, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function follow(side, index) {
  for (const line of document.querySelectorAll("#lines line")) {
    line.classList.toggle("off", side !== null && Number(line.dataset[side]) !== index);
  }
}

$("heads").onkeydown = ({ key }) => {
  const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[key] ?? [0, 0];
  const layers = state.weights.length, heads = state.weights[0].length;
  choose((state.layer + down + layers) % layers, (state.head + right + heads) % heads);
};

async function run(work) {
  $("status").className = "";
  try {
    const took = await work();
    $("status").textContent = took === undefined ? "" : `answered in ${took.toFixed(0)} ms`;
  } catch (error) {
    $("status").className = "error";
    $("status").textContent = error.message;
  }
}

$("ask").onsubmit = (event) => { event.preventDefault(); run(ask); };
$("model").onchange = () => { showFacts(); run(ask); };
$("key").onchange = () => run(async () => { await loadModels(); return ask(); });
run(async () => { await loadModels(); return ask(); });
