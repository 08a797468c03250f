// Asks two models the same question and shows both answers as they come. The key stays in this page's memory.

const at = (id) => document.getElementById(id);
const sides = [...document.querySelectorAll("section")].map((section) => {
  section.append(at("side").content.cloneNode(true));
  return {
    model: section.querySelector("select"),
    answer: section.querySelector("output"),
    facts: section.querySelector(".facts"),
  };
});
let asking = null;

function call(path, options = {}) {
  const headers = { Authorization: `Bearer ${at("key").value.trim()}`, "Content-Type": "application/json" };
  return fetch(path, { ...options, headers });
}

/** The error's own words, of an answer that is none. */
async function refusal(answer) {
  const text = await answer.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return text || `The gateway answered ${answer.status}.`;
  }
}

async function listModels() {
  const answer = await call("v1/models");
  if (!answer.ok) throw new Error(await refusal(answer));
  const { data } = await answer.json();
  if (!data.length) throw new Error("This key may call no model that is declared.");
  // The base model first, then what is awake.
  const rank = ({ parent, status }) => (parent === null ? 0 : status === "ready" ? 1 : 2);
  const models = [...data].sort((a, b) => rank(a) - rank(b));
  sides.forEach(({ model }, number) => {
    const before = model.value;
    model.replaceChildren(...models.map(({ id, status }) => new Option(`${id} (${status})`, id)));
    model.value = models.some(({ id }) => id === before) ? before : models[Math.min(number, models.length - 1)].id;
  });
}

/** The data of each event of a stream; comments, which keep a waiting one alive, are none. */
async function* events(body) {
  let rest = "";
  for await (const text of body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: {")) yield JSON.parse(line.slice(6));
  }
}

async function ask(side, signal) {
  const body = {
    model: side.model.value,
    messages: [{ role: "user", content: at("prompt").value }],
    temperature: Number(at("temperature").value),
    max_tokens: Number(at("tokens").value),
    stream: true,
  };
  const begun = performance.now();
  const seconds = () => ((performance.now() - begun) / 1000).toFixed(1);
  side.answer.replaceChildren();
  side.answer.classList.remove("error");
  side.facts.textContent = "waiting; a sleeping model takes minutes to wake";
  let first = null;
  try {
    const answer = await call("v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
    if (!answer.ok) throw new Error(await refusal(answer));
    let served = answer.headers.get("X-Loraserve-Model");
    const fallback = answer.headers.has("X-Loraserve-Fallback") ? ", in the adapter's stead" : "";
    for await (const event of events(answer.body)) {
      if (event.error) throw new Error(event.error.message);
      first ??= seconds();
      served ??= event.model;
      side.answer.append(event.choices[0]?.delta.content ?? "");
      side.facts.textContent = `${served}${fallback}: first word after ${first} s`;
    }
    side.facts.textContent += `, all after ${seconds()} s`;
  } catch (error) {
    const stopped = signal.aborted;
    side.facts.textContent = stopped ? `stopped after ${seconds()} s` : `failed after ${seconds()} s`;
    if (!stopped) {
      side.answer.classList.add("error");
      side.answer.append(error.message);
    }
  }
}

function tell(problem) {
  at("problem").textContent = problem;
  at("problem").hidden = !problem;
}

at("key").addEventListener("change", () => listModels().then(() => tell(""), (error) => tell(error.message)));
at("stop").addEventListener("click", () => asking?.abort());
at("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("question").requestSubmit();
});
at("question").addEventListener("submit", async (event) => {
  event.preventDefault();
  asking?.abort();
  const mine = (asking = new AbortController());
  at("stop").disabled = false;
  try {
    if (!sides[0].model.value) await listModels();
    tell("");
    await Promise.all(sides.map((side) => ask(side, mine.signal)));
  } catch (error) {
    tell(error.message);
  } finally {
    if (asking === mine) at("stop").disabled = true;
  }
});
