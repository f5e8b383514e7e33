// node say.mjs PACKAGES FOLDER JSON: what transformers.js says to a conversation, greedily, from a folder on this disk.
// Prints one JSON line: ids of the prompt, ids of the answer, its text.
import {pathToFileURL} from "node:url";

const [packages, folder, given] = process.argv.slice(2), {messages, max_new} = JSON.parse(given);
const entry = `${packages}/node_modules/@huggingface/transformers/dist/transformers.node.mjs`;
const {AutoModelForCausalLM, AutoTokenizer, env} = await import(pathToFileURL(entry));
env.allowRemoteModels = false;

const tokenizer = await AutoTokenizer.from_pretrained(folder);
const model = await AutoModelForCausalLM.from_pretrained(folder);
const inputs = tokenizer.apply_chat_template(messages, {add_generation_prompt: true, return_dict: true});
const prompt = inputs.input_ids.tolist()[0].map(Number);
const whole = await model.generate({...inputs, do_sample: false, max_new_tokens: max_new});
const ids = whole.tolist()[0].map(Number).slice(prompt.length);
console.log(JSON.stringify({prompt, ids, text: tokenizer.decode(ids, {skip_special_tokens: true})}));
