// The page for people: pick a model, ask, watch the answer and the figures come. What it can offer is named by the
// server ("models", relative to the secret folder that this page came from) or chosen from this machine's files.

import * as figures from "./page_figures.js";
import {openModel} from "./page_models.js";

const IDEAS = {
  talks: ["Explain gravity to a child", "Write a haiku about autumn", "Why is the sky blue?"],
  continues: ["Once upon a time", "The capital of France is", "In the beginning"],
};
const site = new URL("../../", import.meta.url); // this page is KEY/NAME/page.js
const $ = (id) => document.getElementById(id);
const sources = [], messages = [];
let model = null, opening = 0, asking = null;

function element(tag, className, text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.textContent = text;
  return made;
}

function say(text) { $("status").textContent = text; }

function complain(error) {
  $("alert").textContent = error ? String(error.message ?? error) : "";
  $("alert").hidden = !error;
}

function enable() {
  $("prompt").disabled = !model;
  $("send").disabled = !model || !$("prompt").value.trim();
  $("send").hidden = Boolean(asking);
  $("stop").hidden = !asking;
  $("anew").hidden = !messages.length;
}

// --- models

function offer(source) {
  sources.push(source);
  const about = source.bytes ? ` · ${figures.bytes(source.bytes)}` : "";
  $("model").append(new Option(source.name + about, String(sources.length - 1)));
}

async function load() {
  const source = sources[$("model").value], number = ++opening;
  if (!source) return;
  asking?.abort();
  await model?.close();
  model = null;
  anew();
  complain(null);
  $("loading").hidden = false;
  $("progress").removeAttribute("value");
  $("hint").textContent = "The model is being loaded.";
  $("ideas").replaceChildren();
  $("about").textContent = "";
  $("load").textContent = "–";
  const began = performance.now();
  try {
    const opened = await openModel(source, {threads: Number($("threads").value), context: Number($("context").value)},
      (done, total) => { if (total) $("progress").value = done / total; });
    if (number !== opening) return void opened.close(); // another one was chosen meanwhile
    model = opened;
    $("load").textContent = figures.seconds((performance.now() - began) / 1000);
    ready(source);
  } catch (error) {
    if (number === opening) {
      $("hint").textContent = "Choose another model.";
      complain(error);
    }
  } finally {
    if (number === opening) $("loading").hidden = true;
    enable();
  }
}

function ready(source) {
  $("about").textContent = model.talks
    ? `${source.runtime}. It answers in a conversation.`
    : `${source.runtime}. It has no chat template, so it continues your text.`;
  $("lead").textContent = model.talks ? "Ask something" : "Begin a text";
  $("hint").textContent = model.talks ? "The model is ready for your message." : "The model goes on where you stop.";
  $("prompt").placeholder = model.talks ? "Write a message" : "Write a beginning";
  $("ideas").replaceChildren(...IDEAS[model.talks ? "talks" : "continues"].map((text) => {
    const idea = element("button", "", text);
    idea.type = "button";
    idea.addEventListener("click", () => ask(text));
    return idea;
  }));
  enable();
  if (matchMedia("(pointer: fine)").matches) $("prompt").focus();
  say(`${source.name} is ready`);
  figures.memory();
}

function take(file) {
  if (!file) return;
  offer({name: file.name, format: "gguf", runtime: "llama.cpp (wllama)", file, bytes: file.size});
  $("model").value = String(sources.length - 1);
  load();
}

// --- the conversation

function turn(kind, text) {
  const box = element("div", `turn ${kind}`), said = element("p", "", text);
  box.append(said);
  $("talk").append(box);
  return {box, said};
}

function follow(work) {
  const talk = $("talk"), atEnd = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
  work();
  if (atEnd) talk.scrollTop = talk.scrollHeight;
}

async function ask(text) {
  if (!model || asking || !text.trim()) return;
  complain(null);
  $("empty").hidden = true;
  $("prompt").value = "";
  grow();
  messages.push({role: "user", content: text});
  if (model.talks) turn("mine", text);
  const {box, said} = turn("model goes", "");
  if (!model.talks) said.append(element("span", "continued", text));
  $("talk").scrollTop = $("talk").scrollHeight;
  const now = asking = new AbortController(), pace = new figures.Pace();
  figures.clear();
  enable();
  $("talk").setAttribute("aria-busy", "true"); // read out when it is whole
  let answer = "", told = "";
  try {
    const {ended} = await model.answer(messages, {
      temperature: Number($("temperature").value), most: Number($("most").value), signal: now.signal,
      onText(more) {
        answer += more;
        pace.token();
        follow(() => said.append(more));
      },
    });
    told = pace.told() + {length: " · longest answer reached", stopped: " · stopped"}[ended] ?? "";
  } catch (error) {
    if (asking === now) complain(error);
    told = pace.told();
  }
  if (asking !== now) return; // the conversation was begun anew
  messages.push({role: "assistant", content: answer});
  asking = null;
  box.classList.remove("goes");
  follow(() => box.append(element("p", "told", told)));
  $("talk").setAttribute("aria-busy", "false");
  say(told);
  enable();
  $("prompt").focus();
  figures.memory();
}

function anew() {
  asking?.abort();
  asking = null;
  messages.length = 0;
  for (const box of document.querySelectorAll(".turn")) box.remove();
  $("empty").hidden = false;
  figures.clear();
  complain(null);
  enable();
}

function grow() {
  const field = $("prompt");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight}px`;
}

// --- what people do

function listen() {
  $("ask").addEventListener("submit", (event) => { event.preventDefault(); ask($("prompt").value); });
  $("prompt").addEventListener("input", () => { grow(); enable(); });
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    ask($("prompt").value);
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") asking?.abort(); });
  $("stop").addEventListener("click", () => asking?.abort());
  $("anew").addEventListener("click", anew);
  for (const id of ["model", "threads", "context"]) $(id).addEventListener("change", load);
  $("open").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => take($("file").files[0]));
  $("temperature").addEventListener("input", () => { $("temperature-shown").value = $("temperature").value; });
  document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
}

async function main() {
  const cores = navigator.hardwareConcurrency || 1;
  for (let count = 1; count <= cores; count++) $("threads").append(new Option(String(count)));
  $("threads").value = String(Math.max(1, Math.floor(cores / 2))); // the page and others want some too
  listen();
  for (const one of await (await fetch(new URL("models", site))).json()) {
    const runtime = one.format === "onnx" ? "onnxruntime-web" : "llama.cpp (wllama)";
    offer({...one, runtime, url: new URL(one.path.split("/").map(encodeURIComponent).join("/"), site).href});
  }
  if (sources.length) await load();
  else $("hint").textContent = "Open a GGUF file of this machine to begin.";
}

main().catch(complain);
