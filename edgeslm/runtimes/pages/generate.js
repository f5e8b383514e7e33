// The task `generate`: continue each of `prompts`, greedily; as soon as an answer is done a line says so.

import {browserVersion} from "./bench.js";

export async function generate(open, job, desk) {
  if (job.sampling?.temperature) throw new Error("a page generates greedily only; leave the temperature at 0");
  const engine = await open(), answers = [], stop = new Set(job.stop ?? []);
  for (const prompt of job.prompts) {
    const room = job.context - prompt.length;
    if (!prompt.length || prompt.some((id) => id < 0 || id >= engine.vocabulary))
      throw new Error(`a prompt must hold at least one id, all below the vocabulary of ${engine.vocabulary}`);
    if (room < 1) throw new Error(`${prompt.length} prompt ids leave no room in the context of ${job.context}`);
    const steps = Math.min(job.max_new, room) - 1;
    const found = await engine.answer(prompt, steps, {onId: (id) => !stop.has(id)});
    const last = found.ids.at(-1), ended = stop.has(last);
    answers.push({
      ids: ended ? found.ids.slice(0, -1) : found.ids,
      tokens: found.ids.length,
      ended: ended ? "stop" : "length",
      stopped_by: ended ? last : null,
      prompt_tokens: prompt.length,
      reused_tokens: 0,
      prefill_s: found.first_s,
      time_to_first_token_s: found.first_s,
      decode_s: found.seconds,
    });
    await desk.say({answered: answers.length - 1, answer: answers.at(-1)});
    await desk.progress(answers.length, job.prompts.length);
  }
  return {engine: {...engine.info, browser: browserVersion()}, answers};
}
