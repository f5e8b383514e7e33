// A GGUF file whose words are its ids. wllama takes a prompt as text and gives text back; a measurement feeds ids and
// wants ids. So the page shows wllama the same file with another vocabulary: token i is written as a code of fixed
// length, nothing marks an end, and llama.cpp's simplest tokenizer (rwkv, longest match in a tree) reads such a text
// back into exactly those ids. Tensors, their order and every other metadata value stay as they are.
//
// GGUF: magic, version, tensor count, key count, key-value pairs, tensor infos, padding to the alignment, data.

const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
const U32 = 4, BOOL = 7, STRING = 8, ARRAY = 9;
const BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8};
const FIRST_LOOK = 4 << 20, LONGEST_HEADER = 256 << 20;

class Short extends Error {}

// Reads along a header; asking for bytes that are not there yet throws Short.
class Reader {
  constructor(buffer) {
    this.view = new DataView(buffer);
    this.at = 0;
  }
  skip(bytes) {
    if (!(bytes >= 0) || this.at + bytes > this.view.byteLength) throw new Short();
    this.at += bytes;
    return this.at - bytes;
  }
  u32() { return this.view.getUint32(this.skip(4), true); }
  u64() { return Number(this.view.getBigUint64(this.skip(8), true)); }
  text() {
    const length = this.u64();
    return new TextDecoder().decode(new Uint8Array(this.view.buffer, this.skip(length), length));
  }
  // Past a value of type `kind`; arrays give their length, numbers of four bytes themselves.
  value(kind) {
    if (kind === STRING) return this.text();
    if (kind === U32) return this.u32();
    if (kind === ARRAY) {
      const inner = this.u32(), count = this.u64();
      if (inner === STRING) for (let i = 0; i < count; i++) this.skip(this.u64());
      else this.skip(count * bytesOf(inner));
      return count;
    }
    this.skip(bytesOf(kind));
    return null;
  }
}

function bytesOf(kind) {
  if (!(kind in BYTES)) throw new Error(`the file has a metadata value of the unknown type ${kind}; export it again`);
  return BYTES[kind];
}

// What a header holds: {pairs: [{key, from, to, value}], tensors: [from, to], count, vocabulary, start of the data}.
function parse(buffer) {
  const reader = new Reader(buffer);
  if (reader.u32() !== 0x46554747) throw new Error("the file is no GGUF file; export the model again");
  const version = reader.u32(), count = reader.u64(), keys = reader.u64(), pairs = [];
  if (version < 2 || version > 3) throw new Error(`GGUF version ${version} is not known here; export the model again`);
  for (let i = 0; i < keys; i++) {
    const from = reader.at, key = reader.text(), value = reader.value(reader.u32());
    pairs.push({key, from, to: reader.at, value});
  }
  const from = reader.at, embedding = {};
  for (let i = 0; i < count; i++) {
    const name = reader.text(), shape = [];
    for (let left = reader.u32(); left > 0; left--) shape.push(reader.u64());
    reader.skip(12);
    if (name === "token_embd.weight") embedding.rows = shape[1];
  }
  const alignment = pairs.find((pair) => pair.key === "general.alignment")?.value ?? 32;
  const start = Math.ceil(reader.at / alignment) * alignment;
  return {version, count, pairs, tensors: [from, reader.at], rows: embedding.rows, alignment, start};
}

export async function readHeader(blob) {
  for (let look = FIRST_LOOK; ; look *= 4) {
    const buffer = await blob.slice(0, look).arrayBuffer();
    try {
      return {...parse(buffer), buffer};
    } catch (error) {
      const whole = look >= blob.size || look >= LONGEST_HEADER;
      if (error instanceof Short && !whole) continue;
      throw error instanceof Short ? new Error("the file ends inside its header; copy or export it again") : error;
    }
  }
}

class Writer {
  constructor() { this.parts = []; this.length = 0; }
  bytes(bytes) { this.parts.push(bytes); this.length += bytes.length; return this; }
  number(value, bytes) {
    const view = new DataView(new ArrayBuffer(bytes));
    if (bytes === 8) view.setBigUint64(0, BigInt(value), true);
    else if (bytes === 4) view.setUint32(0, value, true);
    else view.setUint8(0, value);
    return this.bytes(new Uint8Array(view.buffer));
  }
  text(text) {
    const bytes = new TextEncoder().encode(text);
    return this.number(bytes.length, 8).bytes(bytes);
  }
}

// Codes of `vocabulary` ids: ids -> text and text -> ids.
export class Codes {
  constructor(vocabulary) {
    this.vocabulary = vocabulary;
    this.length = 1;
    while (64 ** this.length < vocabulary) this.length++;
  }
  word(id) {
    let word = "";
    for (let place = 0; place < this.length; place++) word += DIGITS[Math.floor(id / 64 ** place) % 64];
    return word;
  }
  text(ids) { return ids.map((id) => this.word(id)).join(""); }
  ids(text) {
    const ids = [];
    for (let at = 0; at < text.length; at += this.length) {
      let id = 0;
      for (let place = this.length - 1; place >= 0; place--) id = id * 64 + DIGITS.indexOf(text[at + place]);
      ids.push(id);
    }
    return ids;
  }
}

// -> {blob: the file with that vocabulary, codes, meta: {key: value} of numbers and texts}
export async function withIdsForWords(file) {
  const header = await readHeader(file);
  const meta = Object.fromEntries(header.pairs.map((pair) => [pair.key, pair.value]));
  const codes = new Codes(meta["tokenizer.ggml.tokens"] ?? header.rows);
  if (!codes.vocabulary) throw new Error("the file names no vocabulary and has no token_embd.weight; export it again");
  const kept = header.pairs.filter((pair) => !pair.key.startsWith("tokenizer."));
  const out = new Writer();
  out.number(0x46554747, 4).number(header.version, 4).number(header.count, 8).number(kept.length + 3, 8);
  for (const pair of kept) out.bytes(new Uint8Array(header.buffer, pair.from, pair.to - pair.from));
  out.text("tokenizer.ggml.model").number(STRING, 4).text("rwkv");
  out.text("tokenizer.ggml.add_bos_token").number(BOOL, 4).number(0, 1);
  out.text("tokenizer.ggml.tokens").number(ARRAY, 4).number(STRING, 4).number(codes.vocabulary, 8);
  const words = new Uint8Array(codes.vocabulary * (8 + codes.length));
  for (let id = 0; id < codes.vocabulary; id++) {
    const at = id * (8 + codes.length);
    words[at] = codes.length;
    words.set(new TextEncoder().encode(codes.word(id)), at + 8);
  }
  out.bytes(words);
  out.bytes(new Uint8Array(header.buffer, header.tensors[0], header.tensors[1] - header.tensors[0]));
  out.bytes(new Uint8Array((header.alignment - (out.length % header.alignment)) % header.alignment));
  return {blob: new Blob([...out.parts, file.slice(header.start)]), codes, meta};
}
