// GGUF in a page: llama.cpp as wllama carries it. wllama 3 offers no call for one step; it is llama.cpp's server
// without a thread of its own, and each poll for a result runs the server's loop once: the first poll feeds the prompt
// and picks an id, each further one decodes one id. So the page polls by itself and takes the time of each poll. What
// the prompt took is the server's own figure (prompt_ms, same clock), which leaves out reading the prompt's text.

import {withIdsForWords} from "./gguf_ids.js";
import {Wllama} from "./npm/wllama/index.js";

export const WLLAMA = "3.8.1";
const WASM = new URL("./npm/wllama/wllama.wasm", import.meta.url).href;
const KV_SIZE = /llama_kv_cache: size = +([0-9.]+) MiB/;
const BATCH = 512; // ids of one physical batch, llama.cpp's default
const GREEDY = {temperature: 0, top_k: 1, samplers: ["top_k"], cache_prompt: false, stream: true};

export function quiet(heard = () => {}) {
  const log = (...words) => heard(words.join(" "));
  return {debug: log, log, warn: log, error: log};
}

// The first of llama.cpp's lines that tells what went wrong, if any; it also murmurs about graphics cards.
export function complaint(lines) {
  const told = lines.find((line) => /error|fail|invalid/i.test(line) && !/webgpu|print_info/i.test(line));
  return told?.trim().replace(/^\w+: /, "");
}

export function fresh(logger) {
  const wllama = new Wllama({default: WASM}, {logger});
  wllama.setCompat(null); // never another build from elsewhere
  return wllama;
}

export function settings(job) {
  if (job.flash_attention === "on") throw new Error("wllama cannot force flash attention; ask for auto or off");
  return {
    n_ctx: job.context,
    n_batch: Math.max(BATCH, job.context), // the prompt in one poll; computed in pieces of n_ubatch all the same
    n_ubatch: Math.min(BATCH, job.context),
    n_threads: job.threads,
    n_gpu_layers: 0,
    n_parallel: 1,
    cache_type_k: job.kv ?? "f16",
    cache_type_v: job.kv ?? "f16",
    flash_attn: job.flash_attention !== "off",
    warmup: false,
    cache_idle_slots: false,
    ctx_shift: false,
    log_level: 2,
  };
}

async function load(blob, job, name) {
  const lines = [];
  let kv = null;
  const wllama = fresh(quiet((line) => {
    const size = KV_SIZE.exec(line);
    if (size) kv = Math.round(Number(size[1]) * (1 << 20));
    lines.push(line);
  }));
  const start = performance.now();
  try {
    await wllama.loadModel([blob], settings(job));
    if (!wllama.getLoadedContextInfo().n_vocab) throw new Error("it holds no vocabulary");
  } catch (error) {
    throw new Error(`wllama cannot load ${name}: ${complaint(lines) ?? error.message}`);
  }
  return {wllama, kv, load_s: (performance.now() - start) / 1000};
}

export async function openGguf(url, job) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${job.name} was not served to the page; push it again`);
  const file = await answer.blob();
  // the time to load is that of the shipped file, its vocabulary with it; what runs then is the same with ids for words
  const ids = await withIdsForWords(file);
  let load_s = null;
  if (job.task === "bench" && ids.meta["tokenizer.ggml.tokens"]) {
    const shipped = await load(file, job, job.name);
    load_s = shipped.load_s;
    await shipped.wllama.exit();
  }
  return new WllamaEngine(await load(ids.blob, job, job.name), ids, job, load_s);
}

class WllamaEngine {
  constructor({wllama, kv, load_s}, {codes, meta}, job, shippedLoad) {
    this.wllama = wllama;
    this.codes = codes;
    this.kv_cache_bytes = kv;
    this.load_s = shippedLoad ?? load_s;
    this.vocabulary = codes.vocabulary;
    const of = (key) => meta[`${meta["general.architecture"]}.${key}`];
    this.info = {
      runtime: "llama.cpp (wllama)",
      version: `${Wllama.getLibllamaVersion()} (wllama ${WLLAMA})`,
      features: ["wasm", "simd128", ...(wllama.isMultithread() ? ["threads"] : [])],
      threads: wllama.getNumThreads(),
      context: job.context,
      kv: job.kv ?? "f16",
      flash_attention: job.flash_attention ?? "auto",
      mmap: false,
      layers: of("block_count"),
      kv_heads: of("attention.head_count_kv") ?? of("attention.head_count"),
      head_dim: of("attention.key_length") ?? of("embedding_length") / of("attention.head_count"),
      kv_element_bytes: job.kv === "f32" ? 4 : 2,
      vocabulary: codes.vocabulary,
    };
    if (this.info.threads !== job.threads)
      throw new Error(`the browser gave ${this.info.threads} threads, the job asks for ${job.threads}; ask for fewer`);
  }

  async answer(ids, steps, {between, onId}) {
    const body = {...GREEDY, prompt: this.codes.text(ids), n_predict: steps + 1}, began = performance.now();
    const started = await this.wllama.proxy.wllamaAction("completion", {
      _name: "cmpl_req", data_json: JSON.stringify(body), is_chat: false, files: [],
    });
    if (!started.success) throw new Error("wllama did not take the prompt");
    const poll = () => this.wllama.proxy.wllamaAction("get_result", {_name: "gres_req", req_id: started.req_id});
    const found = {seconds: 0, token_latency_s: [], ids: []};
    let got = await poll(), timings = null, stopped = false;
    const take = () => {
      const said = this.#said(got), fresh = this.codes.ids(said.text);
      found.ids.push(...fresh);
      timings = said.timings ?? timings;
      stopped ||= fresh.some((id) => onId?.(id) === false);
      return fresh.length;
    };
    take();
    found.first_s = (performance.now() - began) / 1000; // unless the server tells, which it does at the end
    await between?.();
    const start = performance.now();
    for (let last = start, now; found.token_latency_s.length < steps && got.has_more && !stopped; last = now) {
      got = await poll();
      now = performance.now();
      found.token_latency_s.push((now - last) / 1000);
      if (take() !== 1) throw new Error("wllama gave no single id in a poll, so its polls are no steps");
    }
    found.seconds = (performance.now() - start) / 1000;
    while (got.has_more && !stopped) {
      got = await poll();
      take();
    }
    if (stopped) await this.wllama.proxy.wllamaAction("cancel", {_name: "cncl_req", req_id: started.req_id});
    else this.#check(timings, ids.length, found.ids.length, steps + 1);
    if (timings) found.first_s = timings.prompt_ms / 1000;
    return found;
  }

  // The prompt must have been read as the ids it was written from, none of them from an earlier one.
  #check(timings, fed, got, wanted) {
    if (timings?.prompt_n !== fed || timings.cache_n !== 0 || got !== wanted)
      throw new Error(`wllama read ${timings?.prompt_n} of ${fed} ids and gave ${got} of ${wanted}`);
  }

  // What one poll brought: text, and at the end what the server measured.
  #said(got) {
    const said = [JSON.parse(got.data_json || "null")].flat().filter(Boolean);
    if (got.is_error) throw new Error(`wllama failed: ${said[0]?.message ?? "no reason given"}`);
    return {
      text: said.map((one) => one.choices?.[0]?.text ?? "").join(""),
      timings: said.find((one) => one.timings)?.timings,
    };
  }
}
