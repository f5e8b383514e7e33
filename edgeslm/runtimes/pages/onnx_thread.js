// The thread that holds an onnxruntime-web session and its key/value cache (a decoder of onnxruntime-genai's layout).
// Shapes: ids [1, T], logits [1, T or 1, V], each cache [1, heads, past, head size].

import * as ort from "./npm/onnxruntime-web/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./npm/onnxruntime-web/", import.meta.url).href;
ort.env.logLevel = "error";

const ARRAYS = {float32: Float32Array, float16: globalThis.Float16Array ?? Uint16Array};
const LEAST_SHARE = 0.05; // of the likeliest id's probability: others are not drawn (min-p)
let session, shape, caches, next;
let held = {}, fed = [], temperature = 0;

async function bytes(url) {
  const answer = await fetch(url);
  return answer.ok ? new Uint8Array(await answer.arrayBuffer()) : null;
}

async function open({files, config, threads, name}) {
  const graph = await bytes(`${files.url}/${encodeURIComponent(files.filename)}`);
  if (!graph) throw new Error(`${name}: ${files.filename} was not served to the page; export the model again`);
  const data = await bytes(`${files.url}/${encodeURIComponent(`${files.filename}.data`)}`);
  ort.env.wasm.numThreads = threads;
  const start = performance.now();
  const externalData = data ? [{path: `${files.filename}.data`, data}] : [];
  try {
    session = await ort.InferenceSession.create(graph, {executionProviders: ["wasm"], externalData});
  } catch (error) {
    const said = String(error.message).split("\n")[0];
    throw new Error(`onnxruntime-web cannot load ${name}: ${said.split(/\[ONNXRuntimeError\] : \d+ : \w+ : /).at(-1)}`);
  }
  const load_s = (performance.now() - start) / 1000;
  const decoder = config.model.decoder;
  shape = [decoder.num_key_value_heads, decoder.head_size];
  const names = new Set(session.inputNames), known = ["input_ids", "attention_mask", "position_ids"];
  caches = [];
  for (const part of ["key", "value"]) {
    for (let layer = 0; layer < decoder.num_hidden_layers; layer++) {
      const past = decoder.inputs[`past_${part}_names`].replace("%d", layer);
      caches.push({past, present: decoder.outputs[`present_${part}_names`].replace("%d", layer)});
      names.delete(past);
    }
  }
  const unknown = [...names].filter((one) => !known.includes(one));
  if (unknown.length || !session.outputNames.includes(decoder.outputs.logits))
    throw new Error(`${name} is no decoder graph this page can feed (inputs ${unknown.join(", ")})`);
  caches.type = session.inputMetadata?.find((one) => one.name === caches[0].past)?.type ?? "float32";
  return {
    load_s,
    threads: ort.env.wasm.numThreads,
    version: ort.env.versions.web,
    kv_element_bytes: caches.type === "float16" ? 2 : 4,
  };
}

const whole = (values, dims) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);

// The best id of float [V] at `row`, or one drawn at the temperature asked for.
function pick(data, row) {
  let best = row;
  for (let i = row + 1; i < data.length; i++) if (data[i] > data[best]) best = i;
  if (!temperature) return best - row;
  const least = data[best] + temperature * Math.log(LEAST_SHARE), able = [];
  let sum = 0;
  for (let i = row; i < data.length; i++) {
    if (data[i] >= least) able.push([i - row, (sum += Math.exp((data[i] - data[best]) / temperature))]);
  }
  const drawn = Math.random() * sum;
  return able.find(([, reached]) => reached >= drawn)[0];
}

async function run(ids) {
  const length = fed.length, total = length + ids.length;
  const feeds = {
    input_ids: whole(ids, [1, ids.length]),
    attention_mask: whole(Array(total).fill(1), [1, total]),
    position_ids: whole(ids.map((_, i) => length + i), [1, ids.length]),
  };
  for (const name of Object.keys(feeds)) if (!session.inputNames.includes(name)) delete feeds[name];
  for (const {past} of caches) {
    feeds[past] = held[past] ?? new ort.Tensor(caches.type, new ARRAYS[caches.type](0), [1, shape[0], 0, shape[1]]);
  }
  const found = await session.run(feeds);
  held = Object.fromEntries(caches.map(({past, present}) => [past, found[present]]));
  fed = fed.concat(ids);
  const {data, dims} = found.logits;
  next = pick(data, data.length - dims[2]);
  return next;
}

async function timed(work) {
  const start = performance.now();
  const id = await work();
  return {id, seconds: (performance.now() - start) / 1000};
}

// `ids` on an empty cache, and the next id; with `go_on` what the cache holds stays when `ids` begin with it.
async function feed({ids, go_on = false, temperature: asked = 0}) {
  temperature = asked;
  if (!go_on || fed.length >= ids.length || fed.some((id, at) => id !== ids[at])) {
    held = {};
    fed = [];
  }
  return timed(() => run(ids.slice(fed.length)));
}

// `steps` ids more, one by one.
async function steps({steps: count}) {
  const found = {seconds: 0, token_latency_s: [], ids: []}, start = performance.now();
  while (found.ids.length < count) {
    const one = await timed(() => run([next]));
    found.ids.push(one.id);
    found.token_latency_s.push(one.seconds);
  }
  found.seconds = (performance.now() - start) / 1000;
  return found;
}

const VERBS = {open, feed, steps};

onmessage = async ({data: {number, verb, options}}) => {
  try {
    postMessage({number, found: await VERBS[verb](options)});
  } catch (error) {
    postMessage({number, error: String(error?.message ?? error).split("\n")[0]});
  }
};
