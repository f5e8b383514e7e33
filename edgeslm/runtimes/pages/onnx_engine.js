// An exported ONNX folder in a page. The session lives in a thread of its own, which takes its own times: the page
// stays free to say that it is alive.

export async function openOnnx(url, config, job) {
  const thread = new OnnxThread();
  const files = {url, filename: config.model.decoder.filename};
  const opened = await thread.ask("open", {files, config, threads: job.threads, name: job.name});
  const decoder = config.model.decoder;
  const info = {
    runtime: "onnxruntime-web",
    version: opened.version,
    features: ["wasm", "simd128", ...(opened.threads > 1 ? ["threads"] : [])],
    threads: opened.threads,
    context: job.context,
    layers: decoder.num_hidden_layers,
    kv_heads: decoder.num_key_value_heads,
    head_dim: decoder.head_size,
    kv_element_bytes: opened.kv_element_bytes,
    vocabulary: config.model.vocab_size,
  };
  if (info.threads !== job.threads)
    throw new Error(`the browser gave ${info.threads} threads, the job asks for ${job.threads}; ask for fewer`);
  const limit = config.model.context_length ?? job.context;
  if (job.context > limit)
    throw new Error(`${job.name} was built for ${limit} positions, the job asks for ${job.context}`);
  return {
    info,
    load_s: opened.load_s,
    vocabulary: info.vocabulary,
    kv_cache_bytes: null, // it grows with the sequence
    close: () => thread.close(),
    async answer(ids, steps, {between, onId}) {
      const first = await thread.ask("feed", {ids});
      await between?.();
      let goes = onId?.(first.id) !== false;
      if (!onId) {
        const rest = await thread.ask("steps", {steps});
        return {first_s: first.seconds, ...rest, ids: [first.id, ...rest.ids]};
      }
      const found = {first_s: first.seconds, seconds: 0, token_latency_s: [], ids: [first.id]};
      while (goes && found.ids.length <= steps) {
        const one = await thread.ask("steps", {steps: 1});
        found.seconds += one.seconds;
        found.token_latency_s.push(one.seconds);
        found.ids.push(one.ids[0]);
        goes = (await onId(one.ids[0])) !== false;
      }
      return found;
    },
  };
}

export class OnnxThread {
  constructor() {
    this.worker = new Worker(new URL("./onnx_thread.js", import.meta.url), {type: "module"});
    this.waiting = new Map();
    this.number = 0;
    this.worker.onmessage = ({data}) => {
      const {resolve, reject} = this.waiting.get(data.number);
      this.waiting.delete(data.number);
      if (data.error) reject(new Error(data.error));
      else resolve(data.found);
    };
    this.worker.onerror = (event) => {
      for (const {reject} of this.waiting.values()) reject(new Error(event.message || "onnxruntime-web did not start"));
    };
  }
  ask(verb, options) {
    const number = ++this.number;
    return new Promise((resolve, reject) => {
      this.waiting.set(number, {resolve, reject});
      this.worker.postMessage({number, verb, options});
    });
  }
  close() { this.worker.terminate(); }
}
