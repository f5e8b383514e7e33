// Models for people: text in, text out, as it comes. A GGUF brings its tokenizer and chat template with it and runs in
// wllama; an ONNX folder has them as files beside the graph.
//
//   openModel(source, {threads, context}, onProgress) -> {talks, close(),
//     answer(messages, {temperature, most, signal, onText}) -> {ended: "stop", "length" or "stopped"}}
//
// `source` is {name, format, file} or {name, format, url}. A model that `talks` has a chat template; another one
// continues the last message. `onText(text)` is called once for each id.

import {OnnxThread} from "./onnx_engine.js";
import {complaint, fresh, quiet, settings} from "./wllama_engine.js";

export async function openModel(source, options, onProgress) {
  return source.format === "onnx" ? openFolder(source, options) : openFile(source, options, onProgress);
}

async function download(url, name, onProgress) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${name} is no longer there; start the page again`);
  const total = Number(answer.headers.get("Content-Length")), parts = [], reader = answer.body.getReader();
  for (let done = 0; ;) {
    const {done: over, value} = await reader.read();
    if (over) return new Blob(parts);
    parts.push(value);
    onProgress(done += value.length, total);
  }
}

async function openFile({name, file, url}, {threads, context}, onProgress) {
  const blob = file ?? await download(url, name, onProgress);
  const lines = [], wllama = fresh(quiet((line) => lines.push(line)));
  try {
    await wllama.loadModel([blob], {...settings({threads, context}), warmup: true});
    if (!wllama.getLoadedContextInfo().n_vocab) throw new Error("it holds no vocabulary");
  } catch (error) {
    await wllama.exit();
    throw new Error(`${name} cannot be opened: ${complaint(lines) ?? error.message}`);
  }
  const talks = Boolean(wllama.getChatTemplate());
  return {
    talks,
    close: () => wllama.exit(),
    async answer(messages, {temperature, most, signal, onText}) {
      const samplers = temperature ? ["min_p", "temperature"] : ["top_k"];
      let ended = "length";
      const options = {
        max_tokens: most, temperature, min_p: 0.05, top_k: 1, samplers, stream: true, abortSignal: signal,
        onData(chunk) {
          const choice = chunk.choices?.[0];
          const text = talks ? choice?.delta?.content : choice?.text;
          if (text) onText(text);
          ended = choice?.finish_reason ?? ended;
        },
      };
      try {
        if (talks) await wllama.createChatCompletion({messages, ...options});
        else await wllama.createCompletion({prompt: messages.at(-1).content, ...options});
      } catch (error) {
        if (error.name !== "AbortError") throw error;
        ended = "stopped";
      }
      return {ended};
    },
  };
}

async function part(url, kind = "json") {
  const answer = await fetch(url);
  return answer.ok ? answer[kind]() : null;
}

async function openFolder({name, url}, {threads, context}) {
  const [config, tokens, about, template] = await Promise.all([
    part(`${url}/genai_config.json`), part(`${url}/tokenizer.json`), part(`${url}/tokenizer_config.json`),
    part(`${url}/chat_template.jinja`, "text"),
  ]);
  if (!config || !tokens) throw new Error(`${name} has no genai_config.json or no tokenizer.json; export it again`);
  const [{Tokenizer}, {Template}] = await Promise.all([
    import("./npm/tokenizers/tokenizers.min.mjs"), import("./npm/jinja/index.js"),
  ]);
  const tokenizer = new Tokenizer(tokens, about ?? {}), written = template ?? about?.chat_template;
  const talks = typeof written === "string" ? new Template(written) : null;
  const thread = new OnnxThread();
  try {
    await thread.ask("open", {files: {url, filename: config.model.decoder.filename}, config, threads, name});
  } catch (error) {
    thread.close();
    throw error;
  }
  const named = (key) => about?.[key]?.content ?? about?.[key];
  const special = {bos_token: named("bos_token"), eos_token: named("eos_token")};
  const stops = new Set([config.model.eos_token_id].flat());
  const room = Math.min(context, config.model.context_length ?? context);

  function idsOf(messages) {
    if (!talks) return tokenizer.encode(messages.at(-1).content).ids;
    const text = talks.render({messages, add_generation_prompt: true, ...special});
    return tokenizer.encode(text, {add_special_tokens: false}).ids;
  }

  return {
    talks: Boolean(talks),
    close: () => thread.close(),
    async answer(messages, {temperature, most, signal, onText}) {
      const ids = idsOf(messages), limit = Math.min(most, room - ids.length), said = [];
      if (!ids.length || !ids.every(Number.isInteger)) throw new Error("the tokenizer has no ids for this text");
      if (limit < 1) throw new Error(`${ids.length} tokens do not fit the context of ${room}; start anew`);
      let shown = "", {id} = await thread.ask("feed", {ids, go_on: true, temperature});
      for (;;) {
        if (stops.has(id)) return {ended: "stop"};
        said.push(id);
        const text = tokenizer.decode(said, {skip_special_tokens: true}).replace(/\uFFFD+$/, ""); // half a character
        onText(text.slice(shown.length));
        shown = text;
        if (signal.aborted) return {ended: "stopped"};
        if (said.length >= limit) return {ended: "length"};
        id = (await thread.ask("steps", {steps: 1})).ids[0];
      }
    },
  };
}
