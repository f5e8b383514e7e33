// The worker of a browser: reads its job, does it, says lines and sends one result, as the other runtimes' workers do.
// The address of the job, below the secret folder this page came from, is in ?job=.

import {bench} from "./bench.js";
import {generate} from "./generate.js";

const ALIVE_MS = 1000;
const MEMORY = /out of memory|allocation failed|memory access out of bounds|Array buffer allocation|bad_alloc/i;
const TASKS = {bench, generate};
const site = new URL("../../", import.meta.url); // this page is KEY/NAME/worker.js

export function address(path) {
  return new URL(path.split("/").map(encodeURIComponent).join("/"), site).href;
}

export class JobError extends Error {}

async function post(verb, text) {
  const answer = await fetch(new URL(verb, site), {method: "POST", body: text});
  if (!answer.ok) throw new Error(`the server refused '${verb}'`);
}

const desk = {
  said: 0,
  say: (document) => post("say", `${JSON.stringify(document)}\n`),
  progress(done, total) {
    const now = performance.now();
    if (done !== total && now - this.said < 100) return null;
    this.said = now;
    return this.say({progress: [done, total]});
  },
  // What a page cannot see of itself: CPU seconds, everybody's load, sensors; memory of all the browser's processes.
  look: async () => (await fetch(new URL("look", site))).json(),
  memory: async () => (await fetch(new URL("memory", site))).json(),
};

// Python tells whole numbers from others: a time is never written as a whole number.
function written(result) {
  return JSON.stringify(result).replace(/"(seconds|\w+_s)":(-?\d+)(?=[,}])/g, '"$1":$2.0');
}

async function open(job) {
  const url = address(job.model);
  if (job.cpus?.length) throw new JobError("a page cannot keep to chosen CPUs; leave the list of CPUs empty");
  if (job.threads > navigator.hardwareConcurrency)
    throw new JobError(`the browser sees ${navigator.hardwareConcurrency} cores, the job wants ${job.threads} threads`);
  const folder = await fetch(`${url}/genai_config.json`);
  if (folder.ok) {
    const {openOnnx} = await import("./onnx_engine.js");
    return openOnnx(url, await folder.json(), job);
  }
  const {openGguf} = await import("./wllama_engine.js");
  return openGguf(url, job);
}

async function main() {
  setInterval(() => desk.say({alive: true}).catch(() => {}), ALIVE_MS);
  try {
    const job = await (await fetch(address(new URLSearchParams(location.search).get("job")))).json();
    const task = TASKS[job.task];
    if (!task) throw new JobError(`a page cannot do the task '${job.task}'; it does ${Object.keys(TASKS).join(", ")}`);
    const result = await task(() => open(job), job, desk);
    await post("result", written(result));
    await desk.say({ok: true, result: "result.json"});
  } catch (error) {
    const said = String(error?.message ?? error).split("\n")[0];
    const advice = MEMORY.test(said) ? "; the page ran out of memory, use a smaller model or context" : "";
    await desk.say({ok: false, error: `${said}${advice}`});
  }
}

main();
